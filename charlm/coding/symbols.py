"""Code symbols by a model's predictions, one after another.

If the probabilities that decode a character differ in a single bit from those that encoded it, all
that follows may be wrong. And bits do differ between two ways to compute the same thing: one
character or many at once, one thread or two, another release of torch, another processor. So there is
only one way, to encode and to decode: `model.adaptive` on the CPU, with one thread, one character
after another. `charlm.coding.of_run` says what its bits depend on besides the run.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from constriction import stream
from threadpoolctl import threadpool_limits

from charlm.coding.coder import Array, Done
from charlm.coding.ranges import Words, distribution
from charlm.errors import NonFiniteError
from charlm.models.adaptive import AdaptiveReader

TRIED = 512  # characters that a fingerprint is made of


class Symbols:
    """Codes the symbols of one text with a reader that has read nothing."""

    def __init__(self, reader: AdaptiveReader) -> None:
        self.reader = reader
        first = reader.first()
        self.vocab_size = len(first)
        self._next = _probabilities(first)

    def encode(self, ids: Array, done: Done) -> Words:
        """Return the words of symbols, (N,)."""
        encoder = stream.queue.RangeEncoder()
        for idx in ids.tolist():
            encoder.encode(idx, distribution(self._next))
            self._read(idx)
            done(1)
        words: Words = encoder.get_compressed()
        return words

    def decode(self, words: Words, count: int, done: Done) -> Array:
        """Return the symbols of words, (count,) int64; ValueError if they are of none."""
        decoder, ids = stream.queue.RangeDecoder(words), np.empty(count, np.int64)
        for i in range(count):
            try:
                ids[i] = idx = decoder.decode(distribution(self._next))
            except AssertionError as error:  # words that no text has here
                raise ValueError(str(error)) from None
            if idx >= self.vocab_size:
                raise ValueError("a symbol that is none")
            self._read(idx)
            done(1)
        return ids

    def fingerprint(self) -> str:
        """Return a checksum of predictions on this machine, in 16 hexadecimal digits.

        They are those of a text of pseudo-random characters, after which this coder cannot code
        another text. A machine whose bits differ only rarely may have the same checksum; then the
        checksum of a block shows what went wrong.
        """
        found = hashlib.sha256(self._next.tobytes())
        for idx in np.random.Generator(np.random.PCG64(0)).integers(self.vocab_size, size=TRIED):
            self._read(int(idx))
            found.update(self._next.tobytes())
        return found.hexdigest()[:16]

    def _read(self, idx: int) -> None:
        self._next = _probabilities(self.reader.go_on(np.array([idx]))[0])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread in this context: the number of threads changes bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):  # NumPy's
            yield
    finally:
        torch.set_num_threads(before)


def _probabilities(log_p: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the probabilities of at least two symbols, (V,)."""
    p = np.exp(log_p.numpy().astype(np.float64))
    if not np.isfinite(p.sum()):
        raise NonFiniteError("", "the model predicts NaN", "use an earlier checkpoint")
    return p if len(p) > 1 else np.append(p, 0.0)  # constriction needs two symbols
