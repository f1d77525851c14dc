"""What a number of minutes buys. The clock is a fake here, but for one test."""

import pytest
import torch

from charlm.config import Config, load_config
from charlm.config.size import flops_per_step, training_bytes
from charlm.training import plan
from charlm.training.gradients import GradientLearner
from charlm.training.plan import REGULARISERS, SIZES, TRAINING, keep_plan, make_plan

LONG = 10**7  # characters of a text that is never read twice here
SPEED = 1e11  # operations a second of the fake


@pytest.fixture
def clock(monkeypatch):
    """A machine that does `SPEED` operations a second, and the configurations it was timed with."""
    timed = []

    def seconds(config, vocab_size, limit):
        timed.append(config)
        return flops_per_step(config, vocab_size) / SPEED

    monkeypatch.setattr(plan, "seconds_a_step", seconds)
    return timed


def planned(*overrides, preset="gpt", chars=LONG, given=()):
    config, plans = make_plan(load_config(preset, overrides), 65, chars, given)
    return config, plans


def size_of(config):
    return config.model.n_layer, config.model.n_embd, config.train.batch_size


def minutes_for(size):
    """Minutes in which the fake machine does just the updates that a size asks for."""
    config, _ = planned()
    model = config.model.model_copy(
        update={key: getattr(size, key) for key in ("n_layer", "n_head", "n_embd", "block_size")}
    )
    train = config.train.model_copy(update={"batch_size": size.batch_size})
    flops = flops_per_step(config.model_copy(update={"model": model, "train": train}), 65)
    return size.updates * flops / SPEED / 60 / TRAINING


def test_steps_with_dropout_are_timed_with_it(monkeypatch):
    def seconds(config, vocab_size, limit):
        return 0.15 if config.model.dropout else 0.1

    monkeypatch.setattr(plan, "seconds_a_step", seconds)

    plans = [planned("train.minutes=5", chars=chars)[1][""] for chars in (300_000, 30_000_000)]

    assert [one.config.model.dropout for one in plans] == [0.1, 0]
    assert [one.updates for one in plans] == [1700, 2550]
    train = plans[0].config.train
    assert plans[0].passes == plans[0].updates * train.batch_size * 256 / 300_000


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("index", range(1, len(SIZES)))
def test_a_size_is_taken_as_soon_as_there_is_time_for_its_updates(index):
    size, smaller = SIZES[index], SIZES[index - 1]
    minutes = minutes_for(size)
    config, plans = planned(f"train.minutes={minutes * 1.01}")
    assert size_of(config) == (size.n_layer, size.n_embd, size.batch_size)
    assert plans[""].updates == pytest.approx(size.updates * 1.01, rel=0.01)
    config, plans = planned(f"train.minutes={minutes * 0.99}")
    assert size_of(config) == (smaller.n_layer, smaller.n_embd, smaller.batch_size)


@pytest.mark.usefixtures("clock")
def test_without_minutes_nothing_is_planned():
    assert planned() == (load_config("gpt"), {})


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "other",
    [["train.plan=false"], ["model.style=gpt2", "model.n_gram=1"], ["train.optimizer=adamw"]],
)
def test_what_the_sizes_were_not_tried_with_is_left_alone(other):
    overrides = ("train.minutes=5", *other)
    assert planned(*overrides) == (load_config("gpt", overrides), {})


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("preset", ["bigram", "multihead", "gpt2-small", "nanogpt-cpu", "ngram"])
def test_presets_of_the_course_are_never_planned(preset):
    assert planned("train.minutes=5", preset=preset)[1] == {}


def test_keys_that_were_given_stay_and_are_timed(clock):
    given = {"model.n_layer": 3, "train.batch_size": 5, "model.dropout": 0.3}
    overrides = [f"{key}={value}" for key, value in given.items()]
    config, _ = planned("train.minutes=60", *overrides, given=given)
    assert config.model.n_layer == 3
    assert config.train.batch_size == 5
    assert config.model.dropout == 0.3
    assert config.model.n_embd > SIZES[0].n_embd
    assert {size_of(one)[0] for one in clock} == {3}


@pytest.mark.usefixtures("clock")
def test_heads_and_channels_stay_together():
    config, _ = planned("train.minutes=60", "model.n_embd=104", given=["model.n_embd"])
    assert (config.model.n_embd, config.model.n_head) == (104, load_config("gpt").model.n_head)


@pytest.mark.usefixtures("clock")
def test_a_batch_that_is_split_stays_whole():
    config, _ = planned("train.minutes=60", "train.micro_batch_size=6")
    assert config.train.batch_size == load_config("gpt").train.batch_size


@pytest.mark.usefixtures("clock")
def test_the_more_often_a_text_is_read_the_more_is_decayed_and_dropped():
    found = []
    for chars in (LONG, 10**6, 3 * 10**5, 10**5, 10**4):
        config, plans = planned("train.minutes=1", chars=chars)
        passes = plans[""].passes
        wanted = next(some for least, *some in REGULARISERS if passes >= least)
        assert [config.train.weight_decay, config.model.dropout] == wanted
        found.append(tuple(wanted))
    assert found == sorted(found)
    assert found[0][1] == 0 < found[-1][1]


@pytest.mark.usefixtures("clock")
def test_a_plan_is_a_configuration_that_can_be_read_again():
    rates = ("train.learning_rate=5e-2", "train.min_lr=2e-2")
    config, _ = planned("train.minutes=60", *rates)
    assert config.train.learning_rate == 5e-2
    assert Config.model_validate(config.model_dump()) == config


