"""Scored characters as records: what each one cost and what the model would have predicted."""

import math
from collections.abc import Iterator
from typing import Any

from charlm.evaluation.scoring import Scored
from charlm.text.tokenizer import Tokenizer


def records(scored: Scored, symbols: Tokenizer, known: Tokenizer) -> Iterator[dict[str, Any]]:
    """Yield a record for each character.

    Args:
        scored: The characters, with their likeliest alternatives.
        symbols: An alphabet that has all of them.
        known: The model's own.

    Yields:
        `position`, `char` (or `byte`, a number), `bits` (None if infinite), and `likeliest`: pairs
        of a character and its probability, none for a character that the model does not know.
    """
    assert scored.likeliest is not None
    key = "byte" if symbols.unit == "bytes" else "char"
    likeliest = zip(scored.likeliest.ids.tolist(), scored.likeliest.p.tolist(), strict=True)
    columns = (scored.positions, scored.symbols, scored.nats, scored.known)
    for position, symbol, nats, is_known in zip(*(c.tolist() for c in columns), strict=True):
        predicted = zip(*next(likeliest), strict=True) if is_known else ()
        yield {
            "position": position,
            key: _name(symbols, symbol),
            "bits": round(nats / math.log(2), 6) if math.isfinite(nats) else None,
            "likeliest": [[_name(known, i), round(p, 6)] for i, p in predicted],
        }


def _name(tokenizer: Tokenizer, idx: int) -> str | int:
    return idx if tokenizer.unit == "bytes" else tokenizer.decode([idx])
