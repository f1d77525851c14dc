"""Draw several texts after one prompt, in parallel where that is faster, or the best of many."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Int
from numpy import ndarray

from charlm.models.base import LanguageModel
from charlm.sampling.generate import Context
from charlm.sampling.stream import Piece
from charlm.sampling.write import Task, write
from charlm.text.tokenizer import Tokenizer

AT_ONCE = 64  # texts in parallel at most
WORTH = 5  # from this many texts on, drawing them in parallel is faster


@dataclass
class Text:
    """A text as it grows.

    Args:
        seed: Its seed.
        pieces: Its characters.
        seconds: Wall time, shared with the texts that were drawn in parallel.
    """

    seed: int
    pieces: list[Piece] = field(default_factory=list)
    seconds: float = 0.0

    def text(self) -> str:
        """Return its characters as one string."""
        return "".join(piece.text for piece in self.pieces)

    def mean_logprob(self) -> float | None:
        """Return the mean log-probability of a character in nats; None without characters."""
        if not self.pieces:
            return None
        return sum(piece.nats for piece in self.pieces) / len(self.pieces)


@dataclass(frozen=True)
class Drawing:
    """A model, a prompt and what to write after it.

    Args:
        model: In evaluation mode.
        tokenizer: Its alphabet.
        prompt: Ids of what to continue, at least one.
        task: What to write.
        should_stop: Called at every character; what is drawn until then is kept.
        texts: How many texts will be drawn together.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    prompt: Int[ndarray, "T"]
    task: Task
    should_stop: Callable[[], bool] = lambda: False
    texts: int = 1

    @property
    def at_once(self) -> int:
        """How many texts are drawn in parallel."""
        return AT_ONCE if self.texts >= WORTH and self.task.weights == "float32" else 1

    @cached_property
    def context(self) -> Context:
        """The prompt, read once for all texts."""
        weights = self.task.weights
        return Context(self.model, self.prompt, weights, several=self.at_once > 1)

    def groups(self, seeds: Sequence[int]) -> Iterator[Sequence[int]]:
        """Split seeds into groups whose texts are drawn in parallel."""
        return (seeds[first : first + self.at_once] for first in range(0, len(seeds), self.at_once))

    def draw(
        self, seeds: Sequence[int], show: Callable[[list[Piece]], None] | None = None
    ) -> list[Text]:
        """Draw a text for each seed, in parallel.

        Args:
            seeds: One for each text.
            show: Called with the pieces of the first text as they come. Only its last piece is
                then kept, so that a long text does not fill the memory.
        """
        texts, began = [Text(seed) for seed in seeds], time.perf_counter()
        if self.should_stop():
            return texts
        for pieces in write(self.context, self.tokenizer, self.task, seeds):
            for text, more in zip(texts, pieces, strict=True):
                text.pieces += more
            if show and pieces[0]:
                show(pieces[0])
                del texts[0].pieces[:-1]
            if self.should_stop():
                break
        for text in texts:
            text.seconds = time.perf_counter() - began
        return texts

    def best(self, seeds: Sequence[int]) -> Text:
        """Draw a text for each seed and return the one with the highest mean log-probability."""

        def likelihood(text: Text) -> float:
            mean = text.mean_logprob()
            return -math.inf if mean is None else mean

        best = Text(seeds[0])
        for group in self.groups(seeds):
            best = max([best, *self.draw(group)], key=likelihood)
            if self.should_stop():
                break
        return best
