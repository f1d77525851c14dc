"""A counted model that mixes what it knows of many contexts, bit by bit (see `bit_mixing`).

Its weights are the text that it has counted. All else is made again from it when it is first needed:
some seconds for a million characters, and up to `memory` MiB.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.config import AdaptConfig
from charlm.config.context_mixing import table_bits
from charlm.errors import check_stop
from charlm.models.adaptive import AdaptiveReader
from charlm.models.base import LanguageModel, check_names, check_tensor
from charlm.models.bit_mixing import (
    MATCHES,
    Mixer,
    distribute,
    look,
    move_on,
    new_mixer,
    probability,
    read,
)
from charlm.models.bit_tables import Array
from charlm.models.kernel import kernel
from charlm.models.symbol_tree import grow_tree, walks_of
from charlm.models.view import SIZE, codes_of
from charlm.text.tokens import Ids

PIECE = 1 << 14  # characters counted between two looks at whether to stop
MATCH = 3 * len(MATCHES)
NO_OFFERS, NOTHING = np.empty((1, 0, 0), np.float32), np.empty((0, 0))


class ContextMixingModel(LanguageModel):
    """A mixer of contexts; before a fit, it knows nothing.

    Args:
        block_size: Characters in a window when it is scored in windows. `go_on` sees all parts,
            however far back they are.
        contexts: The contexts, as in the configuration.
        memory: Most memory of its table, in MiB.
    """

    text: Tensor
    tree: Tensor
    classes: Tensor

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        contexts: Sequence[str],
        memory: int = 1024,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.codes, self.room = [codes_of(context) for context in contexts], memory
        nothing = np.empty(0, np.int64)
        self.register_buffer("text", torch.empty(0, dtype=_width(vocab_size)))
        self.register_buffer("tree", torch.from_numpy(grow_tree(nothing, vocab_size)))
        self.register_buffer("classes", torch.zeros(2, vocab_size, dtype=torch.int32))
        self._mixer: Mixer | None = None

    @property
    def device(self) -> torch.device:
        """Where its text is; it predicts on the CPU."""
        return self.text.device

    def fit(
        self, ids: Ids, classes: Array, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Count a text instead of the one before; `classes` are those of `classes_of`.

        Raises Stopped if `should_stop` says so; the model is unchanged then.
        """
        text = np.asarray(ids.read(0, len(ids))).astype(np.int64)
        tree = grow_tree(text, self.vocab_size)
        mixer = self._counted(text, tree, classes, should_stop)
        self.text = torch.from_numpy(text).to(self.text.dtype).to(self.device)
        self.tree = torch.from_numpy(tree).to(self.device)
        self.classes = torch.from_numpy(classes).to(self.device)
        self._mixer = mixer

    def mixer(self) -> Mixer:
        """Return what it has learned, made again from the text if need be."""
        if self._mixer is None:
            text, tree, classes = (
                one.cpu().numpy() for one in (self.text, self.tree, self.classes)
            )
            self._mixer = self._counted(text.astype(np.int64), tree, classes)
        return self._mixer

    def _counted(
        self,
        text: Array,
        tree: Array,
        classes: Array,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Mixer:
        bits = table_bits(self.codes, len(text), self.room)
        mixer = new_mixer(walks_of(tree), classes, self.codes, bits)
        for first in range(0, len(text), PIECE):
            check_stop(should_stop)
            read(mixer, text[first : first + PIECE], NO_OFFERS, NOTHING, True)
        return mixer

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check that this is a text of this alphabet, or raise ValueError."""
        check_names(state_dict, self.state_dict())
        text, classes, tree = (state_dict[name] for name in ("text", "classes", "tree"))
        check_tensor("text", text, (text.numel(),), self.text.dtype)
        check_tensor("classes", classes, (2, self.vocab_size), torch.int32)
        check_tensor("tree", tree, (self.vocab_size - 1, 2), torch.int32)
        walks_of(tree.cpu().numpy())
        for name, tensor in (("text", text), ("classes", classes)):
            if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < self.vocab_size:
                raise ValueError(f"{name} has ids that are none of {self.vocab_size} symbols")

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *options: object
    ) -> None:
        """Take a text of any length."""
        for name in ("text", "tree", "classes"):
            setattr(self, name, state_dict[f"{prefix}{name}"].to(self.device))
        self._mixer = None

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> "ContextMixingModel":
        self._mixer = None  # a model that is moved away shall not keep it
        return super()._apply(fn, recurse)  # type: ignore[no-any-return,no-untyped-call]

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return log-probabilities, which are logits too."""
        self.check_length(idx)
        return self.go_on(idx, self.start(len(idx)))[0]

    def log_probability(
        self, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Return only the log-probability of each target, in nats."""
        p, state = np.empty(idx.shape), self.start(len(idx))
        rows = zip(idx.cpu().numpy(), targets.cpu().numpy(), p, state.numpy(), strict=True)
        for ids, wanted, own, place in rows:
            _look_up(self.at(place), ids, wanted, own)
        return torch.from_numpy(p).log_().float().to(idx.device)

    def start(self, batch_size: int) -> Int[Tensor, "B S"]:
        """Return the state of texts of which nothing has been read: a view, and matches."""
        state = torch.zeros(batch_size, SIZE + MATCH, dtype=torch.int64)
        state[:, SIZE + 2 :: 3] = -1  # nothing is expected
        return state

    def go_on(
        self, idx: Int[Tensor, "B n"], state: Int[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B n V"], Int[Tensor, "B S"]]:
        """Read on; the state is brought up to date in place."""
        p = np.empty((*idx.shape, self.vocab_size))
        for ids, own, place in zip(idx.cpu().numpy(), p, state.numpy(), strict=True):
            read(self.at(place), ids, NO_OFFERS, own, False)
        return torch.from_numpy(p).log_().float().to(idx.device), state

    def at(self, place: Int[ndarray, "S"]) -> Mixer:
        """Return the mixer that reads on from a row of a state."""
        past, match = place[:SIZE].view(np.uint64), place[SIZE:].reshape(-1, 3)
        return self.mixer()._replace(past=past, match=match)

    def forget(self) -> None:
        """Let go of what was counted; it is counted again when it is needed."""
        self._mixer = None

    def adaptive(self, options: AdaptConfig, trained_on: Ids | None = None) -> AdaptiveReader:
        """Return a reader that learns on; the model knows the text that it was fitted to."""
        if not options.counts:
            return super().adaptive(options, trained_on)
        mixer = self.mixer()
        self.forget()  # it may take a GiB: not twice
        return LearningMixer(mixer, self.start(1)[0].numpy())


class LearningMixer(AdaptiveReader):
    """Reads one text from a state at its beginning, and learns from each character with `mixer`."""

    learned = ("counts",)

    def __init__(self, mixer: Mixer, place: Int[ndarray, "S"]) -> None:
        past, match = place[:SIZE].view(np.uint64), place[SIZE:].reshape(-1, 3)
        self.mixer = mixer._replace(past=past, match=match)
        self.learns = True

    def fork(self) -> "LearningMixer":
        """Return a reader that goes on from here and learns no more."""
        other, m = copy(self), self.mixer
        other.mixer = m._replace(past=m.past.copy(), match=m.match.copy())
        other.learns = False
        return other

    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters, learning from each."""
        p = np.empty((len(ids), len(self.mixer.length)))
        read(self.mixer, ids.astype(np.int64), NO_OFFERS, p, self.learns)
        return torch.from_numpy(p).log_().float()

    def first(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of a text's first character."""
        p = np.empty(len(self.mixer.length))
        _foresee(self.mixer, p)
        return torch.from_numpy(p).log_().float()


@kernel
@no_type_check
def _look_up(m: Mixer, ids: Array, targets: Array, p: Array) -> None:
    """Write the probability of each target, which follows each of `ids`."""
    for t in range(len(ids)):
        move_on(m, ids[t], False)
        look(m)
        p[t] = probability(m, targets[t])


@kernel
@no_type_check
def _foresee(m: Mixer, p: Array) -> None:
    """Write the probabilities of the next character."""
    look(m)
    distribute(m, p)


def _width(vocab_size: int) -> torch.dtype:
    return torch.uint8 if vocab_size <= 256 else torch.int32
