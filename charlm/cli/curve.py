"""The loss so far as a small picture below the bar, while a run trains on a terminal with room for it."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

from charlm.cli import output

COLUMNS, LINES = 80, 24  # a terminal that is smaller shows none
WIDTH, HEIGHT = 60, 7  # of the plot, in characters
MOST = 240  # points of a curve; with more, every second one is forgotten
PAUSE = 5.0  # seconds between two pictures, unless there was an evaluation
MARK = "o"  # of an evaluation
TITLE = f"loss (nats) by step: a line for training, {MARK} for validation"
SETTLED = 0.03  # share of the steps


class Points:
    """A curve that is never longer than `MOST` points; the newest is always one of them."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self._every = self._since = 1

    def pairs(self) -> Iterator[tuple[int, float]]:
        """Return steps and values."""
        return zip(self.steps, self.values, strict=True)

    def add(self, step: int, value: float) -> None:
        """Add a point, or put it in the place of the last."""
        if self._since < self._every and self.steps:
            self.steps[-1], self.values[-1] = step, value
            self._since += 1
            return
        self.steps.append(step)
        self.values.append(value)
        self._since = 1
        if len(self.steps) > MOST:
            self.steps, self.values = self.steps[-1::-2][::-1], self.values[-1::-2][::-1]
            self._every *= 2


class LiveCurve:
    """Draws the curves below a bar; a terminal that is too small, or becomes so, shows none."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._drawn = now, now()
        self._lines: list[Any] = []
        self.clear()

    def clear(self) -> None:
        """Forget all points: another model is trained now."""
        self.training, self.validation = Points(), Points()

    def train(self, step: int, nats: float) -> None:
        """Add the loss of a step."""
        self.training.add(step, nats)
        if self._now() - self._drawn >= PAUSE:
            self.draw()

    def evaluate(self, step: int, nats: float) -> None:
        """Add the loss of an evaluation."""
        self.validation.add(step, nats)
        self.draw()

    def draw(self) -> None:
        """Draw the curves so far, or take them away if there is no room any more."""
        self._drawn = self._now()
        lines = self.picture() if has_room() else []
        if len(lines) != len(self._lines):
            self.close()
            self._lines = [
                output.Bar(bar_format="{desc}", position=i, leave=False, file=sys.stderr)
                for i in range(1, len(lines) + 1)
            ]
        for line, text in zip(self._lines, lines, strict=True):
            line.set_description_str(text)

    def picture(self) -> list[str]:
        """Return the lines of the picture; none before there is a line to draw."""
        if len(self.training.steps) < 2:
            return []
        first, last = self.training.steps[0], self.training.steps[-1]
        begun = first + SETTLED * (last - first)  # before that it falls steeply, out of the picture
        both = (self.training, self.validation)
        losses = [nats for one in both for step, nats in one.pairs() if step >= begun]
        bounds = {"x_min": first, "x_max": last, "y_min": min(losses), "y_max": max(losses)}
        plain = os.environ.get("TERM") == "linux"  # whose font has few signs
        lines = _plot(self.training, bounds, "ascii" if plain else "braille", lines=True)
        if self.validation.steps:
            points = _plot(self.validation, bounds, "ascii", lines=False)
            lines = [_over(*pair) for pair in zip(lines, points, strict=True)]
        return [TITLE, *lines]

    def close(self) -> None:
        """Take the picture off the terminal."""
        while self._lines:
            self._lines.pop().close()


def _plot(points: Points, bounds: dict[str, float], signs: str, lines: bool) -> list[str]:
    from uniplot import plot_to_string

    return plot_to_string(
        xs=points.steps,
        ys=points.values,
        lines=lines,
        color=False,
        character_set=signs,
        force_ascii_characters=["." if lines else MARK],
        width=WIDTH,
        height=HEIGHT,
        line_length_hard_cap=COLUMNS - 1,
        x_gridlines=[],
        y_gridlines=[],
        **bounds,
    ).split("\n")


def _over(line: str, points: str) -> str:
    """Return a line of a plot with the marks of another."""
    return "".join(MARK if b == MARK else a for a, b in zip_longest(line, points, fillvalue=" "))


def has_room() -> bool:
    """Tell whether stderr is a terminal that can draw, and is large enough now."""
    size = output.size_of(sys.stderr)
    if size is None or os.environ.get("TERM", "dumb") == "dumb":
        return False
    try:
        "┌⣿".encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return size.columns >= COLUMNS and size.lines >= LINES
