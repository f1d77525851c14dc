"""The interface of every model: training, scoring and sampling need nothing else.

    logits = model(idx)                         (B, T) int64 -> (B, T, V), always
    state = model.start(batch_size)             nothing has been read
    logits, state = model.go_on(idx, state)     (B, n) int64 -> (B, n, V), for the next n characters

`logits[b, t]` scores the character that follows `idx[b, : t + 1]` and must not depend on anything
later. A text that is read in pieces gets the same logits as in one call. The loss is never computed
inside a model (see `loss`).
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.config import AdaptConfig, ModelConfig
from charlm.errors import check_stop, number_of
from charlm.text.tokens import Ids

if TYPE_CHECKING:
    from charlm.models.adaptive import AdaptiveReader


class LanguageModel(nn.Module):
    """A model of the next character.

    Every model takes `vocab_size`, the number of distinct characters (V); `block_size`, the longest
    context it looks at, in characters; and `generator`, which draws its first weights (None:
    PyTorch's default generator).

    Attributes:
        memory: How many characters back a prediction can depend on: the whole block for most
            models, one for a bigram, whose block only says how the training text is cut; None: all
            that it has read, which is in its state.
        any_length: Whether T may exceed `block_size`: true of models with a fixed memory or a state.
        per_character: For each tensor of `state_dict` that has entries for characters, the
            dimensions along which. None: not declared; then weights cannot be taken over from a
            model of another alphabet.
        optional: Tensors that a state may lack.
        version: Changes when the same weights would compute something else; saved weights of
            another version are refused.
    """

    any_length = False
    per_character: ClassVar[Mapping[str, tuple[int, ...]] | None] = None
    optional: frozenset[str] = frozenset()
    version: str = "1"

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.memory: int | None = block_size

    @classmethod
    def from_config(
        cls, config: ModelConfig, vocab_size: int, generator: torch.Generator | None = None
    ) -> "LanguageModel":
        """Build the model that a configuration of its kind describes, by its `sizes()`."""
        return cls(vocab_size, generator=generator, **config.sizes())  # type: ignore[call-arg]

    def reads_version(self, saved: str) -> bool:
        """Tell whether weights saved by this version can be used."""
        return saved == self.version

    @property
    def ngrams(self) -> int:
        """How many counted n-grams it stores."""
        return 0

    @property
    def uncounted(self) -> int:
        """How many characters `prepare` is to count."""
        return 0

    def prepare(
        self,
        progress: Callable[[int], None] = lambda chars: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Do now what would else be done before the first prediction, if that takes long.

        `progress` is called with the number of characters counted since the last call. Raises Stopped
        if `should_stop` says so.
        """

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
        """Check that a window fits into the block, or raise ValueError with both lengths."""
        if idx.shape[1] > self.block_size and not self.any_length:
            raise ValueError(
                f"a window of {idx.shape[1]} characters is longer than block_size "
                f"{self.block_size}; use `read`, which takes any length"
            )

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights that `state_dict` returned: all of them or, if one does not fit, none.

        Missing and unexpected weights are always refused, whatever `strict` says.

        Raises:
            ValueError: A tensor is missing, unexpected, of another shape or type, or not finite;
                the message names it, and what was expected and found.
        """
        self.check_state(state_dict)
        return super().load_state_dict(state_dict, assign=assign)

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check that weights fit; see `load_state_dict`."""
        expected = self._required(self.state_dict())
        check_names(self._required(state_dict), expected)
        for name, own in expected.items():
            check_tensor(name, state_dict[name], own.shape, own.dtype)

    def _required(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: state_dict[name] for name in state_dict if name not in self.optional}

    def take_over(self, other: "LanguageModel", known: Int[Tensor, "V"]) -> None:
        """Take the weights of the same model over another alphabet, on the CPU.

        Args:
            other: That model.
            known: The id that each character has there, increasing; -1: none. Entries of such a
                character stay as they were drawn.
        """
        assert self.per_character is not None, "the caller asks for it"
        here = (known >= 0).nonzero().flatten()
        theirs = other.state_dict()
        for name, own in self._required(self.state_dict()).items():
            taken, dims = theirs[name], self.per_character.get(name, ())
            merged = own.cpu().clone()
            for dim in dims:
                taken = taken.index_select(dim, known[here])
            if not dims:
                merged = taken
            elif len(dims) == 1:
                merged.index_copy_(dims[0], here, taken)
            else:
                rows, columns = dims
                within = merged.index_select(rows, here).index_copy(columns, here, taken)
                merged.index_copy_(rows, here, within)
            own.copy_(merged)  # a state shares the memory of its model

    def start(self, batch_size: int) -> Any:
        """Return the state of `batch_size` texts of which nothing has been read.

        By default the state is the characters in view. A model that keeps something else overrides
        `start` and `go_on`; and `repeat`, unless its state consists of tensors with a row per text.
        """
        return torch.empty(batch_size, 0, dtype=torch.int64, device=self.device)

    def go_on(self, idx: Int[Tensor, "B n"], state: Any) -> tuple[Float[Tensor, "B n V"], Any]:
        """Read n >= 1 more characters of each text, which may become longer than the block.

        Returns the logits at each of the n positions, and the next state; the old one must not be
        used again. The logits do not depend on how a text is cut into pieces; within the block they
        equal those of `forward`. This default runs the model again on all characters in view (see
        `views`).
        """
        if self.any_length:
            assert self.memory is not None, "a model with a state of its own overrides this"
            ids = torch.cat([state, idx], dim=1)
            return self(ids)[:, -idx.shape[1] :], ids[:, max(0, ids.shape[1] + 1 - self.memory) :]
        logits = []
        for kept, new in views(state, idx, self.block_size):
            state = torch.cat([kept, new], dim=1)
            logits.append(self(state)[:, kept.shape[1] :])
        return torch.cat(logits, dim=1), state

    def repeat(self, state: Any, count: int) -> Any:
        """Return the state of `count` texts that all continue one text; `state` stays usable."""
        if isinstance(state, Tensor):
            return state.repeat_interleave(count, dim=0)
        return tuple(self.repeat(part, count) for part in state)

    def step(self, idx: Int[Tensor, "B n"], state: Any) -> tuple[Float[Tensor, "B V"], Any]:
        """Like `go_on`, but return only the logits after the last character."""
        for part in torch.split(idx, self.block_size, dim=1):
            logits, state = self.go_on(part, state)
        return logits[:, -1], state

    def read(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits at every position of texts of any length."""
        if self.any_length or idx.shape[1] <= self.block_size:
            return self(idx)  # type: ignore[no-any-return]
        return self.go_on(idx, self.start(idx.shape[0]))[0]

    def adaptive(self, options: AdaptConfig, trained_on: Ids | None = None) -> "AdaptiveReader":
        """Return a reader of one text that may learn from it, as `options` say.

        `trained_on` is the text that the model was trained on: counted models count it again, others
        may replay windows of it. This default updates the weights, if there are any and
        `options.weights` says so.
        """
        from charlm.models.adaptive import Unchanging
        from charlm.models.dynamic import LearningReader

        if options.weights and any(p.requires_grad for p in self.parameters()):
            return LearningReader(self, options, trained_on)
        return Unchanging(self, None if trained_on is None else trained_on.boundary)


def views(
    ids: Int[Tensor, "B S"], idx: Int[Tensor, "B n"], block_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the views through which `idx` is read after `ids`: the old part and the new part.

    When a view fills the block, it drops its older half. With learned positions, the rest must then
    be read again. Once per half block, this costs two positions per character; sliding by one
    character each time would cost a whole block per character.
    """
    while idx.shape[1]:
        if ids.shape[1] == block_size:
            ids = ids[:, max(1, block_size // 2) :]
        room = block_size - ids.shape[1]
        yield ids, idx[:, :room]
        ids, idx = torch.cat([ids, idx[:, :room]], dim=1), idx[:, room:]


def check_names(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that no weight is missing and none unexpected, or raise ValueError with its name."""
    for name in sorted(expected.keys() ^ state_dict.keys()):
        state = "is missing" if name in expected else "belongs to another model"
        raise ValueError(f"{name[:60]} {state}; its config.yaml describes another model")


@contextmanager
def stopping_between_layers(model: nn.Module, should_stop: Callable[[], bool]) -> Iterator[None]:
    """While in this context, a pass through the model raises Stopped at any layer, if asked to.

    A pass of a large model over many windows takes minutes.
    """

    def check(*_: Any) -> None:
        check_stop(should_stop)

    hooks = [module.register_forward_pre_hook(check) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Check the shape and type of a saved tensor, and that it is finite, or raise ValueError."""
    if tensor.shape != tuple(shape) or tensor.dtype != dtype:
        found = reprlib.repr(tuple(tensor.shape))  # a file may give it a thousand dimensions
        raise ValueError(
            f"{name} is {found} {tensor.dtype}, expected {tuple(shape)} {dtype}; was config.yaml "
            "changed?"
        )
    strange = int((~tensor.isfinite()).sum())
    if strange:
        raise ValueError(
            f"{name} holds {number_of(strange, 'value that is', 'values that are')} NaN or infinite; "
            "use an earlier checkpoint"
        )
