import io
import json
import math
import os
import random
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

import charlm as package
from charlm.cli.baselines import reached
from charlm.errors import MachineError
from charlm.evaluation import Ladder, Rung, Score
from charlm.evaluation.compressors import compressors
from charlm.runs import RunFolder
from tests.conftest import TEXT

TRAIN = ("train", "--config", "tiny.yaml", "train.max_steps=2")
NAMES = ["uniform", "unigram", "bigram", "trigram", "5-gram"]


@pytest.fixture(autouse=True)
def _text(tiny: Path) -> None:
    """Every test has the tiny text beside it."""


def as_json(charlm, *arguments: object) -> dict:
    result = charlm("baselines", "--json", *arguments)
    assert (result.code, result.stderr) == (0, ""), result.stderr
    return json.loads(result.stdout)


def test_the_table_has_a_row_for_each_baseline_and_says_how_to_read_it(charlm):
    result = charlm("baselines", "text.txt", "--val-fraction", 0.5)

    lines = result.stdout.splitlines()
    assert (result.code, result.stderr) == (0, "")
    assert lines[0].split() == ["baseline", "nats", "bits/char", "perplexity", "seconds"]
    compressed = [*compressors()]
    assert [line.split()[0].rstrip(",") for line in lines[1:7]] == [*NAMES, "Kneser-Ney"]
    assert lines[1].split()[1:4] == [f"{math.log(31):.4f}", f"{math.log2(31):.4f}", "31.000"]
    assert lines[7] == "adaptive: these learn from the validation text while they read it"
    legend = 8 + len(compressed)
    assert [line[:26].strip() for line in lines[8:legend]] == compressed
    assert lines[legend] == (
        "scored on 1,289 validation characters, with all the context before each; counted on all "
        "1,290 training characters"
    )
    assert "chosen on the end of the training part, so another may be better here" in lines[-2]
    assert lines[-1].startswith(
        "compressors have no windows; they first learned from all 1,290 training characters; "
    )
    assert len(lines) == legend + 3  # nothing is worse than uniform


def test_a_row_that_guessing_beats_is_named(charlm):
    Path("sorted.txt").write_text("a" * 900 + "b" * 99 + "\n")

    last = charlm("baselines", "sorted.txt").stdout.splitlines()[-1]

    assert last == (
        "worse than uniform, so worse than guessing: unigram, trigram, 5-gram, Kneser-Ney, order 10"
    )


def test_a_baseline_that_saw_less_than_the_model_says_so(charlm, monkeypatch):
    from charlm.evaluation import baselines

    monkeypatch.setattr(baselines, "CHOOSING", 100)
    monkeypatch.setattr(baselines, "MAX_NGRAMS", 100)
    monkeypatch.setattr(baselines, "MAX_COMPRESSED", 50)

    lines = charlm("baselines", "text.txt", "--val-fraction", 0.5).stdout.splitlines()

    assert lines[-3].endswith("counted on the last 100 of 1,290 training characters")
    assert "first learned from the last 50 of 1,290 training characters" in lines[-1]


def test_windows_are_an_option(charlm):
    found = as_json(charlm, "text.txt", "--block-size", 3)

    assert (found["protocol"], found["block_size"], found["scored"]) == ("windows", 3, 257)
    assert as_json(charlm, "text.txt")["block_size"] is None
    assert "scored on 257 validation characters, in windows of 3; counted on all " in (
        charlm("baselines", "text.txt", "--block-size", 3).stdout
    )


def test_characters_of_several_bytes_have_bits_per_byte_too(charlm):
    Path("umlauts.txt").write_text(TEXT.replace("o", "\u00f6"), encoding="utf-8")

    head, *rows = charlm("baselines", "umlauts.txt").stdout.splitlines()
    rungs = as_json(charlm, "umlauts.txt")["baselines"]

    assert head.split()[2:4] == ["bits/char", "bits/byte"]
    assert rows[0].split()[-3] == f"{rungs[0]['bits_per_byte']:.4f}"
    assert rungs[0]["bits_per_byte"] < rungs[0]["bits_per_char"] == pytest.approx(math.log2(31))


