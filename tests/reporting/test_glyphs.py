import unicodedata

import pytest

from charlm.reporting.glyphs import Glyphs, glyph, harmless, name_of
from charlm.text import ByteTokenizer, CharTokenizer


@pytest.mark.parametrize(
    ("symbol", "shown", "name"),
    [
        ("e", "e", "e"),
        ("<", "<", "<"),
        (" ", "␣", "space"),
        ("\n", "↵", "newline"),
        ("\t", "⇥", "tab"),
        ("\0", "\\x00", "U+0000"),
        ("\x1b", "\\x1b", "U+001B"),
        ("\u202e", "\\u202e", "U+202E right-to-left override"),
        ("\u200d", "\\u200d", "U+200D zero width joiner"),
        ("\u0301", "\u25cc\u0301", "U+0301 combining acute accent"),
        ("\u3000", "U+3000", "U+3000 ideographic space"),
        ("\ud800", "\\ud800", "U+D800"),
        ("\U0010ffff", "end", "end of a record"),
        ("\U0010fffe", "rare", "a rare character"),
        ("é", "é", "U+00E9 latin small letter e with acute"),
        ("א", "א", "U+05D0 hebrew letter alef"),
        ("😀", "😀", "U+1F600 grinning face"),
    ],
)
def test_each_symbol_has_a_sign_and_a_name(symbol, shown, name):
    assert (glyph(symbol), name_of(symbol)) == (shown, name)


def test_no_sign_moves_or_hides_other_text():
    for code in [*range(0x3000), *range(0xD7F0, 0x10000), 0xE0001, 0xE0100, 0x10FFFE, 0x10FFFF]:
        sign = glyph(chr(code))

        assert sign
        assert harmless(sign) == sign
        kinds = {unicodedata.category(c) for c in sign}
        assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}, f"U+{code:04X}"


def test_ids_have_the_signs_of_their_symbols():
    records = Glyphs(CharTokenizer("ab\n", boundary=True, escape=True))
    assert [records.glyph(i) for i in range(5)] == ["↵", "a", "b", "rare", "end"]
    raw = Glyphs(ByteTokenizer())
    assert [raw.glyph(i) for i in (10, 97, 0xC3, 0xFF)] == ["↵", "a", "\\xc3", "\\xff"]
    assert [raw.name(i) for i in (10, 97, 0xC3)] == ["newline", "a", "byte c3"]


def test_text_for_a_page_keeps_its_lines_and_joined_letters():
    kept = "a\n\tb <i>é</i> \u0646\u200c\u062f 👩\u200d👧 שלום"

    assert harmless(kept) == kept
    assert harmless("a\0\x1b\u202eb\ud800\u2028\udcff") == "a\\x00\\x1b\\u202eb\\ud800\\u2028\\xff"
    harmless("".join(map(chr, range(0x110000)))).encode()  # can be written
