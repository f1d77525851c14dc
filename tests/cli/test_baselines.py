import io
import json
import math
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from charlm.cli.baselines import reached
from charlm.errors import MachineError
from charlm.evaluation import Ladder, Rung, Score
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
    assert [line.split()[0].rstrip(",") for line in lines[1:10]] == [
        *NAMES,
        "best",
        "gzip",
        "bzip2",
        "xz",
    ]
    assert lines[1].split()[1:4] == [f"{math.log(31):.4f}", f"{math.log2(31):.4f}", "31.000"]
    assert lines[10] == (
        "scored on 1,289 validation characters, with all the context before each; counted on the "
        "last 1,290 training characters"
    )
    assert "chosen on the end of the training part" in lines[11]
    assert lines[12].startswith(
        "compressors: extra compressed size of the validation text after the last 1,290 "
    )


def test_a_short_text_has_no_compressors_and_the_table_says_why(charlm):
    lines = charlm("baselines", "text.txt").stdout.splitlines()

    assert [line.split()[0].rstrip(",") for line in lines[1:7]] == [*NAMES, "best"]
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
    assert found["baselines"][5]["name"] == f"best Kneser-Ney, order {found['best_order']}"
    for rung, line in zip(found["baselines"], table[1:], strict=False):
        assert list(rung) == ["name", "loss_nats", "bits_per_char", "perplexity", "seconds"]
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
        (["text.txt", "--val-fraction", "2"], 2, "'--val-fraction'"),
        (["text.txt", "--val-fraction", "1"], 2, "--val-fraction 1: leaves nothing to train on"),
        (["text.txt", "--max-order", "0"], 2, "'--max-order'"),
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
    table = charlm("baselines", "text.txt").stdout.splitlines()
    head = lines.index(table[0])
    assert [line.rsplit(maxsplit=1)[0] for line in lines[head : head + 7]] == [
        line.rsplit(maxsplit=1)[0]
        for line in table[:7]  # all but the seconds
    ]
    assert lines[head + 10].startswith("the losses of the model below are in windows of 8, ")
    assert head < next(i for i, line in enumerate(lines) if line.startswith("step 0"))
    assert result.stdout.splitlines()[-1].startswith("reached ")


def test_training_tells_machines_too(charlm):
    summary = json.loads(charlm(*TRAIN, "--json").stdout)
    direct = as_json(charlm, "text.txt")["baselines"]

    assert [(r["name"], r["loss_nats"]) for r in summary["baselines"]] == [
        (r["name"], r["loss_nats"]) for r in direct
    ]
    assert summary["counted_bigram_nats"] == direct[2]["loss_nats"]
    assert summary["reached"].startswith("past uniform (3.4340), short of unigram")


def test_a_resumed_run_has_its_rung_as_well(charlm, trained):
    result = charlm("train", "--resume", "--out", trained, "train.max_steps=7")

    assert "5-gram " in result.stderr
    assert result.stdout.splitlines()[-1].startswith("reached ")


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

    def climb(*_, should_stop):
        nonlocal clock
        since = clock
        while not should_stop():
            clock += 0.01
        taken.append(clock - since)
        raise Stopped

    clock, taken = 1000.0, list[float]()
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    monkeypatch.setattr("charlm.evaluation.climb", climb)
    corpus = SimpleNamespace(splits={"train": "ab", "val": "ab"})
    config = SimpleNamespace(eval=SimpleNamespace(baselines=True))
    loop = SimpleNamespace(clock=Clock(began=clock - spent, budget=30.0))
    prepared = SimpleNamespace(corpus=corpus, config=config, tokenizer=None)

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


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (5.0, "no baseline; next: high (3.0000)"),
        (2.5, "past high (3.0000), short of low (2.0000)"),
        (1.0, "better than every baseline; the best of them: low (2.0000)"),
        (2.00001, "past high (3.0000), level with low (2.0000)"),
        (2.99999, "level with high (3.0000)"),
    ],
)
def test_where_a_loss_stands_is_said_in_a_phrase(loss, said):
    rungs = (Rung("low", Score(9, 2.0), 0.0), Rung("high", Score(9, 3.0), 0.0))

    assert reached(Ladder(rungs, 9, 9, 9, None), loss) == said


def test_the_best_of_them_is_said_once():
    rungs = (Rung("best Kneser-Ney, order 7", Score(9, 2.0), 0.0),)

    assert reached(Ladder(rungs, 9, 9, 9, 7), 1.0) == (
        "better than every baseline; the best of them: Kneser-Ney, order 7 (2.0000)"
    )
