import shutil
import subprocess
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.cli.escaping import one_word, printable, quoted

UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u17b4\u200b\u200e\u200f\u202e\u2060\u2066\u3164\ufeff\uffa0\ufff9"
)
UNSEEN += "\U000e0001\U000e0041\U000e007f\U000e0100\ufe0f\u200d\u180e\U0001d173"
any_character = st.characters() | st.sampled_from(UNSEEN)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "é☃😀",
        "two\nlines\tand a tab",
        "\u3000",
        "می\u200cخواهم",  # Persian
        "क्\u200dष",  # Hindi
        "র\u200d্য",  # Bengali
        "ខ្មែរ\u200bភាសា",  # Khmer, between words
        "ᠰᠠ\u180bᠨ",  # Mongolian
        "👨\u200d👩\u200d👧",
        "🏳\ufe0f\u200d🌈",
        "❤\ufe0f 1\ufe0f\u20e3",
        "葛\U000e0100",
        "\u0600\u06dd",  # number signs: of the category Cf, and seen
    ],
)
def test_text_is_shown_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("\r", "\\r"),
        ("\x07\x00", "\\x07\\x00"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u200eb", "a\\u200eb"),
        ("\u061c", "\\u061c"),
        ("in\u00advisible", "in\\u00advisible"),
        ("\ufeff", "\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        ("pay\u200dpal", "pay\\u200dpal"),
        ("\u200d", "\\u200d"),
        ("ع\u200c\u200c", "ع\u200c\\u200c"),
        ("❤\ufe0f\ufe0f", "❤\ufe0f\\ufe0f"),
        ("a\U000e0100", "a\\U000e0100"),
        ("🏴\U000e0067\U000e007f", "🏴\\U000e0067\\U000e007f"),
        ("caf\udce9", "caf\\xe9"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_commands_reorders_or_hides_is_escaped(text, shown):
    assert printable(text) == shown


@given(st.text(any_character))
def test_nothing_that_is_printable_can_command_or_turn_a_terminal(text):
    shown = printable(text)

    assert {unicodedata.category(c) for c in set(shown) - {"\n", "\t"}}.isdisjoint({"Cc", "Cs"})
    assert not set(shown) & {*UNSEEN} - {*"\u034f\u200b\u200d\u180e\ufe0f\U000e0100"}
    assert printable(shown) == shown
    shown.encode()


@given(st.text(any_character))
def test_a_text_that_is_shown_character_by_character_is_shown_the_same(text):
    parts = [printable(c, text[:i][-1:]) for i, c in enumerate(text)]

    assert "".join(parts) == printable(text)


def test_a_name_stays_on_its_line():
    assert one_word("a\nb\tc\u200e") == "a\\nb\\tc\\u200e"


@pytest.mark.parametrize(
    ("text", "shell"),
    [
        ("plain", "plain"),
        ("", "''"),
        ("two words", "'two words'"),
        (r"\n", r"'\n'"),
        ("\n", r"$'\n'"),
        ("Anna's\n", r"$'Anna\'s\n'"),
        ("\\\t\x1b", r"$'\\\t\x1b'"),
        ("\u200e\udcff", r"$'\xe2\x80\x8e\xff'"),
    ],
)
def test_a_word_is_quoted_for_a_shell(text, shell):
    assert quoted(text) == shell


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_reads_what_was_quoted():
    words = ["a'b\n", "\\n", "é\u200e\x1b", "\udcff x", "\U000e0041\\'", "$`!\n"]
    script = "printf '%s\\0' " + " ".join(map(quoted, words))
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)

    given = [word.encode("utf-8", "surrogateescape") for word in words]
    assert done.stdout.split(b"\0")[:-1] == given
