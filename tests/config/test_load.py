from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.config import (
    Config,
    NotAConfiguration,
    changed,
    dump_yaml,
    load_config,
    preset_names,
    preset_text,
    read_config,
)
from charlm.config.problems import ALIASES, NO_KEYS
from charlm.config.sections import MAX_SYMBOLS, MINUTES
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
MIXTURE = """\
model:
  type: mixture
  experts:
    counts:
      model:
        type: ngram
        order: 5
    gpt:
      model: {type: gpt, n_embd: 16}
      train:
        max_steps: 500
    old: {run: runs/old}
"""


def load(text: str, *overrides: str) -> Config:
    return read_config(text.encode(), "a.yaml", overrides)


def refusals(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load(text, *overrides)
    assert all("\n" not in problem for problem in caught.value.lines())
    return list(caught.value.lines())


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
    minutes=st.none() | st.floats(min_value=1e-9, max_value=MINUTES),
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


@settings(max_examples=25)
@given(
    order=st.integers(1, 32),
    add_k=st.floats(min_value=1e-6, max_value=1e6),
    last_chars=st.none() | st.integers(32, 10**12),
    name=st.sampled_from(["a", "on", "No-1", "null", "e3", "model"]),
    tune_fraction=st.floats(min_value=1e-300, max_value=0.99),
    linear=st.booleans(),
)
def test_any_resolved_ngram_or_mixture_is_read_back_equal(
    order, add_k, last_chars, name, tune_fraction, linear
):
    ngram = {"type": "ngram", "order": order, "add_k": add_k, "last_chars": last_chars}
    mixture = {
        "type": "mixture",
        "combine": "linear" if linear else "log-linear",
        "tune_fraction": tune_fraction,
        "experts": {"z": {"run": "runs/old"}, name: {"model": ngram, "train": {"minutes": 0.5}}},
    }
    for model in (ngram, mixture):
        config = Config.model_validate({"model": model})

        assert load(dump_yaml(config.model_dump())) == config


def test_only_a_bitwise_mixture_keeps_its_own_keys():
    """A run has them in its config.yaml; a later charlm may have other defaults, and refuse these."""
    experts = {"z": {"run": "runs/old"}}
    for combine, kept in (("gated", set()), ("bitwise", {"contexts", "memory"})):
        model = {"type": "mixture", "combine": combine, "experts": experts}
        dumped = Config.model_validate({"model": model}).model_dump()

        assert dumped["model"].keys() & {"contexts", "memory"} == kept


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
        ("train.=1", "sections: data, model, train, eval, adapt, sample, run"),
        (".x=1", "sections: data, model, train, eval, adapt, sample, run"),
        ("train.max_step=1", "did you mean 'max_steps'?"),
        ("train.n_layer=1", "did you mean model.n_layer?"),
        ("eval.zzz=1", "eval has max_chars, baselines"),
        ("model..n_layer=1", "did you mean 'n_layer'?"),
        ("data.source.x=1", "did you mean 'source'?"),
    ],
)
def test_an_unknown_override_is_answered_with_the_nearest_name(override, hint):
    problem = refusal(GPT, override)

    assert problem.startswith(f"{override}: ")
    assert "unknown key" in problem
    assert problem.endswith(f"; {hint}")


def test_a_wrong_override_is_quoted_and_reads_like_a_wrong_key_of_a_file():
    from_file = refusal("model:\n  type: gpt\n  n_layer: many\n")
    from_override = refusal(GPT, "model.n_layer=many")

    assert from_file == "a.yaml:3: model.n_layer: expected an integer, got 'many'"
    assert from_override == "model.n_layer=many: expected an integer, got 'many'"


def test_a_conflict_that_an_override_made_names_the_override():
    problem = refusal("model:\n  type: gpt\n  n_embd: 16\n", "model.n_head=3")

    assert problem.startswith("a.yaml with model.n_head=3: model.n_head: 3 does not divide")


def test_an_override_of_a_section_that_is_no_mapping_adds_nothing_to_the_problem():
    assert refusal("model: gpt\n", "model.n_layer=3") == (
        "a.yaml:1: model: expected a mapping of keys, got 'gpt'"
    )


@pytest.mark.parametrize("name", NANOGPT)
def test_every_name_of_nanogpt_is_answered(name):
    problem = refusal(GPT, f"{name}=1")

    assert problem.endswith(
        (f"did you mean {ALIASES.get(name)}?", f"; {NO_KEYS.get(name)}", f".{name}?")
    )


