"""How a text is cut into windows, so that each character but the first is scored exactly once.

A loss means little without its protocol, because more context makes characters easier to predict:

    windows   consecutive windows, context only inside the window. This is the expected value of
              nanoGPT's estimate from random windows of the same length.
    sliding   overlapping windows: each starts S characters (the stride) after the one before, and
              only its new characters are scored, with at least T - S characters of context.
    stream    all the context that the model can use, for models with bounded memory or a state.
    adaptive  the whole text in order; the model may learn from each character once it is scored, as a
              compressor does (see `charlm.models.adaptive`). These are not losses of the model as it
              was trained, so they are never shown beside others without this name.

The first three move a window of some length by some stride. In `windows` the stride equals the length; in
`stream` the windows are far longer than the model's memory and overlap by it, or one row after another
begins with the state that the model had after the row before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from charlm.errors import Phrase, Setting, UsageError, number_of
from charlm.models.base import LanguageModel

Name = Literal["windows", "sliding", "stream", "adaptive"]
WINDOWED = ("windows", "sliding")

CHARS_A_PASS = 16_384  # large enough to keep a GPU busy
CHARS_ON_CPU = (
    2048  # in windows: a layer's output stays in the caches, and in memory that was used before
)
LOGITS_A_PASS = 1 << 24  # 64 MiB of float32, whatever the vocabulary
CHARS_A_READING = 1024  # between two checks of whether to stop, under `adaptive`
LOOKED_UP_A_PASS = 1 << 18  # for a model that need not compute all V probabilities


@dataclass(frozen=True)
class Pass:
    """Windows of one shape that go through the model as one batch."""

    starts: npt.NDArray[np.int64]  # in the text, (R,)
    length: int  # characters in each; the model makes one prediction after each character
    skip: int  # predictions at the start of each that an earlier window has already made


@dataclass(frozen=True)
class Cut:
    """A protocol with its numbers."""

    name: Name
    length: int  # characters in a window
    stride: int  # from the start of a window to the start of the next, 1 to `length`
    in_words: str  # description to print after "scored N characters"
    carried: bool = False  # whether each window begins with the model's state after the one before

    @property
    def block_size(self) -> int | None:
        """The window's length (T); None where it does not affect the loss."""
        return self.length if self.name in WINDOWED else None

    def passes(self, chars: int, rows: int) -> Iterator[Pass]:
        """Cut a text with `chars` characters to score into passes of at most `rows` windows.

        The scored predictions come in text order: targets 1, 2, ... `chars`.
        """
        overlap = self.length - self.stride
        rows = 1 if self.carried else rows
        full = max(0, (chars - self.length) // self.stride + 1)
        first = 0
        if full and overlap:  # there is no earlier window: all predictions of the first are scored
            yield Pass(np.zeros(1, np.int64), self.length, 0)
            first = 1
        for k in range(first, full, rows):
            windows = np.arange(k, min(k + rows, full), dtype=np.int64)
            yield Pass(windows * self.stride, self.length, overlap)
        start, skip = full * self.stride, overlap if full else 0
        if start + skip < chars:
            yield Pass(np.array([start], np.int64), chars - start, skip)


def spread_windows(chars: int, block_size: int, max_chars: int, rows: int) -> Iterator[Pass]:
    """Choose whole windows, about `max_chars` characters, spread evenly over a longer text."""
    full = chars // block_size
    chosen = max(1, min(full, max_chars // block_size))
    starts = np.arange(chosen, dtype=np.int64) * full // chosen * block_size
    for first in range(0, chosen, rows):
        yield Pass(starts[first : first + rows], block_size, 0)


def training_passes(
    chars: int, block_size: int, max_chars: int | None, rows: int
) -> Iterator[Pass]:
    """Cut a text as evaluations in training do: the protocol `windows`, at most about `max_chars`.

    Windows are spread evenly over the text; of a text shorter than one window, its start is scored.
    """
    most = chars if max_chars is None else min(chars, max_chars)
    if most < chars and block_size <= chars:
        return spread_windows(chars, block_size, most, rows)
    return windows(block_size).passes(most, rows)


def windows(block_size: int) -> Cut:
    """Return the protocol `windows`."""
    words = f"in windows of {block_size}, with context only inside the window"
    return Cut("windows", block_size, block_size, words)


def sliding(block_size: int, stride: int) -> Cut:
    """Return the protocol `sliding`.

    Raises UsageError if the stride is below 1 or leaves characters between two windows.
    """
    if not 1 <= stride <= block_size:
        what = f"expected 1 to {block_size}, the length of the window"
        raise UsageError(Setting("stride", stride), what)
    least = number_of(block_size - stride + 1, "character")
    words = (
        f"in windows of {block_size} moved by {stride}, with at least {least} "
        "of context except at the start of the text"
    )
    return Cut("sliding", block_size, stride, words)


def stream(model: LanguageModel, all_logits: bool = False) -> Cut:
    """Return the protocol `stream`.

    Windows overlap by the model's memory, or a state is carried from one to the next, so that cutting
    the text changes no prediction. Raises UsageError for a model that sees one window only. For
    `all_logits` see `choose`.
    """
    if not model.any_length:
        raise UsageError(
            Setting("protocol", "stream"),
            f"this model sees at most {number_of(model.block_size, 'character')}",
            "use windows, or sliding for more context",
        )
    stride = chars_a_pass(model, all_logits)
    if model.memory is None:
        words = "with the state of the model after all characters before (of a list: in its record)"
        return Cut("stream", stride, stride, words, carried=True)
    last = "character" if model.memory == 1 else f"{model.memory} characters"
    words = f"with all the context the model can use (its last {last})"
    # The input always holds the character before the first scored one, so overlap by one less.
    return Cut("stream", stride + max(0, model.memory - 1), stride, words)


def adaptive(model: LanguageModel) -> Cut:
    """Return the protocol `adaptive`; its windows are consecutive parts of the text."""
    length = max(1, min(CHARS_A_READING, LOGITS_A_PASS // model.vocab_size))
    return Cut("adaptive", length, length, "one by one, each before the model could learn from it")


def choose(
    model: LanguageModel,
    name: Name,
    block_size: int | None = None,
    stride: int | None = None,
    all_logits: bool = False,
) -> Cut:
    """Return the protocol called `name`.

    Args:
        model: What predicts.
        name: The protocol.
        block_size: Characters in a window; None, the model's own.
        stride: For `sliding`; None, half the window.
        all_logits: Whether all V probabilities are needed for each character, even from a model
            that can look up a single one; windows are then shorter, to bound the memory.

    Raises:
        UsageError: A number is out of range or does not apply to the protocol, or the model does
            not support the protocol.
    """
    if stride is not None and name != "sliding":
        sliding_only = Phrase("use it with {}", Setting("protocol", "sliding"))
        raise UsageError(Setting("stride", stride), f"{name} has no stride", sliding_only)
    if name not in WINDOWED and block_size is not None:
        raise UsageError(Setting("block_size", block_size), f"{name} has no window")
    if name == "stream":
        return stream(model, all_logits)
    if name == "adaptive":
        return adaptive(model)
    length = model.block_size if block_size is None else block_size
    if not model.any_length and length > model.block_size:
        what = f"this model sees at most {number_of(model.block_size, 'character')}"
        raise UsageError(Setting("block_size", length), what)
    longest = chars_a_pass(model, all_logits)
    if model.any_length and length > longest:  # the model's own block_size may be that long
        raise UsageError(
            Setting("model.block_size" if block_size is None else "block_size", length),
            f"windows of this model have at most {number_of(longest, 'character')}",
            Phrase("use {} or {}", Setting("protocol", "stream"), Setting("block_size", longest)),
        )
    if name == "windows":
        return windows(length)
    return sliding(length, max(1, length // 2) if stride is None else stride)


def rows_a_pass(model: LanguageModel, length: int, all_logits: bool = False) -> int:
    """Return how many windows of a length go through the model as one batch."""
    most = chars_a_pass(model, all_logits)
    if model.device.type == "cpu" and not model.any_length:
        most = min(most, CHARS_ON_CPU)
    return max(1, most // length)


def chars_a_pass(model: LanguageModel, all_logits: bool = False) -> int:
    """Return how many predictions are made at once, to bound the memory."""
    looks_up = model.any_length and callable(getattr(model, "log_probability", None))
    if looks_up and not all_logits:
        return LOOKED_UP_A_PASS
    return max(1, min(CHARS_A_PASS, LOGITS_A_PASS // model.vocab_size))
