import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.evaluation import score_text, unknown
from charlm.evaluation.protocols import sliding
from charlm.evaluation.scoring import utf8_lengths
from charlm.evaluation.unknown import charge_nats, leave_out
from charlm.text import CharTokenizer, IdArray
from tests.evaluation.fakes import Window

KNOWN = CharTokenizer("abcdefg")
WIDE = CharTokenizer("abcdefg" + "+é☃😀")  # one unknown sorts before the known, three after


def test_the_charge_by_hand():
    # 2 unknown of 5 characters: 6 counts (0 to 5), 10 ways to place 2; then a code point each.
    by_hand = math.log(6 * 10) / 2 + math.log(1_114_112 - 7)

    assert charge_nats(2, 5, vocab_size=7) == pytest.approx(by_hand)


def test_the_places_cost_what_the_rule_of_succession_says():
    """Telling known from unknown one by one, each with the odds of what was met so far."""
    mask = [0, 1, 0, 0, 1, 0, 0, 0]
    met, nats = [1, 1], 0.0
    for kind in mask:
        nats -= math.log(met[kind] / sum(met))
        met[kind] += 1

    assert 2 * (charge_nats(2, 8, 7) - math.log(1_114_105)) == pytest.approx(nats)


def apart(text, tmp_path):
    return leave_out(IdArray(WIDE.encode(text)), WIDE, KNOWN, tmp_path / "known.bin")


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_model_is_shown_the_text_without_them(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(unknown, "CHUNK", chunk)

    ids, left_out = apart("é+ab☃cde😀", tmp_path)

    assert KNOWN.decode(ids.read(0, len(ids))) == "abcde"
    assert left_out.before.tolist() == [0, 0, 2, 5]
    assert WIDE.decode(left_out.symbols) == "é+☃😀"


@given(text=st.text("ab+é☃😀", min_size=4, max_size=40).map(lambda t: t + "ég+a"), data=st.data())
@settings(max_examples=20)
def test_every_character_is_counted_where_it_stands(tmp_path_factory, text, data):
    text = "".join(data.draw(st.permutations(text)))
    ids, left_out = apart(text, tmp_path_factory.mktemp("apart"))
    heard = []

    score = score_text(
        Window(),
        ids,
        sliding(3, 2),
        byte_lengths=utf8_lengths(WIDE),
        left_out=left_out,
        each=heard.append,
    )

    alone = score_text(Window(), ids, sliding(3, 2))
    strange = [c for c in text if c not in KNOWN.alphabet]
    unscored = next(i for i, c in enumerate(text) if c in KNOWN.alphabet)
    rest = text[:unscored] + text[unscored + 1 :]
    assert (score.chars, score.unknown) == (len(text) - 1, len(strange))
    charges = len(strange) * charge_nats(len(strange), len(text), KNOWN.vocab_size)
    total = alone.loss_nats * alone.chars + charges
    assert score.loss_nats == pytest.approx(total / score.chars, rel=1e-6)
    assert score.bytes == len(rest.encode())
    positions = np.concatenate([scored.positions for scored in heard]).tolist()
    assert positions == [i for i in range(len(text)) if i != unscored]
    assert WIDE.decode(np.concatenate([scored.symbols for scored in heard])) == rest
    known = np.concatenate([scored.known for scored in heard]).tolist()
    assert known == [c in KNOWN.alphabet for c in rest]
    nats = np.concatenate([scored.nats for scored in heard])
    assert nats.sum() == pytest.approx(total, rel=1e-6)
    assert (nats[~np.array(known)] == left_out.charge_nats).all()
