"""Tests of keys that give way to the ones that the user set."""

import pytest

from charlm.config import load_config, preset_names
from charlm.errors import UsageError


def settled(name, *overrides):
    notes = []
    config = load_config(str(name), overrides, notes)
    return config, notes


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_takes_a_short_run_and_a_low_rate(name):
    prefix = "model.experts.gpt." if "gpt" in load_config(name).model.members() else ""
    load_config(name, [f"{prefix}train.max_steps=20", f"{prefix}train.learning_rate=1e-5"])


def test_the_warm_up_of_a_preset_shrinks_to_a_tenth_and_says_so():
    config, notes = settled("gpt", "train.max_steps=20")

    assert config.train.warmup_steps == 2
    assert notes == ["train.warmup_steps is 2, a tenth of max_steps 20 (gpt has 100)"]


def test_the_warm_up_of_an_expert_shrinks_too():
    config, notes = settled("mixture", "model.experts.gpt.train.max_steps=20")

    assert config.model.experts["gpt"].train.warmup_steps == 2
    assert notes == [
        "model.experts.gpt.train.warmup_steps is 2, a tenth of max_steps 20 (mixture has 50)"
    ]


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
def test_a_preset_carries_no_state_from_record_to_record(name):
    config, notes = settled(name, "data.records=lines")

    assert load_config(name, ["data.records=none"]).train.carry_state
    assert not config.train.carry_state
    because = f"because every record begins anew ({name} has true)"
    assert notes == [f"train.carry_state is false, {because}"]
    with pytest.raises(UsageError, match=r"train\.carry_state: every record begins anew"):
        settled(name, "data.records=lines", "train.carry_state=true")


@pytest.mark.parametrize("overrides", [[], ["train.max_steps=20"]])
def test_a_default_warm_up_shrinks_for_a_file_that_has_none(file, overrides):
    path = file("model: {type: gpt}\ntrain: {max_steps: 20}\n")
    config, notes = settled(path, *overrides)

    assert config.train.warmup_steps == 2
    assert notes == ["train.warmup_steps is 2, a tenth of max_steps 20 (the default has 100)"]


@pytest.mark.parametrize("steps", ["max_steps: 20, ", ""])
def test_a_warm_up_in_the_users_own_file_is_not_touched(file, steps):
    path = file(f"model: {{type: gpt}}\ntrain: {{{steps}warmup_steps: 100}}\n")
    with pytest.raises(UsageError, match="warmup_steps 100 is more than max_steps 20"):
        settled(path, "train.max_steps=20")


def test_a_warm_up_that_was_asked_for_is_not_touched():
    with pytest.raises(UsageError, match="warmup_steps 100 is more than max_steps 20"):
        settled("gpt", "train.max_steps=20", "train.warmup_steps=100")


def test_a_long_warm_up_stays_under_a_clock():
    config, notes = settled("gpt", "train.max_steps=20", "train.minutes=1")

    assert (config.train.warmup_steps, notes) == (100, [])


def test_the_last_rate_follows_a_low_peak_but_not_the_other_way_round():
    config, notes = settled("gpt", "train.learning_rate=1e-5")

    assert config.train.min_lr == 1e-6
    assert notes == ["train.min_lr is 1e-06, a tenth of learning_rate 1e-05 (gpt has 0.0001)"]
    with pytest.raises(UsageError, match=r"min_lr 1\.0 is more than learning_rate 0.01"):
        settled("gpt", "train.min_lr=1")


def test_initial_weights_keep_their_size_under_a_clock():
    config, notes = settled("gpt", "train.minutes=1", "train.init_from=runs/a")

    assert not config.train.plan
    assert notes == ["train.plan is false, because init_from has a size already (gpt has true)"]
    with pytest.raises(UsageError, match="plan chooses a size and init_from has one"):
        settled("gpt", "train.minutes=1", "train.init_from=runs/a", "train.plan=true")


def test_the_old_style_has_no_embeddings_of_n_grams():
    config, notes = settled("gpt", "model.style=gpt2")

    assert config.model.n_gram == 1
    assert notes == ["model.n_gram is 1, because style gpt2 has no such embeddings (gpt has 5)"]
    with pytest.raises(UsageError, match="needs style: modern"):
        settled("gpt", "model.style=gpt2", "model.n_gram=3")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("ngram", "it is counted in one step"),
        (
            "mixture",
            "each expert has its own, such as model.experts.gpt.train.max_steps",
        ),
    ],
)
def test_updates_of_a_model_without_any_are_noted(name, own):
    _, notes = settled(name, "train.max_steps=20", "train.minutes=1")

    assert notes == [f"no effect on model {name!r}: train.max_steps; {own}"]


def test_mistakes_are_still_reported_once():
    for wrong in ("train.max_steps=-1", "train.max_steps=x", "train=3", "train.learning_rate=-1"):
        with pytest.raises(UsageError) as caught:
            settled("gpt", wrong)
        assert len(caught.value.problems) == 1, wrong
