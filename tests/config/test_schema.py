import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.config import Config, DataConfig, read_config
from charlm.errors import UsageError


def load(*overrides: str) -> Config:
    return read_config(b"model: {type: gpt}", "a.yaml", overrides)


def refusal(override: str, *others: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(override, *others)
    (problem,) = caught.value.lines()
    return problem


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-3", 0.001), (".5", 0.5), ("1.", 1.0), ("+2E+0", 2.0), ("1_000.5", 1000.5), ("3", 3.0)],
)
def test_a_number_is_read_as_people_mean_it(text, number):
    assert load(f"train.weight_decay={text}").train.weight_decay == number


def test_a_number_with_a_leading_zero_is_decimal():
    assert load("model.block_size=010").model.block_size == 10
    assert read_config(b"model: {type: bigram, block_size: 010}", "a").model.block_size == 10


def test_digits_may_be_grouped():
    assert load("train.max_steps=1_000_000").train.max_steps == 1_000_000


@pytest.mark.parametrize(
    "text", ["1e3", "1.5", "1.0", "0x10", "1:30", "_1", "1__0", "٣", "", "9" * 301]
)
def test_what_is_no_whole_number_is_refused_for_an_integer(text):
    assert ": expected an integer, got " in refusal(f"train.max_steps={text}")


@pytest.mark.parametrize("text", ["fast", "1e", "0x1", "1:30", "1,5", "--1", ""])
def test_what_is_no_number_is_refused(text):
    assert refusal(f"train.weight_decay={text}").endswith(f"expected a number, got {text!r}")


@pytest.mark.parametrize("text", ["nan", ".nan", "inf", "-.inf", "1e999", "9" * 400])
def test_a_number_must_be_finite(text):
    assert "expected a finite number, got " in refusal(f"train.learning_rate={text}")


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "true", "false"])
@pytest.mark.parametrize(
    ("key", "expected"),
    [("model.dropout", "a number"), ("train.max_steps", "an integer"), ("sample.prompt", "text")],
)
def test_a_boolean_is_no_number_and_no_text(word, key, expected):
    assert f": expected {expected}, got a boolean" in refusal(f"{key}={word}")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("model.dropout=1", "at least 0 and below 1"),
        ("model.dropout=-0.1", "at least 0 and below 1"),
        ("data.val_fraction=1", "at least 0 and below 1"),
        (f"model.block_size={10**31}", "at least 1 and at most 1000000000000"),
        (f"train.max_steps={10**31}", "at least 0 and at most 1000000000000"),
        (f"train.patience={10**12 + 1}", "at least 1 and at most 1000000000000"),
        ("train.batch_size=0", "at least 1"),
        ("train.micro_batch_size=0", "at least 1"),
        ("train.max_steps=-1", "at least 0"),
        ("train.learning_rate=0", "above 0"),
        ("train.minutes=0", "above 0 and at most 1000000"),
        ("train.minutes=1e308", "above 0 and at most 1000000"),
        ("sample.top_p=0", "above 0 and at most 1"),
        ("sample.top_p=1.5", "above 0 and at most 1"),
        ("sample.top_k=0", "at least 1"),
        ("data.max_vocab=2097153", "at least 1 and at most 2097152"),
    ],
)
def test_a_number_out_of_range_is_answered_with_the_whole_range(override, allowed):
    assert f"must be {allowed} (" in refusal(override)


def test_a_range_is_answered_with_what_the_number_means():
    assert refusal("sample.temperature=-1").endswith(
        "must be at least 0 (divides the logits; 0 = greedy), got -1.0"
    )


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:99999", "cpu ", "CPU", "0", "cuda:1\n"])
def test_an_unknown_device_is_refused(device):
    assert f"unknown device {device!r}; use auto, cpu, mps" in refusal(f"run.device={device}")


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:15"])
def test_a_known_device_is_taken(device):
    assert load(f"run.device={device}").run.device == device


