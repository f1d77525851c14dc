"""charlm score: one line for each text."""

import io
import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from charlm.errors import UsageError

NAMES = [
    f"{a}{b}{c}"
    for a in ("an", "be", "co", "da", "el", "fi")
    for b in ("na", "li", "ra", "so")
    for c in ("", "n", "ta", "mi", "rosa")
]
TRAIN = ["data.source=names.txt", "data.records=lines", "train.sample_every=0", "-q"]
KINDS = {
    "ngram": ["--config", "ngram", "model.order=4"],
    "gpt": ["--config", "gpt", "train.max_steps=5", "model.n_embd=16", "model.block_size=6"],
}


@pytest.fixture(scope="session")
def _named(tmp_path_factory):
    from charlm.cli.main import run

    folder = tmp_path_factory.mktemp("named")
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    here = Path.cwd()
    os.chdir(folder)
    try:
        for kind, options in KINDS.items():
            assert run(["train", *options, *TRAIN, "--out", f"runs/{kind}"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def named(_named, tmp_path):
    """A folder with runs of names: an n-gram and a GPT."""
    shutil.copytree(_named, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def score(charlm, named):
    """Score a file with a run of names; return its objects and what stderr said."""

    def command(*arguments, kind="ngram", code=0):
        result = charlm("score", "--run", f"runs/{kind}", *arguments)
        assert result.code == code, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()], result.stderr

    return command


def spawn(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "charlm", "score", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_text_has_a_line_and_their_mean_is_that_of_an_evaluation(charlm, score, kind):
    found, said = score("names.txt", kind=kind)

    result = charlm("eval", "--run", f"runs/{kind}", "--file", "names.txt", "--json")
    evaluated = json.loads(result.stdout)
    assert [one["text"] for one in found] == NAMES
    assert [one["chars"] for one in found] == [len(name) + 1 for name in NAMES]
    assert list(found[0]) == ["nats", "bits_per_char", "chars", "unknown", "text"]
    chars, nats = (sum(one[key] for one in found) for key in ("chars", "nats"))
    assert chars == evaluated["chars"]
    assert nats / chars == pytest.approx(evaluated["loss_nats"], abs=1e-6)
    for one in found:
        bits = one["nats"] / math.log(2) / one["chars"]
        assert one["bits_per_char"] == pytest.approx(bits, abs=1e-6)
    step = evaluated["step"]
    assert said == (
        f"scored 120 texts, {chars} characters: {nats / chars:.4f} nats a character, "
        f"{nats / 120:.2f} a text; runs/{kind} step {step}\n"
    )


def test_rare_characters_cost_what_they_do_in_an_evaluation(charlm, named):
    options = [*KINDS["ngram"], *TRAIN, "data.min_count=30"]
    assert charlm("train", *options, "--out", "rare").code == 0
    evaluated = json.loads(charlm("eval", "rare", "--file", "names.txt", "--json").stdout)

    found = [
        json.loads(line)
        for line in charlm("score", "--run", "rare", "names.txt").stdout.splitlines()
    ]

    rare = sum(one["unknown"] for one in found)
    assert rare == sum("".join(NAMES).count(c) for c in set("".join(NAMES)) if rarely(c)) > 0
    chars, nats = (sum(one[key] for one in found) for key in ("chars", "nats"))
    assert nats / chars == pytest.approx(evaluated["loss_nats"], abs=1e-6)


def rarely(character):
    return "".join(NAMES).count(character) < 30


def test_python_gives_the_same(score):
    import charlm as package

    found, _ = score("names.txt", kind="gpt")

    scores = package.load("runs/gpt").score_each(iter(["anna", b"benata"]))

    expected = {one["text"]: one["nats"] for one in found}
    for one, text in zip(scores, ["anna", "benata"], strict=True):
        assert (one.text, one.nats) == (text, pytest.approx(expected[text], abs=1e-5))
    with pytest.raises(UsageError, match="texts: a single text; put it into a list, or use score"):
        package.load("runs/gpt").score_each("anna")


def test_a_table_has_a_text_on_one_line(score, charlm):
    Path("odd.txt").write_text("an\tna\nback\\slash\nbena\n")

    found, _ = score("odd.txt")
    result = charlm("score", "--run", "runs/ngram", "odd.txt", "--tsv")

    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[-1] for row in rows] == ["an\\tna", "back\\\\slash", "bena"]
    assert [[float(x) for x in row[:-1]] for row in rows] == [
        [one["nats"], one["bits_per_char"], one["chars"], one["unknown"]] for one in found
    ]


def test_a_terminal_gets_a_table_and_a_pipe_gets_json(charlm, score, monkeypatch):
    Path("odd.txt").write_text("anna\nan\tna\x1b[2J\n" + "bena" * 40 + "\n")
    found, _ = score("odd.txt")
    asked = charlm("score", "--run", "runs/ngram", "odd.txt", "--table").stdout.splitlines()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")

    table = charlm("score", "--run", "runs/ngram", "odd.txt").stdout.splitlines()
    lines = charlm("score", "--run", "runs/ngram", "odd.txt", "--json").stdout

    assert [json.loads(line) for line in lines.splitlines()] == found
    assert table[0].split() == ["nats", "bits/char", "characters", "unknown", "text"]
    assert [line.split()[:4] for line in table[1:]] == [
        [
            f"{one['nats']:.2f}",
            f"{one['bits_per_char']:.3f}",
            str(one["chars"]),
            str(one["unknown"]),
        ]
        for one in found
    ]
    assert [line.split()[4] for line in table[1:3]] == ["anna", "an\\tna\\x1b[2J"]
    assert [len(line) for line in table[3:]] == [80]
    assert table[3].endswith("…")
    assert asked[:3] == table[:3]


def test_a_ranked_table_has_the_ranks(charlm, named):
    result = charlm("score", "--run", "runs/ngram", "names.txt", "--table", "--top", 3)

    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["rank", "1", "2", "3"]


def test_one_form_is_chosen(charlm, named):
    result = charlm("score", "--run", "runs/ngram", "names.txt", "--table", "--json")

    assert (result.code, result.error) == (2, "--json and --table: given both; choose one")


@pytest.mark.parametrize("by", ["nats", "bits"])
def test_the_ends_of_the_ranking_are_those_of_all(score, by):
    found, _ = score("names.txt")
    key = {"nats": "nats", "bits": "bits_per_char"}[by]
    order = sorted(found, key=lambda one: one[key])
    ranked = [{"rank": rank} | one for rank, one in enumerate(order, 1)]

    assert score("names.txt", "--top", 5, "--by", by)[0] == ranked[:5]
    assert score("names.txt", "--bottom", 5, "--by", by)[0] == ranked[:-6:-1]
    assert score("names.txt", "--bottom", 2, "--top", 3, "--by", by)[0] == [
        *ranked[:3],
        *ranked[:-3:-1],
    ]


@pytest.mark.parametrize(("by", "key"), [("nats", "nats"), ("bits", "bits_per_char")])
def test_only_texts_above_a_threshold_are_shown(score, by, key):
    found, _ = score("names.txt")
    limit = sorted(one[key] for one in found)[60] + 1e-6  # which is rounded

    above, said = score("names.txt", "--threshold", limit, "--by", by)

    assert above == [one for one in found if one[key] > limit]
    assert 0 < len(above) < 60
    assert said.startswith("scored 120 texts, ")


def test_a_threshold_and_a_ranking_exclude_each_other(charlm, named):
    result = charlm("score", "--run", "runs/ngram", "names.txt", "--threshold", 2, "--top", 1)

    assert result.code == 2
    assert result.error == (
        "--threshold 2: every text of a ranking is printed; leave out --top and --bottom"
    )


def test_what_the_model_does_not_know_is_charged_and_said(score):
    Path("odd.txt").write_text("anna\nänna\r\n\n\nbeXYZ\nZ")

    found, said = score("odd.txt")

    assert [one["text"] for one in found] == ["anna", "änna", "beXYZ", "Z"]
    assert [one["unknown"] for one in found] == [0, 1, 3, 1]
    assert found[1]["nats"] > found[0]["nats"] + math.log(1_114_112 - 20)
    notes = [line for line in said.splitlines() if "note" in line]
    assert notes == [
        "charlm: note: 2 empty lines are left out",
        "charlm: note: 1 line ends with \\r\\n, taken as \\n",
        "charlm: note: 3 texts have characters that the model does not know; each is charged by a "
        "uniform code (see the docs)",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_one_character_and_of_100_000(score, kind):
    Path("long.txt").write_text("a\n" + ("an" * 50_000) + "\nb")

    found, _ = score("long.txt", kind=kind)

    assert [one["chars"] for one in found] == [2, 100_001, 2]
    assert all(0 < one["nats"] < 50 * one["chars"] for one in found)


def test_nothing_to_score_is_refused(score, monkeypatch):
    for text in (b"", b"\n\n"):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))

        found, said = score(code=3)

        assert found == []
        assert said.endswith(
            "charlm: error: standard input: holds no text to score; write one text a line, or name a "
            "file of texts\n"
        )


def test_paragraphs_are_read_as_paragraphs(charlm, tmp_path):
    Path("tunes").write_text("\n\n".join(f"X:{i}\nabc|{'abd' * (i % 3)}" for i in range(30)))
    options = ["data.source=tunes", "data.records=paragraphs", "model.order=3", "-q"]
    assert charlm("train", "--config", "ngram", *options, "--out", "run").code == 0

    result = charlm("score", "--run", "run", "tunes", "--tsv")

    lines = result.stdout.splitlines()
    assert [line.split("\t")[-1] for line in lines[:2]] == ["X:0\\nabc|", "X:1\\nabc|abd"]
    assert len(lines) == 30


def test_a_run_of_one_text_scores_lines(charlm, trained):
    Path("lines").write_text("the fox\njumps")

    result = charlm("score", "--run", "runs/tiny", "lines")

    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["chars"], second["chars"]) == (7, 5)
    Path("after").write_text("\njumps")  # an evaluation does not score the first character
    evaluated = json.loads(charlm("eval", "runs/tiny", "--file", "after", "--json").stdout)
    assert second["nats"] / 5 == pytest.approx(evaluated["loss_nats"], abs=1e-6)


