"""Text as it becomes certain."""

from hypothesis import given
from hypothesis import strategies as st

from charlm.sampling import stream as module
from charlm.text import ByteTokenizer, CharTokenizer
from charlm.text.raw import as_bytes


def TextStream(tokenizer, stops=()):
    return module.TextStream(tokenizer, [tokenizer.encode(stop) for stop in stops])


def feed(stream, ids):
    """Return the pieces of each push, and those of the end."""
    given = [stream.push(int(i), -1.0) for i in ids]
    return given, stream.finish()


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def everything(stream, ids):
    given, rest = feed(stream, ids)
    return "".join(map(text_of, given)) + text_of(rest)


def test_without_stops_each_character_comes_at_once():
    tokenizer = CharTokenizer("abc")
    given, rest = feed(TextStream(tokenizer), [0, 2, 1])

    assert [text_of(pieces) for pieces in given] == ["a", "c", "b"]
    assert rest == []


def test_a_stop_ends_the_text_before_it_and_is_never_shown():
    tokenizer = CharTokenizer("abcd")
    stream = TextStream(tokenizer, ["bcb"])
    given = [text_of(stream.push(int(i), -1.0)) for i in tokenizer.encode("abcabc")]

    assert given == ["a", "", "", "bca", "", ""]
    assert stream.push(1, -1.0) == []
    assert stream.ended
    assert stream.finish() == []


def test_what_looks_like_a_stop_and_is_none_is_given_out():
    tokenizer = CharTokenizer("abcd")
    stream = TextStream(tokenizer, ["abd"])

    assert everything(stream, tokenizer.encode("ababc")) == "ababc"
    assert not stream.ended


letters = st.text("ab", max_size=12)


@given(letters, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_text_is_what_stands_before_the_first_stop(text, stops):
    """The first to be complete ends the text, as in reading from the left; of two, the earlier."""
    tokenizer = CharTokenizer("ab")
    stream, found = TextStream(tokenizer, stops), ""
    for i in tokenizer.encode(text):
        if not stream.ended:
            found += text_of(stream.push(int(i), -1.0))
    found += text_of(stream.finish())

    expected = text
    for end in range(len(text) + 1):
        starts = [at for s in stops if (at := text[:end].find(s)) >= 0]
        if starts:
            expected = text[: min(starts)]
            break
    assert found == expected
    assert stream.ended == (expected != text or any(text.endswith(s) for s in stops if s in text))


def test_bytes_wait_for_their_character_and_add_up():
    tokenizer = ByteTokenizer()
    given, rest = feed(TextStream(tokenizer), [*"a☃".encode(), 0xC3])

    assert [text_of(pieces) for pieces in given] == ["a", "", "", "☃", ""]
    assert given[3][0].nats == -3.0
    assert as_bytes(text_of(rest)) == b"\xc3"
    assert rest[0].nats == -1.0


@given(st.binary(max_size=20))
def test_any_bytes_come_out_as_they_were_drawn(data):
    assert as_bytes(everything(TextStream(ByteTokenizer()), data)) == data


@given(st.binary(max_size=12), st.lists(st.binary(min_size=1, max_size=3), max_size=2))
def test_a_stop_text_of_bytes_ends_bytes_wherever_it_is(data, stops):
    """Also within a character, or where a part of it is not UTF-8."""
    tokenizer = ByteTokenizer()
    stream = TextStream(tokenizer, [tokenizer.decode(stop) for stop in stops])

    found = as_bytes(everything(stream, data))

    ends = (
        min(data[:end].find(s) for s in stops if s in data[:end])
        for end in range(len(data) + 1)
        if any(s in data[:end] for s in stops)
    )
    assert found == data[: next(ends, len(data))]


def test_bytes_that_are_no_character_have_their_own_probability():
    stream = TextStream(ByteTokenizer())
    given = [stream.push(byte, nats) for byte, nats in ((0xE2, -1.0), (0x82, -2.0), (0x78, -4.0))]

    assert given[:2] == [[], []]
    assert [(as_bytes(text), nats) for text, nats, _ in given[2]] == [
        (b"\xe2", -1.0),
        (b"\x82", -2.0),
        (b"x", -4.0),
    ]


def test_an_ended_text_gains_nothing_at_its_end():
    stream = TextStream(ByteTokenizer(), ["x"])
    given = [text_of(stream.push(byte, -1.0)) for byte in (0xE2, 0x78, 0xE2)]

    assert stream.ended
    assert as_bytes("".join(given)) == b"\xe2"
    assert stream.finish() == []
