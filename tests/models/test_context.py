"""Counts of what followed chosen parts of the text: the fast ones agree with slow ones."""

import numpy as np
import pytest
import torch

from charlm.config import AdaptConfig, ContextConfig
from charlm.errors import Stopped
from charlm.models import build_model
from charlm.models.context import ContextModel
from charlm.models.smoothing import discounts
from charlm.models.view import LETTER, NEWLINE, OTHER, classes_of
from charlm.text import ByteTokenizer, CharTokenizer, IdArray

FIRST = "The cat sat.\nA cat\n\nHAT: a Cat sat;\n the\n\nCat: that\nhat\n" * 3
SECOND = "that cat: sat\n\nThe hat,\n  a cat\ntea\n\n"
TOKENS = CharTokenizer(FIRST + SECOND)
V = TOKENS.vocab_size
EVERY = "2 1 word word-1 word-2 line column above paragraph"


def words(text):
    return "".join(c.lower() if c.isalnum() else " " for c in text).split(" ")


def slow_part(part, text):
    """Return a part of what has been read, straight from its meaning."""
    if part.isdecimal():
        return text[-int(part)] if int(part) <= len(text) else None
    line = text.rpartition("\n")[2]
    if part == "word":
        return words(text)[-1]
    if part.startswith("word-"):
        whole = [word for word in words(text)[:-1] if word]
        back = int(part[5:])
        return whole[-back] if back <= len(whole) else None
    if part == "line":
        return line[:4]
    if part == "column":
        return len(line)
    if part == "above":
        above = text.split("\n")[-2] if "\n" in text else ""
        return above[len(line)] if len(line) < len(above) else None
    paragraph = text.removeprefix("\n").rpartition("\n\n")[2]
    return next((word for word in words(paragraph)[:-1] if word), None)


def slow(looks_at, counted, text):
    """Return p after a text, when pairs of (what was read, what came next) have been counted."""
    parts = looks_at.split()
    p = np.full(V, 1 / V)
    here = tuple(slow_part(part, text) for part in parts)
    seen = [(tuple(slow_part(part, before) for part in parts), after) for before, after in counted]
    for k in range(len(parts) + 1):
        found = [(context[:k], after) for context, after in seen]
        if k < len(parts):
            longer = {(context[: k + 1], after) for context, after in seen}
            found = [(context[:k], after) for context, after in longer]
        counts = {pair: found.count(pair) for pair in found}
        taken = discounts(np.array(list(counts.values())))
        here_counts = {after: n for (context, after), n in counts.items() if context == here[:k]}
        if total := sum(here_counts.values()):
            p *= sum(taken[min(n, 3)] for n in here_counts.values()) / total
            for after, n in here_counts.items():
                p[TOKENS.encode(after)[0]] += (n - taken[min(n, 3)]) / total
    return p


def fitted(looks_at, text=FIRST):
    model = build_model(ContextConfig(type="context", block_size=64, looks_at=looks_at), V)
    model.fit(IdArray(TOKENS.encode(text)), classes_of(TOKENS))
    return model.eval()


def pairs(text):
    return [(text[:t], text[t]) for t in range(len(text))]


@pytest.mark.parametrize("looks_at", ["1", "1 2 word word-1", EVERY, "paragraph column"])
def test_it_predicts_what_kneser_ney_says_of_the_parts(looks_at):
    model, idx = fitted(looks_at), torch.from_numpy(TOKENS.encode(SECOND))[None]

    p = model(idx)[0].exp().double().numpy()

    for t in (0, 1, 4, 13, 14, 15, 21, len(SECOND) - 1):
        expected = slow(looks_at, pairs(FIRST), SECOND[: t + 1])
        np.testing.assert_allclose(p[t], expected, atol=1e-6)


def test_growing_counts_are_those_of_both_texts():
    looks_at, reader = "1 word paragraph", fitted("1 word paragraph").adaptive(AdaptConfig())

    first, p = reader.first(), reader.go_on(TOKENS.encode(SECOND)).exp().double().numpy()

    np.testing.assert_allclose(first.exp(), slow(looks_at, pairs(FIRST), ""), atol=1e-6)
    for t in (0, 1, 20, len(SECOND) - 1):
        counted = pairs(FIRST) + pairs(SECOND)[: t + 1]
        np.testing.assert_allclose(p[t], slow(looks_at, counted, SECOND[: t + 1]), atol=1e-6)
    assert reader.learned == ("counts",)


