"""What a terminal shows while a run trains, by a terminal emulator."""

import fcntl
import io
import os
import struct
import termios

import pytest

from charlm.cli import curve
from charlm.cli.curve import HEIGHT, MARK, MOST, TITLE, LiveCurve, Points
from charlm.runs.records import EvalRecord, TrainRecord
from tests.cli.test_train import training_bar

pyte = pytest.importorskip("pyte")
pty = pytest.importorskip("pty")

PICTURE = 1 + HEIGHT + 3  # a title, a frame and an axis


class Terminal:
    """A terminal of some size whose screen can be read."""

    def __init__(self, columns, lines):
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.pyte = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.pyte)
        self.resize(columns, lines)

    def resize(self, columns, lines):
        self.screen()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.pyte.resize(lines, columns)

    def screen(self):
        """Return the lines on the screen, without empty ones at its end."""
        try:
            while data := os.read(self.master, 1 << 16):
                self.stream.feed(data)
        except BlockingIOError:
            pass
        return "\n".join(line.rstrip() for line in self.pyte.display).rstrip("\n").split("\n")


@pytest.fixture
def terminal(monkeypatch):
    opened = []

    def make(columns, lines, encoding="utf-8"):
        one = Terminal(columns, lines)
        file = os.fdopen(os.dup(one.slave), "w", encoding=encoding, errors="backslashreplace")
        monkeypatch.setattr("sys.stderr", file)
        monkeypatch.setenv("TERM", "xterm")
        opened.append((one, file))
        return one

    yield make
    for one, file in opened:
        file.close()
        os.close(one.master)
        os.close(one.slave)


def train(bar, first=1, last=8, every=4):
    for step in range(first, last + 1):
        bar.show(TrainRecord(step=step, loss_nats=4 - step / 10, seconds=float(step)))
        if step % every == 0:
            loss = 4.1 - step / 10
            bar.show(EvalRecord(step=step, chars=9, loss_nats=loss, best=True, seconds=float(step)))


def pictures(lines):
    return [i for i, line in enumerate(lines) if line == TITLE]


def test_the_loss_so_far_is_below_the_bar_and_the_lines_above_it(terminal):
    screen = terminal(80, 24)
    bar = training_bar()
    train(bar)

    lines = screen.screen()

    assert lines[0].startswith("step 4  train 3.")
    assert lines[1].startswith("step 8  train 3.")
    assert "8/9" in lines[2]
    assert pictures(lines) == [3]
    assert len(lines) == 3 + PICTURE
    body = lines[5 : 5 + HEIGHT]
    assert all(line.startswith("│") for line in body)
    assert sum(line.count(MARK) for line in body) == 2
    bar.close()
    lines = screen.screen()
    assert pictures(lines) == [2]  # the last picture stays, the bar does not
    assert len(lines) == 2 + PICTURE


@pytest.mark.parametrize(
    ("columns", "lines", "encoding", "term"),
    [
        (79, 24, "utf-8", "xterm"),
        (80, 23, "utf-8", "xterm"),
        (80, 24, "latin-1", "xterm"),
        (80, 24, "utf-8", "dumb"),
    ],
)
def test_a_terminal_that_is_small_or_cannot_draw_has_a_bar_only(
    terminal, monkeypatch, columns, lines, encoding, term
):
    screen = terminal(columns, lines, encoding)
    monkeypatch.setenv("TERM", term)
    bar = training_bar()
    train(bar)

    assert len(screen.screen()) == 3
    bar.close()
    assert [line[:7] for line in screen.screen()] == ["step 4 ", "step 8 "]


def test_what_is_no_terminal_gets_the_lines_only(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("sys.stderr", file)
    bar = training_bar()
    train(bar)
    bar.close()

    assert [line[:7] for line in file.getvalue().splitlines()] == ["step 4 ", "step 8 "]


@pytest.mark.parametrize(("columns", "lines"), [(50, 40), (100, 20)])
def test_a_picture_goes_when_the_terminal_shrinks_and_comes_back(terminal, columns, lines):
    screen = terminal(100, 40)
    bar = training_bar()
    train(bar)
    assert pictures(screen.screen()) == [3]

    screen.resize(columns, lines)
    train(bar, 9, 12)
    small = screen.screen()
    screen.resize(100, 40)
    train(bar, 13, 16)
    large = screen.screen()
    bar.close()

    assert pictures(small) == []
    assert small[-1].startswith("12step ")
    assert sum(line.startswith("step 12") for line in small) == 1
    assert not any("│" in line and "step/s" not in line for line in small)
    (at,) = pictures(large)
    assert [large[at - 2][:7], large[at - 1][:7]] == ["step 16", "16step "]
    assert len(large) == at + PICTURE


def test_another_expert_begins_another_picture(terminal):
    screen = terminal(80, 24)
    bar = training_bar()
    train(bar)
    for step in (1, 2, 3):
        bar.show(TrainRecord(step=step, loss_nats=3.0, seconds=20.0, expert="b"))
    bar.curve.draw()

    lines = screen.screen()
    bar.close()

    assert not any(MARK in line for line in lines[5 : 5 + HEIGHT])


def test_it_is_drawn_every_few_seconds(monkeypatch):
    now = [0.0]
    live, drawn = LiveCurve(now=lambda: now[0]), []
    monkeypatch.setattr(curve, "has_room", lambda: drawn.append(now[0]) or False)
    for step in range(1, 24):
        now[0] = step / 2
        live.train(step, 3.0)

    assert drawn == [5.0, 10.0]


def test_a_long_curve_keeps_its_ends_and_is_thinned():
    points = Points()
    for step in range(1, 100_001):
        points.add(step, -step)
        assert points.steps[-1] == step

    assert len(points.steps) <= MOST
    assert points.values == [-step for step in points.steps]
    assert points.steps[0] <= 100_000 / MOST * 2
    gaps = [b - a for a, b in zip(points.steps[:-2], points.steps[1:-1], strict=True)]
    assert max(gaps) < 2 * min(gaps)
