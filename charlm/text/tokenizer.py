"""Text to ids and back: one id for each character or each byte.

tokenizer = CharTokenizer(" ehlo")
tokenizer.encode("hello")        # array([2, 1, 3, 3, 4])
tokenizer.decode([2, 1, 3, 3, 4])  # 'hello'
"""

import codecs
import functools
import json
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from charlm.config.values import shown
from charlm.errors import CheckpointError, DataError, number_of
from charlm.storage.json_file import read_object

IntArray = npt.NDArray[np.integer[Any]]
Unknown = Literal["error", "skip", "nearest"]
# Takes one more id, or None at the end; returns the text that this id completes.
StreamDecoder = Callable[[int | None], str]

FORMAT = 1
BOUNDARY = "\U0010ffff"  # between records; Unicode reserves it for use inside programs
ESCAPE = "\U0010fffe"  # for each rare or unknown character; reserved likewise
REPLACEMENT = "\ufffd"  # how an escape is shown
NAMED = 4  # characters in a message about several
_MAX_BYTES = 16 << 20  # an alphabet of all of Unicode takes under 14 MB as escaped JSON
CODE_POINTS = 0x110000


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of a tokenizer."""

    @property
    def unit(self) -> str:
        """Either `chars` or `bytes`."""

    @property
    def vocab_size(self) -> int:
        """Number of distinct ids (V)."""

    @property
    def boundary(self) -> int | None:
        """The id of the boundary between records; None: texts have none."""

    @property
    def escape(self) -> int | None:
        """The id that all rare and unknown characters share; None: there is none."""

    def encode(self, text: str, unknown: Unknown = "error") -> IntArray:
        """Return the ids of a text."""

    def decode(self, ids: Iterable[int] | IntArray) -> str:
        """Return the text of ids."""

    def stream_decoder(self) -> StreamDecoder:
        """Return a fresh decoder for output that streams."""

    def to_json(self) -> str:
        """Return the tokenizer as JSON."""


class CharTokenizer:
    """One id for each character of an alphabet, in Unicode order; repeats do not matter.

    With `boundary`, the last id is that of the boundary between records (see `charlm.text.records`).
    With `escape`, one id stands for all characters outside the alphabet (see `charlm.text.escapes`).
    """

    unit = "chars"

    def __init__(
        self, alphabet: Iterable[str], boundary: bool = False, escape: bool = False
    ) -> None:
        added = [BOUNDARY] * boundary + [ESCAPE] * escape
        self.alphabet = "".join(sorted({*alphabet, *added}))
        self.boundary = len(self.alphabet) - 1 if boundary else None
        self.escape = self.alphabet.index(ESCAPE) if escape else None
        self._codes = code_points(self.alphabet)
        self._shown = self.alphabet.replace(ESCAPE, REPLACEMENT) if escape else self.alphabet

    @property
    def vocab_size(self) -> int:
        """Number of characters in the alphabet (V)."""
        return len(self.alphabet)

    def encode(self, text: str, unknown: Unknown = "error") -> IntArray:
        """Return the ids of a text.

        Characters outside the alphabet raise a DataError that lists them (`error`), or are left out
        (`skip`), or are replaced by similar ones if possible (`nearest`). In an alphabet with an
        escape, those that would raise an error, or are similar to none, become escapes.
        """
        if unknown == "nearest":
            text = text.replace("\r\n", "\n") if "\r" not in self.alphabet else text
            text = _written_with(self.alphabet, text, self.escape is not None)
        codes = code_points(text)
        ids = np.searchsorted(self._codes, codes)
        known = np.append(self._codes, CODE_POINTS)[ids] == codes
        if unknown != "skip" and self.escape is not None:
            return np.where(known, ids, self.escape)
        if unknown == "error" and not known.all():
            raise DataError("", _unknown_characters(text, known, seen_symbols(self)))
        return ids[known]  # type: ignore[no-any-return]

    def decode(self, ids: Iterable[int] | IntArray) -> str:
        """Return the text of ids, each in [0, V); an escape becomes U+FFFD."""
        return "".join(self._shown[i] for i in ids)

    def table(self, dtype: npt.DTypeLike) -> IntArray:
        """Return a table from code point to id, to encode much text. Unknown ones map to 0."""
        table = np.zeros(CODE_POINTS, dtype)
        table[self._codes] = np.arange(len(self._codes))
        return table

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder for output that streams."""
        return lambda idx: "" if idx is None else self._shown[idx]

    def to_json(self) -> str:
        """Return the alphabet as JSON."""
        content: dict[str, Any] = {"format": FORMAT, "unit": self.unit, "alphabet": self.alphabet}
        if self.boundary is not None:
            content["boundary"] = True
        if self.escape is not None:
            content["escape"] = True
        return json.dumps(content, indent=1) + "\n"


