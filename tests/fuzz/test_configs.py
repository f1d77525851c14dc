import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charlm.config import Config
from charlm.config.yaml_file import MAX_BYTES, MAX_NODES
from tests.fuzz import targets
from tests.fuzz.inputs import amiss, fuzzed

SECONDS = 5  # of the processor, in which any input is answered


def _keys(schema: dict, whole: dict) -> set[str]:
    """Return the names of all keys in a JSON schema."""
    found = set(schema.get("properties", ()))
    for part in whole.get("$defs", {}).values():
        found |= set(part.get("properties", ()))
    return found


KEYS = sorted(_keys(Config.model_json_schema(), Config.model_json_schema()))
MODEL = {"type": "bigram"}
SECTIONS = sorted(Config.model_fields)
TYPES = (
    "bigram",
    "mlp",
    "lstm",
    "mingru",
    "averaging",
    "attention",
    "multihead",
    "gpt",
    "ngram",
    "mixture",
)
PLAIN = st.sampled_from(
    [
        *(
            "null",
            "~",
            "yes",
            "off",
            "0",
            "-1",
            "1.5",
            "1e-3",
            ".inf",
            ".nan",
            "1e999",
            "010",
            "1:30",
        ),
        *(
            "9" * 400,
            "1" + "0" * 200,
            "0." + "3" * 300,
            "2024-01-31",
            "''",
            "text",
            '"\\U0001F600"',
        ),
        *('"\\ud800"', '"\\0"', '"a\\nb"', "!!binary aGk=", "!!python/name:os.system x", "!!int x"),
        *("&a x", "*a", "&b [*b]", "!mine {}", "<<", "? x", "|\n   a", "[", "'", "{a: 1, a: 2}"),
        *TYPES,
    ]
)
VALUE = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda some: f"[{', '.join(some)}]")
        | st.dictionaries(st.sampled_from([*KEYS, "a", "1"]), inner, max_size=4).map(
            lambda some: "{" + ", ".join(f"{key}: {value}" for key, value in some.items()) + "}"
        )
    ),
    max_leaves=8,
)
KEY = st.sampled_from(KEYS) | st.text(max_size=5).map(lambda text: repr(text).replace("\\'", "''"))


@st.composite
def configurations(draw):
    """Draw a configuration whose sections hold keys of the schema, with values of any kind."""
    lines = []
    for section in draw(st.lists(st.sampled_from([*SECTIONS, "model"]), max_size=4)):
        if draw(st.integers(0, 4)) == 0:
            lines.append(f"{section}: {draw(VALUE)}")
            continue
        lines.append(f"{section}:")
        if section == "model" and draw(st.booleans()):
            lines.append(f"  type: {draw(st.sampled_from(TYPES))}")
        for key in draw(st.lists(KEY, max_size=4)):
            lines.append(f"  {key}: {draw(VALUE)}")
    return "\n".join(lines)


@fuzzed(60)
@given(
    st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="replace"))
)
def test_any_bytes_are_a_configuration_or_refused(data):
    targets.config(data)


@fuzzed(60)
@given(amiss("config"))
def test_a_configuration_with_something_amiss_is_read_or_refused(data):
    targets.config(data)


@fuzzed(120)
@given(configurations())
@example("model: {type: mixture, experts: {'a\nb': 1}}")  # a key with a line break was two lines
@example("'a\u2028b': 1")
@example('model: {type: bigram, "\\ud800": 1}')  # half a character in a key
def test_keys_with_values_of_any_kind_are_read_or_refused(text):
    targets.config(text.encode(errors="replace"))


PATHS = st.sampled_from(
    [
        *("train.max_steps", "model.type", "model", "train", "model.experts", "model.experts.a"),
        *("model.experts.net.model", "model.experts.net.train.max_steps", "model.experts.a.b.c"),
        *("model.experts.counts.model.type", "model.experts.a.model.type", "model.experts.a.run"),
        *("sample.prompt", "run.device", "lr", "data.source.x", "", ".", "model.", ".type"),
        *("model.experts.", "model.experts..", "model.experts.a.train."),
    ]
)
OVERRIDE = st.builds("{}={}".format, PATHS | KEY, PLAIN | st.text(max_size=8)) | st.text(
    max_size=12
)


@fuzzed(60)
@given(st.integers(0, 3), st.lists(OVERRIDE, max_size=4))
@example(1, ["model.experts.new.model=yes"])  # `"type" in True`
def test_overrides_are_applied_or_refused(base, given_ones):
    lines = "\n".join(given_ones).encode("utf-8", "replace")

    targets.overrides(bytes([base]) + lines)


@fuzzed(60)
@given(amiss("overrides"))
def test_overrides_with_something_amiss_are_applied_or_refused(data):
    targets.overrides(data)


def _experts(count: int, keys: str) -> str:
    experts = "".join(f"    e{i}: {{{keys}}}\n" for i in range(count))
    return f"model:\n  type: mixture\n  experts:\n{experts}"


def _unknown(count: int, indent: str = "") -> str:
    return "".join(f"{indent}keys{i}: 1\n" for i in range(count))


def _answered_soon(text: str) -> None:
    began = time.process_time()

    targets.config(text.encode())

    assert time.process_time() - began < SECONDS


@pytest.mark.parametrize(
    "text",
    [
        _unknown(MAX_NODES // 2 - 1),
        "train:\n" + _unknown(MAX_NODES // 2 - 4, "  "),
        _experts(MAX_NODES // 4 - 4, "x: 1"),
        # Each unknown key was looked for in each expert.
        _experts(MAX_NODES // 8, "run: a") + "train:\n" + _unknown(MAX_NODES // 4 - 8, "  "),
    ],
    ids=["keys", "keys-of-a-section", "experts", "keys-beside-experts"],
)
def test_a_great_many_mistakes_are_answered_soon(text):
    _answered_soon(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "? " + "k" * (MAX_BYTES - 10) + "\n: 1\n",
        "train: {" + "max_steps" * (MAX_BYTES // 9 - 9) + ": 1}",
        "run: {seed: " + "1" * (MAX_BYTES - 20) + "}",
        "data: {val_fraction: 0." + "1" * (MAX_BYTES - 40) + "x}",
        "#" * MAX_BYTES,
        " " * MAX_BYTES,
        "# \n" * (MAX_BYTES // 3),
        "a: |\n" + " b\n" * (MAX_BYTES // 3 - 5),
        "a: '" + "b\n " * (MAX_BYTES // 3 - 5) + "'",
        'a: "' + "\\x41" * (MAX_BYTES // 4 - 5) + '"',
        "[" * MAX_BYTES,
        "- " * (MAX_BYTES // 2),
    ],
    ids=[
        "long-key",
        "long-leaf",
        "digits",
        "fraction",
        "remark",
        "blanks",
        "remarks",
        "block",
        "folded",
        "escapes",
        "brackets",
        "dashes",
    ],
)
def test_a_file_as_large_as_may_be_is_answered_soon(text):
    _answered_soon(text)
