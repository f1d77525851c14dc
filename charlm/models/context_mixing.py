"""A counted model that mixes what it knows of many contexts, bit by bit (see `bit_mixing`).

A window is read as the text of the fit was: each character is counted after it was predicted. At the
window's end that is forgotten, and the counts are those of the fit again. So repetition within a
window helps, as it helps a model with attention.

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
from charlm.models.base import LanguageModel, check_names, check_tensor, views
from charlm.models.bit_mixing import (
    LEARN,
    REMEMBER,
    WATCH,
    Mixer,
    distribute,
    forget,
    look,
    most_changes,
    new_mixer,
    offer,
    probability,
    read,
    take,
)
from charlm.models.bit_tables import Array
from charlm.models.kernel import lean_kernel
from charlm.models.symbol_tree import grow_tree, walks_of
from charlm.models.view import codes_of
from charlm.text.tokens import Ids

PIECE = 1 << 14  # characters counted between two looks at whether to stop
NO_IDS = np.empty(0, np.int64)
NO_OFFERS, NOTHING = np.empty((1, 0, 0), np.float32), np.empty((0, 0))


class ContextMixingModel(LanguageModel):
    """A mixer of contexts; before a fit, it knows nothing.

    Args:
        block_size: Characters that a prediction may depend on, beside the text of the fit.
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
        self._in_view = NO_IDS  # what it has read last, and remembers

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
        self.take_mixer(mixer)

    def take_mixer(self, mixer: Mixer) -> None:
        """Take what a mixer has learned from its own text."""
        begin_anew(mixer)
        mixer.changes[0] = 0  # what is read from now on is to be forgotten
        self._mixer, self._in_view = mixer, NO_IDS

    def mixer(self) -> Mixer:
        """Return what it has learned, made again from the text if need be."""
        if self._mixer is None:
            text, tree, classes = (
                one.cpu().numpy() for one in (self.text, self.tree, self.classes)
            )
            self.take_mixer(self._counted(text.astype(np.int64), tree, classes))
        assert self._mixer is not None
        return self._mixer

    def give_mixer(self) -> Mixer:
        """Return a mixer that has read nothing and may learn; the model makes itself another if need be.

        It may take a GiB, so it is not copied.
        """
        mixer, self._mixer = self.mixer(), None
        begin_anew(mixer)
        mixer.changes[0] = -1
        return mixer

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
            read(mixer, text[first : first + PIECE], NO_OFFERS, NOTHING, LEARN)
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

    def go_on(
        self, idx: Int[Tensor, "B n"], state: Int[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B n V"], Int[Tensor, "B m"]]:
        """Read on; what is in view is counted, as the text of a fit is, and then forgotten."""
        logits = []
        for kept, new in views(state, idx, self.block_size):
            p = np.empty((*new.shape, self.vocab_size))
            for before, ids, own in zip(kept.cpu().numpy(), new.cpu().numpy(), p, strict=True):
                self.remember(before)
                self.read_on(ids, own)
            logits.append(torch.from_numpy(p).log_().float().to(idx.device))
            state = torch.cat([kept, new], dim=1)
        return torch.cat(logits, dim=1), state

    def log_probability(
        self, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Return only the log-probability of each target, in nats."""
        self.check_length(idx)
        p = np.empty(idx.shape)
        rows = zip(idx.cpu().numpy(), targets.cpu().numpy(), p, strict=True)
        for ids, wanted, own in rows:
            self.remember(ids[:0])
            self.read_on(ids, own, wanted)
        return torch.from_numpy(p).log_().float().to(idx.device)

    def remember(self, ids: Int[ndarray, "n"]) -> None:
        """Come to the end of a text, from the one before if that was its beginning."""
        mixer, n = self.mixer(), len(self._in_view)
        if n > len(ids) or not np.array_equal(self._in_view, ids[:n]):
            begin_anew(mixer)
            self._in_view = ids[:0]
        self.read_on(ids[len(self._in_view) :], NOTHING)

    def read_on(
        self, ids: Int[ndarray, "n"], p: Array, targets: Array = NO_IDS, offers: Array = NO_OFFERS
    ) -> None:
        """Read on, counting what is read until it is forgotten.

        Writes to p (n, V), unless that is empty, what is predicted after each of `ids`; with `targets`, to
        p (n,) their probabilities only. `offers` (n, X, V) are what others predict of the same characters.
        """
        ids, done = ids.astype(np.int64), 0
        self._in_view = np.concatenate([self._in_view, ids])
        while True:
            mixer = self.mixer()
            if len(targets):
                done += _look_up(mixer, ids[done:], targets[done:], offers[done:], p[done:])
            else:
                done += read(mixer, ids[done:], offers[done:], p[done:], REMEMBER)
            if done == len(ids):
                return
            log = np.empty((2 * len(mixer.log) + most_changes(mixer), 3), np.int64)
            log[: len(mixer.log)] = mixer.log
            self._mixer = mixer._replace(log=log)

    def adaptive(self, options: AdaptConfig, trained_on: Ids | None = None) -> AdaptiveReader:
        """Return a reader that learns on; the model knows the text that it was fitted to."""
        if not options.counts:
            return super().adaptive(options, trained_on)
        return LearningMixer(self.give_mixer())


class LearningMixer(AdaptiveReader):
    """Reads one text, and learns from each character with a mixer that has read nothing of it."""

    def __init__(self, mixer: Mixer, how: int = LEARN) -> None:
        self.mixer, self.how = mixer, how

    @property
    def learned(self) -> tuple[str, ...]:
        """What changes while it reads."""
        return ("counts",)

    def fork(self) -> "LearningMixer":
        """Return a reader that goes on from here and learns no more."""
        other, m = copy(self), self.mixer
        other.mixer = m._replace(past=m.past.copy(), match=m.match.copy())
        other.how = WATCH
        return other

    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters, learning from each."""
        p = np.empty((len(ids), len(self.mixer.length)))
        read(self.mixer, ids.astype(np.int64), NO_OFFERS, p, self.how)
        return torch.from_numpy(p).log_().float()

    def first(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of a text's first character."""
        p = np.empty(len(self.mixer.length))
        foresee(self.mixer, p)
        return torch.from_numpy(p).log_().float()


@lean_kernel
@no_type_check
def _look_up(m: Mixer, ids: Array, targets: Array, offers: Array, p: Array) -> int:
    """Write the probability of each target, which follows each of `ids`; see `read`."""
    for t in range(len(ids)):
        if m.changes[0] + most_changes(m) > len(m.log):
            return t
        take(m, ids[t], REMEMBER)
        if offers.shape[1]:
            offer(m, offers[t])
        look(m)
        p[t] = probability(m, targets[t])
    return len(ids)


@lean_kernel
@no_type_check
def begin_anew(m: Mixer) -> None:
    """Forget what was read but not learned, and begin with a text of which nothing has been read."""
    forget(m)
    m.past[:] = 0
    for j in range(len(m.match)):
        m.match[j, 0] = m.match[j, 1] = 0
        m.match[j, 2] = -1


@lean_kernel
@no_type_check
def foresee(m: Mixer, p: Array) -> None:
    """Write the probabilities of the next character."""
    look(m)
    distribute(m, p)


def _width(vocab_size: int) -> torch.dtype:
    return torch.uint8 if vocab_size <= 256 else torch.int32
