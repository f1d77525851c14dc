import contextlib
import json
import math
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from charlm.config import load_config
from charlm.errors import CheckpointError, NonFiniteError, check_stop
from charlm.lifecycle.begin import create_run, prepare_text
from charlm.lifecycle.resume import open_run, resumed_config
from charlm.models import build_model
from charlm.runs import RunFolder
from charlm.runs.load import load_model
from charlm.storage import read_manifest, verify_folder
from charlm.storage.manifest import write_manifest
from charlm.training import Job, TrainingLoop, fitting, joining
from charlm.training.expert import LATE, SLICE_PASSES, PhasedBatches
from charlm.training.gradients import GradientLearner
from charlm.training.joining import JoiningLearner
from tests.conftest import TEXT, TINY
from tests.training.conftest import ignore, timeless

MIXTURE = """\
data: {source: text.txt}
model:
  type: mixture
  block_size: 16
  tune_fraction: 0.1
  experts:
    counts: {model: {type: ngram, order: 3}}
    gpt:
      model: {type: gpt, block_size: 8, n_layer: 1, n_head: 2, n_embd: 8}
      train: {max_steps: 14, batch_size: 4, warmup_steps: 1, learning_rate: 1e-2}
    mean:
      model: {type: averaging, block_size: 4, n_embd: 8}
      train: {max_steps: 8, batch_size: 4, warmup_steps: 1, learning_rate: 1e-2}
run: {device: cpu}
"""
TRAIN = len(TEXT) * 9 // 10  # where validation begins
SLICE = TRAIN - TRAIN // 10  # where the slice begins


@pytest.fixture
def make_loop(tiny, monkeypatch):
    """Begin or resume a mixture of a trigram and two models that are trained a little.

    Its slice of 232 characters is enough here for all weights: see `test_fitting` for the rule.
    """
    Path("mixture.yaml").write_text(MIXTURE)
    monkeypatch.setattr(fitting, "CHARS_A_WEIGHT", 10)

    def make(*overrides, out="run", resume=False, **kwargs):
        folder = Path(out)
        if resume:
            config = resumed_config(RunFolder(folder), None, overrides)
            prepared = open_run(config, RunFolder(folder), ignore)
        else:
            config = load_config("mixture.yaml", overrides)
            text = prepare_text(config, ignore, ignore)
            folder.mkdir()
            prepared = create_run(config, folder, text, ignore)
        model = build_model(prepared.config.model, prepared.tokenizer.vocab_size, config.run.seed)
        job = Job(
            prepared.config, prepared.run, prepared.corpus, prepared.tokenizer, model, **kwargs
        )
        loop = TrainingLoop(job, prepared.checkpoint)
        loop.notes = prepared.notes
        return loop

    return make