@pytest.mark.parametrize(
    ("text", "value"), [("auto", "auto"), ("yes", True), ("false", False), ("True", True)]
)
def test_compile_is_auto_or_a_boolean(text, value):
    assert load(f"run.compile={text}").run.compile == value


@pytest.mark.parametrize(
    ("text", "given"), [("maybe", "'maybe'"), ("null", "null"), ("1.0", "'1.0'")]
)
def test_what_is_no_boolean_is_told_what_is(text, given):
    problem = refusal(f"eval.baselines={text}")

    assert problem == f"eval.baselines={text}: {given} is not one of true or false"


def test_what_compile_is_not():
    assert refusal("run.compile=maybe").endswith("'maybe' is not one of auto, true or false")


@pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13", "undefined", "", "a" * 300])
def test_an_encoding_that_decodes_no_text_is_refused(encoding):
    assert "data.encoding: unknown " in refusal(f"data.encoding={encoding}")


@pytest.mark.parametrize("key", ["data.source", "run.out"])
def test_a_path_is_not_empty(key):
    assert refusal(f"{key}=").endswith("expected a name or a path, got ''")


@pytest.mark.parametrize("key", ["data: {source", "run: {out"])
def test_a_path_holds_no_nul(key):
    with pytest.raises(UsageError, match="expected a name or a path"):
        read_config(f'model: {{type: gpt}}\n{key}: "a\\0b"}}'.encode(), "a.yaml")


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(UsageError, match="half of a surrogate pair"):
        read_config(b'model: {type: gpt}\nsample: {prompt: "\\ud83d"}', "a.yaml")


@pytest.mark.parametrize(
    ("overrides", "core"),
    [
        (
            ["model.n_embd=30", "model.n_head=4"],
            "4 does not divide n_embd 30; choose a divisor such as 3 or 5",
        ),
        (["model.n_embd=12", "model.n_head=4"], "heads of 3 channels"),
        (["data.val_fraction=0.6", "data.test_fraction=0.4"], "leave nothing to train on"),
        (["train.batch_size=4", "train.micro_batch_size=3"], "3 does not divide batch_size 4"),
        (
            ["train.max_steps=5", "train.warmup_steps=100"],
            "warmup_steps 100 is more than max_steps 5",
        ),
        (["train.min_lr=1"], "min_lr 1.0 is more than learning_rate 0.001"),
    ],
)
def test_keys_that_contradict_each_other_are_named_with_their_values(overrides, core):
    assert core in refusal(*overrides)


def test_odd_heads_are_refused_only_where_positions_rotate():
    config = load("model.style=gpt2", "model.n_embd=12", "model.n_head=4")

    assert config.model.n_head == 4


def test_a_warm_up_longer_than_max_steps_is_fine_under_a_clock():
    assert load("train.max_steps=5", "train.minutes=1").train.warmup_steps == 100


@pytest.mark.parametrize("kind", ["bigram", "averaging", "ngram"])
def test_muon_is_refused_for_a_model_without_hidden_matrices(kind):
    with pytest.raises(UsageError, match=r"muon needs a hidden 2-D matrix .* use adamw"):
        read_config(f"model: {{type: {kind}}}\ntrain: {{optimizer: muon}}".encode(), "a.yaml")


@pytest.mark.parametrize(
    ("model", "train", "answer"),
    [
        ("ngram", "", r"train.parallel: ddp shares the steps .* 'ngram' has none; leave it none"),
        ("mingru", ", carry_state: true", r"carried states .*; set train.carry_state=false"),
    ],
)
def test_processes_share_the_steps_of_gradient_descent_only(model, train, answer):
    with pytest.raises(UsageError, match=answer):
        read_config(f"model: {{type: {model}}}\ntrain: {{parallel: ddp{train}}}".encode(), "a.yaml")


