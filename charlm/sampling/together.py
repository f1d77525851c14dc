"""Draw texts that begin and end at different times, one character of each at a step.

Each text is the one that `generate` draws alone with its seed, up to the rounding of the model's
logits: its random numbers and its settings are its own.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from charlm.errors import NonFiniteError
from charlm.models.base import LanguageModel
from charlm.sampling.choose import Settings, draw, log_softmax, next_probabilities
from charlm.sampling.generate import AHEAD, Context, Recent, uniform_numbers
from charlm.sampling.rows import rows_of

DIVERGED = "NaN or infinite, because its training diverged"


@dataclass(eq=False)
class OneText:
    """A text that is being drawn; `scores` are the logits of its next character, (V,)."""

    context: Context
    settings: Settings
    seed: int
    scores: Float[ndarray, "V"] = field(init=False)
    drawn: int = field(init=False, default=0)  # characters so far

    def __post_init__(self) -> None:
        self.scores = self.context.scores[0]
        self._recent = None
        if self.settings.repetition_penalty != 1:
            self._recent = Recent(self.context.idx[None], len(self.scores))

    def next_number(self) -> float:
        """Return the random number in [0, 1) that draws the next character."""
        if self.drawn % AHEAD == 0:
            self._uniform = uniform_numbers(self.seed, self.drawn, AHEAD)
        return float(self._uniform[self.drawn % AHEAD])

    def choice(self) -> tuple[Float[ndarray, "V"], Bool[ndarray, "V"] | None]:
        """Return what the next character is chosen by, and which are repeated."""
        log_p = log_softmax(self.scores[None].astype(np.float64))[0]
        boundary = self.settings.boundary
        if not self.drawn and boundary is not None and self.context.idx[-1] == boundary:
            log_p[boundary] = -math.inf  # a record has at least one character
        return log_p, self._recent.mask()[0] if self._recent else None

    def add(self, idx: int) -> None:
        """Take note of a character that was drawn."""
        self.drawn += 1
        if self._recent:
            self._recent.add(np.array([idx]))


@dataclass(frozen=True)
class DrawnOne:
    """One more character of a text.

    Its log-probability is the model's own, before temperature and filters, in nats; `log_p` has those of all.
    """

    text: OneText
    idx: int
    logprob: float
    log_p: Float[ndarray, "V"]


class Together:
    """Texts that share the steps of a model."""

    def __init__(self, model: LanguageModel) -> None:
        self._rows = rows_of(model)
        self._texts: list[OneText] = []  # a row each, once they have joined
        self._last: list[int] = []  # the character of each that was drawn last
        self._new: list[OneText] = []

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
        kept = [row for row, text in enumerate(self._texts) if text not in gone]
        if len(kept) < len(self._texts):
            self._rows.keep(kept)
            self._texts = [self._texts[row] for row in kept]
            self._last = [self._last[row] for row in kept]

    def step(self) -> list[DrawnOne]:
        """Draw the next character of each text.

        Raises NonFiniteError if the model's logits are NaN or infinite.
        """
        if self._texts:
            scores = self._rows.read(np.array(self._last))
            for text, row in zip(self._texts, scores, strict=True):
                text.scores = row
        for text in self._new:
            self._rows.join(text.context)
        self._texts += self._new
        self._last += [0] * len(self._new)
        self._new = []
        drawn = self._draw() if self._texts else []
        self._last = [one.idx for one in drawn]
        return drawn

    def _draw(self) -> list[DrawnOne]:
        """Choose the next character of each text; texts of the same settings are chosen for at once."""
        scores = np.stack([text.scores for text in self._texts])
        if not math.isfinite(np.add.reduce(scores, axis=None)):
            raise NonFiniteError("the model's logits", DIVERGED, "use an earlier checkpoint")
        own = log_softmax(scores.astype(np.float64))
        groups: dict[int, list[int]] = {}
        for row, text in enumerate(self._texts):
            groups.setdefault(id(text.settings), []).append(row)
        chosen = np.empty(len(self._texts), np.int64)
        for rows in groups.values():
            texts = [self._texts[row] for row in rows]
            logits, masks = zip(*(text.choice() for text in texts), strict=True)
            repeated = None if masks[0] is None else np.stack(masks)
            p = next_probabilities(np.stack(logits), texts[0].settings, repeated)
            chosen[rows] = draw(p, np.array([text.next_number() for text in texts]))
        found = []
        for row, (text, idx) in enumerate(zip(self._texts, chosen.tolist(), strict=True)):
            text.add(idx)
            found.append(DrawnOne(text, idx, float(own[row, idx]), own[row]))
        return found
