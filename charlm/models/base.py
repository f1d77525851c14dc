"""What every model promises, so that training, scoring and sampling never ask which one it is.

    logits = model(idx)                        (B, T) int64 -> (B, T, V), always
    state = model.start(batch_size)            nothing read yet
    logits, state = model.step(idx, state)     (B, n) int64 -> (B, V): what comes after them

`logits[b, t]` scores the character that follows `idx[b, : t + 1]` and must not depend on anything
later. The loss is never computed inside a model (see `loss`).
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.models.past import KeysValues, halved


class LanguageModel(nn.Module):
    """A model of the next character.

    Args:
        vocab_size: Number of distinct characters (V).
        block_size: Longest context it looks at, in characters.

    Attributes:
        memory: How many characters back a prediction can depend on. Most models use their whole
            block; a bigram, whose block is only how its training text is cut, remembers one.
        any_length: Whether T may exceed `block_size`: so for models whose memory is bounded by
            what they are, not by how much they are shown.
        version: Raised when the same weights come to mean something else: saved ones of another
            version are refused.
    """

    any_length = False
    version = 1

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.memory = block_size

    @property
    def saved_as(self) -> str:
        """The version that is saved with its weights."""
        return str(self.version)

    def knows(self, saved_as: str) -> bool:
        """Tell whether weights that were saved as this version mean to it what they meant then."""
        return saved_as == self.saved_as

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position.

        T is at most `block_size`, unless the model takes `any_length`.
        """
        raise NotImplementedError

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the first weights from `generator`."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return, by name, what a checkpoint keeps: the parameters, tied ones once."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors of a checkpoint.

        Raises:
            ValueError: One is missing, left over, of another shape or type, or not finite; the
                message names it with what was expected and found.
        """
        expected = dict(self.named_parameters())
        for name in sorted(expected.keys() ^ tensors.keys()):
            state = "is missing" if name in expected else "belongs to another model"
            raise ValueError(f"{name[:60]} {state}; its config.yaml describes another model")
        with torch.no_grad():
            for name, parameter in expected.items():
                tensor = tensors[name]
                refuse_unfit(name, tensor, parameter.shape, parameter.dtype)
                parameter.copy_(tensor)

    def read(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits at every position of a text of any length: those that stepping gives.

        Past the block, the view moves on by half a block at a time: see `charlm.models.past`.
        """
        block, length = self.block_size, idx.shape[1]
        if self.any_length or length <= block:
            return self(idx)  # type: ignore[no-any-return]
        half = max(1, block // 2)
        parts = [self(idx[:, :block])]
        for start in range(block, length, half):
            parts.append(self(idx[:, start + half - block : start + half])[:, block - half :])
        return torch.cat(parts, dim=1)

    def start(self, batch_size: int) -> Any:
        """Return the state of `batch_size` texts of which nothing has been read.

        This default remembers what the model looks back on and runs it again at each step. Models
        that can do better override both methods; the logits must stay the same.
        """
        return torch.empty(batch_size, 0, dtype=torch.int64, device=self.device)

    def step(self, idx: Int[Tensor, "B n"], state: Any) -> tuple[Float[Tensor, "B V"], Any]:
        """Read n more characters of each text, n at least 1.

        Returns:
            The logits of the character after them, and the state that remembers them. The state
            that was passed in is used up.
        """
        ids = torch.cat([state, idx], dim=1)
        seen = max(self.memory, 1) if self.any_length else halved(ids.shape[1], self.block_size)
        ids = ids[:, -seen:]
        return self(ids)[:, -1], ids


def refuse_unfit(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Refuse a tensor of a checkpoint that is not what is expected, or not finite.

    Raises:
        ValueError: With its name, and what was expected and found, or how many of its values are NaN
            or infinite.
    """
    if tensor.shape != tuple(shape) or tensor.dtype != dtype:
        found = reprlib.repr(
            tuple(tensor.shape)
        )  # a hostile file may give it a thousand dimensions
        raise ValueError(
            f"{name} is {found} {tensor.dtype}, expected {tuple(shape)} {dtype}; was config.yaml "
            "changed?"
        )
    strange = int((~tensor.isfinite()).sum())
    if strange:
        raise ValueError(
            f"{name} holds {strange} values that are NaN or infinite; use an earlier checkpoint"
        )


class AttentiveModel(LanguageModel):
    """A model whose attention keeps what it has read, and whose positions are learned.

    Attributes:
        depth: How many layers of attention it has.
    """

    depth: int

    def forward(
        self, idx: Int[Tensor, "B T"], past: list[KeysValues] | None = None
    ) -> Float[Tensor, "B T V"]:
        """Return the logits at each position of `idx`, which goes on after the past."""
        raise NotImplementedError

    def start(self, batch_size: int) -> "InView":
        """Return the state of `batch_size` texts of which nothing has been read."""
        nothing = torch.empty(batch_size, 0, dtype=torch.int64, device=self.device)
        return InView(nothing, self._nothing_kept())

    def step(self, idx: Int[Tensor, "B n"], state: "InView") -> tuple[Float[Tensor, "B V"], Any]:
        """Read n more characters of each text; when the view is full, half of it anew."""
        ids = torch.cat([state.ids, idx], dim=1)
        seen = halved(ids.shape[1], self.block_size)
        if seen < ids.shape[1]:
            ids = idx = ids[:, -seen:]
            state.past = self._nothing_kept()
        return self(idx, state.past)[:, -1], InView(ids, state.past)

    def _nothing_kept(self) -> list[KeysValues]:
        return [KeysValues(self.block_size, self.block_size) for _ in range(self.depth)]


@dataclass
class InView:
    """What an `AttentiveModel` remembers.

    Args:
        ids: The characters in view.
        past: Their keys and values in each layer.
    """

    ids: Int[Tensor, "B T"]
    past: list[KeysValues]
