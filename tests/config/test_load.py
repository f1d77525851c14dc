from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import Config, dump_yaml, load_config, preset_names, preset_text, read_config
from charlm.config.load import ALIASES
from charlm.config.schema import MAX_SYMBOLS
from charlm.errors import UsageError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

# Every name that nanoGPT's train.py lets a user set.
NANOGPT = [
    "always_save_checkpoint",
    "backend",
    "batch_size",
    "beta1",
    "beta2",
    "bias",
    "block_size",
    "compile",
    "dataset",
    "decay_lr",
    "device",
    "dropout",
    "dtype",
    "eval_interval",
    "eval_iters",
    "eval_only",
    "grad_clip",
    "gradient_accumulation_steps",
    "init_from",
    "learning_rate",
    "log_interval",
    "lr_decay_iters",
    "max_iters",
    "min_lr",
    "n_embd",
    "n_head",
    "n_layer",
    "out_dir",
    "wandb_log",
    "warmup_iters",
    "weight_decay",
]

GPT = "model: {type: gpt}\n"


def load(text: str, *overrides: str) -> Config:
    return read_config(text.encode(), "a.yaml", overrides)


def refusals(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(text, *overrides)
    assert all("\n" not in problem for problem in caught.value.problems)
    return list(caught.value.problems)


def refusal(text: str, *overrides: str) -> str:
    (problem,) = refusals(text, *overrides)
    return problem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_by_name_and_by_path(path):
    assert load_config(path.stem) == load_config(str(path))
    assert preset_text(path.stem) == path.read_text(encoding="utf-8")


def test_every_shipped_configuration_is_a_preset():
    assert preset_names() == [path.stem for path in CONFIGS]
    assert len(CONFIGS) >= 8


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_resolved_configuration_is_read_back_equal(path):
    config = load_config(str(path))

    assert load(dump_yaml(config.model_dump())) == config


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"])),
    source=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
    rate=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**63 - 1),
    minutes=st.none() | st.floats(min_value=1e-9, max_value=1e9),
    compiled=st.sampled_from(["auto", True, False]),
)
def test_any_resolved_configuration_is_read_back_equal(
    prompt, source, rate, seed, minutes, compiled
):
    config = Config.model_validate(
        {
            "data": {"source": source},
            "model": {"type": "gpt"},
            "train": {"learning_rate": rate, "min_lr": 0, "minutes": minutes},
            "sample": {"prompt": prompt},
            "run": {"seed": seed, "compile": compiled},
        }
    )

    assert load(dump_yaml(config.model_dump())) == config


def test_a_source_whose_bytes_are_not_utf_8_is_read_back_equal():
    config = load(GPT, "data.source=h\udcff.txt")

    assert load(dump_yaml(config.model_dump())).data.source == "h\udcff.txt"


def test_a_section_without_keys_means_its_defaults():
    assert load("train:\nmodel: {type: gpt}\ndata:\n  # source: x\n") == load(GPT)


def test_overrides_change_keys_and_later_ones_win():
    config = load(GPT, "train.max_steps=5", "train.warmup_steps=0", "train.max_steps= 7 ")

    assert (config.train.max_steps, config.train.warmup_steps) == (7, 0)


def test_an_override_may_be_anything_after_its_first_equals_sign():
    assert load(GPT, "sample.prompt=a=b: [c").sample.prompt == "a=b: [c"
    assert load(GPT, "sample.prompt=").sample.prompt == ""
    assert load(GPT, "train.minutes=null").train.minutes is None


def test_a_name_that_looks_like_a_number_is_kept_to_the_letter():
    assert load(GPT, "run.out=1.10", "sample.prompt=1_000").run.out == "1.10"
    assert load(GPT + "run: {out: 2024.10}").run.out == "2024.10"


@pytest.mark.parametrize(
    "override", ["lr", "=3", "", "train", "train.max_steps", "--json"], ids=repr
)
def test_an_override_without_a_key_or_a_value_is_refused(override):
    assert (
        refusal(GPT, override) == f"{override!r}: expected KEY=VALUE, such as train.max_steps=500"
    )


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("lr=1", "did you mean train.learning_rate?"),
        ("n_layer=1", "did you mean model.n_layer?"),
        ("max_step=1", "did you mean train.max_steps?"),
        ("trian.max_steps=1", "did you mean train.max_steps?"),
        ("train=1", "it is a section, set a key in it such as train.max_steps"),
        ("train.=1", "sections: data, model, train, eval, sample, run"),
        (".x=1", "sections: data, model, train, eval, sample, run"),
        ("train.max_step=1", "did you mean 'max_steps'?"),
        ("train.n_layer=1", "did you mean model.n_layer?"),
        ("eval.zzz=1", "eval has max_chars, baselines"),
        ("model..n_layer=1", "did you mean 'n_layer'?"),
        ("data.source.x=1", "did you mean 'source'?"),
    ],
)
def test_an_unknown_override_is_answered_with_the_nearest_name(override, hint):
    problem = refusal(GPT, override)

    assert problem.startswith(f"{override!r}: ")
    assert "unknown key" in problem
    assert problem.endswith(f"; {hint}")