@pytest.mark.parametrize(
    ("model", "keys", "answer"),
    [
        ("gru", "", r"train.parallel: .* 'gru' has no blocks; set it to ddp, or use gpt"),
        ("ngram", "", r"train.parallel: fsdp2 shares the steps .* 'ngram' has none; leave it none"),
        ("gpt", "data: {records: lines}", r"train.parallel: .* records .*; set it to ddp, or"),
        (
            "gpt",
            "run: {compile: true}",
            r"run.compile: true .*; set it to false, or train.parallel",
        ),
        ("gpt", "exact: true", r"train.exact: true .*; set it to auto, or train.parallel=ddp"),
        ("gpt", "gradients: by_hand", r"train.gradients: by hand, .*; use autograd, or ddp"),
    ],
)
def test_what_cannot_be_split_among_processes_is_refused(model, keys, answer):
    inside, outside = ("", keys) if keys.endswith("}") else (f", {keys}", "")
    train = f"train: {{parallel: fsdp2{inside.removesuffix(', ')}}}"
    with pytest.raises(UsageError, match=answer):
        read_config(f"model: {{type: {model}}}\n{train}\n{outside}\n".encode(), "a.yaml")


MIXTURE = """\
model:
  type: mixture
  experts:
    a:
      model: {type: %s}
      train: {%s}
"""


@pytest.mark.parametrize(
    ("kind", "train", "answer"),
    [
        ("bigram", "optimizer: muon", "optimizer: muon needs a hidden 2-D matrix and model 'bigr"),
        ("ngram", "optimizer: muon", "optimizer: muon needs a hidden 2-D matrix and model 'ngram'"),
        ("ngram", "gradients: by_hand", "gradients: model 'ngram' is counted and has no gradients"),
    ],
)
def test_an_expert_is_refused_what_a_model_alone_is(kind, train, answer):
    with pytest.raises(UsageError) as alone:
        read_config(f"model: {{type: {kind}}}\ntrain: {{{train}}}".encode(), "a.yaml")
    with pytest.raises(UsageError) as inside:
        read_config((MIXTURE % (kind, train)).encode(), "a.yaml")

    assert str(alone.value).startswith(f"a.yaml:2: train.{answer}")
    assert str(inside.value).startswith(f"a.yaml:6: model.experts.a.train.{answer}")


def test_how_an_expert_of_a_run_was_trained_is_of_no_concern():
    text = "model: {type: mixture, experts: {a: {run: r, model: {type: ngram}, %s}}}"

    config = read_config((text % "train: {optimizer: muon}").encode(), "a.yaml")

    assert config.model.experts["a"].train.optimizer == "muon"


@pytest.mark.parametrize("key", ["optimizer: muon", "gradients: by_hand"])
def test_a_mixture_says_where_its_experts_are_told_how_to_train(key):
    text = MIXTURE % ("gpt", key)

    with pytest.raises(UsageError) as caught:
        read_config((text + f"train: {{{key}}}").encode(), "a.yaml")

    name = key.partition(":")[0]
    assert str(caught.value) == (
        f"a.yaml:7: train.{name}: each expert of a mixture has its own training; "
        f"set model.experts.NAME.train.{name}"
    )
    assert getattr(read_config(text.encode(), "a").model.experts["a"].train, name) in key


def test_an_expert_by_hand_cannot_be_compiled():
    text = MIXTURE % ("gpt", "gradients: by_hand") + "run: {compile: true}"

    with pytest.raises(UsageError, match=r"a\.yaml:7: run\.compile: true is for autograd"):
        read_config(text.encode(), "a.yaml")


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load().train.max_steps = 3  # type: ignore[misc]


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_heads_are_taken_exactly_when_they_divide_the_channels(n_embd, n_head):
    overrides = ["model.style=gpt2", f"model.n_embd={n_embd}", f"model.n_head={n_head}"]

    if n_embd % n_head:
        assert f"{n_head} does not divide n_embd {n_embd}" in refusal(*overrides)
    else:
        assert load(*overrides).model.n_head == n_head