def test_bytes_have_no_bits_per_character(charlm):
    rungs = as_json(charlm, "text.txt", "--unit", "bytes")["baselines"]

    assert {rung["bits_per_char"] for rung in rungs} == {None}
    assert rungs[0]["bits_per_byte"] == pytest.approx(8)


def test_a_short_text_has_no_compressors_and_the_table_says_why(charlm):
    lines = charlm("baselines", "text.txt").stdout.splitlines()

    assert [line.split()[0].rstrip(",") for line in lines[1:7]] == [*NAMES, "Kneser-Ney"]
    assert lines[7].startswith("scored on ")
    assert lines[9] == "no compressors: they need at least 1,000 validation characters"


def test_json_says_the_same(charlm):
    found = as_json(charlm, "text.txt")
    table = charlm("baselines", "text.txt").stdout.splitlines()

    assert {key: found[key] for key in ("text", "unit", "symbols", "protocol")} == {
        "text": "text.txt",
        "unit": "chars",
        "symbols": 31,
        "protocol": "stream",
    }
    assert (found["counted"], found["scored"]) == (2322, 257)
    assert found["compressed"] == 0
    assert found["baselines"][5]["name"] == f"Kneser-Ney, order {found['best_order']}"
    for rung, line in zip(found["baselines"], table[1:], strict=False):
        assert list(rung) == [
            *("name", "loss_nats", "bits_per_char", "perplexity", "bits_per_byte"),
            *("seconds", "adaptive"),
        ]
        assert line.startswith(rung["name"])
        assert line.split()[-4:-2] == [f"{rung['loss_nats']:.4f}", f"{rung['bits_per_char']:.4f}"]


def test_the_options_reach_the_text(charlm, monkeypatch):
    assert as_json(charlm, "text.txt", "--val-fraction", 0.5)["counted"] == 1290
    assert as_json(charlm, "text.txt", "--unit", "bytes")["symbols"] == 256
    assert as_json(charlm, "text.txt", "--max-order", 2)["best_order"] == 2
    Path("latin").write_bytes("äöü".encode("latin-1") * 50)
    assert as_json(charlm, "latin", "--encoding", "latin-1")["symbols"] == 3
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode())))
    assert as_json(charlm, "-")["counted"] == 2322
    assert " bits/byte " in charlm("baselines", "text.txt", "--unit", "bytes").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "core"),
    [
        (["nope.txt"], 3, "nope.txt: no such file or named text"),
        (["empty"], 3, "empty: empty (0 bytes)"),
        (["short"], 3, "short: its val part has 1 of 3 characters and needs 2"),
        (["text.txt", "--val-fraction", "0"], 3, "its val part has 0 of 2,580 characters"),
        (["text.txt", "--val-fraction", "0.9999"], 3, "its train part has 0 of 2,580 characters"),
        (["text.txt", "--val-fraction", "2"], 2, "--val-fraction "),
        (["text.txt", "--val-fraction", "1"], 2, "--val-fraction 1: leaves nothing to train on"),
        (["text.txt", "--max-order", "0"], 2, "--max-order "),
        (["text.txt", "--encoding", "morse"], 2, "--encoding: unknown 'morse'; utf-8, "),
        (["text.txt", "--encoding", "\0"], 2, "--encoding: unknown '\\x00'; utf-8, "),
        ([], 2, "TEXT: missing; name a file"),
    ],
)
def test_bad_input_is_one_line(charlm, arguments, code, core):
    Path("empty").touch()
    Path("short").write_text("abc")
    before = set(Path().rglob("*"))

    result = charlm("baselines", *arguments)

    assert (result.code, result.stdout) == (code, "")
    assert core in result.error
    assert set(Path().rglob("*")) == before