@pytest.mark.parametrize("name", ALIASES)
def test_every_alias_leads_to_a_key_that_exists(name):
    section, _, key = ALIASES[name].split()[0].partition(".")
    schema = Config.model_json_schema()

    assert section in schema["properties"]
    assert any(key in facts["properties"] for facts in schema["$defs"].values())


@pytest.mark.parametrize("name", [*ALIASES, *NO_KEYS])
def test_no_alias_is_a_key_itself(name):
    schema = Config.model_json_schema()

    assert not any(name in facts["properties"] for facts in schema["$defs"].values())


def test_an_unknown_key_is_answered_with_the_nearest_name():
    assert refusal("model:\n  type: gpt\n  n_layr: 3\n") == (
        "a.yaml:3: model.n_layr: unknown key; did you mean 'n_layer'?"
    )


def test_a_key_of_another_model_type_says_whose_it_is():
    assert refusal("model: {type: bigram, style: gpt2}\n").endswith(
        "model.style: unknown key; only model type gpt has it"
    )


def test_a_model_type_of_broken_bytes_is_answered_too():
    with pytest.raises(UsageError, match=r"unknown type '\\+udc80bigram'"):
        load_config("bigram", ["model.type=\udc80bigram"])


def test_an_unknown_model_type_is_answered_at_its_line():
    assert refusal("model:\n  block_size: 8\n  type: bigramm\n") == (
        "a.yaml:3: model.type: unknown type 'bigramm'; one of bigram, averaging, attention, "
        "multihead, gpt, ngram, context-mixing, mixture, mlp, bow, rnn, gru, lstm, mingru; did you mean 'bigram'?"
    )


@pytest.mark.parametrize("value", ["null", "[1]", "3", "{}"])
def test_a_model_type_that_is_no_word_does_not_hide_other_problems(value):
    first, second = refusals(f"model: {{type: {value}}}\nlr: 3\n")

    assert first.startswith("a.yaml:1: model.type: unknown type ")
    assert second == "a.yaml:2: lr: unknown key; did you mean train.learning_rate?"


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("model.experts.counts.model.order=3", lambda experts: experts["counts"].model.order == 3),
        ("model.experts.gpt.train.max_steps=200", lambda e: e["gpt"].train.max_steps == 200),
        ("model.experts.counts.train.batch_size=7", lambda e: e["counts"].train.batch_size == 7),
        ("model.experts.old.run=runs/b", lambda experts: experts["old"].run == "runs/b"),
        ("model.experts.new.run=runs/a", lambda experts: experts["new"].run == "runs/a"),
        ("model.experts.new.model.type=ngram", lambda e: e["new"].model.order == 7),
    ],
)
def test_an_override_reaches_into_an_expert(override, read):
    before, after = load(MIXTURE), load(MIXTURE, override)

    assert read(after.model.experts)
    name = override.split(".")[2]
    rest = [
        {n: e for n, e in config.model.experts.items() if n != name} for config in (before, after)
    ]
    assert rest[0] == rest[1]


def test_an_override_fills_the_empty_model_of_an_expert():
    config = load(MIXTURE + "    b: {model: }\n", "model.experts.b.model.type=bigram")

    assert config.model.experts["b"].model.type == "bigram"


def test_an_override_to_null_means_what_it_means_in_a_file():
    overridden = load(MIXTURE, "model.experts.gpt.train=null").model.experts["gpt"]

    assert overridden.train == load(GPT + "train:\n").train