def finish(loop):
    return list(loop.records())


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(one, other):
    """The names of the tensors that are not bit for bit the same."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def everything_recorded(loop):
    runs = [loop.run.metrics_path, *sorted(loop.run.path.glob("experts/*/metrics.jsonl"))]
    return [timeless(path) for path in runs]


@pytest.mark.parametrize("combine", ["log-linear", "linear", "gated"])
def test_one_file_trains_its_experts_and_joins_them(make_loop, combine):
    loop = make_loop(f"model.combine={combine}")

    records = finish(loop)

    (tune,) = (r for r in records if r.kind == "tune")
    assert tune.fitted.loss_nats < min(tune.fitted.alone_nats.values()) + 1e-3
    assert tune.fitted.chars == (TRAIN - SLICE - 1) // 16 * 16
    assert sum(tune.fitted.weights.values()) == pytest.approx(1)
    steps = Counter(r.expert for r in records if r.kind == "train" and r.expert)
    assert steps == {"gpt": 14, "mean": 8}
    (joined,) = (r for r in records if r.kind == "train" and not r.expert)
    assert joined.weights == tune.fitted.weights
    # The first join is scored too, but only the last one is saved.
    assert [(r.step, r.best) for r in records if r.kind == "eval"] == [(0, False), (1, True)]
    saved = load_model(loop.run)
    assert saved.step == 1
    assert not differing(saved.model.state_dict(), loop.learner.model.state_dict())
    assert saved.model.weights.tolist() == [
        tune.fitted.weights[n] for n in ("counts", "gpt", "mean")
    ]


def test_what_was_found_is_what_the_experts_were_worth_when_they_had_not_read_it(
    make_loop, monkeypatch
):
    """What the weights are fitted to is the slice as it is scored, expert by expert."""
    loop = make_loop("model.experts.gpt.model.dropout=0.5")
    fit, seen = joining.fit_join, []

    def watched(logits, targets, *rest):
        ids = loop.learner.slice.read(0, len(loop.learner.slice))[: len(targets) + 1]
        rows = torch.from_numpy(ids.astype("int64"))
        assert targets.tolist() == rows[1:].tolist()
        with torch.no_grad():
            for own, expert in zip(logits, loop.learner.model.experts.values(), strict=True):
                expected = expert.eval().read(rows[:-1].view(-1, 16))
                torch.testing.assert_close(own, expected.flatten(0, 1))
        seen.append(len(targets))
        return fit(logits, targets, *rest)

    monkeypatch.setattr(joining, "fit_join", watched)
    finish(loop)

    assert seen


def test_a_slice_too_large_for_memory_is_sampled_evenly(make_loop, monkeypatch):
    monkeypatch.setattr(joining, "MAX_LOGITS", 3 * 40 * 30)
    loop = make_loop()

    (tune,) = (r for r in finish(loop) if r.kind == "tune")

    assert tune.fitted.chars == 3 * 40 * 30 // (3 * loop.tokenizer.vocab_size) // 16 * 16


def test_an_expert_that_is_left_out_is_named_and_trained_no_further(make_loop, monkeypatch):
    loop = make_loop()
    monkeypatch.setattr(fitting, "CHARS_A_WEIGHT", 1000)

    records = finish(loop)

    (tune,) = (r for r in records if r.kind == "tune")
    assert sorted(tune.fitted.weights.values()) == [0.0, 0.0, 1.0]
    assert tune.fitted.loss_nats == pytest.approx(min(tune.fitted.alone_nats.values()), abs=1e-5)
    (best,) = (name for name, weight in tune.fitted.weights.items() if weight)
    (note,) = (r.text for r in records if r.kind == "note")
    assert note == (
        f"224 characters are too few to fit the weights of 3 experts, so only {best} is used"
    )
    late = records[records.index(tune) :]
    assert {r.expert for r in late if r.expert} <= {best}


def test_validation_never_reaches_what_is_fitted(make_loop):
    finish(make_loop())
    validation = TEXT[TRAIN:]
    Path("text.txt").write_text(TEXT[:TRAIN] + validation[::-1])
    finish(make_loop(out="other"))

    one, other = (load_model(RunFolder(Path(out))) for out in ("run", "other"))
    assert not differing(one.model.state_dict(), other.model.state_dict())
    found = [json.loads(Path(out, "mixture.json").read_text()) for out in ("run", "other")]
    for one_found in found:
        del one_found["seconds"], one_found["reserve"]
    assert found[0] == found[1]
    assert (
        one.run.checkpoints.best().loss != other.run.checkpoints.best().loss
    )  # it was scored all the same


def test_no_expert_has_read_the_slice_when_the_weights_are_fitted_and_each_has_after(
    make_loop, monkeypatch
):
    fit, at_fit = joining.fit_join, []

    def watched(*arguments):
        at_fit.append(snapshot(loop.learner.model))
        return fit(*arguments)

    monkeypatch.setattr(joining, "fit_join", watched)
    ends = []
    for out, text in (
        ("run", TEXT),
        ("other", TEXT[:SLICE] + TEXT[SLICE:TRAIN][::-1] + TEXT[TRAIN:]),
    ):
        Path("text.txt").write_text(text)
        loop = make_loop(out=out)
        finish(loop)
        ends.append(snapshot(loop.learner.model))

    assert not differing(*at_fit)
    changed = {name.split(".")[1] for name in differing(*ends) if name.startswith("experts.")}
    assert changed == {"counts", "gpt", "mean"}
    assert "weights" in differing(*ends)


def batches(loop, name):
    """What an expert of a mixture reads."""
    learner = loop.learner
    return PhasedBatches(learner.trained[name], learner.first, learner.slice)


def test_late_steps_read_the_whole_part_and_the_slice_in_turn(make_loop):
    loop = make_loop()
    phases = batches(loop, "gpt")
    phases.late_from = 6
    parts = [phases.early.split, phases.whole.split, phases.slice.split]

    assert [(part.start, part.stop) for part in parts] == [
        (0, SLICE), (0, TRAIN), (SLICE, TRAIN)
    ]  # fmt: skip
    for step, expected in ((5, phases.early), (6, phases.slice), (7, phases.whole)):
        assert (phases.get(step)[0] == expected.get(step)[0]).all()


def test_experts_that_are_cut_alike_read_windows_of_their_own(make_loop):
    loop = make_loop("model.experts.mean.model.block_size=8")

    read = [batches(loop, name).get(0)[0].tolist() for name in loop.config.training_runs()]

    assert len(read) == 2
    assert read[0] != read[1]


def test_in_a_long_run_the_slice_is_not_read_over_and_over(make_loop):
    """However long the late phase is, some three passes over the slice alone, and not one less."""
    loop = make_loop()
    phases = batches(loop, "gpt")
    phases.late_from = 20_000
    late = range(20_000, round(20_000 / LATE))

    turns = sum((phases.get(step)[0] == phases.slice.get(step)[0]).all() for step in late)

    chars = turns * phases.slice.batch_size * phases.slice.block_size
    assert chars == pytest.approx(SLICE_PASSES * (TRAIN - SLICE), rel=0.05)


@pytest.fixture
def straight(make_loop):
    """A mixture that was never interrupted, and how often it asked whether to stop."""
    asked = []
    loop = make_loop(out="straight", should_stop=lambda: bool(asked.append(1)))
    records = finish(loop)
    return loop, len(asked), len(records)


def where(run):
    """How far a run has come: who has trained, whether weights are fitted, whether it is joined."""
    steps = [RunFolder(run / "experts" / n).checkpoints.last() for n in ("gpt", "mean")]
    joined = RunFolder(run).checkpoints.last()
    fitted = (run / "mixture.json").is_file()
    return [s.step if s else None for s in steps], fitted, joined.step if joined else None


@pytest.mark.parametrize("apart", [23, pytest.param(9, marks=pytest.mark.slow)])
def test_stopped_anywhere_and_resumed_equals_uninterrupted(make_loop, straight, apart):
    whole, asked, _ = straight
    places = set()
    for last in range(asked - 1, 0, -apart):
        shutil.rmtree("run", ignore_errors=True)
        calls = iter(range(last))
        stopped = make_loop(should_stop=lambda calls=calls: next(calls, None) is None)
        finish(stopped)
        assert stopped.stopped
        steps, fitted, joined = where(stopped.run.path)
        places.add((steps[0] is None or steps[0] < 10, fitted, joined))

        resumed = make_loop(resume=True)
        finish(resumed)

        assert not resumed.stopped
        assert not differing(
            resumed.learner.model.state_dict(), whole.learner.model.state_dict()
        ), last
        assert everything_recorded(resumed) == everything_recorded(whole), last
    # In training, in counting or fitting, in the last updates, in the last count, in scoring.
    assert {(True, False, None), (False, False, None), (False, True, None), (False, True, 1)} <= (
        places
    )


def test_after_a_kill_anywhere_the_run_goes_on_to_the_same_bits(make_loop, straight):
    whole, _, records = straight
    for last in range(records - 1, 0, -6):
        shutil.rmtree("run", ignore_errors=True)
        killed = make_loop("model.experts.gpt.train.save_every=2").records()
        for _ in range(last):
            next(killed)
        killed.close()

        resumed = make_loop(resume=True)
        finish(resumed)

        assert not differing(
            resumed.learner.model.state_dict(), whole.learner.model.state_dict()
        ), last
        assert everything_recorded(resumed) == everything_recorded(whole), last


def test_a_gate_is_kept_until_the_mixture_is_saved_and_saved_with_it(make_loop, monkeypatch):
    # As if it paid on so short a text: losses with a gate, with fixed weights, of the best expert.
    monkeypatch.setattr(fitting, "_on_other_text", lambda *_: (0.0, 1.0, 2.0))
    whole = make_loop("model.combine=gated", out="whole")
    finish(whole)
    stopped = make_loop("model.combine=gated").records()
    tune = next(r for r in stopped if r.kind == "tune")
    stopped.close()

    resumed = make_loop(resume=True)
    finish(resumed)

    assert tune.fitted.gate
    assert resumed.learner.model.gate.numbers() == tune.fitted.gate
    assert not differing(resumed.learner.model.state_dict(), whole.learner.model.state_dict())
    assert load_model(resumed.run).model.gate.numbers() == tune.fitted.gate


@pytest.mark.parametrize(("working", "place"), [("count_text", 4), ("fit_join", -1)])
def test_a_stop_is_obeyed_while_experts_are_counted_or_weights_fitted(
    make_loop, monkeypatch, working, place
):
    asked = []

    def signalled(*arguments):
        asked.append(1)
        check_stop(arguments[place])
        pytest.fail("it went on")

    monkeypatch.setattr(joining, working, signalled)
    loop = make_loop(should_stop=lambda: bool(asked))
    finish(loop)

    assert loop.stopped
    assert not Path("run/mixture.json").exists()


def test_a_stop_is_not_passed_on_to_the_next_expert(make_loop):
    loop = make_loop(should_stop=lambda: len(done) > 5)
    done = []
    for record in loop.records():
        done.append(record)

    assert loop.stopped
    assert {r.expert for r in done} == {"gpt"}
    assert not RunFolder(Path("run/experts/mean")).checkpoints.all()


def test_a_slice_shorter_than_an_experts_block_is_read_as_a_part_of_the_whole(make_loop):
    loop = make_loop("model.experts.mean.model.block_size=64", "model.tune_fraction=0.02")

    assert finish(loop)[-1].kind == "save"


def test_experts_that_are_given_in_another_order_keep_their_places(make_loop):
    """Weights and seeds go by place: the same file in another order goes on with the same run."""
    make_loop()
    before, counts, after = MIXTURE.partition("    counts: {model: {type: ngram, order: 3}}\n")
    experts, run, end = after.partition("run:")
    Path("mixture.yaml").write_text(before + experts + counts + run + end)
    assert list(load_config("mixture.yaml").model.experts) == ["gpt", "mean", "counts"]

    config = resumed_config(RunFolder(Path("run")), "mixture.yaml", [])

    assert list(config.model.experts) == ["counts", "gpt", "mean"]
    assert config == RunFolder(Path("run")).config


def test_a_finished_mixture_that_is_resumed_has_nothing_left_to_do(make_loop):
    loop = make_loop()
    finish(loop)
    shutil.rmtree("run/experts")
    Path("run/mixture.json").unlink()
    Path("run/belongs.json").unlink()

    again = make_loop(resume=True)

    assert finish(again) == []
    assert not differing(again.learner.model.state_dict(), loop.learner.model.state_dict())


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("tune_fraction: 0.1", "tune_fraction: 0.3", "model.tune_fraction is 0.3, it was begun"),
        ("n_head: 2", "n_head: 1", "model.experts.gpt.model.n_head is 1, it was begun with 2"),
        ("batch_size: 4", "batch_size: 8", "model.experts.gpt.train.batch_size is 8"),
        ("val_fraction: 0.1", "val_fraction: 0.3", "data.val_fraction is 0.3, it was begun"),
    ],
)
@pytest.mark.parametrize("fitted", [False, True])
def test_what_may_not_change_may_not_before_the_experts_are_joined(
    make_loop, charlm, before, after, key, fitted
):
    records = make_loop("model.experts.gpt.train.save_every=2").records()
    next(r for r in records if r.kind == ("tune" if fitted else "save"))
    records.close()
    config = Path("run/config.yaml")
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after, 1))
    files = [path for path in Path("run").rglob("*") if path.is_file() and path.name[0] != "."]
    contents = {path: path.read_bytes() for path in files}

    refused = charlm("train", "--resume", "--out", "run", "-q")

    assert refused.code == 4
    assert refused.error.startswith(f"run/config.yaml: {key}")
    assert {path: path.read_bytes() for path in files} == contents
    verified = charlm("verify", "run")
    assert verified.code == 4
    assert f"damaged  run/config.yaml: {key}" in verified.stdout


def begin(make_loop, kind, *overrides):
    """Begin a mixture and leave it at its first record of this kind."""
    records = make_loop("model.experts.gpt.train.save_every=2", *overrides).records()
    next(r for r in records if r.kind == kind)
    records.close()


RESUME = ("train", "--resume", "--out", "run", "-q")


def test_experts_that_have_read_the_slice_are_not_judged_by_it(make_loop, charlm):
    records = make_loop("model.experts.gpt.train.save_every=2").records()
    next(r for r in records if r.kind == "tune")
    next(r for r in records if r.kind == "save")
    records.close()
    found = Path("run/mixture.json")
    content = found.read_bytes()
    found.unlink()

    refused = charlm(*RESUME)

    assert refused.code == 4
    assert refused.error == (
        "run/mixture.json: not found, and expert gpt has read the text that the weights are fitted on; "
        "restore it or start a new run"
    )
    assert f"damaged  {refused.error}" in charlm("verify", "run").stdout
    found.write_bytes(content)
    assert charlm("verify", "run").code == 0
    assert charlm(*RESUME).code == 0


@pytest.mark.parametrize(
    ("before", "after"), [("n_head: 2", "n_head: 1"), ("batch_size: 4", "batch_size: 8")]
)
def test_what_experts_were_saved_with_stands_where_the_mixture_says_nothing(
    make_loop, charlm, before, after
):
    """A mixture of before has no belongs.json; what it is refused for does not become one."""
    begin(make_loop, "save")
    Path("run/belongs.json").unlink()
    config = Path("run/config.yaml")
    text = config.read_text()
    config.write_text(text.replace(before, after, 1))

    refused = charlm(*RESUME)

    assert refused.code == 4
    key, value = after.split(": ")
    whole = f"{'model' if key == 'n_head' else 'train'}.{key}"
    assert refused.error.startswith(
        f"run/config.yaml: {whole} is {value}, step-2 of gpt was saved with {before[-1]}; restore it"
    )
    assert f"damaged  {refused.error}" in charlm("verify", "run").stdout
    config.write_text(text)
    assert charlm("verify", "run").code == 0
    assert charlm(*RESUME).code == 0


@pytest.mark.parametrize("place", ["metrics.jsonl", "config.yaml", "checkpoints", ""])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_nothing_of_an_expert_is_written_elsewhere_or_waited_for(make_loop, charlm, place, kind):
    begin(make_loop, "save")
    path = Path("run/experts/gpt", place)
    path.rename("elsewhere")
    if kind == "link":
        path.symlink_to(Path("elsewhere").absolute())
    else:
        os.mkfifo(path)
    elsewhere = Path("elsewhere")
    before = {p: p.read_bytes() for p in [elsewhere, *elsewhere.rglob("*")] if p.is_file()}

    refused = charlm(*RESUME)

    assert refused.code == 4
    assert refused.error.startswith(f"{path}: is ")
    there = "folder" if place in ("checkpoints", "") else "regular file"
    assert refused.error.endswith(f"; put a {there} there")
    assert {p: p.read_bytes() for p in before} == before
    assert f"damaged  {refused.error}" in charlm("verify", "run").stdout


def test_an_expert_does_not_go_on_alone(make_loop, charlm):
    begin(make_loop, "save")

    refused = charlm("train", "--resume", "--out", "run/experts/gpt", "-q")

    assert refused.code == 4
    assert refused.error == (
        f"run/experts/gpt: is trained as an expert of {Path('run').absolute()}; resume that run"
    )


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json", "tokens"])
def test_what_a_mixture_writes_again_for_its_experts_is_no_damage(make_loop, charlm, name):
    begin(make_loop, "save")
    Path("run/experts/gpt", name).unlink()

    verified = charlm("verify", "run")

    assert verified.code == 0
    (line,) = [line for line in verified.stdout.splitlines() if line.startswith("unused")]
    assert line.startswith(f"unused   run/experts/gpt/{name}: ")
    assert line.endswith("; charlm train --resume writes it again")
    assert charlm(*RESUME).code == 0
    assert "unused" not in charlm("verify", "run").stdout


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "tokens", "checkpoints/step-14/state.json"]
)
def test_a_joined_mixture_is_sound_whatever_became_of_its_experts(make_loop, charlm, name):
    finish(make_loop())
    Path("run/experts/gpt", name).unlink()

    verified = charlm("verify", "run")

    assert verified.code == 0
    (line,) = [line for line in verified.stdout.splitlines() if line.startswith("unused")]
    assert line.startswith("unused   run/experts/gpt/")
    assert line.endswith("; the mixture is joined and no longer needs it")


def test_an_expert_that_begins_again_is_said_to(make_loop, charlm):
    begin(make_loop, "tune")
    Path("run/mixture.json").unlink()
    shutil.rmtree("run/experts/gpt")

    resumed = charlm(*RESUME)

    assert resumed.code == 0
    assert "note: expert gpt: no checkpoint yet: starting at step 0" in resumed.stderr
    assert "expert mean" not in resumed.stderr


def test_verify_asks_for_nothing_that_a_joined_mixture_needs_no_more(make_loop, charlm):
    finish(make_loop())
    Path("run/mixture.json").write_text("{")
    shutil.rmtree("run/experts/gpt/checkpoints")

    verified = charlm("verify", "run")

    assert verified.code == 0
    (line,) = [line for line in verified.stdout.splitlines() if "mixture.json" in line]
    assert line.startswith("unused   run/mixture.json: cannot be read (Expecting property name")
    assert line.endswith("; the mixture is joined and no longer needs it")


def test_a_damaged_checkpoint_of_an_expert_is_passed_over_for_the_one_before(make_loop, straight):
    whole, *_ = straight
    records = make_loop("model.experts.gpt.train.save_every=4").records()
    next(r for r in records if r.kind == "tune")
    records.close()
    (newest,) = Path("run/experts/gpt/checkpoints").glob("step-10")
    (newest / "model.safetensors").write_bytes(b"broken")

    resumed = make_loop(resume=True)
    finish(resumed)

    assert not differing(resumed.learner.model.state_dict(), whole.learner.model.state_dict())
    kept = RunFolder(Path("run/experts/gpt")).checkpoints.all()
    assert [checkpoint.step for checkpoint in kept] == [12, 14]
    for checkpoint in kept:
        verify_folder(checkpoint.path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: "{",
        lambda found: "[]",
        lambda found: "{}",
        lambda found: json.dumps(found | {"weights": {"counts": 1.0}}),
        lambda found: json.dumps(found | {"steps": {}}),
        lambda found: json.dumps(found | {"temperature": 0.0}),
        lambda found: json.dumps(found | {"temperature": math.nan}),
        lambda found: json.dumps(found | {"weights": dict.fromkeys(found["weights"], "a")}),
        lambda found: json.dumps(found | {"gate": [0.5]}),
    ],
)
def test_a_damaged_record_of_the_weights_is_refused(make_loop, damage):
    records = make_loop().records()
    next(r for r in records if r.kind == "tune")
    records.close()
    path = Path("run/mixture.json")
    path.write_text(damage(json.loads(path.read_text())))

    with pytest.raises(CheckpointError, match=r"(?s)^run/mixture.json: cannot be read .*new run$"):
        finish(make_loop(resume=True))


RUNS = """\
data: {source: text.txt}
model:
  type: mixture
  block_size: 16
  tune_fraction: 0.1
  experts: {old: {run: gpt}, counts: {run: runs/counts}}
