from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from charlm.config.yaml_file import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    dump_yaml,
    plain_scalar,
    read_yaml,
)
from charlm.errors import UsageError


def read(text: str):
    return read_yaml(text.encode(), "a.yaml").value


def refusal(data: str | bytes) -> str:
    with pytest.raises(UsageError) as caught:
        read_yaml(data.encode() if isinstance(data, str) else data, "a.yaml")
    (problem,) = caught.value.lines()
    assert problem.startswith("a.yaml")
    return problem


@pytest.mark.parametrize(
    "number", ["1e-3", "010", "1:30", "0x10", "1_000", "1.10", "+3", ".5", "~1"]
)
def test_a_number_stays_as_it_was_written(number):
    assert read(f"a: {number}") == {"a": number}
    assert plain_scalar(number) == number


@pytest.mark.parametrize(
    ("word", "value"),
    [("on", True), ("Yes", True), ("true", True), ("off", False), ("no", False), ("False", False)],
)
def test_yaml_1_1_booleans_are_booleans(word, value):
    assert read(f"a: {word}") == {"a": value}
    assert plain_scalar(word) is value


def test_quotes_make_text_of_anything():
    assert read("""a: 'no'\nb: "null"\nc: '1'""") == {"a": "no", "b": "null", "c": "1"}


def test_dates_are_text():
    assert read("a: 2024-01-31") == {"a": "2024-01-31"}


def test_the_value_of_an_override_may_be_null_or_nothing_or_any_text():
    assert plain_scalar("null") is None
    assert plain_scalar("") == ""
    assert plain_scalar("[a, b: {") == "[a, b: {"


def test_each_key_remembers_its_line():
    document = read_yaml(b"# a remark\na:\n  b: 1\n\n  c: 2\nd: 3\n", "a.yaml")

    assert document.lines == {"a": 2, "a.b": 3, "a.c": 5, "d": 6}


def test_a_repeated_key_names_both_lines():
    text = "train:\n  max_steps: 5\n  seed: 1\n  max_steps: 6\n"

    assert refusal(text) == "a.yaml: train.max_steps is defined on lines 2 and 4; keep one"


def test_keys_that_only_look_alike_in_python_are_repeated_too():
    assert "lines 1 and 2" in refusal("'1': a\n1: b\n")


def test_a_mistake_in_the_yaml_is_shown_at_its_line_and_column():
    assert refusal("a: 1\n  b: 2\n").startswith("a.yaml:2:4: mapping values are not allowed here")
    assert refusal("a: [1\n").startswith("a.yaml:2:1: ")


def test_a_second_document_is_refused():
    assert "expected a single document" in refusal("a: 1\n---\nb: 2\n")


@pytest.mark.parametrize(
    "tagged",
    [
        "!!python/object/apply:os.system ['touch pwned']",
        "!!python/name:os.system x",
        "!!set {a}",
        "!!binary aGk=",
        "!mine {a: 1}",
    ],
)
def test_tags_are_refused_and_nothing_runs(tagged, tmp_path):
    problem = refusal(f"model: {tagged}\n")

    assert problem.startswith("a.yaml:1: tag '!")
    assert "is not allowed" in problem
    assert not (tmp_path / "pwned").exists()


def test_a_plain_tag_on_something_else_leaves_the_text():
    assert read("a: !!bool maybe\nb: !!int x\n") == {"a": "maybe", "b": "x"}


def test_merge_keys_are_answered():
    assert refusal("a: &a {b: 1}\nc: {<<: *a}\n").startswith("a.yaml:2: '<<' is not read here")


def test_a_quoted_merge_sign_is_a_key_like_any_other():
    assert read("'<<': 1") == {"<<": "1"}


def test_a_key_that_is_no_word_is_refused():
    assert refusal("a: 1\n? [b]\n: c\n").startswith("a.yaml:2: a key must be a plain word")


def test_aliases_are_read():
    assert read("a: &x {b: 1}\nc: *x\n") == {"a": {"b": "1"}, "c": {"b": "1"}}


def test_an_alias_bomb_names_the_limit():
    levels = ["a0: &a0 [x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]

    assert f"aliases expand to more than {MAX_NODES:,} values" in refusal("\n".join(levels))


def test_an_alias_within_itself_names_the_limit():
    assert f"{MAX_DEPTH} levels" in refusal("a: &a [*a]")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_names_the_limit(opening):
    assert f"deeper than {MAX_DEPTH} levels" in refusal(opening * 5000)


def test_too_many_values_name_the_limit():
    assert f"a.yaml: more than {MAX_NODES:,} values" in refusal("a: [" + "1," * MAX_NODES + "1]")


def test_a_file_over_the_limit_is_refused_unread():
    assert f"more than {MAX_BYTES:,} bytes" in refusal(b"\xff" * (MAX_BYTES + 1))


@pytest.mark.parametrize(
    ("data", "byte"),
    [(b"a: \xff", 3), (b"\xef\xbb\xbfa: \xff", 6), ("é: ü".encode("latin-1"), 0)],
)
def test_bytes_that_are_not_utf_8_are_placed(data, byte):
    problem = refusal(data)

    assert f"not UTF-8 at byte {byte} (0x{data[byte]:02x})" in problem


def test_a_nul_is_placed():
    assert "a NUL at byte 4" in refusal(b"a: x\0")


def test_a_byte_order_mark_is_dropped():
    assert read_yaml(b"\xef\xbb\xbfa: x", "a.yaml").value == {"a": "x"}


@pytest.mark.parametrize(
    "text", ['a: "\\U99999999"', 'a: "\\UFFFFFFFF"', "%YAML 9.9\n---\na: 1", "a: \x07"]
)
def test_what_pyyaml_trips_over_is_one_line(text):
    assert "\n" not in refusal(text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~"])
def test_a_file_with_nothing_in_it_is_null(text):
    assert read(text) is None


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data):
    with suppress(UsageError):
        read_yaml(data, "a.yaml")


@given(st.text(alphabet="ab:-[]{}&*!?|>'\"%@,# \n\t<1~\\xU", max_size=60))
def test_any_text_is_read_or_refused(text):
    with suppress(UsageError):
        read_yaml(text.encode(), "a.yaml")


_SCALARS = st.none() | st.booleans() | st.text(st.characters(exclude_characters="\0"))


@given(st.dictionaries(st.text(st.characters(exclude_characters="\0"), max_size=8), _SCALARS))
def test_what_is_written_is_read_back_equal(values):
    assert read(dump_yaml(values)) == values


@given(st.integers() | st.floats(allow_nan=False))
def test_a_number_is_written_so_that_it_is_read_back_as_its_text(number):
    read_back = read(dump_yaml({"a": number}))["a"]

    assert isinstance(read_back, str)
    assert yaml.safe_load(read_back) == number or float(read_back.replace(".inf", "inf")) == number
