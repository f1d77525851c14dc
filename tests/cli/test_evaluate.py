import io
import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest

from charlm.cli.signals import StopSignals
from tests.conftest import TEXT


def evaluate(charlm, *arguments: object) -> dict:
    result = charlm("eval", "--json", *arguments)
    notes = [line for line in result.stderr.splitlines() if "stand in the training" not in line]
    assert (result.code, notes) == (0, []), result.stderr
    return json.loads(result.stdout)


def test_json_names_the_protocol_and_every_unit(charlm, trained):
    score = evaluate(charlm)

    assert list(score) == [
        "split",
        "protocol",
        "chars",
        "loss_nats",
        "bits_per_char",
        "perplexity",
        "bits_per_byte",
        "run",
        "step",
        "file",
        "interval",
        "block_size",
        "stride",
        "unknown",
        "unit",
    ]
    assert (score["split"], score["protocol"], score["chars"]) == ("val", "windows", 257)
    assert score["file"] is None
    assert (score["run"], score["step"]) == ("runs/tiny", 6)
    assert score["bits_per_char"] == pytest.approx(score["loss_nats"] / math.log(2))
    assert score["perplexity"] == pytest.approx(math.exp(score["loss_nats"]))
    assert score["bits_per_byte"] == score["bits_per_char"]  # the text is all ASCII
    assert (score["block_size"], score["stride"], score["unknown"]) == (8, None, 0)
    assert score["interval"] is None  # of 257 characters


def test_the_score_is_the_one_that_training_reported(charlm, trained):
    records = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    best = min(record["loss_nats"] for record in records if record["kind"] == "eval")

    assert evaluate(charlm)["loss_nats"] == best


def test_a_file_is_scored_like_the_part_with_the_same_text(charlm, trained):
    text = Path("text.txt").read_text()
    Path("val").write_text(text[-258:])

    given, part = evaluate(charlm, "--file", "val"), evaluate(charlm)

    assert given["loss_nats"] == part["loss_nats"]
    assert (given["split"], given["file"], given["chars"]) == (None, "val", 257)
    assert charlm("eval", "--file", "val").stdout.startswith("val: ")


def test_the_training_part_is_another(charlm, trained):
    assert evaluate(charlm, "--split", "train")["chars"] == 2321


def test_a_shorter_window_is_allowed_and_a_longer_one_is_not(charlm, trained):
    assert evaluate(charlm, "--block-size", 2)["loss_nats"] != evaluate(charlm)["loss_nats"]

    result = charlm("eval", "--block-size", 9)
    assert result.code == 2
    assert result.error == "--block-size 9: this model sees at most 8 characters"


def test_people_read_one_line(charlm, trained):
    result = charlm("eval")

    score = evaluate(charlm)
    assert result.stdout == (
        f"val: {score['loss_nats']:.4f} nats, {score['bits_per_char']:.4f} bits per character, "
        f"{score['bits_per_byte']:.4f} bits per byte, perplexity {score['perplexity']:.3f}\n"
    )
    assert result.stderr == (
        "scored 257 characters in windows of 8, with context only inside the window; "
        "runs/tiny step 6\n"
        "no 95 % interval: the text has fewer than 20 blocks of 1,000 characters\n"
        "reached: past uniform (3.4340), short of unigram (3.1792), in windows of 8\n"
    )


def test_a_longer_text_has_an_interval(charlm, trained):
    Path("long.txt").write_text(Path("text.txt").read_text() * 8)

    result = charlm("eval", "--file", "long.txt")
    score = evaluate(charlm, "--file", "long.txt")

    low, high = score["interval"]["low"], score["interval"]["high"]
    assert low < score["loss_nats"] < high
    assert f"{score['loss_nats']:.4f} nats (95 %: {low:.4f} to {high:.4f}), " in result.stdout
    assert result.stderr.endswith(
        "95 % interval: block bootstrap, 2,000 resamples of 21 blocks of 1,000\n"
    )


def test_sliding_windows_give_more_context(charlm, trained):
    half, least = evaluate(charlm, "--protocol", "sliding"), evaluate(charlm)
    most = evaluate(charlm, "--protocol", "sliding", "--stride", 1)
    whole = evaluate(charlm, "--protocol", "sliding", "--stride", 8)

    assert [s["stride"] for s in (half, most, whole)] == [4, 1, 8]
    assert half["chars"] == most["chars"] == whole["chars"] == least["chars"]
    assert whole["loss_nats"] == pytest.approx(least["loss_nats"])
    assert len({half["loss_nats"], most["loss_nats"], least["loss_nats"]}) == 3