def test_a_mixture_may_come_from_overrides_alone():
    config = load("model: {block_size: 8}", "model.type=mixture", "model.experts.a.model.type=gpt")

    assert config.model.experts["a"].model.n_layer == 4


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("counts.model.ordr=3", ": unknown key; did you mean 'order'?"),
        ("counts.model.n_head=3", "only model type multihead or gpt has it"),
        ("counts.model.order.x=3", ": unknown key; did you mean 'order'?"),
        ("counts.order=3", "did you mean model.experts.counts.model.order?"),
        ("gpt.lr=3", ": unknown key; did you mean model.experts.gpt.train.learning_rate?"),
        ("gpt.model.max_steps=3", "did you mean model.experts.gpt.train.max_steps?"),
        ("gpt.train.seed=3", ": unknown key; did you mean run.seed?"),
        ("gpt.train.zzz=3", "model.experts.gpt.train has max_steps, minutes, plan, batch_size"),
        ("gpt.zzz=3", ": unknown key; model.experts.gpt has run, model, train"),
        ("old.run.x=3", ": unknown key; did you mean 'run'?"),
        ("gpt.model=gpt", ": expected a mapping of keys, got 'gpt'"),
        ("gpt=runs/a", ": expected a mapping of keys, got 'runs/a'"),
        ("gpt.model.n_layer=0", ": must be at least 1 (blocks in the stack), got 0"),
        ("count.model.order=3", "unknown expert 'count'; did you mean 'counts'? a new one needs"),
        ("zzz.train.lr=3", "unknown expert 'zzz'; experts: counts, gpt, old; a new one needs its"),
        ("zzz.model=null", "unknown expert 'zzz'; experts: counts, gpt, old; a new one needs its"),
        ("2.run=a", "not a name; use a letter, then up to 31 letters, digits"),
    ],
)
def test_an_override_of_an_expert_is_quoted_and_answered(override, answer):
    problem = refusal(MIXTURE, f"model.experts.{override}")

    assert problem.startswith(f"model.experts.{override}: ")
    assert answer in problem


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("mixture.tune_fraction=0.1", "model.tune_fraction"),
        ("tune_fraction=0.1", "model.tune_fraction"),
        ("order=3", "model.experts.counts.model.order"),
        ("model.n_layer=3", "model.experts.gpt.model.n_layer"),
        ("experts.gpt.n_layr=3", "model.experts.gpt.model.n_layer"),
    ],
)
def test_a_key_of_a_mixture_is_found_wherever_it_was_looked_for(override, hint):
    assert refusal(MIXTURE, override).endswith(f"did you mean {hint}?")


def test_a_model_type_is_no_section():
    assert refusal(MIXTURE + "mixture:\n  tune_fraction: 0.1\n") == (
        "a.yaml:13: mixture: unknown key; did you mean model.tune_fraction?"
    )
    for value in ("3", "true", "[order]", ""):
        assert refusal(GPT + f"ngram: {value}\n").endswith("did you mean model.type?")


def test_an_override_of_an_expert_says_that_only_a_mixture_has_them():
    assert refusal(GPT, "model.experts.a.model.order=3") == (
        "model.experts.a.model.order=3: model.experts: unknown key; only model type mixture has it"
    )


@pytest.mark.parametrize(
    ("expert", "answer"),
    [
        (
            "model: {type: gpt,\n n_head: 5}",
            "6: model.experts.a.model.n_head: 5 does not divide n_embd 64; choose a divisor such "
            "as 2 or 4",
        ),
        ("model:\n        ordr: 5\n        type: ngram", "6: model.experts.a.model.ordr: unknown "
         "key; did you mean 'order'?"),
        (
            "model: {type: ngram, order: 40}",
            "5: model.experts.a.model.order: must be at least 1 and at most 32 (characters of the "
            "longest n-gram: the context and the next character), got 40",
        ),
        (
            "model: {type: mixtur}",
            "5: model.experts.a.model.type: unknown type 'mixtur'; one of bigram, averaging, "
            "attention, multihead, gpt, ngram, context-mixing, mlp, bow, rnn, gru, lstm, mingru",
        ),
        (
            "model: {}",
            "5: model.experts.a.model.type: missing; one of bigram, averaging, attention, "
            "multihead, gpt, ngram, context-mixing, mlp, bow, rnn, gru, lstm, mingru",
        ),
        ("train:", "4: model.experts.a: expected the key run (a run folder) or model (what to "
         "train)"),
        (
            "model: {type: gpt}\n      train: {warmup_steps: 9, max_steps: 5}",
            "6: model.experts.a.train: warmup_steps 9 is more than max_steps 5; lower it or train "
            "longer",
        ),
    ],
)  # fmt: skip
def test_a_wrong_expert_is_answered_with_its_whole_key_and_line(expert, answer):
    text = f"model:\n  type: mixture\n  experts:\n    a:\n      {expert}\n"

    assert refusal(text) == f"a.yaml:{answer}"


