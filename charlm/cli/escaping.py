"""What a terminal must not be sent: commands, and characters that reorder or hide text.

Text of a model, of a file or of a user may hold any character. A shell can be told with the same
escapes.
"""

import re
import shlex
import unicodedata

_COMMANDS = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}
_BREAKS = {0x2028, 0x2029}  # line and paragraph separators
_RAW = {*range(0xDC80, 0xDD00)}  # stand for bytes that are not UTF-8: see `charlm.text.raw`
_HALVES = {*range(0xD800, 0xE000)} - _RAW  # of surrogate pairs: they cannot be encoded

# Unicode's Default_Ignorable_Code_Point, and the interlinear annotation: they set the direction of
# text or are not seen. https://www.unicode.org/Public/UCD/latest/ucd/DerivedCoreProperties.txt
_UNSEEN = {
    *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0),
    *(*range(0x180B, 0x1810), *range(0x200B, 0x2010), *range(0x202A, 0x202F)),
    *(*range(0x2060, 0x2070), *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFFC)),
    *(*range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
}
# Of these, many languages and emoji need some, one at a time, after a character that they shape.
_JOINERS = {0x034F, *range(0x180B, 0x1810), 0x200B, 0x200C, 0x200D}
_VARIANTS = {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
_LAST_CYRILLIC = "\u052f"  # Latin, Greek and Cyrillic, which need no joiners, end there
_FIRST_IDEOGRAPHIC = "\u2e80"

_SHAPING = _JOINERS | _VARIANTS
_ESCAPES = {
    **{code: repr(chr(code))[1:-1] for code in _COMMANDS | _BREAKS | _HALVES},
    **{code: f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}" for code in _UNSEEN},
    **{code: f"\\x{code - 0xDC00:02x}" for code in _RAW},
}
_ALWAYS = {code: escape for code, escape in _ESCAPES.items() if code not in _SHAPING}
_SOMETIMES = re.compile(f"[{''.join(map(chr, sorted(_SHAPING)))}]")
_LINE = {ord("\n"): "\\n", ord("\t"): "\\t"}


def printable(text: str, before: str = "") -> str:
    """Escape what commands a terminal (not newline and tab), and what reorders or hides text.

    Joiners and variation selectors stay where a language or an emoji needs them: after a character
    that they shape. `before` is the character before the text, if any.
    """

    def sometimes(found: re.Match[str]) -> str:
        last = text[found.start() - 1] if found.start() else before
        return found[0] if last and _shapes(found[0], last) else _ESCAPES[ord(found[0])]

    if text.isascii() and text.isprintable():
        return text
    return _SOMETIMES.sub(sometimes, text).translate(_ALWAYS)


def one_word(text: object) -> str:
    """Return a name for a message or a table, on one line, wherever it is printed."""
    return printable(str(text)).translate(_LINE)


def quoted(text: str) -> str:
    r"""Quote a word for a shell; what cannot be typed as bash and zsh read it: $'\n'."""
    if text.isprintable() and printable(text) == text:
        return shlex.quote(text)
    return f"$'{''.join(map(_in_quotes, text))}'"


def _in_quotes(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character in "\n\t\r":
        return repr(character)[1:-1]
    if character.isprintable() and ord(character) not in _ESCAPES:
        return character
    data = character.encode("utf-8", "surrogateescape")
    return "".join(f"\\x{byte:02x}" for byte in data)


def _shapes(mark: str, last: str) -> bool:
    """Tell whether a joiner or a variation selector has a purpose after a character."""
    kind, of_variants = unicodedata.category(last)[0], ord(last) in _VARIANTS
    if ord(mark) in _JOINERS:
        if of_variants:
            return last < "\ufe10"  # that of an emoji
        shaped = kind == "S" or (kind in "LM" and last > _LAST_CYRILLIC)
        return shaped and ord(last) not in _UNSEEN
    if mark > "\ufe0f":
        return kind == "L" and last >= _FIRST_IDEOGRAPHIC
    return ord(last) not in _UNSEEN and kind in "LMNPS"
