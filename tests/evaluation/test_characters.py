import math

import numpy as np

from charlm.evaluation.characters import records
from charlm.evaluation.scoring import Likeliest, Scored
from charlm.text import ByteTokenizer, CharTokenizer

WIDE, OWN = CharTokenizer("abé"), CharTokenizer("ab")


def scored(symbols, nats, known):
    number = sum(known)
    likeliest = Likeliest(np.array([[1, 0]] * number), np.array([[0.75, 0.25]] * number))
    positions = np.arange(1, 1 + len(symbols))
    return Scored(positions, np.array(nats), np.array(symbols), np.array(known), likeliest)


def test_a_record_names_the_character_its_bits_and_what_was_likelier():
    one, other = records(scored([0, 2], [math.log(4), math.log(2)], [True, False]), WIDE, OWN)

    assert one == {
        "position": 1,
        "char": "a",
        "bits": 2.0,
        "likeliest": [["b", 0.75], ["a", 0.25]],
    }
    assert other == {"position": 2, "char": "é", "bits": 1.0, "likeliest": []}


def test_infinite_bits_are_none():
    (record,) = records(scored([0], [math.inf], [True]), WIDE, OWN)

    assert record["bits"] is None


def test_bytes_are_numbers():
    tokenizer = ByteTokenizer()

    (record,) = records(scored([233], [0.0], [True]), tokenizer, tokenizer)

    assert (record["byte"], record["likeliest"]) == (233, [[1, 0.75], [0, 0.25]])