def test_a_signal_ends_it(charlm, monkeypatch):
    def climb(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("charlm.evaluation.baselines.climb", climb)

    assert charlm("baselines", "text.txt").code == 143


def test_training_shows_the_table_first_and_the_rung_last(charlm):
    result = charlm(*TRAIN)

    lines = [line.strip() for line in result.stderr.splitlines()]
    table = charlm("baselines", "text.txt", "--block-size", 8).stdout.splitlines()
    head = lines.index(table[0])
    assert [line.rsplit(maxsplit=1)[0] for line in lines[head : head + 7]] == [
        line.rsplit(maxsplit=1)[0]
        for line in table[:7]  # all but the seconds
    ]
    assert lines[head + 7] == table[7]
    assert head < next(i for i, line in enumerate(lines) if line.startswith("step 0"))
    assert result.stdout.splitlines()[-1].startswith("reached ")


def test_training_tells_machines_too(charlm):
    summary = json.loads(charlm(*TRAIN, "--json").stdout)
    direct = as_json(charlm, "text.txt", "--block-size", 8)["baselines"]

    assert [(r["name"], r["loss_nats"]) for r in summary["baselines"]] == [
        (r["name"], r["loss_nats"]) for r in direct
    ]
    assert summary["counted_bigram_nats"] == direct[2]["loss_nats"]
    assert summary["reached"].startswith("past uniform (3.4340), short of unigram")


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_resumed_run_does_not_count_again(charlm, monkeypatch, quiet):
    from charlm import evaluation

    first = charlm(*TRAIN, "--out", "run", *quiet).stdout
    monkeypatch.setattr(evaluation, "climb", None)
    again = charlm("train", "--resume", "--out", "run")
    more = charlm("train", "--resume", "--out", "run", "train.max_steps=3")

    for result in (again, more):
        assert "5-gram " in result.stderr
        assert "  as counted when this run began" in result.stderr
    assert again.stdout == first
    assert more.stdout.splitlines()[-1].startswith("reached ")


@pytest.mark.parametrize("change", ["eval.max_chars=100", "text", "damage", "nan"])
def test_baselines_of_another_text_or_protocol_or_a_damaged_file_are_counted_again(charlm, change):
    charlm(*TRAIN, "--out", "run", "-q")
    kept = Path("run/baselines.json")
    before, options = json.loads(kept.read_text()), []
    if change == "text":
        Path("text.txt").write_text(TEXT + "the end\n")
        options = ["--allow-new-data"]
    elif change == "damage":
        kept.write_text(kept.read_text()[:-20])
    elif change == "nan":
        kept.write_text(kept.read_text().replace('"loss_nats": 3.4', '"loss_nats": NaN, "x": 3.4'))
    else:
        options = [change]

    result = charlm("train", "--resume", "--out", "run", *options)

    assert result.code == 0
    assert "5-gram " in result.stderr
    assert "as counted when this run began" not in result.stderr
    after = json.loads(kept.read_text())
    assert (after["made_of"] == before["made_of"]) == (change in ("damage", "nan"))


def test_a_pipe_in_their_place_is_refused_before_anything_is_done(charlm):
    charlm(*TRAIN, "--out", "run", "-q")
    Path("run/baselines.json").unlink()
    os.mkfifo("run/baselines.json")

    result = charlm("train", "--resume", "--out", "run")

    assert result.code == 4
    assert result.error == "run/baselines.json: is a pipe; put a regular file there"


def test_a_key_switches_it_off(charlm, monkeypatch):
    monkeypatch.setattr("charlm.evaluation.climb", None)

    result = charlm(*TRAIN, "eval.baselines=false")
    summary = json.loads(charlm(*TRAIN, "eval.baselines=false", "--json").stdout)

    assert "uniform" not in result.stderr
    assert "reached" not in result.stdout
    assert summary["counted_bigram_nats"] is summary["baselines"] is summary["reached"] is None


@pytest.mark.parametrize(
    ("options", "first"), [(["-q"], "trained"), (["-q", "--minutes", "0.01"], "climbed")]
)
def test_nobody_waits_for_it_unless_a_budget_of_minutes_would_end_late(
    charlm, monkeypatch, options, first
):
    from charlm import evaluation
    from charlm.training import TrainingLoop

    done = []
    climb, records = evaluation.climb, TrainingLoop.records
    monkeypatch.setattr(
        evaluation, "climb", lambda *a, **k: (done.append("climbed"), climb(*a, **k))[1]
    )
    monkeypatch.setattr(
        TrainingLoop, "records", lambda self: (done.append("trained"), records(self))[1]
    )

    assert charlm(*TRAIN, *options).code == 0
    assert sorted(done) == ["climbed", "trained"]
    assert done[0] == first


def test_a_budget_of_minutes_is_for_training(charlm):
    result = charlm(*TRAIN, "--minutes", "0.0000001")

    assert result.code == 0
    assert "uniform" not in result.stderr + result.stdout
    assert "no baselines: they would take over a tenth of the remaining budget" in result.stderr


def test_a_signal_while_it_counts_ends_the_run_as_one_while_it_trains(charlm, monkeypatch):
    from charlm import evaluation

    climb = evaluation.climb

    def interrupted(*arguments, **named):
        signal.raise_signal(signal.SIGINT)
        return climb(*arguments, **named)

    monkeypatch.setattr(evaluation, "climb", interrupted)

    result = charlm(*TRAIN)

    assert result.code == 130
    assert "stopped at step 0, saved" in result.stderr
    assert "uniform" not in result.stderr
    assert "no baselines" not in result.stderr  # that is for a lack of time


@pytest.mark.parametrize(
    ("spent", "climbed", "most"), [(27.1, False, 0), (20, True, 1.0), (0, True, 3.0)]
)
def test_a_resumed_run_gives_them_a_tenth_of_what_is_left(
    charlm, monkeypatch, spent, climbed, most
):
    from charlm.cli.signals import StopSignals
    from charlm.cli.training_output import score_baselines
    from charlm.errors import Stopped
    from charlm.training import Clock

    def climb(*_, should_stop, **__):
        nonlocal clock
        since = clock
        while not should_stop():
            clock += 0.01
        taken.append(clock - since)
        raise Stopped

    clock, taken = 1000.0, list[float]()
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    monkeypatch.setattr("charlm.evaluation.climb", climb)
    facts = dict.fromkeys(("source_sha256", "unit", "size", "vocab_size", "splits"))
    corpus = SimpleNamespace(splits={"train": "ab", "val": "ab"}, facts=facts)
    config = SimpleNamespace(
        eval=SimpleNamespace(baselines=True, max_chars=None),
        model=SimpleNamespace(block_size=8),
        train=SimpleNamespace(minutes=0.5),
    )
    loop = SimpleNamespace(clock=Clock(began=clock - spent, budget=30.0))
    run = RunFolder(Path("run"))
    prepared = SimpleNamespace(corpus=corpus, config=config, tokenizer=None, run=run)

    assert score_baselines(prepared, loop, StopSignals(), quiet=True) is None
    assert taken == [pytest.approx(most, abs=0.011)]
    assert (taken[0] > 0) == climbed


@pytest.mark.parametrize("options", [["--json"], []])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "no baselines: out of memory; eval.baselines=false leaves them out"),
        (OSError(28, "No space left on device"), "no baselines: [Errno 28] No space left"),
        (MachineError("tokens.bin: gone; mount it"), "no baselines: tokens.bin: gone; mount it;"),
    ],
)
def test_their_failure_does_not_end_a_run(charlm, monkeypatch, options, error, said):
    def climb(*_, **__):
        raise error

    monkeypatch.setattr("charlm.evaluation.climb", climb)

    result = charlm(*TRAIN, *options)

    assert result.code == 0
    assert f"charlm: note: {said}" in result.stderr
    if options:
        assert json.loads(result.stdout)["step"] == 2
    else:
        assert result.stdout.startswith("validation loss")