@pytest.mark.usefixtures("clock")
def test_a_short_text_keeps_its_window():
    config, _ = planned("train.minutes=1", "model.block_size=7", chars=500)
    assert config.model.block_size == 7


def test_what_does_not_fit_into_half_of_the_memory_is_not_tried(clock, monkeypatch):
    second, third = (planned(f"train.minutes={minutes_for(s) * 1.01}")[0] for s in SIZES[1:3])
    between = sum(training_bytes(second, 65).values()) + sum(training_bytes(third, 65).values())
    monkeypatch.setattr(plan, "machine_bytes", lambda: between)
    clock.clear()
    config, _ = planned("train.minutes=10000")
    assert size_of(config) == size_of(second)
    assert [size_of(timed) for timed in clock if not timed.model.dropout][1:] == [size_of(second)]


@pytest.mark.usefixtures("clock")
def test_the_schedule_fits_into_few_updates():
    config, plans = planned("train.minutes=0.002")
    assert 0 < plans[""].updates < 200
    assert config.train.warmup_steps == plans[""].updates // 10


@pytest.mark.usefixtures("clock")
def test_an_expert_is_planned_for_its_share_of_the_minutes():
    minutes = 2 * minutes_for(SIZES[2])
    config, plans = planned(f"train.minutes={minutes}", preset="mixture")
    assert list(plans) == ["gpt"]
    expert = config.model.experts["gpt"]
    assert expert.model == plans["gpt"].config.model
    assert expert.train == plans["gpt"].config.train
    given = ["model.experts.gpt.model.n_layer", "model.n_embd"]
    alone = planned(f"train.minutes={minutes}", preset="mixture", given=given)[0]
    assert alone.model.experts["gpt"].model.n_layer == 3
    assert (
        alone.model.experts["gpt"].model.n_embd > 128
    )  # the mixture's own key is not the expert's


@pytest.mark.usefixtures("clock")
def test_the_plan_is_kept_to_go_on_with():
    own, _ = planned("train.minutes=60")
    again = keep_plan(load_config("gpt", ["train.minutes=90"]), own)
    assert again == own.model_copy(update={"train": own.train.model_copy(update={"minutes": 90.0})})
    changed = keep_plan(load_config("gpt", ["model.n_layer=1"]), own, ["model.n_layer"])
    assert changed.model.n_layer == 1


@pytest.mark.usefixtures("clock")
def test_experts_share_the_minutes():
    """Two GPTs, each in half of the time: each gets what it would get alone."""
    one = {"model.type": "gpt", "model.style": "modern"}
    one |= {"train.plan": "true", "train.optimizer": "muon"}
    overrides = [f"model.experts.other.{key}={value}" for key, value in one.items()]
    minutes = minutes_for(SIZES[2])
    alone = planned(f"train.minutes={minutes}", preset="mixture")[1]["gpt"]
    both = planned(f"train.minutes={2 * minutes}", *overrides, preset="mixture")[1]
    assert list(both) == ["gpt", "other"]
    assert both["gpt"].config.model == alone.config.model
    assert both["gpt"].updates == pytest.approx(alone.updates, rel=0.01)


@pytest.mark.usefixtures("clock")
def test_what_is_over_is_not_planned_for():
    minutes = minutes_for(SIZES[2])
    spent = make_plan(load_config("gpt", [f"train.minutes={minutes + 2}"]), 65, LONG, (), 120.0)
    assert spent[1][""].updates == planned(f"train.minutes={minutes}")[1][""].updates


@pytest.mark.usefixtures("clock")
def test_gradients_by_hand_are_not_planned():
    assert planned("train.minutes=5", "train.gradients=by_hand")[1] == {}


def test_timing_ends_when_it_has_taken_too_long(monkeypatch):
    steps = []
    update = GradientLearner.update
    monkeypatch.setattr(
        GradientLearner, "update", lambda *given: steps.append(given) or update(*given)
    )
    config = load_config("gpt", ["model.n_embd=16"])
    assert plan.seconds_a_step(config, 65, limit=0.0) > 0
    assert len(steps) == 1
    plan.seconds_a_step(config, 65)
    assert len(steps) == 1 + 1 + plan.TRIALS


def test_a_step_is_timed_in_the_precision_of_the_run(monkeypatch):
    found = []
    build = plan.build_model

    def watched(*arguments):
        model = build(*arguments)
        model.register_forward_hook(lambda *_: found.append(torch.is_autocast_enabled("cpu")))
        return model

    monkeypatch.setattr(plan, "build_model", watched)
    for dtype in ("float32", "bfloat16"):
        plan.seconds_a_step(
            load_config("gpt", ["model.n_embd=16", f"run.dtype={dtype}", "run.fused=false"]),
            65,
            0.0,
        )
    assert found == [False, True]


def test_a_step_is_timed_as_it_is_trained():
    """Micro-batches are run one after another; the fastest of some tries, for noise."""

    def seconds(batch):
        config = load_config(
            "gpt",
            ["train.micro_batch_size=2", f"train.batch_size={batch}", "model.n_embd=16"],
        )
        return min(plan.seconds_a_step(config, 65) for _ in range(3))

    assert seconds(32) > 2 * seconds(2)


@pytest.mark.parametrize(
    ("passes", "shown"), [(0.774, "0.77"), (9.96, "10"), (27.6, "28"), (3801.2, "3,801")]
)
def test_passes_are_shown_as_people_write_numbers(passes, shown):
    made = plan.BudgetPlan(load_config("gpt"), 10, passes)

    assert str(made).endswith(f", {shown} passes over the text")
