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
        version: Of the meaning of its weights; saved weights of another version are refused.
    """

    any_length = False
    version: str = "1"

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.memory = block_size

    @classmethod
    def from_config(
        cls, config: Any, vocab_size: int, generator: torch.Generator | None = None
    ) -> "LanguageModel":
        """Build the model that a configuration describes.

        Args:
            config: Of this kind of model; `config.sizes()` are the constructor's arguments.
            vocab_size: Number of distinct characters (V).
            generator: What draws the first weights; None: PyTorch's default generator.
        """
        return cls(vocab_size, generator=generator, **config.sizes())  # type: ignore[call-arg]

    def reads_version(self, saved: str) -> bool:
        """Tell whether weights saved as this version mean the same today."""
        return saved == self.version

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position.

        T is at most `block_size`, unless the model takes `any_length`.
        """
        raise NotImplementedError

    def check_length(self, idx: Int[Tensor, "B T"]) -> None:
        """Refuse a window that is longer than the block.

        Raises:
            ValueError: Names both lengths.
        """
        if idx.shape[1] > self.block_size and not self.any_length:
            raise ValueError(
                f"a window of {idx.shape[1]} characters is longer than block_size "
                f"{self.block_size}; use `read`, which takes any length"
            )

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Take weights that `state_dict` returned: all of them or, if one does not fit, none.

        Args:
            state_dict: The weights by name.
            strict: Weights that are missing or left over are always refused.
            assign: See `nn.Module`.

        Raises:
            ValueError: A tensor is missing, left over, of another shape or type, or not finite; the
                message names it with what was expected and found.
        """
        self.check_state(state_dict)
        return super().load_state_dict(state_dict, assign=assign)

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Refuse weights that do not fit; see `load_state_dict`."""
        expected = self.state_dict()
        check_names(state_dict, expected)
        for name, own in expected.items():
            check_tensor(name, state_dict[name], own.shape, own.dtype)

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


def check_names(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights if one is missing or left over.

    Raises:
        ValueError: Names it.
    """
    for name in sorted(expected.keys() ^ state_dict.keys()):
        state = "is missing" if name in expected else "belongs to another model"
        raise ValueError(f"{name[:60]} {state}; its config.yaml describes another model")


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
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