def test_a_signal_in_those_that_come_last_ends_with_its_code_after_the_result(charlm, monkeypatch):
    from charlm import evaluation

    climb = evaluation.climb

    def interrupted(*arguments, **named):
        signal.raise_signal(signal.SIGTERM)
        return climb(*arguments, **named)

    monkeypatch.setattr(evaluation, "climb", interrupted)

    result = charlm(*TRAIN, "--json")
    found = json.loads(result.stdout)

    assert result.code == 143
    assert (found["step"], found["baselines"]) == (2, None)
    assert "stopped before the baselines were scored; the run is finished" in result.stderr


def test_it_changes_nothing_of_what_is_trained(charlm):
    charlm(*TRAIN, "--out", "with", "-q")
    charlm(*TRAIN, "--out", "shown")
    charlm(*TRAIN, "--out", "without", "-q", "eval.baselines=false")

    weights = [
        Path(out, "checkpoints/step-2/model.safetensors").read_bytes()
        for out in ("with", "shown", "without")
    ]
    assert weights[0] == weights[1] == weights[2]


def ladder(*rungs, block_size=None, counted=9, compressed=9):
    uniform = Rung("uniform", Score(9, math.log(55)), 0.0)
    return Ladder((uniform, *rungs), 55, block_size, 9, counted, 9, compressed, None)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (5.0, "worse than uniform (4.0073): guessing, every symbol alike, is better"),
        (4.00734, "level with uniform (4.0073), in windows of 8"),
        (3.5, "past uniform (4.0073), short of high (3.0000), in windows of 8"),
        (2.5, "past high (3.0000), short of low (2.0000), in windows of 8"),
        (
            1.0,
            "better than every baseline of this protocol; the best of them: low (2.0000), in windows of 8",
        ),
        (2.00001, "past high (3.0000), level with low (2.0000), in windows of 8"),
        (2.9999, "past high (3.0000), short of low (2.0000), in windows of 8"),
    ],
)
def test_where_a_loss_stands_is_said_with_the_protocol(loss, said):
    rungs = (Rung("low", Score(9, 2.0), 0.0), Rung("high", Score(9, 3.0), 0.0))

    assert reached(ladder(*rungs, block_size=8), loss, "chars") == said