class ByteTokenizer:
    """One id for each of the 256 byte values: encodes any file and any prompt."""

    unit = "bytes"
    vocab_size = 256
    boundary = None
    escape = None

    def encode(self, text: str, unknown: Unknown = "error") -> IntArray:
        """Return the UTF-8 bytes of a text; only half a surrogate pair is an unknown character."""
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            if unknown == "error":
                place = f"character {error.start + 1} (U+{ord(text[error.start]):04X})"
                what = f"{place} is half a surrogate pair, which has no bytes"
                raise DataError("", what) from None
            data = text.encode("utf-8", "ignore")  # no character is similar to half a pair
        return np.frombuffer(data, np.uint8)

    def decode(self, ids: Iterable[int] | IntArray) -> str:
        """Return the text of bytes; see `charlm.text.raw` for those that are not UTF-8."""
        return bytes(int(i) for i in ids).decode("utf-8", "surrogateescape")

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder that holds back the bytes of an unfinished character."""
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        return lambda idx: decoder.decode(b"" if idx is None else bytes([idx]), idx is None)

    def to_json(self) -> str:
        """Return the unit as JSON."""
        return json.dumps({"format": FORMAT, "unit": self.unit}, indent=1) + "\n"


# Characters that NFKD does not decompose but that have a plain equivalent.
_LETTERS = (
    "ß=ss æ=ae Æ=AE ø=o Ø=O œ=oe Œ=OE ð=d þ=th ł=l Ł=L Ð=D Þ=TH đ=d Đ=D ħ=h ẞ=SS \u2022=* \u2044=/"
)
_PLAIN = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2039\u203a`\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("\t\v\f", " "),
    **dict.fromkeys("\r\u2028\u2029", "\n"),
    **dict(pair.split("=") for pair in _LETTERS.split()),
}


# Letters of Hangul that one syllable is made of, where it is decomposed.
_SYLLABLE = (
    "[\u1100-\u115f\ua960-\ua97c]+[\u1160-\u11a7\ud7b0-\ud7c6]*[\u11a8-\u11ff\ud7cb-\ud7fb]*"
)


def nearest(character: str, alphabet: str) -> str:
    """Return the best replacement for a character in an alphabet.

    A character may be of several code points: a letter and its accents. Candidates, in order: the
    character itself, its normal forms (NFC, NFD), its plain equivalent, its compatible forms (NFKC,
    NFKD), it with fewer accents or none, and each of these in the other case. Empty if the alphabet
    has none of them.
    """
    canonical, compatible = (unicodedata.normalize(form, character) for form in ("NFD", "NFKD"))
    bare = "".join(c for c in compatible if not _is_mark(c))
    marks = [c for c in canonical if _is_mark(c)]
    fewer = (
        canonical.rstrip("".join(marks)) + "".join(marks[:n]) for n in range(len(marks) - 1, 0, -1)
    )
    forms = [
        character,
        unicodedata.normalize("NFC", character),
        canonical,
        _PLAIN.get(character, ""),
        unicodedata.normalize("NFKC", character),
        compatible,
        *(unicodedata.normalize("NFC", form) for form in fewer),
        "".join(_PLAIN.get(c, c) for c in bare),
    ]
    forms += [form.swapcase() for form in forms]
    return next((form for form in forms if form and all(c in alphabet for c in form)), "")


def _written_with(alphabet: str, text: str, keep: bool = False) -> str:
    """Return a text in an alphabet, each unknown character as the nearest known one.

    `keep` those that are similar to none, instead of leaving them out.
    """
    found = set(text)
    if not found <= {*alphabet}:
        # Letters together with their accents first: alone, an accent means nothing.
        marks = "".join(map(re.escape, filter(_is_mark, sorted(found))))
        whole = [_SYLLABLE, *([f"[^{marks}][{marks}]+"] if marks else [])]
        known = functools.cache(
            lambda several: nearest(several, alphabet) or (several if keep else "")
        )
        text = re.sub("|".join(whole), lambda several: known(several[0]), text, flags=re.DOTALL)
    return text.translate({ord(c): nearest(c, alphabet) or (c if keep else "") for c in set(text)})


def normal_form(strange: Iterable[str], alphabet: str) -> str:
    """Return the normal form in which an alphabet may have these characters: NFC, NFD or none."""
    decomposed = unicodedata.normalize("NFD", "".join(strange))
    if set(decomposed) <= set(alphabet):
        return "NFD"
    return "NFC" if set(strange) <= set(unicodedata.normalize("NFD", alphabet)) else ""


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, or raise CheckpointError."""
    try:
        content = read_object(path, _MAX_BYTES)
        if content["format"] != FORMAT:
            what = f"format {reprlib.repr(content['format'])}, this charlm reads {FORMAT}"
            raise CheckpointError(path, what, "upgrade charlm")
        if content["unit"] == "bytes":
            return ByteTokenizer()
        if content["unit"] != "chars":
            raise ValueError(f"unit {shown(content['unit'])}, this charlm reads chars and bytes")
        alphabet = content["alphabet"]
        if not isinstance(alphabet, str) or not alphabet:
            raise ValueError("there is no alphabet")
        special = (bool(content.get(name)) for name in ("boundary", "escape"))
        tokenizer = CharTokenizer(alphabet, *special)
        if tokenizer.alphabet != alphabet:
            raise ValueError("the alphabet is not in order")
        return tokenizer
    except FileNotFoundError:
        raise CheckpointError(path, "not found", "restore it or start a new run") from None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(path, f"not a tokenizer ({error})", "name another run") from None


