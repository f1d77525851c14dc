"""What every model promises, so that training, scoring and sampling never ask which one it is.

    logits = model(idx)                         (B, T) int64 -> (B, T, V), always
    state = model.start(batch_size)             nothing read yet
    logits, state = model.go_on(idx, state)     (B, n) int64 -> (B, n, V), reading on

`logits[b, t]` scores the character that follows `idx[b, : t + 1]` and must not depend on anything
later. Reading a text on in pieces gives the logits of reading it at once. The loss is never computed inside a model (see `loss`).
"""

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.config import ModelConfig


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
        cls, config: ModelConfig, vocab_size: int, generator: torch.Generator | None = None
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
    def ngrams(self) -> int:
        """How many counted n-grams it stores."""
        return 0

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

    def start(self, batch_size: int) -> Any:
        """Return the state of `batch_size` texts of which nothing has been read.

        This state is the characters in view. A model that keeps more than them overrides `start`,
        `go_on` and, unless its state is made of tensors with a row for each text, `repeat`.
        """
        return torch.empty(batch_size, 0, dtype=torch.int64, device=self.device)

    def go_on(self, idx: Int[Tensor, "B n"], state: Any) -> tuple[Float[Tensor, "B n V"], Any]:
        """Read n more characters of each text, n at least 1; the text may outgrow the block.

        However a text is cut into pieces, its logits are the same, and within the block they are
        those of `forward`. This default runs the model again on all that is in view (see `views`).

        Returns:
            The logits of the character after each of them, and the state to go on from. The state
            that was passed in must not be used again.
        """
        if self.any_length:
            ids = torch.cat([state, idx], dim=1)
            return self(ids)[:, -idx.shape[1] :], ids[:, max(0, ids.shape[1] + 1 - self.memory) :]
        logits = []
        for kept, new in views(state, idx, self.block_size):
            state = torch.cat([kept, new], dim=1)
            logits.append(self(state)[:, kept.shape[1] :])
        return torch.cat(logits, dim=1), state

    def repeat(self, state: Any, count: int) -> Any:
        """Return the state of `count` texts that all go on from one; `state` stays usable."""
        if isinstance(state, Tensor):
            return state.repeat_interleave(count, dim=0)
        return tuple(self.repeat(part, count) for part in state)

    def step(self, idx: Int[Tensor, "B n"], state: Any) -> tuple[Float[Tensor, "B V"], Any]:
        """Read on as `go_on` does, but return the logits after the last character only."""
        for part in torch.split(idx, self.block_size, dim=1):
            logits, state = self.go_on(part, state)
        return logits[:, -1], state

    def read(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits at every position of texts of any length."""
        if self.any_length or idx.shape[1] <= self.block_size:
            return self(idx)  # type: ignore[no-any-return]
        return self.go_on(idx, self.start(idx.shape[0]))[0]


def views(
    ids: Int[Tensor, "B S"], idx: Int[Tensor, "B n"], block_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the views in which `idx` is read after `ids`: what they keep, and what is new.

    A view that fills the block forgets its older half before it takes in more. A learned position
    belongs to a place in the view, so everything kept has to be read again there: doing so once in
    half a block costs two positions a character, where moving on at each would cost a block.
    """
    while idx.shape[1]:
        if ids.shape[1] == block_size:
            ids = ids[:, max(1, block_size // 2) :]
        room = block_size - ids.shape[1]
        yield ids, idx[:, :room]
        ids, idx = torch.cat([ids, idx[:, :room]], dim=1), idx[:, room:]


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
