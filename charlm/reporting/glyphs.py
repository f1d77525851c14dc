"""What stands for a symbol in a picture: itself, or a sign if it cannot be seen or is not safe.

A text may hold any character: one that moves the cursor, reverses the direction of what follows,
has no width, or is half of a surrogate pair, which no file can hold.
"""

import re
import unicodedata

from charlm.text.tokenizer import BOUNDARY, ESCAPE, REPLACEMENT, Tokenizer

# Controls, formats, halves of pairs, private and unassigned code points, separators of lines.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_NAMED = {
    " ": ("␣", "space"),
    "\n": ("↵", "newline"),
    "\t": ("⇥", "tab"),
    "\r": ("␍", "carriage return"),
    "\u00a0": ("⍽", "no-break space"),
    BOUNDARY: ("end", "end of a record"),
    ESCAPE: ("rare", "a rare character"),
    REPLACEMENT: ("rare", "a rare character"),
}
_DOTTED = "\u25cc"  # a dotted circle, which carries an accent that stands alone


def glyph(symbol: str) -> str:
    """Return a short text that can be seen and stands for one symbol."""
    if symbol in _NAMED:
        return _NAMED[symbol][0]
    kind = unicodedata.category(symbol)
    if kind in _UNSEEN:
        return escaped(symbol)
    if kind == "Zs":
        return f"U+{ord(symbol):04X}"
    return _DOTTED + symbol if kind[0] == "M" else symbol


def name_of(symbol: str) -> str:
    """Return what a symbol is called, for those who cannot see or do not know its glyph."""
    if symbol in _NAMED:
        return _NAMED[symbol][1]
    if symbol.isascii() and symbol.isprintable():
        return symbol
    try:
        return f"U+{ord(symbol):04X} {unicodedata.name(symbol).lower()}"
    except ValueError:  # controls have none
        return f"U+{ord(symbol):04X}"


def escaped(symbol: str) -> str:
    r"""Return a symbol as `\n`, `\x1b` or `\u202e`; of a byte that is not UTF-8, `\xff`."""
    code = ord(symbol)
    if 0xDC80 <= code <= 0xDCFF:  # see `charlm.text.raw`
        return f"\\x{code - 0xDC00:02x}"
    short = repr(symbol)[1:-1]
    if short.startswith("\\"):
        return short
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Glyphs:
    """The glyph and the name of each id of an alphabet."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def symbol(self, idx: int) -> str:
        """Return the symbol of an id; a byte from 80 on is half of a surrogate pair."""
        if idx == self._tokenizer.boundary:
            return BOUNDARY
        return ESCAPE if idx == self._tokenizer.escape else self._tokenizer.decode([idx])

    def glyph(self, idx: int) -> str:
        """Return what stands for an id."""
        return glyph(self.symbol(idx))

    def name(self, idx: int) -> str:
        """Return what an id is called."""
        symbol = self.symbol(idx)
        return f"byte {idx:02x}" if "\udc80" <= symbol <= "\udcff" else name_of(symbol)


_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e00ff\U0010fffe\U0010ffff]"
)


def harmless(text: str) -> str:
    """Return a text for a page, with escapes for what moves, hides or reverses other text.

    Newlines and tabs stay. A page without such characters can be written in UTF-8.
    """
    return _HARMFUL.sub(lambda found: escaped(found[0]), text)
