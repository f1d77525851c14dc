"""An error says where, what and how to mend it, in the words of whoever reads it."""

from charlm.errors import DataError, Phrase, Problem, Setting, UsageError, number_of


def as_option(setting):
    return f"--{setting.name} {setting.value}"


def test_where_what_and_mend_are_one_line():
    error = UsageError("my.yaml:4", "5 does not divide 384", "choose 4 or 6")

    assert str(error) == "my.yaml:4: 5 does not divide 384; choose 4 or 6"
    assert (error.where, error.what, error.mend) == (
        "my.yaml:4",
        "5 does not divide 384",
        "choose 4 or 6",
    )


def test_a_setting_is_spelled_for_its_reader():
    mend = Phrase("use {} or {}", Setting("unknown", "skip"), Setting("data.unit", "bytes"))
    error = DataError("prompt", "no such character", mend)

    assert str(error).endswith("; use unknown='skip' or data.unit=bytes")
    assert error.lines(as_option)[0].endswith("; use --unknown skip or --data.unit bytes")


def test_several_problems_keep_their_order_and_class():
    error = UsageError.of(Problem("a", "one"), Problem("b", "two")).within("runs/x")

    assert isinstance(error, UsageError)
    assert error.lines() == ["runs/x: a: one", "runs/x: b: two"]


def test_an_error_without_a_place_gets_one():
    error = DataError("", "no such character").within("sample.prompt")

    assert str(error) == "sample.prompt: no such character"


def test_another_mend_takes_the_place_of_the_first():
    assert str(DataError("text", "not UTF-8", "name its encoding").replace(mend="convert it")) == (
        "text: not UTF-8; convert it"
    )


def test_a_setting_in_a_place_keeps_its_spelling():
    error = UsageError(Setting("stride", 9), "too long").within("runs/{a}")

    assert str(error) == "runs/{a}: stride=9: too long"
    assert error.lines(lambda setting: "--stride 9") == ["runs/{a}: --stride 9: too long"]


def test_a_count_and_its_noun_agree():
    assert [number_of(n, "record") for n in (0, 1, 2)] == ["0 records", "1 record", "2 records"]
    assert number_of(12345, "text has", "texts have") == "12,345 texts have"
    assert number_of(0.5, "minute") == "0.5 minutes"
