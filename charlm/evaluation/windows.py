"""Score a text: every character once, in consecutive windows, context only inside the window.

This is the protocol `windows`. It is the expectation of what nanoGPT estimates from random windows
of the same length: the first characters of a window have little context, the last have all of it.
It draws nothing at random and leaves every generator as it was.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from charlm.models.base import LanguageModel
from charlm.models.device import precision
from charlm.models.loss import next_token_loss

CHARS_A_PASS = 16_384  # large enough to keep a CPU busy, small enough for its caches
LOGITS_A_PASS = 1 << 24  # 64 MiB of float32, whatever the vocabulary


@runtime_checkable
class Ids(Protocol):
    """Ids that can be read by position: a `Split` or an `IdArray`."""

    def __len__(self) -> int: ...

    def read(self, first: int, count: int) -> npt.NDArray[np.integer[Any]]:
        """Return `count` ids from position `first`."""


@dataclass(frozen=True)
class Score:
    """How well a text was predicted.

    Args:
        chars: Characters scored. The first of a text has nothing before it and is not among them.
        loss_nats: Mean cross-entropy of a character, in nats.
    """

    chars: int
    loss_nats: float

    @property
    def bits_per_char(self) -> float:
        """The same in bits: what an ideal coder with this model would spend on a character."""
        return self.loss_nats / math.log(2)

    @property
    def perplexity(self) -> float:
        """How many equally likely characters would be as hard to guess among."""
        return math.exp(self.loss_nats) if self.loss_nats < 700 else math.inf


class Interrupted(Exception):
    """Scoring was asked to stop before its end."""


@torch.no_grad()
def score_windows(
    model: LanguageModel,
    ids: Ids,
    block_size: int,
    *,
    max_chars: int | None = None,
    dtype: torch.dtype = torch.float32,
    forward: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Score:
    """Return the mean loss over a text cut into consecutive windows.

    Args:
        model: What predicts; put in evaluation mode here, and back into what it was.
        ids: The text, at least 2 characters.
        block_size: Characters in a window; at most the model's own.
        max_chars: Score about this many only, in windows spread evenly over the text; None, all.
        dtype: Precision of matrix products.
        forward: What to call in the model's place: its compiled form.
        progress: Called with the characters scored since the last call.
        should_stop: Polled between passes.

    Raises:
        Interrupted: `should_stop` said so.
    """
    device = model.device
    windows_a_pass = max(1, min(CHARS_A_PASS, LOGITS_A_PASS // model.vocab_size) // block_size)
    was_training = model.training
    model.eval()
    total, chars = 0.0, 0
    try:
        for rows in _passes(ids, block_size, windows_a_pass, max_chars):
            if should_stop():
                raise Interrupted
            batch = torch.from_numpy(rows).to(device)
            with precision(device, dtype):
                logits = (forward or model)(batch[:, :-1])
            total += next_token_loss(logits.float(), batch[:, 1:], reduction="sum").item()
            chars += batch[:, 1:].numel()
            progress(batch[:, 1:].numel())
    finally:
        model.train(was_training)
    return Score(chars, total / chars)


def chars_to_score(length: int, block_size: int, max_chars: int | None) -> int:
    """Return how many characters `score_windows` will score of a text of `length`."""
    starts, tail = _window_starts(length, block_size, max_chars)
    return len(starts) * block_size + tail


def _window_starts(
    length: int, block_size: int, max_chars: int | None
) -> tuple[npt.NDArray[np.int64], int]:
    """Return where the full windows start, and the targets of a shorter last window (or 0)."""
    full, tail = divmod(length - 1, block_size)
    if max_chars is None or length - 1 <= max_chars or not full:
        return np.arange(full) * block_size, tail
    chosen = max(1, min(full, max_chars // block_size))
    return (np.arange(chosen) * full // chosen) * block_size, 0


def _passes(
    ids: Ids, block_size: int, windows_a_pass: int, max_chars: int | None
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield windows with the character after them, (windows, T + 1) at a time."""
    starts, tail = _window_starts(len(ids), block_size, max_chars)
    for first in range(0, len(starts), windows_a_pass):
        some = starts[first : first + windows_a_pass]
        yield np.stack([ids.read(int(s), block_size + 1) for s in some]).astype(np.int64)
    if tail:
        yield ids.read(len(ids) - 1 - tail, tail + 1).astype(np.int64)[None]