def test_losses_that_only_rounding_separates_are_level():
    rung = Rung("low", Score(9, 2.00005000), 0.0)

    assert reached(ladder(rung), 2.00005001, "chars") == (
        "past uniform (4.0073), level with low (2.0000), stream"
    )


def test_what_else_a_baseline_knew_stands_beside_it():
    rungs = (Rung("trigram", Score(9, 3.0), 0.0), Rung("xz", Score(9, 2.0), 0.0, adaptive=True))

    assert reached(ladder(*rungs, counted=7, compressed=5), 2.5, "bytes") == (
        "better than every baseline of this protocol; the best of them: trigram (3.0000), stream; "
        "trigram counted "
        "on the last 7 of 9 training bytes; the best adaptive baseline, which learns from the scored "
        "text after the last 5 of 9 training bytes: xz (2.0000)"
    )


def test_a_loss_is_placed_among_baselines_of_its_own_protocol():
    rungs = (
        Rung("trigram", Score(9, 3.0), 0.0),
        Rung("gzip", Score(9, 2.9), 0.0, adaptive=True),
        Rung("PPMd", Score(9, 2.0), 0.0, adaptive=True),
    )

    for loss, said in (
        (3.5, "past uniform (4.0073), short of trigram (3.0000)"),
        (2.5, "better than every baseline of this protocol; the best of them: trigram (3.0000)"),
    ):
        assert reached(ladder(*rungs, block_size=8), loss, "chars") == (
            f"{said}, in windows of 8; the best adaptive baseline, which learns from the scored text: "
            "PPMd (2.0000)"
        )
    assert reached(ladder(*rungs, block_size=8), 2.5, "chars", adaptive=True) == (
        "past gzip (2.9000), short of PPMd (2.0000), adaptive"
    )
    assert reached(ladder(*rungs, compressed=5), 1.0, "chars", adaptive=True) == (
        "better than every baseline of this protocol; the best of them: PPMd (2.0000), adaptive; PPMd first learned "
        "from the last 5 of 9 training characters"
    )


