"""The surprise map: each symbol of a passage, its bits, and what was expected in its place.

The numbers are those of `charlm eval --per-char`: the passage begins where the part does, and is
scored in the same windows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.errors import DataError, Setting
from charlm.evaluation.protocols import Cut, chars_a_pass, windows
from charlm.evaluation.scoring import Scored, score_text
from charlm.models import LanguageModel, MixtureModel
from charlm.reporting.glyphs import Glyphs, glyph, name_of
from charlm.reporting.opened import Opened
from charlm.text import IdArray
from charlm.text.escapes import escaped
from charlm.text.tokenizer import CharTokenizer

LENGTH = 1_200  # symbols of a passage, about
GIVEN = Setting("passage")
GIVEN_TEXT = "the given text"


@dataclass(frozen=True)
class Passage:
    """Some symbols in order. All but the first are predicted.

    Args:
        ids: Their ids; of records, whole ones, with a boundary before the first and after each.
        rare: The characters that escapes among the ids stand for, in order.
        whence: Where it comes from, in words that follow "of".
        shown: How many of the ids to show: a record that is cut short has no end.
    """

    ids: IdArray
    rare: tuple[str, ...]
    whence: str
    shown: int

    def symbols(self, glyphs: Glyphs) -> Iterator[tuple[str, str, str]]:
        """Yield each symbol, its glyph and its name."""
        rare = iter(self.rare)
        for idx in self.ids.ids[: self.shown].tolist():
            if idx == self.ids.escape:
                found = next(rare)
                yield found, glyph(found), f"{name_of(found)}, which is rare"
            else:
                yield glyphs.symbol(idx), glyphs.glyph(idx), glyphs.name(idx)


@dataclass(frozen=True)
class Predicted:
    """How well one model predicts a passage, (N,) for its N predicted symbols."""

    name: str
    bits: list[float]  # surprisal, infinite for an impossible symbol
    ids: list[list[int]]  # the five likeliest, in order
    p: list[list[float]]  # their probabilities

    @property
    def mean_bits(self) -> float:
        """The mean of a symbol."""
        return sum(self.bits) / len(self.bits)


def passage_of(run: Opened, length: int = LENGTH) -> Passage:
    """Return the beginning of the validation part, or of the training part if there is none."""
    part, whence = (run.val, "the validation text") if run.val else (run.train, "the training text")
    count = min(len(part), length + 1)
    ids = part.read(0, count).astype(np.int64)
    if part.boundary is not None and ids[-1] != part.boundary:
        ids = part.read(0, min(len(part), 2 * count)).astype(np.int64)
        ends = count + np.flatnonzero(ids[count:] == part.boundary)
        count = int(ends[0]) + 1 if len(ends) else count
        ids = ids[:count]
    rare = tuple(chr(code) for codes in escaped(part, 0, count) for code in codes.tolist())
    return _whole(ids, part.boundary, part.escape, rare, whence)


def passage_from(run: Opened, text: str) -> Passage:
    """Return a given text as a passage; of records, its lines are records.

    Raises DataError if a character is not in the alphabet, or there is nothing to predict.
    """
    tokenizer = run.tokenizer
    rare: tuple[str, ...] = ()
    pieces = text.split("\n") if run.of_records else [text]
    try:
        coded = [tokenizer.encode(piece).astype(np.int64) for piece in pieces if piece]
    except DataError as error:
        raise error.replace(where=GIVEN, mend="use characters of its own text") from None
    if isinstance(tokenizer, CharTokenizer) and tokenizer.escape is not None:
        rare = tuple(
            c for c in text if c not in tokenizer.alphabet and (c != "\n" or not run.of_records)
        )
    if tokenizer.boundary is not None:
        ends = np.array([tokenizer.boundary])
        coded = [ends, *(np.append(ids, ends) for ids in coded)]
    ids = np.concatenate([np.empty(0, np.int64), *coded])
    if len(ids) < 2:
        raise DataError(GIVEN, f"{len(ids)} symbols, and the first is not predicted", "give more")
    return _whole(ids, tokenizer.boundary, tokenizer.escape, rare, GIVEN_TEXT)


def _whole(
    ids: Int[np.ndarray, "N"],
    boundary: int | None,
    escape: int | None,
    rare: tuple[str, ...],
    whence: str,
) -> Passage:
    """Return a passage whose last record has an end, if only to be scored."""
    shown = len(ids)
    if boundary is not None and ids[-1] != boundary:
        ids = np.append(ids, boundary)
    return Passage(IdArray(ids, boundary, escape), rare, whence, shown)


def window_of(model: LanguageModel) -> Cut:
    """Return the protocol `windows` of a model, in windows that `charlm eval --per-char` can score."""
    return windows(min(model.block_size, chars_a_pass(model, True)))


def predictions(model: LanguageModel, passage: Passage, whole: str) -> Iterator[Predicted]:
    """Yield how a model predicts a passage, and then each of its experts, if it is a mixture.

    `whole` is the name of the model itself.
    """
    cut = window_of(model)
    yield predicted(model, passage, cut, whole)
    if isinstance(model, MixtureModel):
        for name, expert in model.experts.items():
            yield predicted(InMixture(expert, model.block_size), passage, cut, name)


def predicted(model: LanguageModel, passage: Passage, cut: Cut, name: str) -> Predicted:
    """Return how a model predicts a passage."""
    scored: list[Scored] = []
    score_text(model, passage.ids, cut, each=scored.append)
    most = passage.shown - 1

    def joined(column: str) -> list[Any]:
        return [row for one in scored for row in getattr(one.likeliest, column).tolist()][:most]

    nats = np.concatenate([one.nats for one in scored])[:most]
    return Predicted(name, (nats / math.log(2)).tolist(), joined("ids"), joined("p"))


class InMixture(LanguageModel):
    """An expert as its mixture uses it: it reads on where a window is longer than its own block."""

    def __init__(self, expert: LanguageModel, block_size: int) -> None:
        super().__init__(expert.vocab_size, block_size)
        self.expert = expert

    @property
    def device(self) -> torch.device:
        """Where the weights of the expert are."""
        return self.expert.device

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the expert's logits at every position."""
        return self.expert.read(idx)
