import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.cli import output
from charlm.errors import Stopped


@pytest.mark.parametrize("text", ["plain", "é☃😀", "two\nlines\tand a tab", "\u200d\u3000"])
def test_text_is_shown_as_it_is(text):
    assert output.printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("\x1b[31m", "\\x1b[31m"), ("\r", "\\r"), ("\x07\x00", "\\x07\\x00"), ("\x9b2J", "\\x9b2J")],
)
def test_control_characters_are_escaped(text, shown):
    assert output.printable(text) == shown


@given(st.text())
def test_nothing_that_is_printable_can_command_a_terminal(text):
    controls = {chr(c) for c in [*range(32), *range(127, 160)]} - {"\n", "\t"}

    assert not controls & set(output.printable(text))


@given(st.text())
def test_an_error_is_one_line(text):
    line = output.one_line(text)

    assert "\n" not in line
    assert len(line) <= output.LONGEST


def test_a_long_error_keeps_what_is_wrong_and_how_to_mend_it():
    line = output.one_line("a.txt: wrong" + "x" * 1000 + "; mend it")

    assert line.startswith("a.txt: wrong")
    assert line.endswith("x; mend it")


class Terminal:
    def __init__(self) -> None:
        self.written = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None:
        pass


def test_a_terminal_is_sent_no_control_characters_and_a_file_is_sent_all(monkeypatch, capsys):
    output.result("\x1b[2J")
    assert capsys.readouterr().out == "\x1b[2J\n"

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    output.result("\x1b[2J")
    assert terminal.written == "\\x1b[2J\n"


def test_a_bar_for_bytes_stops_when_asked_to():
    with output.bytes_bar(True, should_stop=lambda: True) as update, pytest.raises(Stopped):
        update("reading", 1)


def test_no_bar_stays_behind(monkeypatch):
    bars = []

    class Bar:
        def __init__(self, **options):
            bars.append([options["desc"], 0, "open"])
            self.own = bars[-1]

        def update(self, count):
            self.own[1] += count

        def close(self):
            self.own[2] = "closed"

    monkeypatch.setattr(output, "tqdm", Bar)
    with output.bytes_bar(quiet=False) as update:
        update("reading", 1)
        update("reading", 2)
        update("encoding", 4)
        assert bars == [["reading", 3, "closed"], ["encoding", 4, "open"]]

    assert bars[1] == ["encoding", 4, "closed"]


def test_bars_write_nothing_to_what_is_no_terminal(capsys):
    with output.bytes_bar(quiet=False) as update:
        update("reading", 10)
        update("encoding", 10)

    assert capsys.readouterr() == ("", "")


def test_a_lost_reader_of_stderr_is_no_reason_to_stop():
    class Gone:
        encoding = "utf-8"

        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    stream = output.Forgiving(Gone())

    assert stream.write("hello") == 5
    stream.flush()
    assert stream.encoding == "utf-8"


def test_json_says_null_where_a_number_is_not_finite(capsys):
    output.result_json({"a": float("nan"), "b": float("inf"), "c": 1.5})

    assert capsys.readouterr().out == '{"a": null, "b": null, "c": 1.5}\n'


def test_a_terminal_breaks_long_progress_between_words(monkeypatch, capsys):
    monkeypatch.setattr(output.shutil, "get_terminal_size", lambda: os.terminal_size((20, 24)))
    monkeypatch.setattr(output.sys.stderr, "isatty", lambda: True)

    output.say("  a line of more than twenty letters\nshort  row")

    assert capsys.readouterr().err == "  a line of more\nthan twenty letters\nshort  row\n"


def test_a_file_gets_long_progress_as_one_line(capsys):
    output.say("word " * 40)

    assert capsys.readouterr().err == "word " * 40 + "\n"
