"""Draw texts that begin and end at different times, one character of each at a step.

Each text is the one that `generate` draws alone with its seed, up to the rounding of the model's
logits: its random numbers and its settings are its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from charlm.errors import NonFiniteError
from charlm.models.base import LanguageModel
from charlm.sampling.choose import Settings, draw, log_softmax, next_probabilities
from charlm.sampling.generate import AHEAD, Context, Recent, uniform_numbers
from charlm.sampling.rows import rows_of

DIVERGED = "NaN or infinite, because its training diverged"


@dataclass(eq=False)
class OneText:
    """A text that is being drawn."""

    context: Context
    settings: Settings
    seed: int
    recent: Recent | None = field(init=False, default=None)  # for a penalty on repetition

    def __post_init__(self) -> None:
        if self.settings.repetition_penalty != 1:
            self.recent = Recent(self.context.idx[None], self.context.scores.shape[1])

    @property
    def barred(self) -> int | None:
        """The boundary, if it cannot come first: a record has at least one character."""
        boundary = self.settings.boundary
        return boundary if self.context.idx[-1] == boundary else None


class DrawnOne(NamedTuple):
    """One more character of a text.

    Its log-probability is the model's own, before temperature and filters, in nats; `log_p` has those of all.
    """

    text: OneText
    idx: int
    logprob: float
    log_p: Float[ndarray, "V"]


class _Alike:
    """Rows of equal settings, which are chosen for at once."""

    def __init__(self, rows: list[int], texts: list[OneText]) -> None:
        # All of them as a slice, which copies nothing.
        self.rows = slice(None) if len(rows) == len(texts) else np.array(rows)
        self.settings = texts[rows[0]].settings
        self._recent = [recent for row in rows if (recent := texts[row].recent)]

    def draw(
        self, logits: Float[ndarray, "B V"], uniform: Float[ndarray, "B"]
    ) -> Int[ndarray, "N"]:
        """Return the next character of each, from the logits and random numbers of all rows."""
        repeated: Bool[ndarray, "N V"] | None = None
        if self._recent:
            repeated = np.concatenate([recent.mask() for recent in self._recent])
        p = next_probabilities(logits[self.rows], self.settings, repeated)
        chosen = draw(p, uniform[self.rows])
        for i, recent in enumerate(self._recent):
            recent.add(chosen[i : i + 1])
        return chosen


class Together:
    """Texts that share the steps of a model."""

    def __init__(self, model: LanguageModel) -> None:
        self._rows = rows_of(model)
        self._new: list[OneText] = []
        self._texts: list[OneText] = []  # a row each, once they have joined
        self._last = np.empty(0, np.int64)  # the character of each that was drawn last
        self._drawn = np.empty(0, np.int64)  # how many of each were
        self._numbers = np.empty((0, AHEAD))  # the random numbers of each, which come round
        self._alike: list[_Alike] = []

    def __len__(self) -> int:
        return len(self._texts) + len(self._new)

    def add(self, context: Context, settings: Settings, seed: int) -> OneText:
        """Begin a text, which has its first character at the next step."""
        text = OneText(context, settings, seed)
        self._new.append(text)
        return text

    def remove(self, texts: Iterable[OneText]) -> None:
        """End texts."""
        gone = set(texts)
        self._new = [text for text in self._new if text not in gone]
        kept = _left([text in gone for text in self._texts])
        if len(kept) < len(self._texts):
            self._rows.keep(kept)
            self._texts = [self._texts[row] for row in kept]
            self._last, self._drawn = self._last[kept], self._drawn[kept]
            self._numbers = self._numbers[kept]
            self._group()

    def step(self) -> list[DrawnOne]:
        """Draw the next character of each text.

        Raises NonFiniteError if the model's logits are NaN or infinite.
        """
        scores = [self._rows.read(self._last)] if self._texts else []
        if begun := len(self._new):
            scores += [text.context.scores for text in self._new]
            self._join()
        return self._draw(np.concatenate(scores), begun) if scores else []

    def _join(self) -> None:
        """Give each new text a row."""
        for text in self._new:
            self._rows.join(text.context)
        none = np.zeros(len(self._new), np.int64)
        self._last, self._drawn = np.append(self._last, none), np.append(self._drawn, none)
        self._numbers = np.concatenate([self._numbers, np.empty((len(self._new), AHEAD))])
        self._texts, self._new = self._texts + self._new, []
        self._group()

    def _group(self) -> None:
        """Find the rows of equal settings."""
        groups: dict[int, list[int]] = {}
        for row, text in enumerate(self._texts):
            groups.setdefault(id(text.settings), []).append(row)
        self._alike = [_Alike(rows, self._texts) for rows in groups.values()]

    def _draw(self, scores: Float[ndarray, "B V"], begun: int) -> list[DrawnOne]:
        """Choose the next character of each text, the first of those that were just `begun`."""
        if not math.isfinite(np.add.reduce(scores, axis=None)):
            raise NonFiniteError("the model's logits", DIVERGED, "use an earlier checkpoint")
        log_p = log_softmax(scores.astype(np.float64))
        logits, uniform = self._possible(log_p, begun), self._uniform()
        chosen = np.empty(len(self._texts), np.int64)
        for alike in self._alike:
            chosen[alike.rows] = alike.draw(logits, uniform)
        self._last = chosen
        self._drawn += 1
        own = log_p[np.arange(len(log_p)), chosen]
        rows = zip(self._texts, chosen.tolist(), own.tolist(), log_p, strict=True)
        return [DrawnOne(*row) for row in rows]

    def _possible(self, log_p: Float[ndarray, "B V"], begun: int) -> Float[ndarray, "B V"]:
        """Return the log-probabilities of what may come next."""
        first = len(self._texts) - begun
        barred = [(row, text.barred) for row, text in enumerate(self._texts[first:], first)]
        barred = [(row, idx) for row, idx in barred if idx is not None]
        if not barred:
            return log_p
        possible = log_p.copy()
        for row, idx in barred:
            possible[row, idx] = -math.inf
        return possible

    def _uniform(self) -> Float[ndarray, "B"]:
        """Return the random number in [0, 1) that draws the next character of each text."""
        places = self._drawn % AHEAD
        if not places.all():
            for row in np.flatnonzero(places == 0).tolist():
                seed, drawn = self._texts[row].seed, int(self._drawn[row])
                self._numbers[row] = uniform_numbers(seed, drawn, AHEAD)
        return self._numbers[np.arange(len(places)), places]


def _left(gone: list[bool]) -> list[int]:
    """Return the rows that are left; those at the end fill the gaps, so that few change places."""
    count = len(gone) - sum(gone)
    rows, movable = list(range(count)), [row for row in range(count, len(gone)) if not gone[row]]
    for row in rows:
        if gone[row]:
            rows[row] = movable.pop()
    return rows
