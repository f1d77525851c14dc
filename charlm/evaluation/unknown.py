"""The loss of characters that a model has no id for: a uniform code that could be decoded.

A model gives no probability to characters outside its alphabet, so its loss on a text with one of
them is infinite. Instead, the text is scored as if a coder first sent the positions of the u
unknown characters among all N, then the characters themselves, and then let the model predict the
rest of the text without them:

    where   ln((N + 1) C(N, u)) nats: Laplace's rule of succession over the known and the unknown
    which   ln(1,114,112 - V) nats each: every code point outside the alphabet is equally likely

Each unknown character costs its code point and an equal share of the first line. Every character
of the text counts, and the code could be decoded, so the loss is comparable.

A model whose alphabet has an escape (see `charlm.text.escapes`) needs no positions: it predicts where
an escape comes. So a rare or unknown character costs the model's nats for the escape, and then its
code point, `escape_nats`. The probabilities of all that can follow, each code point outside the
alphabet counted by itself, still add up to 1.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.evaluation.score import Floats
from charlm.storage import machine_errors
from charlm.text.escapes import escaped
from charlm.text.tokenizer import CharTokenizer
from charlm.text.tokens import Ids, Split, TokenFile, id_dtype

CODE_POINTS = 0x110000  # 1,114,112
CHUNK = 1 << 20


def charge_nats(unknown: int, chars: int, vocab_size: int) -> float:
    """Return the cost in nats of each of `unknown` characters in a text of `chars`."""
    choices = math.lgamma(chars + 1) - math.lgamma(unknown + 1) - math.lgamma(chars - unknown + 1)
    return (math.log(chars + 1) + choices) / unknown + math.log(CODE_POINTS - vocab_size)


def escape_nats(vocab_size: int) -> float:
    """Return what an escape costs beside the model's own nats: its code point, by a uniform code."""
    return math.log(CODE_POINTS - vocab_size)


def with_escapes(
    nats: Floats, ids: npt.NDArray[np.int64], escape: int | None, vocab_size: int
) -> Floats:
    """Return the nats of characters with the cost of those that are escapes, of the same shape."""
    return nats if escape is None else nats + (ids == escape) * escape_nats(vocab_size)


def uniform_nats(vocab_size: int, escapes: int = 0, chars: int = 1) -> float:
    """Return the mean nats of a character that is guessed, where `escapes` of `chars` are escapes."""
    cost = escape_nats(vocab_size) * escapes / chars if escapes else 0.0
    return math.log(vocab_size) + cost


def uniform_on(text: Ids, vocab_size: int) -> float:
    """Return the mean nats of the characters of a text that are guessed; the first is not."""
    escapes = sum(map(len, escaped(text, 1))) if len(text) else 0
    return uniform_nats(vocab_size, escapes, len(text) - 1)


def mean_escape_nats(text: Ids, vocab_size: int) -> float:
    """Return what the escapes of a text add to the mean nats of a character, all but the first."""
    return uniform_on(text, vocab_size) - math.log(vocab_size)


@dataclass(frozen=True)
class LeftOut:
    """The unknown characters of a text, to be put back among the scores of the others."""

    before: npt.NDArray[np.int64]  # the number of known characters before each, (u,), ascending
    symbols: npt.NDArray[np.int64]  # ids in an alphabet that has all characters of the text, (u,)
    to_symbol: npt.NDArray[np.int64]  # that alphabet's id of each of the model's symbols, (V,)
    charge_nats: float  # the cost of each

    def weave(
        self, first: int, last: bool, nats: Floats, ids: npt.NDArray[Any]
    ) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Put the unknown characters back among consecutive known ones, with `nats` and `ids` (N,).

        Each goes with the known character that follows it; at the start of the text, with the
        first known one that is scored; at the end, with the last. `first` is the index of the first
        of these among all known characters, `last` says whether no known character follows.

        Returns:
            Nats, symbols, and whether known, for all of them in the text's order.
        """
        start = 0 if first == 1 else int(np.searchsorted(self.before, first))
        stop = len(self.before) if last else int(np.searchsorted(self.before, first + len(ids)))
        at = (self.before[start:stop] - first).clip(min=0)
        return (
            np.insert(nats, at, self.charge_nats),
            np.insert(self.to_symbol[ids], at, self.symbols[start:stop]),
            np.insert(np.ones(len(ids), bool), at, False),
        )


def leave_out(
    text: Ids, wide: CharTokenizer, known: CharTokenizer, path: Path
) -> tuple[Ids, LeftOut]:
    """Separate the characters of a text that a model knows from those it does not.

    Takes 16 bytes of memory for each unknown character, at least one; the known ones go to a new
    file at `path`, by the model's ids. The alphabet `wide` has all characters of the model and of
    the text, `known` the model's. Raises MachineError if the file cannot be written.
    """
    own = {character: i for i, character in enumerate(known.alphabet)}
    to_own = np.array([own.get(character, -1) for character in wide.alphabet])
    before, symbols, count = [], [], 0
    dtype = id_dtype(known.vocab_size)
    with machine_errors(path), path.open("wb") as file:
        for first in range(0, len(text), CHUNK):
            chunk = text.read(first, min(CHUNK, len(text) - first)).astype(np.int64)
            ids = to_own[chunk]
            at = np.flatnonzero(ids < 0)
            before.append(count + at - np.arange(len(at)))
            symbols.append(chunk[at])
            file.write(ids[ids >= 0].astype(dtype).data)
            count += len(ids) - len(at)
    left_out = LeftOut(
        np.concatenate(before),
        np.concatenate(symbols),
        np.flatnonzero(to_own >= 0),
        charge_nats(len(text) - count, len(text), known.vocab_size),
    )
    return Split(TokenFile(path, dtype, count), 0, count), left_out