def test_a_model_that_remembers_little_can_be_shown_any_length(charlm, tiny):
    options = ("data.source=text.txt", "train.max_steps=5", "train.warmup_steps=0", "-q")
    assert charlm("train", "--config", "bigram", *options).code == 0

    stream = evaluate(charlm, "--protocol", "stream")
    longer = evaluate(charlm, "--block-size", 1000)

    assert (stream["protocol"], stream["block_size"], stream["stride"]) == ("stream", None, None)
    assert longer["block_size"] == 1000
    assert stream["loss_nats"] == pytest.approx(longer["loss_nats"], rel=1e-6)
    assert stream["loss_nats"] == pytest.approx(evaluate(charlm)["loss_nats"], rel=1e-6)


def test_a_counted_model_uses_all_the_context_it_remembers(charlm, tiny):
    assert charlm("train", "--config", "ngram", "data.source=text.txt", "-q").code == 0

    stream = evaluate(charlm, "--protocol", "stream")
    losses = [evaluate(charlm, "--block-size", size)["loss_nats"] for size in (2, 8, 1000)]
    charlm("eval", "--protocol", "stream", "--per-char", "chars.jsonl")

    assert losses == sorted(losses, reverse=True)  # longer windows forget less
    assert stream["loss_nats"] == pytest.approx(losses[-1], rel=1e-5)
    lines = [json.loads(line) for line in Path("chars.jsonl").read_text().splitlines()]
    bits = sum(line["bits"] for line in lines)
    assert bits == pytest.approx(stream["bits_per_char"] * stream["chars"], abs=1e-3)


def test_a_counted_model_learns_from_what_it_was_scored_on(charlm, tiny):
    options = ("data.source=text.txt", "model.order=3", "-q")
    assert charlm("train", "--config", "ngram", *options).code == 0

    Path("new.txt").write_text(TEXT[::-1])

    def score(protocol, *more):
        return evaluate(charlm, "--file", "new.txt", "--protocol", protocol, *more)

    stream, adaptive = score("stream"), score("adaptive")
    still = score("adaptive", "--set", "adapt.counts=false")

    assert (adaptive["protocol"], adaptive["block_size"]) == ("adaptive", None)
    assert (adaptive["learned"], still["learned"]) == (["counts"], [])
    assert adaptive["chars"] == stream["chars"]
    assert adaptive["loss_nats"] < 0.5 * stream["loss_nats"]
    assert still["loss_nats"] == pytest.approx(stream["loss_nats"], rel=1e-6)


def test_people_read_what_it_learned_and_which_adaptive_baselines_it_passed(charlm, tiny):
    half = "data.val_fraction=0.5"  # long enough for compressors
    assert charlm("train", "--config", "ngram", "data.source=text.txt", half, "-q").code == 0

    said = charlm("eval", "--protocol", "adaptive").stderr

    assert "scored 1,289 characters one by one, each before the model could learn from it" in said
    assert "adaptive: learned counts while reading" in said
    (reached,) = [line for line in said.splitlines() if "reached: " in line]
    assert reached.endswith(", adaptive")
    assert "Kneser-Ney" not in reached


def test_what_learned_nothing_is_told_what_could_let_it_learn(charlm, trained):
    nothing = charlm("eval", "--protocol", "adaptive").stderr
    some = charlm("eval", "--protocol", "adaptive", "--set", "adapt.weights=true").stderr

    assert "adaptive: learned nothing; try --set adapt.weights=true\n" in nothing
    assert "adaptive: learned weights while reading\n" in some


def test_the_loss_by_position_is_shown_and_written(charlm, trained):
    score = evaluate(charlm, "--by-position")
    result = charlm("eval", "--by-position")

    nats = score["by_position"]
    assert len(nats) == 8
    # 257 characters are 32 windows of 8 and one character, which is at position 1.
    total = sum(33 * n if p == 0 else 32 * n for p, n in enumerate(nats))
    assert total / 257 == pytest.approx(score["loss_nats"])
    assert result.stdout.splitlines()[1:] == [
        "position    nats",
        *(f"{p:8d}  {nats[p - 1]:.4f}" for p in (1, 2, 4, 8)),
    ]


