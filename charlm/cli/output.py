"""How charlm prints: results on stdout, everything else on stderr."""

import contextlib
import functools
import json
import math
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm
from tqdm.utils import disp_len

from charlm.cli.escaping import one_word, printable
from charlm.errors import check_stop

if TYPE_CHECKING:
    from charlm.config import Config
    from charlm.models import LanguageModel

CLOSED_PIPE = 141  # the exit code that a shell reports after SIGPIPE
LONGEST = 500  # characters of an error, which may quote a whole text
SHORTEST = 8  # characters that a cell of a table keeps


def result(text: str) -> None:
    """Print a result for people to stdout; `one_word` keeps a name in it on its line.

    A terminal breaks long lines between words.
    """
    print(_fitted(printable(text), sys.stdout), flush=True)


def content(text: str) -> None:
    """Print what may be kept in a file, such as YAML, to stdout: exactly, if it is no terminal."""
    print(printable(text) if sys.stdout.isatty() else text, flush=True)


class TextOut:
    """stdout for texts of a model: a terminal gets what is safe, anything else the text itself."""

    def __init__(self, unit: str) -> None:
        self.terminal = sys.stdout.isatty()
        self.of_bytes = unit == "bytes"
        self._before = ""

    def write(self, text: str, nats: float | None = None) -> None:
        """Write a part of a text at once, coloured by its log-probability `nats` if given."""
        if not text:
            return
        shown = printable(text, self._before) if self.terminal else text
        self._before = text[-1]
        if nats is not None and not text.isspace():
            colour = next(code for least, code in SURPRISE if nats >= least)
            shown = f"\x1b[{colour}m{shown}\x1b[0m" if colour else shown
        if self.of_bytes and not self.terminal:  # whatever the encoding of stdout is
            sys.stdout.flush()
            sys.stdout.buffer.write(shown.encode("utf-8", "surrogateescape"))
            sys.stdout.buffer.flush()
        else:
            sys.stdout.write(shown)
            sys.stdout.flush()


# Terminal colours by log-probability in nats: more likely than 1 in 2, 5, 20, and less likely.
SURPRISE = (
    (math.log(1 / 2), ""),
    (math.log(1 / 5), "36"),
    (math.log(1 / 20), "33"),
    (-math.inf, "31"),
)


def colours() -> bool:
    """Tell whether to print colours on stdout: https://no-color.org."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def legend(quiet: bool = False) -> bool:
    """Explain the colours on stderr, or why there are none; tell whether there are."""
    if not colours():
        note("--show-alternatives: colours need a terminal; for files there is --json")
        return False
    if quiet:
        return True
    some = "\x1b[36m1 in 5\x1b[0m, \x1b[33m1 in 20\x1b[0m, \x1b[31mless likely\x1b[0m"
    tqdm.write(f"more likely than 1 in 2, {some}", file=sys.stderr)
    return True


def units(unit: str) -> str:
    """Return the plural for a text's symbols."""
    return "characters" if unit == "chars" else unit


def one(unit: str) -> str:
    """Return the singular for a text's symbols."""
    return units(unit).removesuffix("s")


def in_unit(text: str, unit: str) -> str:
    """Say bytes where a text for either unit says characters."""
    return text if unit == "chars" else text.replace("character", "byte")


def facts(rows: dict[str, str]) -> None:
    """Print names and values to stdout, a row each."""
    for name, value in rows.items():
        result(f"{name:<8} {one_word(value)}")


def aligned(
    rows: Sequence[Sequence[str]], right: Container[int], shorten: Iterable[int | tuple[int, ...]]
) -> Iterator[str]:
    """Yield the lines of a table for stdout, the columns `right` aligned to the right.

    On a terminal that is narrower, the columns of `shorten` lose the middle of their cells, the
    first of them first; of several in a tuple, the widest.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width(sys.stdout) - 2 * (len(widths) - 1)
    for columns in shorten:
        group = (columns,) if isinstance(columns, int) else columns
        own = [widths[column] for column in group]
        most = max(SHORTEST, _shared(room - sum(widths) + sum(own), own))
        for column in group:
            widths[column] = int(min(widths[column], most))
    for row in rows:
        cells = [_shortened(cell, width) for cell, width in zip(row, widths, strict=True)]
        padded = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()


def _shared(room: float, widths: Sequence[int]) -> float:
    """Return the width to which the widest columns are cut, so that all have room."""
    left = room
    for number, narrowest in enumerate(sorted(widths)):
        share = left / (len(widths) - number)
        if narrowest > share:  # and so are those after it
            return share
        left -= narrowest
    return math.inf


def _shortened(cell: str, width: int) -> str:
    kept = width - 1
    return cell if len(cell) <= width else f"{cell[: kept - kept // 2]}…{cell[-(kept // 2) :]}"


def result_json(value: Any) -> None:
    """Print one JSON object to stdout, on one line."""
    print(json.dumps(_finite(value), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def note(text: str) -> None:
    """Print a remark to stderr."""
    tqdm.write(f"charlm: note: {one_line(text)}", file=sys.stderr)


def load_kernels(config: "Config", quiet: bool) -> None:
    """Load the compiled loops that a run needs; say so if they must be compiled first."""
    from charlm.training.loading import load_kernels

    for _ in load_kernels(config):
        if not quiet:
            say("compiling kernels, once on this machine: about 10 s")


def say(text: str) -> None:
    """Print progress to stderr, above any bar; a terminal breaks long lines between words."""
    tqdm.write(_fitted(printable(text), sys.stderr), file=sys.stderr)


def width(stream: TextIO) -> float:
    """Return the columns of a terminal, or infinity if a stream is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else math.inf


