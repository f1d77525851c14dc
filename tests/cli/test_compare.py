import json
import math
import shutil
import signal
import weakref
from itertools import chain
from pathlib import Path
from statistics import mean, stdev

import pytest

from tests.conftest import TEXT, TINY

LONGER = [
    "model.block_size=16",
    "train.max_steps=1",
    "train.warmup_steps=0",
    "--out",
    "runs/longer",
]
BIGRAM = TINY.replace("gpt", "bigram").replace("block_size: 8", "block_size: 4")
BIGRAM = "".join(
    line for line in BIGRAM.splitlines(keepends=True) if "style" not in line and "n_" not in line
)
NGRAM = "data: {source: text.txt}\nmodel: {type: ngram, order: 3, block_size: 6}\n"
NGRAM += "run: {device: cpu}\n"


@pytest.fixture(scope="module")
def _runs(_trained, tmp_path_factory):
    """Five runs: the tiny one and it with another seed, one of longer blocks, two of any length."""
    from charlm.cli.main import run

    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(_trained, folder, dirs_exist_ok=True)
    (folder / "bigram.yaml").write_text(BIGRAM)
    (folder / "ngram.yaml").write_text(NGRAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, *options in (
            ("tiny", "--seed", "7", "run.out=runs/seed"),
            ("tiny", *LONGER),
            ("bigram", "--out", "runs/bigram"),
            ("ngram", "--out", "runs/ngram"),
        ):
            assert run(["train", "-c", f"{name}.yaml", "-q", *options]) == 0, name
    return folder


@pytest.fixture
def runs(_runs, tmp_path):
    shutil.copytree(_runs, tmp_path, dirs_exist_ok=True)


def compared(charlm, *arguments: object) -> dict:
    result = charlm("compare", "--json", *arguments)
    assert (result.code, result.stderr) == (0, ""), result.stderr
    return json.loads(result.stdout)


def evaluated(charlm, run: str, *arguments: object) -> dict:
    return json.loads(charlm("eval", "--json", "--run", run, *arguments).stdout)


def test_each_run_is_scored_as_eval_does(charlm, runs):
    found = compared(charlm, "--protocol", "windows,sliding,stream,adaptive")

    assert (found["block_size"], found["stride"]) == (8, 4)
    assert {row["run"] for row in found["runs"]} == {
        f"runs/{name}" for name in ("tiny", "seed", "longer", "bigram", "ngram")
    }
    for row in found["runs"]:
        counted = row["model"] in ("bigram", "ngram")
        supported = ["windows", "sliding", *(["stream"] if counted else []), "adaptive"]
        assert list(row["scores"]) == supported
        assert row["learned"] == (["counts"] if row["model"] == "ngram" else [])
        for protocol, score in row["scores"].items():
            length = ["--block-size", 8] if protocol in ("windows", "sliding") else []
            alone = evaluated(charlm, row["run"], "--protocol", protocol, *length)
            assert row["chars"] == alone["chars"] == 257
            assert score == {key: alone[key] for key in score}
            assert alone["stride"] == (found["stride"] if protocol == "sliding" else None)


def test_a_row_says_what_the_run_is_and_what_it_took(charlm, runs):
    rows = {row["run"]: row for row in compared(charlm)["runs"]}
    records = map(json.loads, Path("runs/tiny/metrics.jsonl").read_text().splitlines())
    saved = {r["step"]: r["seconds"] for r in records if r["kind"] == "save"}

    tiny = rows["runs/tiny"]
    assert (tiny["model"], tiny["step"], tiny["seed"]) == ("gpt", 6, 1337)
    assert tiny["seconds"] == saved[6]
    assert tiny["text"]["source"] == "text.txt"
    assert rows["runs/bigram"]["parameters"] == 31 * 31
    train = TEXT[:2322]
    distinct = {train[i : i + n] for n in (2, 3) for i in range(len(train) - n + 1)}
    assert (rows["runs/ngram"]["parameters"], rows["runs/ngram"]["ngrams"]) == (
        0,
        31 + len(distinct),
    )


def test_the_table_has_the_best_run_first(charlm, runs):
    result = charlm("compare", "--protocol", "windows,sliding,stream")
    heading, titles, *rows = result.stdout.splitlines()
    losses = [row.split(" s  ")[1].split()[0] for row in rows if row.startswith("runs/")]

    assert result.code == 0
    assert heading.startswith("text.txt (")
    assert heading.endswith("): val, 257 characters scored")
    assert titles.split("  ")[-3:] == [
        "windows of 8, nats",
        "sliding of 8 by 4, nats",
        "stream, nats",
    ]
    assert rows[0].split()[:4] == ["runs/ngram", "ngram", "kneser-ney", "3"]
    assert losses == sorted(losses)
    assert len(losses) == 5
    assert next(row for row in rows if row.startswith("runs/tiny")).endswith("  -")
    assert result.stderr == (
        "charlm: note: windows of 8 are the longest that all runs support; some support more\n"
    )


def test_seeds_stand_together_with_their_mean_and_spread(charlm, runs):
    shutil.copytree("runs/tiny", "runs/again")  # a repeat says nothing about seeds
    found = compared(charlm)
    losses = {row["run"]: row["scores"]["windows"]["loss_nats"] for row in found["runs"]}
    pair = [losses["runs/tiny"], losses["runs/seed"]]

    (group,) = found["seeds"]
    assert len(group["runs"]) == 2
    assert "runs/seed" in group["runs"]
    assert group["nats"]["windows"] == pytest.approx({"mean": mean(pair), "sd": stdev(pair)})
    lines = charlm("compare").stdout.splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith("  mean of 2 seeds"))
    assert lines[place].endswith(f"  {mean(pair):.4f}, sd {stdev(pair):.4f}")
    assert {line.split()[0] for line in lines[place - 3 : place]} == {
        "runs/tiny",
        "runs/again",
        "runs/seed",
    }