def test_every_character_is_written_with_its_bits_and_what_was_likelier(charlm, trained):
    score = evaluate(charlm, "--per-char", "chars.jsonl")
    result = charlm("eval", "--per-char", "-")

    written = Path("chars.jsonl").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert result.stdout == written
    assert result.stderr.startswith("val: ")  # the summary stays out of the way
    text = Path("text.txt").read_text()[-258:]
    assert "".join(line["char"] for line in lines) == text[1:]
    assert [line["position"] for line in lines] == list(range(1, 258))
    bits = sum(line["bits"] for line in lines)
    assert bits == pytest.approx(score["bits_per_char"] * score["chars"], abs=1e-3)
    for line in lines:
        names, p = zip(*line["likeliest"], strict=True)
        assert len(set(names)) == 5
        assert list(p) == sorted(p, reverse=True)
        if line["char"] in names:
            assert -math.log2(p[names.index(line["char"])]) == pytest.approx(line["bits"], abs=1e-4)


def test_unknown_characters_are_charged_by_the_stated_rule(charlm, trained):
    text = Path("text.txt").read_text()[-258:]
    Path("plain.txt").write_text(text)
    Path("strange.txt").write_text(text[:100] + "é" + text[100:200] + "☃é" + text[200:])
    strange = ("--file", "strange.txt", "--unknown", "uniform")

    plain, score = evaluate(charlm, "--file", "plain.txt"), evaluate(charlm, *strange)
    told = charlm("eval", *strange, "--per-char", "chars.jsonl").stderr

    symbols = len(json.loads((trained / "tokenizer.json").read_text())["alphabet"])
    where = math.log(262 * math.comb(261, 3)) / 3
    charge = where + math.log(1_114_112 - symbols)
    assert (score["chars"], score["unknown"]) == (260, 3)
    total = plain["loss_nats"] * 257 + 3 * charge
    assert score["loss_nats"] == pytest.approx(total / 260, rel=1e-6)
    assert score["bits_per_byte"] == pytest.approx(score["bits_per_char"] * 260 / 264)
    bits = charge / math.log(2)
    assert f"; they cost {bits:.2f} bits each (--unknown uniform)" in told
    lines = [json.loads(line) for line in Path("chars.jsonl").read_text().splitlines()]
    assert [(n["position"], n["char"]) for n in lines if not n["likeliest"]] == [
        (100, "é"),
        (201, "☃"),
        (202, "é"),
    ]


def test_a_text_without_unknown_characters_is_scored_as_ever(charlm, trained):
    usual = evaluate(charlm, "--file", "text.txt")

    assert evaluate(charlm, "--file", "text.txt", "--unknown", "uniform") == usual


def test_standard_input_is_scored_like_a_file(charlm, trained, monkeypatch):
    text = Path("text.txt").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))

    piped = evaluate(charlm, "--file", "-")

    assert piped["loss_nats"] == evaluate(charlm, "--file", "text.txt")["loss_nats"]


@pytest.mark.parametrize(
    ("options", "core"),
    [
        (["--protocol", "sliding", "--stride", 0], "--stride 0: expected 1 to 8"),
        (["--protocol", "sliding", "--stride", 9], "--stride 9: expected 1 to 8"),
        (["--stride", 4], "--stride 4: windows has no stride; use it with --protocol sliding"),
        (["--protocol", "stream"], "--protocol stream: this model sees at most 8 characters"),
        (["--protocol", "sliding", "--by-position"], "--by-position: sliding has no positions"),
        (["--per-char", "-", "--json"], "--per-char -: --json needs standard output too"),
        (["--per-char", ""], "--per-char: got an empty name"),
        (["--protocol", "random"], "expected one of windows, sliding, stream, adaptive"),
        (["--protocol", "adaptive", "--block-size", 4], "--block-size 4: adaptive has no window"),
        (["--set", "adapt.counts=false"], "nothing is learned under the protocol windows; use"),
        (
            ["--protocol", "adaptive", "--set", "run.seed=1"],
            "--set run.seed=1: only keys of the section adapt can be set here",
        ),
        (["--block-size", 0], "--block-size"),
    ],
)
def test_options_that_make_no_sense_are_refused(charlm, trained, options, core):
    result = charlm("eval", *options)

    assert (result.code, result.stdout) == (2, "")
    assert core in result.error


def test_a_place_for_characters_that_cannot_be_written_is_named(charlm, trained):
    result = charlm("eval", "--per-char", "no/where.jsonl")

    assert (result.code, result.stdout) == (5, "")
    assert result.error.startswith("no/where.jsonl: No such file or directory")