def test_reading_in_pieces_changes_no_bit_and_the_model_stays():
    model, ids = fitted(EVERY), TOKENS.encode(SECOND)
    before = model(torch.from_numpy(ids)[None])

    whole = model.adaptive(AdaptConfig()).go_on(ids)
    reader = model.adaptive(AdaptConfig())
    pieces = torch.cat([reader.go_on(part) for part in np.split(ids, [1, 2, 20])])
    state, read = model.start(1), []
    for part in torch.from_numpy(ids)[None].split([3, 1, 30, len(ids) - 34], dim=1):
        logits, state = model.go_on(part, state)
        read.append(logits)

    assert torch.equal(pieces, whole)
    assert torch.equal(torch.cat(read, dim=1), before)
    assert torch.equal(model(torch.from_numpy(ids)[None]), before)
    still = model.adaptive(AdaptConfig(counts=False)).go_on(ids)
    torch.testing.assert_close(still, before[0], atol=1e-6, rtol=1e-6)


def test_a_later_character_changes_no_earlier_prediction():
    ids = TOKENS.encode(SECOND)
    other = ids.copy()
    other[20] = (other[20] + 1) % V

    found, moved = (fitted(EVERY).adaptive(AdaptConfig()).go_on(some) for some in (ids, other))

    assert torch.equal(found[:20], moved[:20])
    assert not torch.equal(found[20:], moved[20:])


def test_before_a_fit_every_character_is_equally_likely():
    model = ContextModel(V, 64, "1 word")

    found = model(torch.zeros(1, 3, dtype=torch.int64)), model.adaptive(AdaptConfig()).first()

    for log_p in found:
        torch.testing.assert_close(log_p.exp(), torch.full_like(log_p, 1 / V))


def test_its_weights_are_the_text_that_it_has_counted():
    model, idx = fitted(EVERY), torch.from_numpy(TOKENS.encode(SECOND))[None]
    other = ContextModel(V, 64, EVERY)

    other.load_state_dict(model.state_dict())

    assert torch.equal(other(idx), model(idx))
    assert model.state_dict()["text"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("text", torch.tensor([0, 200], dtype=torch.uint8), "text has ids that are none of"),
        ("text", torch.tensor([0, 1]), "text is .* torch.int64, expected"),
        ("classes", torch.full((2, V), -1, dtype=torch.int32), "classes has ids that are none of"),
        ("classes", torch.zeros(1, dtype=torch.int32), "classes is"),
    ],
)
def test_a_state_that_is_no_text_of_this_alphabet_is_refused(name, tensor, said):
    state = fitted("1").state_dict()

    with pytest.raises(ValueError, match=said):
        ContextModel(V, 64, "1").load_state_dict({**state, name: tensor})


def test_a_stop_leaves_the_counts_as_they_were():
    model, idx = fitted("1 word"), torch.from_numpy(TOKENS.encode(SECOND))[None]
    before = model(idx)

    with pytest.raises(Stopped):
        model.fit(IdArray(TOKENS.encode(SECOND)), classes_of(TOKENS), should_stop=lambda: True)

    assert torch.equal(model(idx), before)


def test_symbols_have_classes_and_lower_case():
    tokens = CharTokenizer("aAÄäB'\n.1")

    kinds, lower = classes_of(tokens)
    of_bytes, lower_bytes = classes_of(ByteTokenizer())

    expected = {"\n": NEWLINE, ".": OTHER} | dict.fromkeys("aAÄäB'1", LETTER)
    assert {c: kinds[i] for i, c in enumerate(tokens.alphabet)} == expected
    folded = {c: tokens.alphabet[lower[i]] for i, c in enumerate(tokens.alphabet)}
    assert folded == {**{c: c for c in tokens.alphabet}, "A": "a", "Ä": "ä"}
    assert [of_bytes[b] for b in b"\n .aZ\xc3"] == [NEWLINE, OTHER, OTHER, LETTER, LETTER, LETTER]
    assert lower_bytes[ord("Z")] == ord("z")
    assert (lower_bytes[128:] == np.arange(128, 256)).all()
