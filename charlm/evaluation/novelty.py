"""How much of some texts is new, and how much was recited from the training part.

Records are looked up as a whole, and their distance to the nearest training record is measured. Of
long texts, the longest span is sought that the training part has as well. The held-out part, which
no model has seen, is a yardstick: what it shares with the training part is no recital.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from charlm.evaluation.copied import Copied, longest_copied
from charlm.evaluation.known import Known, Progress
from charlm.evaluation.nearest import Candidates, choose_candidates, nearest
from charlm.text.raw import as_bytes
from charlm.text.tokenizer import Tokenizer
from charlm.text.tokens import Ids

LONG = 100  # characters; of longer records, copied spans are sought as well
QUANTILES = (0.1, 0.5, 0.9)

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """A new text, the nearest training record, and the distance between them."""

    text: str
    nearest: str
    distance: int


@dataclass(frozen=True)
class Novelty:
    """What N texts have in common with the training part; None: not measured."""

    texts: Sequence[str]
    found: npt.NDArray[np.bool_] | None = None  # whether each is a training record, (N,)
    distances: Numbers | None = None  # to the nearest training record that was compared, (N,)
    nearest: Sequence[str] = ()  # these records
    long: Sequence[str] = ()  # the texts whose spans were sought
    copied: Copied | None = None  # the longest copied span of each of those

    @property
    def repeats(self) -> float:
        """The share of texts that are equal to an earlier one."""
        return (len(self.texts) - len(set(self.texts))) / len(self.texts)

    @property
    def spans(self) -> Numbers | None:
        """The length of the longest copied span of each long text."""
        return None if self.copied is None else self.copied.lengths

    def examples(self, count: int) -> list[Example]:
        """Return the new texts that are nearest to a training record for their length, each once."""
        if self.distances is None:
            return []
        rows = zip(self.texts, self.nearest, self.distances.tolist(), strict=True)
        new = [Example(*row) for row in dict.fromkeys(rows) if row[2]]
        return sorted(new, key=lambda one: one.distance / max(1, len(one.text)))[:count]

    def longest_span(self, unit: str) -> str:
        """Return the longest span that was copied; `unit` is that of the model."""
        if self.copied is None:
            return ""
        most = int(self.copied.lengths.argmax())
        first = int(self.copied.starts[most])
        span = slice(first, first + int(self.copied.lengths[most]))
        if unit == "bytes":
            return as_bytes(self.long[most])[span].decode("utf-8", "surrogateescape")
        return self.long[most][span]


@dataclass(frozen=True)
class Measured:
    """The novelty of sets of texts, and the training records that they were compared with."""

    sets: Sequence[Novelty]
    candidates: Candidates | None  # None: the training part has no records


def measure(
    sets: Sequence[Sequence[str]],
    train: Ids,
    tokenizer: Tokenizer,
    progress: Progress = lambda step, done, total: None,
) -> Measured:
    """Measure the novelty of sets of texts, none empty, by a training part.

    `progress` is called often, also to stop the work by an exception.
    """
    of_records = train.boundary is not None
    long = [[text for text in texts if not of_records or len(text) > LONG] for texts in sets]
    copied: list[Copied | None] = [None for _ in sets]
    if any(long):
        whole = longest_copied([text for some in long for text in some], train, tokenizer, progress)
        starts, lengths = (_split(numbers, long) for numbers in (whole.starts, whole.lengths))
        copied = [
            Copied(*pair) if len(pair[0]) else None for pair in zip(starts, lengths, strict=True)
        ]
    if not of_records:
        rows = zip(sets, long, copied, strict=True)
        return Measured([Novelty(texts, long=own, copied=c) for texts, own, c in rows], None)
    every = [text for texts in sets for text in texts]
    found = Known.of_part(train, tokenizer, progress).holds(every)
    # A training record is at distance 0, even if it is not among those that are compared.
    new = np.flatnonzero(~found)
    strange = [every[i] for i in new]
    candidates = choose_candidates(train, tokenizer, strange)
    near = nearest(strange, candidates, progress)
    distances, records = np.zeros(len(every), np.int64), np.array(every, object)
    distances[new] = near.distances
    records[new] = [candidates.texts[i] for i in near.places]
    columns = (_split(column, sets) for column in (found, distances, records))
    novelties = [
        Novelty(texts, known, far, close.tolist(), own, spans)
        for texts, known, far, close, own, spans in zip(sets, *columns, long, copied, strict=True)
    ]
    return Measured(novelties, candidates)


def _split(column: npt.NDArray[Any], sets: Sequence[Sequence[str]]) -> list[npt.NDArray[Any]]:
    """Split what belongs to all texts by their sets."""
    return np.split(column, np.cumsum([len(texts) for texts in sets])[:-1])