@pytest.mark.parametrize(
    ("place", "options", "core"),
    [
        ("runs/tiny/config.yaml", [], "inside the run runs/tiny"),
        ("runs/tiny/new.jsonl", [], "inside the run runs/tiny"),
        ("text.txt", [], "belongs to the text text.txt"),
        ("texts/../texts/a.txt", ["--file", "texts/a.txt"], "belongs to the text texts/a.txt"),
        ("texts/a.txt", ["--file", "texts"], "belongs to the text texts"),
        ("texts/a.txt", ["--file", "texts/*.txt"], "belongs to the text texts/*.txt"),
    ],
)
def test_characters_are_not_written_over_the_run_or_the_text(charlm, trained, place, options, core):
    Path("texts").mkdir()
    Path("texts/a.txt").write_text(Path("text.txt").read_text())
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

    result = charlm("eval", "--per-char", place, *options)

    assert (result.code, result.stdout) == (2, "")
    assert result.error == f"--per-char {place}: {core}; choose another place"
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_stop_midway_leaves_the_older_characters_whole(charlm, trained, monkeypatch):
    Path("chars.jsonl").write_text("older")
    before = set(Path().rglob("*"))
    monkeypatch.setattr("charlm.evaluation.protocols.CHARS_A_PASS", 16)
    asked = iter([False] * 5)
    monkeypatch.setattr(StopSignals, "requested", lambda self: next(asked, True))

    result = charlm("eval", "--per-char", "chars.jsonl")

    assert result.code == 130
    assert next(asked, None) is None  # it had begun to write
    assert Path("chars.jsonl").read_text() == "older"
    assert set(Path().rglob("*")) == before


def test_a_link_to_the_characters_stays_a_link(charlm, trained):
    Path("real.jsonl").write_text("older")
    Path("link.jsonl").symlink_to("real.jsonl")

    assert charlm("eval", "--per-char", "link.jsonl").code == 0

    assert Path("link.jsonl").is_symlink()
    assert len(Path("real.jsonl").read_text().splitlines()) == 257


def test_characters_go_into_a_pipe_and_do_not_replace_it(charlm, trained):
    Path("few.txt").write_text(Path("text.txt").read_text()[:11])
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)

    assert charlm("eval", "--file", "few.txt", "--per-char", "pipe").code == 0

    with os.fdopen(reader, "rb") as pipe:
        assert len(pipe.read().splitlines()) == 10


@pytest.mark.parametrize(
    ("text", "core"),
    [
        ("☃☃", "strange.txt: the model knows none of its characters"),
        ("☃t☃", "only one character that the model knows"),
    ],
)
def test_a_text_without_known_characters_is_refused(charlm, trained, text, core):
    Path("strange.txt").write_text(text)

    result = charlm("eval", "--file", "strange.txt", "--unknown", "uniform")

    assert (result.code, result.stdout) == (3, "")
    assert core in result.error


def test_a_part_that_was_not_cut_is_answered_with_its_fraction(charlm, trained):
    result = charlm("eval", "--split", "test")

    assert result.code == 3
    assert result.error.endswith("; use a run made with a larger data.test_fraction")


