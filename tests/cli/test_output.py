import io
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.cli import output
from charlm.config import preset_names
from charlm.errors import Stopped
from tests.cli.test_options import commands


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
    output.content("\x1b[2J")
    output.TextOut("chars").write("\x1b[2J")
    assert capsys.readouterr().out == "\x1b[2J\n\x1b[2J"

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    output.content("\x1b[2J")
    output.TextOut("chars").write("\x1b[2J")
    assert terminal.written == "\\x1b[2J\n\\x1b[2J"


def test_a_line_for_people_has_no_control_characters_anywhere(capsys):
    output.result("\x1b[2J\u200e")

    assert capsys.readouterr().out == "\\x1b[2J\\u200e\n"


def test_a_file_gets_the_bytes_of_a_model_of_bytes_and_a_terminal_gets_escapes(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", file)
    for text in ("é", "\udcff", "\udce2"):
        output.TextOut("bytes").write(text)
    assert file.buffer.getvalue() == b"\xc3\xa9\xff\xe2"

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    output.TextOut("bytes").write("é\udcff")
    assert terminal.written == "é\\xff"


def test_a_joiner_is_judged_by_the_character_that_was_written_before(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    out = output.TextOut("chars")
    for character in "می\u200cخ\u200c\u200ca\u200db❤\ufe0f":
        out.write(character)

    assert terminal.written == "می\u200cخ\u200c\\u200ca\\u200db❤\ufe0f"


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

    monkeypatch.setattr(output, "Bar", Bar)
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


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_line_does_not_draw_a_bar_before_its_time(monkeypatch):
    monkeypatch.setattr("sys.stderr", Screen())

    with output.bar("reading", "B") as bar:
        bar.update(10)
        output.say("a line")

    assert re.sub(r"[\r ]", "", sys.stderr.getvalue()) == "aline\n"


def test_a_bar_that_only_a_line_has_drawn_is_cleared(monkeypatch):
    monkeypatch.setattr("sys.stderr", Screen())

    with output.bar("reading", "B") as bar:
        bar.start_t, bar.last_print_t = bar.start_t - 1, bar.last_print_t - 1
        output.say("a line")
    output.say("the next line")

    _, drawn, *rest = sys.stderr.getvalue().split("\n")
    assert "reading" in drawn
    assert drawn.endswith("\rthe next line")
    assert drawn.split("\r")[-2].strip() == ""
    assert rest == [""]


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

    assert capsys.readouterr().err == "  a line of more\n  than twenty\n  letters\nshort  row\n"


def test_a_file_gets_long_progress_as_one_line(capsys):
    output.say("word " * 40)

    assert capsys.readouterr().err == "word " * 40 + "\n"


@pytest.fixture
def terminal(monkeypatch):
    """Print to a terminal of 80 columns."""
    monkeypatch.setattr(output, "width", lambda stream: 80)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_breaks_long_lines_between_words_and_keeps_their_indent(capsys):
    output.result("  " + "word " * 30)
    output.say("  " + "word " * 30)

    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        lines = text.splitlines()
        assert len(lines) == 2
        assert all(len(line) <= 80 and line.startswith("  word") for line in lines)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("label", ["reached          ", "validation loss  ", "text   "])
def test_a_broken_line_goes_on_below_its_words_and_not_below_its_label(capsys, label):
    output.result(label + "word " * 20)

    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{label}word word")
    assert second.startswith(" " * len(label) + "word")


ROWS = [["run", "model", "nats"], ["runs/" + "long" * 20, "gpt modern", "1.5"]]


@pytest.mark.usefixtures("terminal")
def test_a_table_that_is_too_wide_loses_the_middle_of_its_names():
    head, row = output.aligned(ROWS, right=[2], shorten=[1, 0])

    assert row == "runs/longlonglonglonglonglonglon…onglonglonglonglonglonglonglong  gpt …ern   1.5"
    assert len(row) == 80
    assert head.endswith("  nats")


def test_a_table_in_a_file_is_whole():
    assert list(output.aligned(ROWS, right=[2], shorten=[0]))[1].startswith(ROWS[1][0])


EVERYTHING = [
    *((*name, "--help") for name, _ in commands()),
    *([name, "--help"] for name in ("data", "config", "runs")),
    ("--help",),
    ("data", "list"),
    ("config", "list"),
    ("graph", "(a*b + c) * f", "a=2", "b=-3", "c=10", "f=-2"),
    ("gradcheck", "-c", "bigram"),
    *(("explain", "-c", name) for name in preset_names()),
]


@pytest.mark.parametrize("command", EVERYTHING, ids=" ".join)
@pytest.mark.usefixtures("terminal")
def test_every_page_fits_80_columns_and_no_description_is_cut(charlm, command):
    result = charlm(*command)

    assert result.code == 0
    assert [line for line in result.stdout.splitlines() if len(line) > 80] == []
    assert not re.search(r"^  .*\.\.\.$", result.stdout, re.MULTILINE)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("cells", "widths"),
    [(["a" * 100, "b" * 60, "1"], [37, 37, 1]), (["a" * 100, "b" * 9, "1"], [66, 9, 1])],
)
def test_columns_of_a_tuple_share_the_room_of_a_terminal(cells, widths):
    (line,) = output.aligned([cells], right=[2], shorten=[(0, 1)])

    assert [len(cell) for cell in line.split()] == widths
    assert len(line) <= 80