def references(node):
    """Yield every $ref of a JSON schema."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "$ref" in node:
        yield node["$ref"]
    for child in children:
        yield from references(child)


def test_every_reference_of_the_json_schema_resolves():
    schema = Config.model_json_schema()

    found = set(references(schema))

    assert len(found) >= 10
    assert found == {f"#/$defs/{name}" for name in schema["$defs"]}


def test_the_json_schema_refuses_unknown_keys_and_asks_for_a_model():
    schema = Config.model_json_schema()

    assert schema["required"] == ["model"]
    assert all(
        part["additionalProperties"] is False for part in [schema, *schema["$defs"].values()]
    )


OUTSIDE = {
    "minimum": lambda limit: limit - 1,
    "exclusiveMinimum": lambda limit: limit,
    "maximum": lambda limit: limit + 1,
    "exclusiveMaximum": lambda limit: limit,
}


MODELS = {"gpt": "{type: gpt}", "ngram": "{type: ngram}"}
MODELS["mixture"] = "{type: mixture, experts: {a: {model: {type: gpt}}}}"


def limits():
    sections = {
        name: f"{name.title()}Config"
        for name in ("data", "train", "eval", "adapt", "sample", "run")
    }
    sections |= {"gpt": "GPTConfig", "ngram": "NGramConfig", "mixture": "MixtureConfig"}
    for section, name in sections.items():
        for key, facts in Config.model_json_schema()["$defs"][name]["properties"].items():
            facts = {**facts, **facts.get("anyOf", [{}])[0]}
            dotted = f"{'model' if section in MODELS else section}.{key}"
            model = MODELS.get(section, MODELS["gpt"])
            for word in sorted(OUTSIDE.keys() & facts.keys()):
                yield pytest.param(model, dotted, word, facts[word], id=f"{section}.{key}-{word}")
            if facts.get("type") in ("integer", "number"):
                assert OUTSIDE.keys() & facts.keys(), f"{dotted} has no range"


@pytest.mark.parametrize(("model", "key", "word", "limit"), list(limits()))
def test_a_limit_of_the_json_schema_is_the_limit_of_charlm(model, key, word, limit):
    text, override = f"model: {model}".encode(), f"{key}={OUTSIDE[word](limit)}"

    with pytest.raises(UsageError, match=f"^{override}: must be "):
        read_config(text, "a.yaml", [override])


def test_the_json_schema_knows_what_an_expert_may_be_called():
    experts = Config.model_json_schema()["$defs"]["MixtureConfig"]["properties"]["experts"]

    (pattern,) = experts["patternProperties"]
    assert re.fullmatch(pattern, "No_1-a")
    assert not re.search(pattern, "1a")
    assert (experts["additionalProperties"], experts["minProperties"]) == (False, 1)


def test_every_key_and_section_has_a_description():
    schema = Config.model_json_schema()

    for name, section in schema["$defs"].items():
        assert section["description"], name
        for key, facts in section["properties"].items():
            assert facts.get("description"), f"{name}.{key}"


def test_every_default_is_within_its_own_range():
    assert DataConfig.model_validate(DataConfig().model_dump()) == DataConfig()
    assert Config.model_validate(load().model_dump()) == load()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("bias: true", "bias: true needs style: gpt2; leave it false"),
        ("gelu: tanh", "gelu: tanh needs style: gpt2; leave it exact"),
        ("tied: false", "tied: false needs style: gpt2; leave it true"),
    ],
)
def test_options_of_the_old_style_belong_to_it(key, message):
    with pytest.raises(UsageError, match=message):
        read_config(f"model: {{type: gpt, {key}}}".encode(), "a.yaml")
    assert read_config(f"model: {{type: gpt, style: gpt2, {key}}}".encode(), "a.yaml")


def test_embeddings_of_n_grams_belong_to_the_modern_style():
    with pytest.raises(UsageError, match="n_gram: 5 needs style: modern; leave it 1"):
        read_config(b"model: {type: gpt, style: gpt2, n_gram: 5}", "a.yaml")