def test_bytes_are_kept(charlm, tiny):
    options = ("data.source=text.txt", "data.unit=bytes", "model.order=3", "-q")
    assert charlm("train", "--config", "ngram", *options, "--out", "run").code == 0
    Path("raw").write_bytes(b"the \xff\n")

    (one,) = map(json.loads, charlm("score", "--run", "run", "raw").stdout.splitlines())

    assert list(one) == ["nats", "bits_per_byte", "chars", "unknown", "text", "text_base64"]
    assert (one["chars"], one["text"], one["text_base64"]) == (5, "the \ufffd", "dGhlIP8=")
    done = subprocess.run(
        [sys.executable, "-m", "charlm", "score", "--run", "run", "raw", "--tsv"],
        capture_output=True,
    )
    assert done.stdout.endswith(b"\tthe \xff\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\xe9b\n", "not UTF-8 at byte 1 (0xe9), line 1; convert it to UTF-8 first, with iconv"),
        (b"%PDF-123", "looks like PDF"),
        (
            "a\U0010ffffb\n".encode(),
            "holds U+10FFFF, which marks the borders of records; remove it",
        ),
    ],
)
def test_what_is_no_text_is_refused(charlm, named, content, message):
    Path("odd").write_bytes(content)

    result = charlm("score", "--run", "runs/ngram", "odd")

    assert (result.code, result.stdout) == (3, "")
    assert result.error.startswith(f"odd: {message}")
    Path("odder").write_bytes(content)
    many = charlm("score", "--run", "runs/ngram", "odd*")
    assert many.error.partition(":")[2] == result.error.partition(":")[2]
    assert charlm("score", "--run", "runs/ngram", "no such file").code == 3
    assert charlm("score", "--run", "no such run").code == 4