def test_a_long_enough_text_has_intervals(charlm, runs):
    Path("text.txt").write_text(TEXT * 10)
    options = ("--out", "long", "data.val_fraction=0.9", "eval.baselines=false")
    charlm("train", "-c", "ngram.yaml", "-q", *options)
    interval = evaluated(charlm, "long", "--protocol", "stream")["interval"]

    result = charlm("compare", "long", "--protocol", "stream")

    assert result.stdout.rstrip().endswith(f" [{interval['low']:.4f}, {interval['high']:.4f}]")
    assert result.stderr.startswith("[low, high]: 95 % interval for other texts of this kind")


def test_each_text_has_a_table_of_its_own(charlm, runs):
    Path("text.txt").write_text(TEXT[::-1])
    charlm("train", "-c", "bigram.yaml", "-q", "--out", "runs/other")
    charlm("train", "-c", "bigram.yaml", "-q", "--out", "runs/cut", "data.val_fraction=0.2")

    result = charlm("compare", "runs/bigram", "runs/other", "runs/cut")

    tables = result.stdout.split("\n\n")
    assert sorted(table.splitlines()[-1].split()[0] for table in tables) == [
        "runs/bigram",
        "runs/cut",
        "runs/other",
    ]
    assert "3 tables: losses are comparable only within one" in result.stderr


def test_the_window_is_the_longest_that_all_take_or_as_asked(charlm, runs):
    both = ["runs/bigram", "runs/ngram"]

    assert compared(charlm, "runs/longer", *both)["block_size"] == 16
    assert compared(charlm, *both)["block_size"] == 6
    assert compared(charlm, *both, "--protocol", "stream")["block_size"] is None
    assert compared(charlm, *both, "--block-size", 50)["block_size"] == 50
    assert charlm("compare", "runs/longer", *both).stderr == ""
    assert charlm("compare", "runs/longer", "runs/tiny", "--block-size", 2).stderr == ""


def test_runs_that_nobody_named_may_be_unfinished(charlm, runs):
    shutil.rmtree("runs/tiny/checkpoints")
    Path("runs/seed/config.yaml").write_text("model: 3")

    result = charlm("compare")

    notes = [line for line in result.stderr.splitlines() if "left out" in line]
    assert result.code == 0
    assert [note.split()[4].rstrip(":").split("/config")[0] for note in notes] == [
        "runs/seed",
        "runs/tiny",
    ]
    assert "runs/longer" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "core"),
    [
        (["nope"], 4, "nope: not found"),
        (["runs/tiny", "runs"], 4, "runs: is not a run (no config.yaml)"),
        (["runs/ngram", "empty"], 4, "empty: no checkpoint 'best'; saved steps: none yet"),
        (
            ["--split", "test"],
            3,
            "runs/: no run can be compared, 5 left out; the first: runs/bigram: its test "
            "part has 0 characters",
        ),
        (["runs/tiny", "--split", "test"], 3, "runs/tiny: its test part has 0 characters"),
        (["--block-size", "17", "runs/longer"], 2, "runs/longer: --block-size 17: this model"),
        (["--block-size", "0"], 2, "--block-size "),
        (
            ["--protocol", "magic"],
            2,
            "--protocol 'magic': unknown; use one or more of windows, sliding, stream, adaptive",
        ),
        (["--protocol", ""], 2, "--protocol ''"),
        (
            ["runs/tiny", "--protocol", "stream"],
            2,
            "--protocol stream: none of these runs supports it",
        ),
        (["--protocol", "stream", "--block-size", "8"], 2, "--block-size 8: stream has no window"),
        (
            ["--protocol", "stream,adaptive", "--block-size", "8"],
            2,
            "--block-size 8: stream and adaptive have no window",
        ),
        (["--split", "train"], 2, "--split "),
        (["--device", "abacus"], 2, "unknown device 'abacus'; use auto, cpu"),
        (["--device", "cuda:99"], 5, "--device cuda:99: not available"),
    ],
)
def test_bad_input_is_one_line(charlm, runs, arguments, code, core):
    shutil.copytree("runs/tiny", "empty")
    shutil.rmtree("empty/checkpoints")

    result = charlm("compare", *arguments)

    assert (result.code, result.stdout) == (code, "")
    assert core in result.error