run: {device: cpu}
"""


@pytest.fixture(scope="module")
def _runs(tmp_path_factory):
    from charlm.cli.main import run

    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "counts.yaml").write_text(
        "data: {source: text.txt}\nmodel: {type: ngram, order: 3}\nrun: {device: cpu}\n"
    )
    with contextlib.chdir(folder):
        gpt = ["-c", "tiny.yaml", "--out", "gpt", "-q", "run.dtype=float32"]
        assert run(["train", *gpt]) == 0
        assert run(["train", "-c", "counts.yaml", "--out", "runs/counts", "-q"]) == 0
    (folder / "mixture.yaml").write_text(RUNS)
    return folder


@pytest.fixture
def runs(_runs, tmp_path):
    """A copy of two runs, and of the configuration of a mixture of them."""
    shutil.copytree(_runs, tmp_path, dirs_exist_ok=True)


def test_the_run_of_an_expert_that_is_gone_is_named_by_its_key(make_loop, runs):
    records = make_loop("model.experts.old.run=gpt").records()
    shutil.rmtree("gpt")

    with pytest.raises(CheckpointError, match=r"^model\.experts\.old\.run: gpt: not found; "):
        next(records)


def test_weights_of_a_run_that_do_not_belong_to_it_are_refused(charlm, runs):
    config = Path("gpt/config.yaml")
    config.write_text(config.read_text().replace("n_head: 2", "n_head: 4"))

    refused = charlm("train", "-c", "mixture.yaml", "--out", "run", "-q")

    assert refused.code == 4
    assert refused.error.startswith(
        "model.experts.old.run: gpt/config.yaml: model.n_head is 4, step-6 was saved with 2"
    )
    assert not Path("run").exists()


OTHER_MODEL = "gpt: its model has changed; restore it or start a new run"
OTHER_WEIGHTS = "gpt/checkpoints/step-6: not the weights that run/mixture.json was fitted with"


@pytest.mark.parametrize(
    ("change", "core", "fitted"),
    [
        ("data.source=other.txt", OTHER_WEIGHTS, True),  # of another alphabet
        ("model.n_head=4", OTHER_MODEL, False),
        ("model.n_head=4", OTHER_MODEL, True),
    ],
)
def test_an_experts_run_does_not_become_another(make_loop, charlm, runs, change, core, fitted):
    Path("other.txt").write_text(TEXT.replace("P", "H"))
    records = make_loop().records()
    if fitted:
        next(records)
        records.close()
    shutil.rmtree("gpt")
    assert charlm("train", "-c", "tiny.yaml", "--out", "gpt", "-q", change).code == 0

    refused = charlm(*RESUME)

    assert refused.code == 4
    assert refused.error.startswith(f"model.experts.old.run: {core}")


def test_weights_are_those_that_were_fitted_not_others_of_the_same_step(make_loop, charlm, runs):
    records = make_loop().records()
    next(records)
    records.close()
    shutil.rmtree("gpt")
    assert charlm("train", "-c", "tiny.yaml", "--out", "gpt", "-q", "--seed", 5).code == 0

    refused = charlm(*RESUME)

    assert refused.code == 4
    assert refused.error.startswith(
        "model.experts.old.run: gpt/checkpoints/step-6: not the weights that run/mixture.json was"
    )


@pytest.mark.parametrize("fitted", [False, True])
def test_verify_looks_at_the_runs_that_a_mixture_is_still_to_take_experts_from(
    make_loop, charlm, runs, fitted
):
    records = make_loop().records()
    if fitted:
        next(records)
        records.close()
    assert "sound    gpt: expert old, of step 6" in charlm("verify", "run").stdout
    Path("gpt").rename("away")

    verified = charlm("verify", "run")

    assert verified.code == 4
    refused = charlm(*RESUME)
    assert refused.code == 4
    assert f"damaged  {refused.error}" in verified.stdout


def test_a_run_whose_manifest_has_no_weights_is_damaged(make_loop, charlm, runs):
    make_loop().records()
    folder = Path("gpt/checkpoints/step-6")
    facts = read_manifest(folder)
    (folder / "MANIFEST.json").unlink()
    (folder / "model.safetensors").unlink()
    write_manifest(folder, {key: facts[key] for key in facts if key not in ("format", "files")})

    verified = charlm("verify", "run")

    assert verified.code == 4
    assert "damaged  model.experts.old.run: gpt/checkpoints/step-6: model.saf" in verified.stdout
    assert charlm(*RESUME).code == 4


def test_a_mixture_that_failed_before_its_first_step_can_be_begun_again(charlm, tiny, monkeypatch):
    Path("mixture.yaml").write_text(MIXTURE)

    def fail(*_):
        raise CheckpointError("odd; do this")

    monkeypatch.setattr(GradientLearner, "step", fail)
    monkeypatch.setattr(TrainingLoop, "save", fail)

    assert charlm("train", "-c", "mixture.yaml", "--out", "runs/new", "-q").code == 4
    assert not Path("runs").exists()


def test_runs_are_joined_as_they_are(make_loop, runs):
    Path("mixture.yaml").write_text(RUNS)
    loop = make_loop()

    records = finish(loop)

    assert [r.kind for r in records] == ["tune", "eval", "train", "eval", "save"]
    for name, run in (("old", "gpt"), ("counts", "runs/counts")):
        own = load_model(RunFolder(Path(run))).model
        assert not differing(own.state_dict(), loop.learner.model.experts[name].state_dict())
    notes = [note for note in loop.notes if note.startswith("model.experts.")]
    assert len(notes) == 2
    assert "has read the end of the training text" in notes[0]


def test_a_joined_mixture_needs_its_runs_no_more(make_loop, runs, charlm):
    Path("mixture.yaml").write_text(RUNS)
    loop = make_loop()
    finish(loop)
    shutil.rmtree("gpt")
    shutil.rmtree("runs")

    assert charlm("train", "--resume", "--out", "run", "-q").code == 0
    assert charlm("train", "--resume", "--out", "run", "-q", "-c", "mixture.yaml").code == 0
    assert charlm("sample", "--run", "run", "--max-new-chars", 5, "--seed", 1).code == 0
    assert charlm("eval", "--run", "run").code == 0


def test_weights_are_kept_with_the_step_of_a_run_that_they_were_fitted_to(make_loop, runs, charlm):
    Path("mixture.yaml").write_text(RUNS)
    whole = make_loop(out="whole")
    finish(whole)
    records = make_loop().records()
    next(r for r in records if r.kind == "tune")
    records.close()
    more = ("train.max_steps=9", "train.eval_every=9", "train.learning_rate=0.1")
    assert charlm("train", "--resume", "--out", "gpt", "-q", *more).code == 0
    assert RunFolder(Path("gpt")).checkpoints.best().step == 9

    resumed = make_loop(resume=True)
    finish(resumed)

    assert not differing(resumed.learner.model.state_dict(), whole.learner.model.state_dict())


@pytest.mark.parametrize(
    ("override", "core"),
    [
        (
            "data.val_fraction=0.3",
            "part of this validation text, so the validation loss will be too low",
        ),
        ("data.val_fraction=0.05", None),  # the runs have read less than the experts would here
    ],
)
def test_a_run_that_has_read_the_validation_part_is_noted(make_loop, runs, override, core):
    Path("mixture.yaml").write_text(RUNS)

    loop = make_loop(override, "model.tune_fraction=0.02")
    notes = [note for note in loop.notes if note.startswith("model.experts.")]

    assert len(notes) == (2 if core else 0)
    assert all(core in note for note in notes)


def test_a_run_of_another_text_is_not_suspected(make_loop, runs):
    Path("mixture.yaml").write_text(RUNS)
    Path("text.txt").write_text(TEXT[::-1])

    assert [note for note in make_loop().notes if note.startswith("model.experts.")] == []


def test_an_expert_that_does_nothing_is_saved_as_it_was(make_loop):
    nothing = ("max_steps=0", "warmup_steps=0")
    loop = make_loop(*(f"model.experts.gpt.train.{key}" for key in nothing))

    finish(loop)

    own = load_model(RunFolder(Path("run/experts/gpt")))
    assert own.step == 0
    assert not differing(own.model.state_dict(), loop.learner.model.experts["gpt"].state_dict())


def test_experts_keep_to_their_own_settings_and_are_never_scored(make_loop):
    settings = {
        "sample_every": 3,
        "sample_chars": 5,
        "eval_every": 2,
        "patience": 1,
        "save_every": 3,
    }
    loop = make_loop(*(f"model.experts.gpt.train.{key}={n}" for key, n in settings.items()))

    records = [r for r in finish(loop) if r.expert == "gpt"]

    assert Counter(r.kind for r in records) == {"train": 14, "sample": 4, "save": 6}
    assert len(list(Path("run/experts/gpt/samples").iterdir())) == 4


def test_an_expert_that_diverges_is_named(make_loop):
    loop = make_loop(
        "model.experts.mean.train.learning_rate=1e38", "model.experts.mean.train.grad_clip=0"
    )

    with pytest.raises(NonFiniteError, match=r"^model\.experts\.mean: "):
        finish(loop)


@pytest.fixture
def clock(monkeypatch):
    """A clock that work moves: half a second a step, 2 a count, 1 each 224 characters predicted."""
    clock = SimpleNamespace(now=1000.0, predicting=1.0)

    def costs(place, name, seconds):
        usual = getattr(place, name)

        def call(*arguments, **named):
            clock.now += seconds(*arguments)
            return usual(*arguments, **named)

        monkeypatch.setattr(place, name, call)

    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    costs(GradientLearner, "step", lambda *_: 0.5)
    costs(joining, "count_text", lambda *_: 2.0)
    costs(JoiningLearner, "_predict", lambda _, most: clock.predicting * min(most, 224) / 224)
    costs(TrainingLoop, "_evaluate", lambda *_: clock.predicting * 258 / 224)
    return clock


def test_minutes_end_on_time_with_scoring_and_are_shared_alike(make_loop, clock):
    loop = make_loop("train.minutes=1", began=1000.0)

    records = finish(loop)

    assert 58.5 <= clock.now - 1000 <= 60.5
    of = {n: [r for r in records if r.expert == n and r.kind == "train"] for n in
          ("gpt", "mean")}  # fmt: skip
    assert abs(len(of["gpt"]) - len(of["mean"])) <= 2
    assert len(of["gpt"]) > 45
    # The schedule ends with the time, whatever max_steps says.
    rates = [r.learning_rate for r in of["mean"]]
    assert rates[len(rates) // 2] > 2e-3
    assert rates[-1] == pytest.approx(1e-4, abs=2e-5)
    assert records[-1].seconds == pytest.approx(clock.now - 1000, abs=0.5)


@pytest.mark.parametrize(("after", "fitted"), [(0, False), (20, False), (60, False), (95, True)])
def test_minutes_go_on_where_they_were_when_resumed(make_loop, clock, after, fitted):
    done = []
    loop = make_loop("train.minutes=1", began=1000.0, should_stop=lambda: len(done) > after)
    for record in loop.records():
        done.append(record)
    assert loop.stopped
    assert Path("run/mixture.json").exists() == fitted
    clock.now += 500  # the night between

    resumed = make_loop(resume=True, began=clock.now)
    done += finish(resumed)

    # Where the weights were not fitted, counting is done again; how long it took is not known then,
    # nor how long it was tried how long a prediction takes.
    assert 58.5 <= clock.now - 1500 <= (61.5 if fitted else 63.5)
    steps = Counter(r.expert for r in done if r.kind == "train" and r.expert)
    assert abs(steps["gpt"] - steps["mean"]) <= 3


def test_time_is_kept_for_the_last_updates_however_long_predicting_takes(make_loop, clock):
    clock.predicting = 5.0
    loop = make_loop("train.minutes=0.5", began=1000.0)

    records = finish(loop)

    assert clock.now - 1000 <= 31  # each expert may end half a step late
    fitted = next(i for i, record in enumerate(records) if record.kind == "tune")
    late = Counter(r.expert for r in records[fitted:] if r.expert)
    assert late["gpt"] > 1
    assert late["mean"] > 1


def test_minutes_that_were_lowered_leave_the_rest_to_those_that_had_less(make_loop, clock):
    done = []
    loop = make_loop("train.minutes=1", began=1000.0, should_stop=lambda: len(done) > 50)
    for record in loop.records():
        done.append(record)

    resumed = make_loop("train.minutes=0.6", resume=True)
    done += finish(resumed)

    assert 34 <= clock.now - 1000 <= 40.5


def test_an_expert_can_be_overridden_sampled_and_scored(charlm, tiny):
    """The preset, by the command line, as far as a tiny text allows."""
    Path("mixture.yaml").write_text(MIXTURE)
    command = ("train", "-c", "mixture.yaml", "--out", "run", "model.experts.gpt.train.max_steps=2")

    trained = charlm(*command)

    assert trained.code == 0
    assert "weight counts " in trained.stderr
    assert trained.stdout.startswith("validation loss")
    for run in ("run", "run/experts/gpt"):
        drawn = charlm("sample", "--run", run, "--max-new-chars", 20, "--seed", 1, "--no-echo")
        assert len(drawn.stdout.rstrip("\n")) <= 20
        assert (
            drawn.stdout
            == charlm(
                "sample", "--run", run, "--max-new-chars", 20, "--seed", 1, "--no-echo"
            ).stdout
        )
    scores = {}
    for run in ("run", "run/experts/gpt"):
        for protocol in ("windows", "sliding"):
            result = charlm("eval", "--run", run, "--protocol", protocol, "--json")
            scores[run, protocol] = json.loads(result.stdout)["loss_nats"]
    assert (
        scores["run", "sliding"] < scores["run", "windows"] < scores["run/experts/gpt", "windows"]
    )
    refused = charlm("eval", "--run", "run", "--protocol", "stream")
    assert (refused.code, refused.error[:17]) == (2, "--protocol stream")


def test_a_mixture_of_counts_can_be_scored_in_a_stream(charlm, tiny):
    Path("mixture.yaml").write_text(
        "data: {source: text.txt}\nmodel: {type: mixture, block_size: 8, experts: {\n"
        "a: {model: {type: ngram, order: 2}}, b: {model: {type: ngram, order: 4}}}}\n"
    )
    assert charlm("train", "-c", "mixture.yaml", "--out", "run", "-q").code == 0

    def score(*options):
        return json.loads(charlm("eval", "--run", "run", "--json", *options).stdout)["loss_nats"]

    # With 4 characters of a window skipped, each has the 3 before it that the order looks at.
    sliding = score("--protocol", "sliding", "--block-size", 8, "--stride", 4)
    assert score("--protocol", "stream") == pytest.approx(sliding, rel=1e-6)
    assert score("--protocol", "windows") > sliding


def test_the_configuration_that_made_it_may_be_named_on_resume(charlm, runs):
    made = charlm("train", "-c", "mixture.yaml", "--out", "run", "-q")
    again = charlm("train", "-c", "mixture.yaml", "--out", "run", "--resume", "-q")
    Path("mixture.yaml").write_text(MIXTURE)
    other = charlm("train", "-c", "mixture.yaml", "--out", "run", "--resume", "-q")

    assert (made.code, again.code, other.code) == (0, 0, 4)
    assert again.stdout == made.stdout
    assert "run: model.experts." in other.error
    assert len(other.error) < 200