@pytest.mark.parametrize(
    ("content", "core"),
    [
        (b"", "empty (0 bytes)"),
        (b"t", "only one character; the first of a text is not scored"),
        ("the é".encode(), "'é' (U+00E9)"),
        (b"the \xff", "not UTF-8 at byte 4 (0xff), line 1"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused(charlm, trained, content, core):
    Path("bad.txt").write_bytes(content)

    result = charlm("eval", "--file", "bad.txt")

    assert (result.code, result.stdout) == (3, "")
    assert result.error.startswith("bad.txt: ")
    assert core in result.error


def test_a_file_without_a_name_is_not_the_validation_part(charlm, trained):
    result = charlm("eval", "--file", "")

    assert (result.code, result.stdout) == (2, "")
    assert result.error.startswith("--file: got an empty name")


def test_an_unknown_part_is_refused(charlm, trained):
    result = charlm("eval", "--split", "dev")

    assert result.code == 2
    assert "--split dev: expected one of train, val, test" in result.error


def test_scoring_leaves_nothing_behind(charlm, trained):
    before = set(Path().rglob("*"))

    evaluate(charlm, "--file", "text.txt")

    assert set(Path().rglob("*")) == before


def test_bytes_are_called_bytes(charlm, tiny):
    charlm("train", "--config", "tiny.yaml", "-q", "data.unit=bytes")
    Path("strange.txt").write_text("thé ☃")

    result = charlm("eval", "--file", "strange.txt", "--per-char", "-")

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert bytes(line["byte"] for line in lines) == "hé ☃".encode()
    assert all(isinstance(byte, int) for line in lines for byte, _ in line["likeliest"])
    summary = result.stderr.splitlines()[0]
    assert summary.count(" bits per byte, ") == 1
    assert "character" not in summary


def test_no_other_run_is_written_over(charlm, trained):
    shutil.copytree(trained, "runs/other")
    before = Path("runs/other/config.yaml").read_bytes()

    result = charlm("eval", "--run", "runs/tiny", "--per-char", "runs/other/config.yaml")

    assert result.code == 2
    assert result.error.startswith("--per-char runs/other/config.yaml: inside another run; ")
    assert Path("runs/other/config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said", "mend"),
    [
        (b"caf\xe9 au lait", "not UTF-8 at byte 3 (0xe9), line 1", "convert it to UTF-8 first"),
        ("fox".encode("utf-16"), "starts like UTF-16", "convert it to UTF-8 first"),
    ],
)
def test_how_to_mend_a_text_is_said_in_words_of_the_command(charlm, trained, content, said, mend):
    Path("odd.txt").write_bytes(content)

    error = charlm("eval", "--file", "odd.txt").error
    assert error.startswith(f"odd.txt: {said}; {mend}")
    assert "data." not in error
    for command in ("baselines", ("data", "info")):
        words = [command] if isinstance(command, str) else command
        error = charlm(*words, "odd.txt").error
        assert error.startswith(f"odd.txt: {said}; use --encoding ")
        assert "data." not in error


def test_what_is_no_text_is_for_a_run_of_bytes(charlm, trained):
    Path("odd.bin").write_bytes(bytes(100))

    assert charlm("eval", "--file", "odd.bin").error == (
        "odd.bin: looks binary (100 NULs in its first 100 bytes); use a run of bytes, which can "
        "score it"
    )
    assert charlm("baselines", "odd.bin").error.endswith("; use --unit bytes")


def test_a_run_of_bytes_speaks_of_bytes(charlm, tiny):
    config = (
        "data: {source: text.txt, unit: bytes}\nmodel: {type: ngram, order: 3, block_size: 6}\n"
    )
    Path("bytes.yaml").write_text(config)
    trained = charlm("train", "-c", "bytes.yaml", "--out", "run")
    json_said = json.loads(charlm("eval", "--run", "run", "--json").stdout)
    said = [
        charlm("eval", "--run", "run", "--protocol", "stream"),
        charlm("eval", "--run", "run", "--protocol", "sliding", "--split", "train"),
        charlm("explain", "-c", "bytes.yaml"),
        trained,
    ]

    for result in said:
        assert result.code == 0
        assert "character" not in result.stdout + result.stderr
    assert "bits per byte, step 1)" in trained.stdout
    assert "  bits/byte  " in trained.stderr
    assert "its last 2 bytes" in said[0].stderr
    assert json_said["unit"] == "bytes"
    assert json_said["bits_per_char"] is None
    assert json_said["bits_per_byte"] == pytest.approx(json_said["loss_nats"] / math.log(2))


def test_a_text_that_guessing_predicts_better_is_said_to_be(charlm, tiny):
    Path("text.txt").write_text("ab" * 2000)
    assert charlm("train", "--config", "ngram", "data.source=text.txt", "--out", "run").code == 0
    Path("worse.txt").write_text("aabbé" * 20 + "ö")
    Path("alike.txt").write_text("ab" * 50 + "é")

    worse, alike = (
        charlm("eval", "run", "--file", name, "--unknown", "uniform").stderr
        for name in ("worse.txt", "alike.txt")
    )

    note = re.search(r"note: this is worse than uniform \((.*)\): guessing, every", worse)
    where = (math.log(102) + math.log(math.comb(101, 21))) / 21
    unknown = 21 * (where + math.log(0x110000 - 2))
    scored = 100 + 1 - 1  # of 101, the first is not
    assert float(note[1]) == pytest.approx((79 * math.log(2) + unknown) / scored, abs=1e-3)
    assert "21 of them are unknown to the model ('é' (U+00E9), 'ö' (U+00F6)); they" in worse
    assert "this is" not in alike
    assert "1 of them is unknown to the model ('é' (U+00E9)); " in alike