def test_without_runs_it_says_how_to_make_one(charlm):
    result = charlm("compare")

    assert result.code == 4
    assert "charlm train --config quickstart" in result.error


def test_a_signal_ends_it(charlm, runs, monkeypatch):
    def score(*_, **__):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("charlm.evaluation.comparison.score_text", score)

    result = charlm("compare")

    assert (result.code, result.stdout) == (130, "")


def test_one_model_is_in_memory_at_a_time(charlm, runs, monkeypatch):
    from charlm.evaluation import comparison as saved

    def load(*arguments):
        for model in filter(None, (reference() for reference in loaded)):
            assert all(tensor.is_meta for tensor in chain(model.buffers(), model.parameters()))
        found = load_model(*arguments)
        loaded.append(weakref.ref(found.model))
        return found

    loaded: list[weakref.ref] = []
    load_model = saved.load_model
    monkeypatch.setattr(saved, "load_model", load)

    compared(charlm, "--protocol", "windows,stream")

    assert len(loaded) == 2 * 5


def test_comparing_changes_no_run(charlm, runs):
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}

    compared(charlm)

    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


@pytest.mark.parametrize("letter", ["o", "\u00f6", "\U0001f600"])
def test_runs_of_characters_and_of_bytes_share_a_table_by_bits_per_byte(charlm, tiny, letter):
    text = letter * 500 + TEXT.replace("o", letter)  # a tenth of the bytes is more than of these
    Path("text.txt").write_text(text, encoding="utf-8")
    for unit in ("chars", "bytes"):
        Path(f"{unit}.yaml").write_text(NGRAM.replace("{source", f"{{unit: {unit}, source"))
        for seed in (1, 2):
            charlm("train", "-c", f"{unit}.yaml", "--out", f"{unit}{seed}", "-q", "--seed", seed)
    runs = ("chars1", "bytes1", "chars2", "bytes2")

    result = charlm("compare", *runs, "--protocol", "windows,stream")
    found = json.loads(charlm("compare", *runs, "--json").stdout)["runs"]

    head, titles, *rows = result.stdout.splitlines()
    assert len(rows) == 6  # one table, and the means of two groups
    assert titles.split("  ")[-1] == "stream, bits/byte"
    scores = {run["run"]: run["scores"]["windows"] for run in found}
    sizes = {run["run"]: run["chars"] for run in found}
    ours, theirs = scores["chars1"], scores["bytes1"]
    assert (
        ours["bits_per_byte"]
        != theirs["bits_per_byte"]
        == pytest.approx(theirs["loss_nats"] / math.log(2))
    )
    for row in rows:
        name = row.split()[0]
        if name in scores:
            assert f"  {scores[name]['bits_per_byte']:.4f}  " in row
    # The same bytes: those after the first character, which is not scored.
    scored = Path("text.txt").read_bytes()[-sizes["bytes1"] :]
    assert len(scored.decode()) == sizes["chars1"]
    assert head.endswith(f": val, {sizes['bytes1']:,} bytes scored")
    assert "compared by bits per byte, on the same bytes" in result.stderr
    assert "losses are comparable only within" not in result.stderr


def test_a_run_that_guessing_beats_is_named(charlm, tiny):
    Path("text.txt").write_text("a" * 900 + "b" * 99 + "\n")
    Path("ngram.yaml").write_text(NGRAM)
    charlm("train", "-c", "ngram.yaml", "--out", "run", "-q")

    said = charlm("compare", "run").stderr

    assert "charlm: note: run, windows: 1." in said
    assert "nats, worse than uniform (1.0986): guessing, every symbol alike, is better" in said