@pytest.mark.parametrize(
    ("experts", "answer"),
    [
        ("", "1: model.experts: missing; name at least one expert, such as 'counts: "),
        ("  experts: {}\n", "3: model.experts: none; name at least one, such as 'counts: {model: "),
        ("  experts:\n", "3: model.experts: none; name at least one, such as 'counts: {model: "),
        ("  experts: [a, b]\n", "3: model.experts: expected experts by name, such as 'counts: "),
        (
            "  experts: {a b: {run: x}}\n",
            "3: model.experts.a b: not a name; use a letter, then up to 31 letters, digits, '_' "
            "and '-'",
        ),
        ("  experts: {a: }\n", "3: model.experts.a: expected the key run (a run folder) or model"),
    ],
)
def test_a_mixture_without_proper_experts_says_what_is_needed(experts, answer):
    assert refusal(f"model:\n  type: mixture\n{experts}").startswith(f"a.yaml:{answer}")


def test_experts_may_have_the_names_of_model_types_and_sections():
    text = "model: {type: mixture, experts: {%s: {model: {type: ngram, ordr: 3}}}}"

    for name in ("mixture", "model", "train", "gpt", "experts"):
        assert f"model.experts.{name}.model.ordr: unknown key; did you mean 'order'?" in refusal(
            text % name
        )


def test_all_problems_of_all_experts_come_at_once():
    problems = refusals(
        MIXTURE + "    b: {model: {type: ngram, order: 99}}\n    c: {modl: {}}\n",
        "model.experts.gpt.train.min_lr=-1",
        "model.experts.counst.model.order=3",
        "model.experts.counts.model.order=4",
    )

    keys = ["counst.model.order", "gpt.train.min_lr", "b.model.order", "c.modl"]
    assert [p.split("model.experts.")[-1].split(":")[0].split("=")[0] for p in problems] == keys


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


def test_a_joiner_that_is_a_backslash_and_a_letter_is_refused():
    assert load(GPT, "data.joiner=\n\n").data.joiner == "\n\n"
    assert refusals(GPT, "data.joiner=\\n") == [
        "a.yaml with data.joiner=\\n: data.joiner: '\\\\n' is a backslash and a letter, not a line "
        "break; in a file, put it in double quotes; in bash, write $'data.joiner=\\n'"
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
    with pytest.raises(UsageError) as caught:
        preset_text("gtp")
    said = "preset 'gtp': there is none of this name; did you mean 'gpt'? see charlm config list"
    assert str(caught.value) == said
    with pytest.raises(UsageError, match="there is none of this name; see charlm config list"):
        preset_text("../pyproject")


@pytest.mark.parametrize(
    "text", ["the quick brown fox\n", "Romeo: wherefore art thou\nRomeo: again\n", "\xff\xfe\x00"]
)
def test_a_text_is_answered_with_how_to_train_on_it(text):
    Path("my.txt").write_text(text, encoding="latin-1")

    with pytest.raises(NotAConfiguration) as caught:
        load_config("my.txt")

    assert caught.value.lines() == [
        "my.txt: is not a configuration; to train on it, set data.source=my.txt"
    ]


@pytest.mark.parametrize(
    "text", ["model: {type: bigram}", "{model: {type: bigram}}", '"model": {type: bigram}']
)
def test_a_configuration_may_have_any_name(text):
    Path("my.txt").write_text(text)

    assert load_config("my.txt").model.type == "bigram"


def test_a_changed_configuration_is_checked_and_overridden_without_its_file():
    config = load(GPT)
    train = config.train.model_copy(update={"min_lr": 1.0})

    assert changed(config, ["train.max_steps=7", "train.warmup_steps=0"]).train.max_steps == 7
    assert changed(load(MIXTURE), ["model.experts.gpt.run=a"]).model.experts["gpt"].run == "a"
    with pytest.raises(UsageError) as caught:
        changed(config.model_copy(update={"train": train}), where="the plan")
    assert caught.value.lines() == [
        "the plan: train: min_lr 1.0 is more than learning_rate 0.001; lower it"
    ]
    with pytest.raises(UsageError, match="unknown key; did you mean 'max_steps'"):
        changed(config, ["train.max_step=7"])
    large = config.sample.model_copy(update={"prompt": "x" * (1 << 20)})
    with pytest.raises(UsageError, match="the configuration: more than 1,048,576 bytes"):
        changed(config.model_copy(update={"sample": large}))
