"""Text from a saved model: prompts in, characters out, as they come."""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from charlm.config import SampleConfig
from charlm.errors import UsageError
from charlm.models.base import LanguageModel
from charlm.sampling.choose import Settings
from charlm.sampling.generate import generate
from charlm.sampling.reader import Weights
from charlm.sampling.stream import Alternatives, Piece, TextStream
from charlm.text.tokenizer import Tokenizer

SHOWN = 5  # alternatives to a character
A_CLASS = re.compile(r"\[\^?\]?(\\.|[^\]\\])*\]|\\[wWdDsS]", re.DOTALL)  # as [^a-z\]] or \d


@dataclass(frozen=True)
class Task:
    """What to write after a prompt, whichever it is.

    Args:
        settings: How characters are chosen.
        count: Characters of each text at most; bytes, of a model of bytes.
        stops: Texts that end a text; they are not part of it.
        weights: What to read a GPT's matrices in; see `charlm.sampling.readers.reader_of`.
        alternatives: Whether to say what else was likely.
    """

    settings: Settings
    count: int
    stops: Sequence[str] = ()
    weights: Weights = "float32"
    alternatives: bool = False


def write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Int[ndarray, "T"],
    task: Task,
    seeds: Sequence[int],
) -> Iterator[list[list[Piece]]]:
    """Write one text for each seed, all at once, a character of each at a time.

    Args:
        model: In evaluation mode.
        tokenizer: Its alphabet.
        prompt: Ids of what to continue, at least one.
        task: What to write.
        seeds: One for each text; a text depends on its own seed only.

    Yields:
        What became certain of each text: one piece most of the time, sometimes none or several.

    Raises:
        NonFiniteError: The model's logits are NaN or infinite.
    """
    streams = [TextStream(tokenizer, task.stops) for _ in seeds]
    start = np.broadcast_to(prompt, (len(seeds), len(prompt)))
    for drawn in generate(model, start, task.count, task.settings, seeds, task.weights):
        pieces: list[list[Piece]] = []
        for i, stream in enumerate(streams):
            if stream.ended:
                pieces.append([])
                continue
            likely = alternatives(drawn.log_p[i], tokenizer) if task.alternatives else None
            pieces.append(stream.push(int(drawn.idx[i]), float(drawn.logprob[i]), likely))
        yield pieces
        if all(stream.ended for stream in streams):
            return
    yield [stream.finish() for stream in streams]


def alternatives(log_p: Float[ndarray, "V"], tokenizer: Tokenizer) -> Alternatives:
    """Return the likeliest characters and their probabilities under the model itself."""
    likeliest = np.argsort(-log_p, kind="stable")[:SHOWN].tolist()
    return [(tokenizer.decode([i]), round(math.exp(log_p[i]), 4)) for i in likeliest]


def settings_of(config: SampleConfig, allowed: Bool[ndarray, "V"] | None = None) -> Settings:
    """Return how characters are chosen, by a configuration."""
    return Settings(
        config.temperature,
        config.top_k,
        config.top_p,
        config.min_p,
        config.typical_p,
        config.repetition_penalty,
        allowed,
    )


def allowed_ids(tokenizer: Tokenizer, allow: str) -> Bool[ndarray, "V"]:
    """Return which ids may be drawn.

    Args:
        tokenizer: Of the model.
        allow: A class of a regular expression, such as `[a-z ]`, or else the characters
            themselves. A model of bytes draws a byte if a character of `allow` has it; of a class,
            if it is a character of ASCII in it.

    Raises:
        UsageError: The class cannot be read, or the alphabet has nothing of what is allowed.
    """
    found = np.zeros(tokenizer.vocab_size, bool)
    if A_CLASS.fullmatch(allow):
        try:
            with warnings.catch_warnings(action="ignore"):  # of what a class may mean one day
                pattern = re.compile(allow)
        except re.error as error:
            raise UsageError(f"--allow {allow!r}: {error}; write a class as [a-z]") from None
        known = range(128 if tokenizer.unit == "bytes" else tokenizer.vocab_size)
        for i in known:
            found[i] = pattern.fullmatch(tokenizer.decode([i])) is not None
    else:
        found[tokenizer.encode(allow, "skip")] = True
    if not found.any():
        only = "; a class is of ASCII for a model of bytes" if tokenizer.unit == "bytes" else ""
        raise UsageError(f"--allow {allow!r}: this model's alphabet has no such character{only}")
    return found