def test_a_loss_that_became_worse_than_guessing_is_said_to_be_overfitted(charlm):
    letters = random.Random(1)
    syllables = [a + b for a in "bdklmnrst" for b in "aeiou"]
    names = ["".join(letters.choices(syllables, k=1 + i % 3)) for i in range(45)]
    Path("names.txt").write_text("\n".join(names) + "\n")
    model = "{type: gpt, style: modern, n_layer: 2, n_head: 2, n_embd: 32, block_size: 8}"
    Path("a.yaml").write_text(f"model: {model}\n")
    keys = ["data.records=lines", "data.val_fraction=0.3", "eval.baselines=false"]
    keys += [f"train.{key}" for key in ("max_steps=80", "learning_rate=0.01", "eval_every=5")]
    keys += ["train.warmup_steps=5", "train.sample_every=0"]

    said = charlm("train", "-c", "a.yaml", "data.source=names.txt", *keys, "--out", "run").stderr

    found = re.search(
        r"note: the validation loss [\d.]+ is worse than uniform .*; it was ([\d.]+) at step (\d+)",
        said,
    )
    assert found, said
    best = [one for one in package.open("run").checkpoints if one.step == int(found[2])]
    assert found[1] == f"{best[0].loss:.4f}"
    assert "before the training part was learned by heart; train for fewer steps" in said


def test_a_validation_loss_worse_than_guessing_is_said(charlm):
    Path("sorted.txt").write_text("a" * 900 + "b" * 99 + "\n")
    changes = ("data.source=sorted.txt", "train.learning_rate=0.1", "eval.baselines=false")
    worse = "worse than uniform (1.0986): guessing, every symbol alike, is better"

    trained = charlm(*TRAIN, *changes, "--out", "run")
    scored = charlm("eval", "--run", "run", "--checkpoint", "last")

    loss = trained.stdout.split()[2]
    assert f"note: the validation loss {loss} is {worse}; is the text sorted" in trained.stderr
    assert f"note: this is {worse}" in scored.stderr
    assert "worse than uniform" not in charlm("eval", "--run", "run", "--split", "train").stderr


def test_a_counted_model_is_level_with_its_own_baseline(charlm):
    config = "data: {source: text.txt}\nmodel: {type: ngram, order: 5, block_size: 2}\n"
    Path("ngram.yaml").write_text(config)

    last = charlm("train", "-c", "ngram.yaml").stdout.splitlines()[-1]

    assert ", level with trigram " in last  # longer ones are the same in such windows
    assert last.endswith(", in windows of 2")


def test_eval_places_a_loss_among_the_kept_baselines_only_if_scored_alike(charlm):
    trained = charlm(*TRAIN, "--out", "run").stdout.splitlines()[-1]
    alike = charlm("eval", "--run", "run").stderr
    others = [
        ("--block-size", "4"),
        ("--protocol", "sliding"),
        ("--split", "train"),
        ("--file", "text.txt"),
    ]

    assert f"reached: {trained.removeprefix('reached').strip()}\n" in alike
    for options in others:
        result = charlm("eval", "--run", "run", *options)
        assert (result.code, "reached" in result.stderr) == (0, False)


def test_an_adaptive_loss_is_placed_among_compressors_that_coded_the_same_characters(charlm):
    Path("ngram.yaml").write_text("data: {source: text.txt}\nmodel: {type: ngram, order: 3}\n")
    changes = ("data.val_fraction=0.5", "eval.max_chars=100")

    charlm("train", "-c", "ngram.yaml", "--out", "long", "-q", *changes)
    charlm("train", "-c", "ngram.yaml", "--out", "short", "-q")  # too short for compressors

    long, short = (
        charlm("eval", run, "--protocol", "adaptive").stderr for run in ("long", "short")
    )
    assert "scored 1,289 characters" in long
    assert re.search(r"^reached: .*, adaptive$", long, re.MULTILINE)
    assert "reached" not in short
