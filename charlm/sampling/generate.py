"""Generate ids, one character of each text at a time."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from charlm.errors import NonFiniteError
from charlm.models.base import LanguageModel
from charlm.sampling.choose import Settings, draw, log_softmax, next_probabilities
from charlm.sampling.reader import Reader, Weights, reader_of
from charlm.text.batches import SAMPLE_STREAM, random_words

LATELY = 64  # characters that the repetition penalty looks back: about a line of text
AHEAD = 256  # random numbers of a text that are drawn at once


class Drawn(NamedTuple):
    """One more character of each row.

    Log-probabilities are the model's own, before temperature and filters, in nats.
    """

    idx: Int[ndarray, "B"]
    logprob: Float[ndarray, "B"]
    log_p: Float[ndarray, "B V"]  # of all characters in its place


class Context:
    """A prompt of at least one character, read by a model once for all its continuations.

    If it is longer than the model's block, the last characters count. See `reader_of` for the rest.
    A `reader` given here has read nothing yet; it reads the whole prompt.
    """

    def __init__(
        self,
        model: LanguageModel,
        idx: Int[ndarray, "T"],
        weights: Weights = "float32",
        *,
        several: bool = False,
        reader: Reader | None = None,
    ) -> None:
        seen = (
            model.block_size if not model.any_length else model.memory and max(model.memory, LATELY)
        )
        self.idx = idx if seen is None else idx[-seen:]
        self.reader = reader or reader_of(model, weights, several=several)
        self.scores = self.reader.read((idx if reader else self.idx)[None])


def generate(
    context: Context, count: int, settings: Settings, seeds: Sequence[int]
) -> Iterator[Drawn]:
    """Draw `count` characters after a prompt for each seed, one of each text at a time.

    A text depends on its own seed only, and the context can be continued again. Raises
    NonFiniteError if the model's logits are NaN or infinite.
    """
    reader = context.reader.fork(len(seeds))
    scores = np.repeat(context.scores, len(seeds), axis=0)
    recent = None
    if settings.repetition_penalty != 1:
        recent = Recent(np.repeat(context.idx[None], len(seeds), axis=0), scores.shape[1])
    rows = np.arange(len(seeds))
    chosen: Int[ndarray, "B"]
    for i in range(count):
        if i % AHEAD == 0:
            uniform = np.stack([uniform_numbers(seed, i, AHEAD) for seed in seeds], axis=1)
        if i:
            scores = reader.read(chosen[:, None])
        if not math.isfinite(np.add.reduce(scores, axis=None)):
            what = "NaN or infinite, because its training diverged"
            raise NonFiniteError("the model's logits", what, "use an earlier checkpoint")
        log_p = log_softmax(scores.astype(np.float64))
        logits = log_p
        if i == 0 and settings.boundary is not None and context.idx[-1] == settings.boundary:
            logits = log_p.copy()
            logits[:, settings.boundary] = -math.inf
        probabilities = next_probabilities(logits, settings, recent.mask() if recent else None)
        chosen = draw(probabilities, uniform[i % AHEAD])
        yield Drawn(chosen, log_p[rows, chosen], log_p)
        if recent:
            recent.add(chosen)


def uniform_numbers(seed: int, first: int, count: int) -> Float[ndarray, "count"]:
    """Return the numbers in [0, 1) that draw characters `first` to `first + count` of a text.

    Each is the 53 highest bits of a random word, the precision of a float64.
    """
    return (random_words(seed, SAMPLE_STREAM, first, count) >> np.uint64(11)) * 2.0**-53


class Recent:
    """The recent characters of each row."""

    def __init__(self, prompt: Int[ndarray, "B T"], vocab_size: int) -> None:
        self.ids = np.full((len(prompt), LATELY), vocab_size)  # no character's id: nothing yet
        self.ids[:, max(0, LATELY - prompt.shape[1]) :] = prompt[:, -LATELY:]
        self.vocab_size = vocab_size

    def mask(self) -> Bool[ndarray, "B V"]:
        """Return which characters are recent."""
        mask = np.zeros((len(self.ids), self.vocab_size + 1), bool)
        np.put_along_axis(mask, self.ids, True, axis=1)
        return mask[:, :-1]

    def add(self, idx: Int[ndarray, "B"]) -> None:
        """Take note of one more character of each row."""
        self.ids = np.concatenate([self.ids[:, 1:], idx[:, None]], axis=1)
