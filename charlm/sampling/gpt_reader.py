"""Fast readers of one text for GPTs on a CPU.

For one character of one text, most of the time of a model's own `step` is the overhead of torch
calls, microseconds each. So single characters are read in NumPy (`gpt_numpy`), whose overhead is a
fraction of that; and a long text by compiled loops (`gpt_kernels`), which are about twice as fast but
take half a second to load. Several characters at once are the model's own work.
"""

import sys
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.models import GPT2, LanguageModel, ModernGPT
from charlm.models.ngram_embedding import GOLDEN, PRIME, ROW_BITS, ROWS
from charlm.sampling.gpt_numpy import (
    GPT2Block,
    Linear,
    ModernBlock,
    Vector,
    layer_norm,
    linear,
    rms_norm,
)
from charlm.sampling.reader import (
    MixtureReader,
    Reader,
    StepReader,
    Weights,
    array,
    reader_of,
)

Block = Callable[[Vector, Any, Any], Vector]  # of x, the layer's cache, and the rotary angles

# Single characters in NumPy, before the loops are loaded. Their number, not whether the loops are
# there already: a text must get the same bits each time.
FIRST = 1000
LOOPS = sys.platform == "linux"  # elsewhere numba's threads are not torch's, and slow to wake


def load_loops(model: LanguageModel) -> None:
    """Load the compiled loops that long texts of a model are read with, which takes half a second.

    Where they are not there yet, compile them, which takes some ten seconds.
    """
    reader = reader_of(model)
    readers = reader.readers if isinstance(reader, MixtureReader) else [reader]
    for one in readers:
        if isinstance(one, GPTReader):
            for one.singly in (0, FIRST):
                one.read(np.zeros((1, 1), np.int64))


class GPTReader(Reader):
    """Reads one text: what both styles share.

    `state` is that of the model, which may also go on with it; None: nothing has been read.
    """

    norm: Callable[[Vector], Vector]
    numpy_block: type[GPT2Block | ModernBlock]
    in_loops: bool  # whether the compiled loops have the model's options

    def __init__(self, model: Any, weights: Weights, head: Tensor, state: Any) -> None:
        self.model: Any = StepReader(model, state)
        self.weights = weights
        self.tokens = array(model.token_embedding.weight)
        self.matrices = model.blocks, head
        self.ways: dict[bool, tuple[list[Block], Linear]] = {}  # shared by copies; by `loops`
        self.singly = 0  # characters read one at a time

    def read(self, idx: Int[ndarray, "1 n"]) -> Float[ndarray, "1 V"]:
        """Read n more characters."""
        state = self.model.state
        if idx.shape[1] > 1 or not state.layers[0].used or self._full():
            return self.model.read(idx)  # type: ignore[no-any-return]  # updates the state in place
        loops = LOOPS and self.in_loops and self.singly >= FIRST
        if loops not in self.ways:
            self.ways[loops] = self._way(loops)
        blocks, head = self.ways[loops]
        self.singly += 1
        x, angles = self._embed(int(idx[0, 0]))
        for block, past in zip(blocks, state.layers, strict=True):
            x = block(x, past, angles)
        return head(self.norm(x))[None]

    def copy(self) -> "GPTReader":
        """Return a copy that shares the weights."""
        other = copy(self)
        other.model = self.model.fork()
        return other

    def _full(self) -> bool:
        """Tell whether the next character takes more than one position."""
        return False

    def _embed(self, symbol: int) -> tuple[Vector, Float[ndarray, "2 D_half"] | None]:
        """Return what the first block reads for one more character, and its rotary angles."""
        raise NotImplementedError

    def _way(self, loops: bool) -> tuple[list[Block], Linear]:
        """Return the blocks and the head, as compiled loops or in NumPy."""
        blocks, head = self.matrices
        if not loops:
            in_numpy: list[Block] = [self.numpy_block(block, self.weights) for block in blocks]
            return in_numpy, linear(head, self.weights)
        from charlm.sampling.gpt_kernels import FastBlock, FastLinear

        return [FastBlock(block, self.weights) for block in blocks], FastLinear(head, self.weights)


class GPT2Reader(GPTReader):
    """Reads one text with a `gpt2`; the model reads half of a full view again."""

    numpy_block = GPT2Block

    def __init__(self, model: GPT2, weights: Weights = "float32", state: Any = None) -> None:
        table = model.token_embedding if model.head is None else model.head
        super().__init__(model, weights, table.weight, state)
        self.in_loops = not model.bias and model.gelu == "exact"
        self.positions = array(model.position_embedding.weight)
        self.norm = layer_norm(model.final_norm)

    def _full(self) -> bool:
        return bool(self.model.state.ids.shape[1] == len(self.positions))

    def _embed(self, symbol: int) -> tuple[Vector, None]:
        state = self.model.state
        x = self.tokens[symbol] + self.positions[state.ids.shape[1]]
        state.ids = torch.cat([state.ids, torch.tensor([[symbol]])], dim=1)
        return x, None


class ModernReader(GPTReader):
    """Reads one text with a `modern` GPT."""

    norm = staticmethod(rms_norm)
    numpy_block = ModernBlock

    def __init__(self, model: ModernGPT, weights: Weights = "float32", state: Any = None) -> None:
        super().__init__(model, weights, model.head.weight, state)
        self.in_loops = model.shift
        ngrams = model.ngram_embedding
        self.ngrams = None if ngrams is None else array(ngrams.table.weight)  # (N, C)
        self.longest = 1 if ngrams is None else ngrams.longest
        numbering = None if ngrams is None else ngrams.numbering
        self.numbering = None if numbering is None else numbering.tolist()
        self.vocab_size = model.vocab_size

    @classmethod
    def sharing(cls, model: ModernGPT, state: Any) -> "ModernReader":
        """Return a reader that goes on with a state, which the model may also go on with."""
        return cls(model, state=state)

    def _embed(self, symbol: int) -> tuple[Vector, Float[ndarray, "2 D_half"]]:
        state, x = self.model.state, self.tokens[symbol]
        if self.ngrams is not None:
            recent = [*state.ids[0].tolist(), symbol]
            rows = ngram_rows(recent, self.longest, self.vocab_size, self.numbering)
            x = x + self.ngrams[rows].sum(axis=0)
            state.ids = torch.tensor([recent[1 - self.longest :]])
        angles = state.angles(1)[:, 0].numpy()
        state.length += 1
        return rms_norm(x), angles


def ngram_rows(
    recent: Sequence[int], longest: int, vocab_size: int, numbering: list[int] | None = None
) -> list[int]:
    """Like `charlm.models.ngram_embedding.ngram_rows`, for the end of a text."""
    base, numbers = vocab_size + 1, [i + 1 for i in recent]
    if numbering is not None:
        base, numbers = numbering[0], [numbering[number] for number in numbers]
    numbers = [0] * (longest - len(recent)) + numbers
    key, rows = numbers[-1], []
    for n in range(2, longest + 1):
        key = (key * base + numbers[-n]) % PRIME
        rows.append((n - 2) * ROWS + ((key * GOLDEN) % 2**32 >> 32 - ROW_BITS))
    return rows