def size_of(stream: TextIO) -> os.terminal_size | None:
    """Return the size that a terminal has now; None if a stream is none, or does not tell it."""
    try:
        return os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return None


def cut(line: str, stream: TextIO) -> str:
    """Shorten a line to the width of a terminal."""
    columns = width(stream)
    return line if len(line) <= columns else f"{line[: int(columns) - 1]}…"


# An indent and a label, such as `reached`. These fill their column, so that one space follows.
_BEGIN = re.compile(r" *((device|joined|weight) |\w+( \w+)?  +)?")


def _fitted(text: str, stream: TextIO) -> str:
    """Break lines that are longer than a terminal is wide between words, below their first words."""
    columns, lines = width(stream), text.split("\n")
    for number, line in enumerate(lines):
        if len(line) > columns:
            begin = _BEGIN.match(line)
            indent = " " * (begin.end() if begin else 0)
            wrapper = textwrap.TextWrapper(int(columns), subsequent_indent=indent)
            wrapper.break_long_words = wrapper.break_on_hyphens = False
            lines[number] = wrapper.fill(line)
    return "\n".join(lines)


def error(text: str) -> None:
    """Print an error to stderr, as one line."""
    print(f"charlm: error: {one_line(text)}", file=sys.stderr, flush=True)


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that is drawn only after its delay, and cleared whenever it was drawn.

    tqdm's own is drawn below each line that is written, delay or not, and then stays: see
    `findings/tqdm-delay-and-write.sh`.
    """

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:  # type: ignore[override]
        """Return what draws a line over the one before; tqdm's own fills it up with spaces.

        On a terminal that has become narrower, these would go on to the next line.
        """
        before = 0

        def draw(text: str) -> None:
            nonlocal before
            size = disp_len(text)
            terminal = size_of(file)
            most = min(before, terminal.columns) if terminal else before
            file.write(f"\r{text}{' ' * (most - size)}")
            file.flush()
            before = size

        return draw

    def clear(self, nolock: bool = False) -> None:
        """Wipe it, also on a terminal that has become narrower."""
        if terminal := size_of(self.fp):
            self.ncols = terminal.columns
        super().clear(nolock)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]
        """Draw it if its time has come."""
        now = time.time()
        if self.delay and now < self.start_t + self.delay:
            return False
        self.last_print_t = now  # `close` asks it whether there is something to clear
        return bool(super().display(msg, pos))


def bar(what: str, unit: str, total: int | None = None, **options: Any) -> Any:
    """Return a tqdm bar on stderr, drawn on a terminal only and if the work takes a second."""
    usual = {"unit_scale": True, "leave": False, "disable": None, "delay": 1.0}
    return Bar(desc=what, unit=unit, total=total, file=sys.stderr, **(usual | options))


def prepare(model: "LanguageModel", should_stop: Callable[[], bool], quiet: bool = False) -> None:
    """Do what a model needs before its first prediction, with a bar."""
    if model.uncounted:
        with bar("counting", "char", model.uncounted, disable=quiet or None) as counted:
            model.prepare(counted.update, should_stop)


@contextlib.contextmanager
def bytes_bar(
    quiet: bool = False, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Callable[[str, int], None]]:
    """Yield a callback that draws a bar for each named pass over a text."""
    with contextlib.ExitStack() as before:

        @functools.cache
        def drawn(what: str) -> Any:
            before.close()
            new = bar(what, "B", disable=quiet or None)
            before.callback(new.close)
            return new

        def update(what: str, read: int) -> None:
            check_stop(should_stop)
            drawn(what).update(read)

        yield update


@contextlib.contextmanager
def steps(
    quiet: bool = False, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that draws a bar for each named step: what is newly done, and its total."""
    with contextlib.ExitStack() as before:

        @functools.cache
        def drawn(step: str) -> Any:
            before.close()
            new = bar(step, "text", disable=quiet or None)
            before.callback(new.close)
            return new

        def update(step: str, done: int, total: int) -> None:
            check_stop(should_stop)
            drawn(step).total = total
            drawn(step).update(done)

        yield update


def download_bar(
    quiet: bool = False, should_stop: Callable[[], bool] = lambda: False
) -> Callable[[int, int], None]:
    """Return a callback that draws a bar for a download, from its first call on."""
    drawn = functools.cache(lambda: bar("fetching", "B", disable=quiet or None, delay=0))

    def update(done: int, total: int) -> None:
        check_stop(should_stop)
        drawn().total = total
        drawn().update(done - drawn().n)
        if done >= total:
            drawn().close()

    return update


def never_refuse_a_character() -> None:
    """Escape characters that a stream's encoding lacks, and replace closed streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 -- open until the end
        else:
            stream.reconfigure(errors="backslashreplace")
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 -- open until the end
    sys.stderr = Forgiving(sys.stderr)


class Forgiving:
    """A stream whose reader may go away: progress output must not end a training run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, and ignore a closed stream."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, and ignore a closed stream."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def one_line(text: str) -> str:
    """Make a text one line of bounded length."""
    line = printable(text).replace("\n", "\\n")
    if len(line) > LONGEST:  # keep both ends: the mistake and the advice
        line = f"{line[: LONGEST - 200]} ... {line[-195:]}"
    return line