def test_a_slow_pipe_is_answered(named):
    process = spawn("--run", "runs/ngram", bufsize=0)
    with process:
        for name in (b"anna\n", b"bela\n"):
            process.stdin.write(name)
            ready, _, _ = select.select([process.stdout], [], [], 200)
            assert ready
            assert json.loads(process.stdout.readline())["text"] == name.decode().strip()
        process.stdin.write(b"fi")  # a line that is not complete waits
        assert not select.select([process.stdout], [], [], 0.5)[0]
        process.stdin.close()
        assert json.loads(process.stdout.readline())["text"] == "fi"
        assert process.wait(timeout=200) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_wait_for_more(named, number, code):
    process = spawn("--run", "runs/ngram", bufsize=0)
    with process:
        process.stdin.write(b"anna\n")
        process.stdout.readline()
        process.send_signal(number)

        errors = process.stderr.read()

        assert (process.wait(timeout=200), errors) == (code, b"")


def test_a_closed_pipe_ends_in_silence(named):
    Path("many.txt").write_text("\n".join(NAMES * 2000))
    process = spawn("--run", "runs/ngram", "many.txt")
    with process:
        process.stdout.readline()
        process.stdout.close()

        errors = process.stderr.read()

        assert (process.wait(timeout=200), errors) == (141, b"")