def test_a_wrong_override_is_quoted_and_reads_like_a_wrong_key_of_a_file():
    from_file = refusal("model:\n  type: gpt\n  n_layer: many\n")
    from_override = refusal(GPT, "model.n_layer=many")

    assert from_file == "a.yaml:3: model.n_layer: expected an integer, got 'many'"
    assert from_override == "'model.n_layer=many': model.n_layer: expected an integer, got 'many'"


def test_a_conflict_that_an_override_made_names_the_override():
    problem = refusal("model:\n  type: gpt\n  n_embd: 16\n", "model.n_head=3")

    assert problem.startswith("a.yaml with model.n_head=3: model: n_head: 3 does not divide")


def test_an_override_of_a_section_that_is_no_mapping_adds_nothing_to_the_problem():
    assert refusal("model: gpt\n", "model.n_layer=3") == (
        "a.yaml:1: model: expected a mapping of keys, got 'gpt'"
    )


@pytest.mark.parametrize("name", NANOGPT)
def test_every_name_of_nanogpt_is_answered(name):
    problem = refusal(GPT, f"{name}=1")

    assert problem.endswith(
        (f"did you mean {ALIASES.get(name)}?", f"; {ALIASES.get(name)}", f".{name}?")
    )


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_leads_to_a_key_that_exists(name):
    target = ALIASES[name]
    if not target.startswith("no key"):
        section, _, key = target.split()[0].partition(".")
        schema = Config.model_json_schema()
        owners = [facts["properties"] for facts in schema["$defs"].values()]
        assert section in schema["properties"]
        assert any(key in properties for properties in owners)
    assert not any(
        name in facts["properties"] for facts in Config.model_json_schema()["$defs"].values()
    )


def test_an_unknown_key_is_answered_with_the_nearest_name():
    assert refusal("model:\n  type: gpt\n  n_layr: 3\n") == (
        "a.yaml:3: model.n_layr: unknown key; did you mean 'n_layer'?"
    )


def test_a_key_of_another_model_type_says_whose_it_is():
    assert refusal("model: {type: bigram, style: gpt2}\n").endswith(
        "model.style: unknown key; only model type gpt has it"
    )


def test_an_unknown_model_type_is_answered_at_its_line():
    assert refusal("model:\n  block_size: 8\n  type: bigramm\n") == (
        "a.yaml:3: model.type: unknown type 'bigramm'; one of bigram, averaging, attention, "
        "multihead, gpt; did you mean 'bigram'?"
    )


@pytest.mark.parametrize("value", ["null", "[1]", "3", "{}"])
def test_a_model_type_that_is_no_word_does_not_hide_other_problems(value):
    first, second = refusals(f"model: {{type: {value}}}\nlr: 3\n")

    assert first.startswith("a.yaml:1: model.type: unknown type ")
    assert second == "a.yaml:2: lr: unknown key; did you mean train.learning_rate?"


def test_all_problems_come_at_once():
    problems = refusals(
        "model: {type: gpt, n_layr: 3, dropout: no}\n"
        "train: {max_steps: 1.5, batch_size: [1], warmup_steps: null}\n"
        "dataset: x\n",
        "lr=3",
        "run.seed=-1",
    )

    keys = ["lr", "model.dropout", "model.n_layr", "train.max_steps", "train.batch_size"]
    keys += ["train.warmup_steps", "dataset", "run.seed"]
    assert len(problems) == len(keys)
    assert all(any(key in problem for problem in problems) for key in keys)


def test_two_conflicts_of_one_section_are_two_problems():
    problems = refusals(
        GPT + "train: {warmup_steps: 10, max_steps: 5, min_lr: 1, learning_rate: 0.5}"
    )

    assert problems == [
        "a.yaml:2: train: warmup_steps 10 is more than max_steps 5; lower it or train longer",
        "a.yaml:2: train: min_lr 1.0 is more than learning_rate 0.5; lower it",
    ]


def test_the_largest_and_the_smallest_of_a_range_are_taken():
    config = load(GPT, f"data.max_vocab={MAX_SYMBOLS}", "sample.top_p=1", "model.dropout=0")

    assert config.data.max_vocab == MAX_SYMBOLS


def test_a_missing_file_is_answered_with_what_is_near(tmp_path):
    (tmp_path / "mine.yaml").write_text(GPT)

    with pytest.raises(UsageError, match=r"did you mean 'mine\.yaml'"):
        load_config("mine.yml")
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        load_config("quickstrat")


def test_a_file_beats_no_preset_but_its_path_is_always_a_file(tmp_path):
    (tmp_path / "gpt").write_text("model: {type: bigram}\n")

    assert load_config("gpt").model.type == "gpt"
    assert load_config("./gpt").model.type == "bigram"


def test_a_name_too_long_for_any_file_is_refused():
    with pytest.raises(UsageError, match="cannot be read: File name too long"):
        load_config("x" * 5000)


def test_an_unknown_preset_has_no_text():
    with pytest.raises(UsageError, match="did you mean 'gpt'"):
        preset_text("gtp")
    with pytest.raises(UsageError, match="not one of"):
        preset_text("../pyproject")
