"""Draw texts after one prompt: several in parallel where that is faster, or the best of many."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from charlm.models.base import LanguageModel
from charlm.sampling.choose import Settings
from charlm.sampling.generate import Context, generate
from charlm.sampling.reader import Weights
from charlm.sampling.stream import Alternatives, Piece, TextStream
from charlm.text.tokenizer import Tokenizer

AT_ONCE = 64  # texts in parallel at most
WORTH = 5  # from this many texts on, drawing them in parallel is faster
SHOWN = 5  # alternatives shown per character

# By the end of a record, a stop text, its length, a signal.
Ended = Literal["boundary", "stop", "length", "interrupted"]


@dataclass(frozen=True)
class Task:
    """How to continue a prompt."""

    settings: Settings  # how characters are chosen
    count: int  # most characters of a text; bytes for a model of bytes
    stops: Sequence[Int[ndarray, "_"]] = ()  # a text ends before the first of these ids
    weights: Weights = "float32"  # of a GPT's matrices; see `charlm.sampling.reader.reader_of`
    alternatives: bool = False  # whether to list the most likely characters in each place


@dataclass
class Text:
    """A text as it grows.

    Its `seconds` are its share, by characters, of the wall time of the texts drawn in parallel; of the
    best of several, the wall time of all of them.
    """

    seed: int
    pieces: list[Piece] = field(default_factory=list)
    seconds: float = 0.0
    ended: Ended = "interrupted"

    def text(self) -> str:
        """Return its characters as one string."""
        return "".join(piece.text for piece in self.pieces)

    def mean_logprob(self) -> float | None:
        """Return the mean log-probability of a character in nats; None without characters."""
        nats = [piece.nats for piece in self.pieces]
        return sum(nats) / len(nats) if nats else None


@dataclass(frozen=True)
class Drawing:
    """A model, a prompt and how to continue it."""

    model: LanguageModel  # in evaluation mode
    tokenizer: Tokenizer
    prompt: Int[ndarray, "T"]  # at least one character
    task: Task
    should_stop: Callable[[], bool] = lambda: False  # characters drawn until then are kept
    texts: int = 1  # how many will be drawn together
    learned: Context | None = None  # the prompt, if the model has learned from it

    @property
    def at_once(self) -> int:
        """How many texts are drawn in parallel."""
        return AT_ONCE if self.texts >= WORTH and self.task.weights == "float32" else 1

    @cached_property
    def context(self) -> Context:
        """The prompt, read once for all texts."""
        several = self.at_once > 1
        return self.learned or Context(self.model, self.prompt, self.task.weights, several=several)

    def groups(self, seeds: Sequence[int]) -> Iterator[Sequence[int]]:
        """Split seeds into groups whose texts are drawn in parallel."""
        return (seeds[first : first + self.at_once] for first in range(0, len(seeds), self.at_once))

    @cached_property
    def begun(self) -> str:
        """The characters of the prompt, which a text continues."""
        ids = self.prompt
        return self.tokenizer.decode(ids if self.tokenizer.boundary is None else ids[1:])

    @cached_property
    def of_one_line(self) -> bool:
        """Whether no text can have a newline: it is a stop text, or not allowed or known."""
        newline = self.tokenizer.encode("\n", "skip").tolist()
        allowed = self.task.settings.allowed
        known = newline and (allowed is None or allowed[newline[0]])
        return not known or any(stop.tolist() == newline for stop in self.task.stops)

    def streams(self, seeds: Sequence[int]) -> list[TextStream]:
        """Return an empty text for each seed."""
        return [TextStream(self.tokenizer, self.task.stops) for _ in seeds]

    def write(
        self, seeds: Sequence[int], streams: Sequence[TextStream]
    ) -> Iterator[list[list[Piece]]]:
        """Yield the new pieces of a text for each seed: usually one, sometimes none or several.

        Raises NonFiniteError if the model's logits are NaN or infinite.
        """
        likely: list[Alternatives | None] = [None for _ in seeds]
        for drawn in generate(self.context, self.task.count, self.task.settings, seeds):
            if self.task.alternatives:
                likely = [self.alternatives(log_p) for log_p in drawn.log_p]
            rows = zip(streams, drawn.idx.tolist(), drawn.logprob.tolist(), likely, strict=True)
            yield [stream.push(idx, nats, others) for stream, idx, nats, others in rows]
            if all(stream.ended for stream in streams):
                return
        yield [stream.finish() for stream in streams]

    def alternatives(self, log_p: Float[ndarray, "V"]) -> Alternatives:
        r"""Return the most likely characters and their probabilities under the model itself.

        A byte from 80 on, which is no character by itself, is `\xNN`.
        """
        likeliest = np.argsort(-log_p, kind="stable")[:SHOWN].tolist()
        bare = range(128, 256) if self.tokenizer.unit == "bytes" else ()
        names = [f"\\x{i:02x}" if i in bare else self.tokenizer.decode([i]) for i in likeliest]
        return [
            (name, round(math.exp(log_p[i]), 4)) for name, i in zip(names, likeliest, strict=True)
        ]

    def draw(
        self, seeds: Sequence[int], show: Callable[[list[Piece]], None] | None = None
    ) -> list[Text]:
        """Draw a text for each seed, in parallel; `show` gets the pieces of the first as they come.

        Only the last piece of a shown text is kept, so that a long text does not fill the memory.
        """
        texts, began = [Text(seed) for seed in seeds], time.perf_counter()
        streams, whole, chars = self.streams(seeds), False, [0 for _ in seeds]
        for pieces in () if self.should_stop() else self.write(seeds, streams):
            for i, more in enumerate(pieces):
                texts[i].pieces += more
                chars[i] += len(more)
            if show and pieces[0]:
                show(pieces[0])
                del texts[0].pieces[:-1]
            if self.should_stop():
                break
        else:
            whole = not self.should_stop()
        seconds = time.perf_counter() - began
        for text, stream, own in zip(texts, streams, chars, strict=True):
            text.seconds = seconds * (own / sum(chars) if any(chars) else 1 / len(texts))
            text.ended = "length" if whole else "interrupted"
            if stream.ended:
                text.ended = "boundary" if stream.complete else "stop"
        return texts

    def best(self, seeds: Sequence[int]) -> Text:
        """Draw a text for each seed and return the one with the highest mean log-probability."""
        texts: list[Text] = []
        began = time.perf_counter()
        for group in self.groups(seeds):
            texts += self.draw(group)
            # The least likely is one without characters.
            texts = [max(texts, key=lambda text: (bool(text.pieces), text.mean_logprob() or 0.0))]
            if self.should_stop():
                break
        texts[0].seconds = time.perf_counter() - began
        return texts[0]