def opening_id(tokenizer: Tokenizer) -> int:
    """Return the id that a text begins after: a boundary, a newline, or else the first symbol."""
    if tokenizer.boundary is not None:
        return tokenizer.boundary
    newline = tokenizer.encode("\n", "skip")
    return int(newline[0]) if len(newline) else 0


def seen_symbols(tokenizer: Tokenizer) -> int:
    """Return how many symbols a text can show: all but the boundary and the escape, which nobody sees."""
    specials = (tokenizer.boundary, tokenizer.escape)
    return tokenizer.vocab_size - sum(special is not None for special in specials)


def symbols_in_words(tokenizer: Tokenizer) -> str:
    """Name the symbols that a text can show, and the escape if there is one."""
    rare = "" if tokenizer.escape is None else " and one for rare characters"
    return f"{number_of(seen_symbols(tokenizer), 'symbol')}{rare}"


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the code point of each character, (N,); also of half a surrogate pair."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def of_code_points(codes: npt.NDArray[Any]) -> str:
    """Return the text of code points, (N,)."""
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def not_in_alphabet(strange: Sequence[str], tokenizer: Tokenizer) -> str:
    """Say that a run's tokenizer lacks these characters of a text."""
    verb = "is" if len(strange) == 1 else "are"
    size = number_of(seen_symbols(tokenizer), "symbol")
    return f"{some_of(strange)} {verb} not in the alphabet of this run, which has {size}"


def some_of(characters: Sequence[str]) -> str:
    """Name the first of some characters, and say how many more there are."""
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in characters[:NAMED])
    more = len(characters) - NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown


def _unknown_characters(text: str, known: npt.NDArray[np.bool_], size: int) -> str:
    first_position: dict[str, int] = {}
    for position in np.flatnonzero(~known):
        first_position.setdefault(text[position], int(position))
    shown = [f"character {p + 1} {_quoted(c)} (U+{ord(c):04X})" for c, p in first_position.items()]
    more = f" and {len(shown) - NAMED:,} more" if len(shown) > NAMED else ""
    verb = "is" if len(shown) == 1 else "are"
    return f"{', '.join(shown[:NAMED])}{more} {verb} not in this model's alphabet of {size}"


def _quoted(character: str) -> str:
    # Two backslashes, as Python writes it, would look like two characters.
    return "'\\'" if character == "\\" else repr(character)
