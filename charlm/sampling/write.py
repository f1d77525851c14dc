"""Write texts: a prompt in, characters out as they are drawn."""

import math
import re
import secrets
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from charlm.config import SampleConfig
from charlm.errors import Phrase, Setting, UsageError
from charlm.models import LanguageModel
from charlm.sampling.choose import Settings
from charlm.sampling.generate import Context, generate
from charlm.sampling.reader import Weights
from charlm.sampling.stream import Alternatives, Piece, TextStream
from charlm.text.tokenizer import Tokenizer

SEEDS = 2**62  # limit of a seed, so that seeds that count up from it fit into 64 bits
SHOWN = 5  # alternatives shown per character
A_CLASS = re.compile(r"\[\^?\]?(\\.|[^\]\\])*\]|\\[wWdDsS]", re.DOTALL)  # as [^a-z\]] or \d


@dataclass(frozen=True)
class Task:
    """What to write after any prompt.

    Args:
        settings: How characters are chosen.
        count: Most characters of a text; bytes for a model of bytes.
        stops: A text ends before the first of these.
        weights: Precision of a GPT's matrices; see `charlm.sampling.readers.reader_of`.
        alternatives: Whether to list the most likely characters in each place.
    """

    settings: Settings
    count: int
    stops: Sequence[str] = ()
    weights: Weights = "float32"
    alternatives: bool = False


def write(
    context: Context, tokenizer: Tokenizer, task: Task, seeds: Sequence[int]
) -> Iterator[list[list[Piece]]]:
    """Write one text for each seed in parallel, a character of each at a time.

    Args:
        context: What to continue.
        tokenizer: The model's.
        task: What to write.
        seeds: One for each text; a text depends on its own seed only.

    Yields:
        The new pieces of each text: usually one, sometimes none or several.

    Raises:
        NonFiniteError: The model's logits are NaN or infinite.
    """
    streams = [TextStream(tokenizer, task.stops) for _ in seeds]
    for drawn in generate(context, task.count, task.settings, seeds):
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
    """Return the most likely characters and their probabilities under the model itself."""
    likeliest = np.argsort(-log_p, kind="stable")[:SHOWN].tolist()
    return [(tokenizer.decode([i]), round(math.exp(log_p[i]), 4)) for i in likeliest]


def settings_of(config: SampleConfig, allowed: Bool[ndarray, "V"] | None = None) -> Settings:
    """Return the settings of a configuration."""
    names = [field.name for field in fields(Settings) if field.name != "allowed"]
    return Settings(**{name: getattr(config, name) for name in names}, allowed=allowed)


def allowed_ids(tokenizer: Tokenizer, allow: str) -> Bool[ndarray, "V"]:
    """Return which ids may be drawn.

    Args:
        tokenizer: The model's.
        allow: A class of a regular expression, such as `[a-z ]`, or the characters themselves. For
            a model of bytes: the bytes of these characters; of a class, its ASCII characters.

    Raises:
        UsageError: The class cannot be read, or the alphabet has nothing of what is allowed.
    """
    setting, found = Setting("allow", allow), np.zeros(tokenizer.vocab_size, bool)
    if A_CLASS.fullmatch(allow):
        try:
            with warnings.catch_warnings(action="ignore"):  # about future meanings of a class
                pattern = re.compile(allow)
        except re.error as error:
            raise UsageError(setting, str(error), "write a class as [a-z]") from None
        known = range(128 if tokenizer.unit == "bytes" else tokenizer.vocab_size)
        for i in known:
            found[i] = pattern.fullmatch(tokenizer.decode([i])) is not None
    else:
        found[tokenizer.encode(allow, "skip")] = True
    if not found.any():
        mend = "use ASCII in a class for a model of bytes" if tokenizer.unit == "bytes" else ""
        raise UsageError(setting, "this model's alphabet has no such character", mend)
    return found


def choose_seed(seed: int | None) -> int:
    """Return a seed, drawn if it is None.

    Raises:
        UsageError: It is out of range.
    """
    if seed is None:
        return secrets.randbelow(2**31)  # short enough to read aloud
    if not 0 <= seed < SEEDS:
        raise UsageError(Setting("seed", seed), "out of range", "use a number from 0 to 2^62 - 1")
    return seed


def check_weights(weights: Weights, model: LanguageModel) -> None:
    """Refuse 8-bit weights where there are no kernels for them.

    Raises:
        UsageError: The model is not on a CPU.
    """
    if weights == "int8" and model.device.type != "cpu":
        mend = Phrase("leave it out, or use {}", Setting("device", "cpu"))
        raise UsageError(
            Setting("weights", weights), f"not for {model.device}, only for a CPU", mend
        )
