"""The lines of a text: leave out the first ones of a file, and write all line ends in one way."""

from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.config import DataConfig
from charlm.errors import number_of

_NEWLINE, _RETURN = ord("\n"), ord("\r")
_SHOWN = 60  # characters of a line that was left out, in a note

Symbols = npt.NDArray[Any]


class Lines:
    """Does what `data.newlines` and `data.skip_lines` say, chunk by chunk, and counts what it did."""

    def __init__(self, newlines: str, skip: int) -> None:
        self.newlines, self.skip = newlines, skip
        self.files = self.ends = 0  # files without their first lines; ends changed or left out
        self.shown = ""  # the beginning of what was left out
        self.begin()

    @classmethod
    def of(cls, data: DataConfig) -> "Lines":
        """Return what to do with the lines of a text."""
        return cls(data.newlines, data.skip_lines)

    @property
    def idle(self) -> bool:
        """Whether a text stays as it is."""
        return self.newlines == "keep" and not self.skip

    def begin(self) -> None:
        """Begin a file."""
        self._left = self.skip
        self._begun = self._after_return = False

    def push(self, symbols: Symbols) -> Symbols:
        """Return what is left of the next symbols of a file, (N,): code points or bytes."""
        if self.newlines != "keep":
            symbols = self._with_newlines(symbols)
        if self._left and len(symbols):
            symbols = self._without_first(symbols)
        if self.newlines == "none":
            ends = symbols == _NEWLINE
            self.ends += int(ends.sum())
            symbols = symbols[~ends]
        return symbols

    def _with_newlines(self, symbols: Symbols) -> Symbols:
        """Replace each carriage return, and each with a newline after it, by a newline."""
        if not len(symbols):
            return symbols
        returns = symbols == _RETURN
        second = (symbols == _NEWLINE) & np.append(self._after_return, returns[:-1])
        self._after_return = bool(returns[-1])
        if not returns.any() and not second.any():
            return symbols
        if self.newlines == "lf":
            self.ends += int(returns.sum())
        found: Symbols = np.where(returns, symbols.dtype.type(_NEWLINE), symbols)[~second]
        return found

    def _without_first(self, symbols: Symbols) -> Symbols:
        """Leave out the lines that are left to skip."""
        self.files += not self._begun
        self._begun = True
        ends = np.flatnonzero(symbols == _NEWLINE)[: self._left]
        self._left -= len(ends)
        cut = len(symbols) if self._left else int(ends[-1]) + 1
        if self.files == 1 and len(self.shown) < _SHOWN:
            self.shown += "".join(map(chr, symbols[: min(cut, _SHOWN)]))
        return symbols[cut:]

    def notes(self) -> list[str]:
        """Return remarks for the user."""
        found = []
        if self.files:
            lines = f"first {number_of(self.skip, 'line')}" if self.skip > 1 else "first line"
            of = f" of {number_of(self.files, 'file')}" if self.files > 1 else ""
            found.append(f"data.skip_lines left out the {lines}{of}: {self.shown[:_SHOWN]!r}")
        if self.ends and self.newlines == "lf":
            found.append(
                f"data.newlines=lf made \\n of {number_of(self.ends, 'line end')} \\r\\n or \\r"
            )
        elif self.ends:
            found.append(f"data.newlines=none left out {number_of(self.ends, 'line end')}")
        return found
