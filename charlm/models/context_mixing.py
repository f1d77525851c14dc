"""A counted model that mixes the predictions of many contexts, bit by bit (see `bit_mixing`).

A window is read like the training text: each character is counted after it was predicted. At the end
of the window these counts are undone. So repetition within a window helps, as it helps a model with
attention.

Its state is the text that was counted. All else is computed again from the text when it is first
needed, which takes about 10 seconds for a million characters and up to `memory` MiB.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import ClassVar

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
from charlm.models.bit_mixing import Mixer, most_changes, new_mixer
from charlm.models.bit_reading import (
    LEARN,
    NO_IDS,
    NO_OFFERS,
    NOTHING,
    REMEMBER,
    WATCH,
    begin_anew,
    foresee,
    look_up,
    read,
    score_and_learn,
)
from charlm.models.bit_tables import Array
from charlm.models.mean_weights import MeanWeights
from charlm.models.symbol_tree import grow_tree, walks_of
from charlm.models.view import BOUNDARY, LETTER, codes_of
from charlm.text.tokens import Ids

PIECE = 1 << 14  # characters counted between two looks at whether to stop
END = 10  # the weights are the mean over this part of the text: its last tenth


class ContextMixingModel(LanguageModel):
    """A mixer of contexts; before it is fitted, all characters are about equally likely.

    Args:
        block_size: Characters that a prediction may depend on, beside the text of the fit.
        contexts: The contexts, as in the configuration.
        memory: The largest size of its table, in MiB.
    """

    version = "2"  # 1 had the last weights instead of their mean
    per_character: ClassVar = {}  # the text is renumbered: see `take_over`
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
        self._in_view: Int[ndarray, "n"] | None = NO_IDS  # what was read last; None: unknown

    @property
    def device(self) -> torch.device:
        """Where its text is; it predicts on the CPU."""
        return self.text.device

    def fit(
        self,
        ids: Ids,
        classes: Array,
        progress: Callable[[int], None] = lambda chars: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> float:
        """Count a text instead of the one before; `classes` are those of `classes_of`.

        Returns the mean loss in nats, each character scored before it was learned from.
        `progress` is called with the number of characters counted since the last call. Raises
        Stopped if `should_stop` says so; the model is unchanged then.
        """
        text = np.asarray(ids.read(0, len(ids))).astype(np.int64)
        tree = grow_tree(text, self.vocab_size)
        mixer, nats = self._counted(text, tree, classes, progress, should_stop)
        self._keep(text=text, tree=tree, classes=classes)
        self.take_mixer(mixer)
        return nats / max(1, len(text))

    def _keep(self, **arrays: Array) -> None:
        """Keep arrays as tensors of these names."""
        for name, array in arrays.items():
            old = self.get_buffer(name)
            setattr(self, name, torch.from_numpy(array).to(old.dtype).to(old.device))

    def take_mixer(self, mixer: Mixer) -> None:
        """Take a mixer that has learned this model's text."""
        begin_anew(mixer)
        mixer.undo.changes[0] = 0  # what is read from now on is to be forgotten
        self._mixer, self._in_view = mixer, NO_IDS

    @property
    def uncounted(self) -> int:
        """How many characters of its text are to be counted again before it can predict."""
        return len(self.text) if self._mixer is None else 0

    def prepare(
        self,
        progress: Callable[[int], None] = lambda chars: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Count its text again, if need be; the arguments are those of `fit`."""
        if self._mixer is None:
            text, tree, classes = (
                one.cpu().numpy() for one in (self.text, self.tree, self.classes)
            )
            text = text.astype(np.int64)
            self.take_mixer(self._counted(text, tree, classes, progress, should_stop)[0])

    def mixer(self) -> Mixer:
        """Return the mixer; if necessary, count the text again."""
        self.prepare()
        assert self._mixer is not None
        return self._mixer

    def give_mixer(self) -> Mixer:
        """Return a mixer that has read nothing and may learn.

        It may take a GiB, so it is not copied: the model makes itself a new one when needed.
        """
        mixer, self._mixer = self.mixer(), None
        begin_anew(mixer)
        mixer.undo.changes[0] = -1
        return mixer

    def _counted(
        self,
        text: Array,
        tree: Array,
        classes: Array,
        progress: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> tuple[Mixer, float]:
        """Return a mixer that has counted a text, and has the mean weights of its end.

        Also return the nats of the text, each character scored before it was learned from.
        """
        mixer = self._new(tree, classes, table_bits(self.codes, len(text), self.room))
        end = len(text) - len(text) // END
        mean, nats = MeanWeights(mixer, len(text) - end), 0.0
        for first, last, size in ((0, end, PIECE), (end, len(text), mean.every)):
            for at in range(first, last, size):
                check_stop(should_stop)
                piece = text[at : min(at + size, last)]
                p = np.empty(len(piece))
                score_and_learn(mixer, piece, NO_OFFERS, p)
                nats -= float(np.log(p).sum())
                progress(len(piece))
                if first:
                    mean.add()
        mean.use()
        return mixer, nats

    def _new(self, tree: Array, classes: Array, bits: int) -> Mixer:
        return new_mixer(walks_of(tree), classes, self.codes, bits)

    def take_over(self, other: LanguageModel, known: Int[Tensor, "V"]) -> None:
        """Take the text of the same model over another alphabet, without characters missing here.

        A new character counts as a letter without another case, as most of Unicode.
        """
        assert isinstance(other, ContextMixingModel)
        here = np.flatnonzero(known.numpy() >= 0)
        new_ids = np.full(other.vocab_size, -1)  # of the characters of the other alphabet
        new_ids[known.numpy()[here]] = here
        text = new_ids[other.text.cpu().numpy()]
        text = text[text >= 0]
        kind, lower = np.full(self.vocab_size, LETTER), np.arange(self.vocab_size)
        theirs = other.classes.cpu().numpy()[:, known.numpy()[here]]
        kind[here], lowered = theirs[0], new_ids[theirs[1]]
        lower[here] = np.where(lowered >= 0, lowered, here)
        tree = grow_tree(text, self.vocab_size)
        self._keep(text=text, tree=tree, classes=np.stack([kind, lower]))
        self._mixer = None

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check that this is a text of this alphabet, or raise ValueError."""
        check_names(state_dict, self.state_dict())
        text, classes, tree = (state_dict[name] for name in ("text", "classes", "tree"))
        check_tensor("text", text, (text.numel(),), self.text.dtype)
        check_tensor("classes", classes, (2, self.vocab_size), torch.int32)
        check_tensor("tree", tree, (self.vocab_size - 1, 2), torch.int32)
        walks_of(tree.cpu().numpy())
        kinds, lower = classes
        for name, tensor, end in (
            ("text", text, self.vocab_size),
            ("classes", kinds, BOUNDARY + 1),
            ("classes", lower, self.vocab_size),
        ):
            if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < end:
                raise ValueError(f"{name} has numbers outside 0 to {end - 1}")

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
        self, idx: Int[Tensor, "B n"], state: Int[Tensor, "B S"], offers: Array | None = None
    ) -> tuple[Float[Tensor, "B n V"], Int[Tensor, "B m"]]:
        """Read on; what is in view is counted, as the text of a fit is, and then forgotten.

        `offers` (B, n, X, V) are what others predict of the same characters.
        """
        p, done, offers = np.empty((*idx.shape, self.vocab_size)), 0, _or_none(offers, idx)
        for kept, new in views(state, idx, self.block_size):
            part = slice(done, done + new.shape[1])
            texts = zip(kept.cpu().numpy(), new.cpu().numpy(), strict=True)
            for row, (before, ids) in enumerate(texts):
                self.remember(before)
                self.read_on(ids, p[row, part], NO_IDS, offers[row, part])
            state, done = torch.cat([kept, new], dim=1), part.stop
        return torch.from_numpy(p).log_().float().to(idx.device), state

    def log_probability(
        self, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], offers: Array | None = None
    ) -> Float[Tensor, "B T"]:
        """Return only the log-probability of each target, in nats; `offers` as in `go_on`."""
        self.check_length(idx)
        p, wanted, offers = np.empty(idx.shape), targets.cpu().numpy(), _or_none(offers, idx)
        for row, ids in enumerate(idx.cpu().numpy()):
            self.remember(ids[:0])
            self.read_on(ids, p[row], wanted[row], offers[row])
        return torch.from_numpy(p).log_().float().to(idx.device)

    def remember(self, ids: Int[ndarray, "n"]) -> None:
        """Read a text to its end, continuing from the previous one if that is its beginning."""
        mixer, view = self.mixer(), self._in_view
        if view is None or not np.array_equal(view, ids[: len(view)]):
            begin_anew(mixer)
            self._in_view = view = ids[:0]
        self.read_on(ids[len(view) :], NOTHING)

    def read_on(
        self, ids: Int[ndarray, "n"], p: Array, targets: Array = NO_IDS, offers: Array = NO_OFFERS
    ) -> None:
        """Read on, counting what is read until it is forgotten.

        Writes to p (n, V), unless that is empty, what is predicted after each of `ids`; with `targets`, to
        p (n,) their probabilities only. `offers` (n, X, V) are what others predict of the same characters.
        """
        assert self._in_view is not None, "`remember` comes before"
        ids, done = ids.astype(np.int64), 0
        view, self._in_view = np.concatenate([self._in_view, ids]), None
        while True:
            mixer = self.mixer()
            if len(targets):
                part = targets[done:], offers[done:], p[done:]
                done += look_up(mixer, ids[done:], *part, REMEMBER)
            else:
                done += read(mixer, ids[done:], offers[done:], p[done:], REMEMBER)
            if done == len(ids):
                self._in_view = view
                return
            full = mixer.undo.log
            log = np.empty((2 * len(full) + most_changes(mixer), 3), np.int64)
            log[: len(full)] = full
            self._mixer = mixer._replace(undo=mixer.undo._replace(log=log))

    def adaptive(self, options: AdaptConfig, trained_on: Ids | None = None) -> AdaptiveReader:
        """Return a reader that goes on learning."""
        if not options.counts:
            own = copy(self)  # a reader changes what is in view, so none shares a mixer
            own.take_mixer(self.give_mixer())
            return super(ContextMixingModel, own).adaptive(options, trained_on)
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
        other = copy(self)
        other.mixer, other.how = forked(self.mixer), WATCH
        return other

    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters, learning from each."""
        p = np.empty((len(ids), len(self.mixer.walks.length)))
        read(self.mixer, ids.astype(np.int64), self._offers(ids), p, self.how)
        return torch.from_numpy(p).log_().float()

    def log_probability(
        self, ids: Int[ndarray, "n"], targets: Int[ndarray, "n"]
    ) -> Float[Tensor, "n"]:
        """Read n more characters; return only the log-probability of what follows each."""
        p, read_on = np.empty(len(ids)), (ids.astype(np.int64), targets.astype(np.int64))
        look_up(self.mixer, *read_on, self._offers(ids), p, self.how)
        return torch.from_numpy(p).log_().float()

    def first(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of a text's first character."""
        p = np.empty(len(self.mixer.walks.length))
        foresee(self.mixer, p)
        return torch.from_numpy(p).log_().float()

    def _offers(self, ids: Int[ndarray, "n"]) -> Float[ndarray, "m X V"]:
        """Return what others predict after each character; of none, by default."""
        return NO_OFFERS


def _or_none(offers: Array | None, idx: Int[Tensor, "B n"]) -> Array:
    return np.empty((*idx.shape, 0, 0), np.float32) if offers is None else offers


def forked(m: Mixer) -> Mixer:
    """Return a mixer that goes on from here without changing what this one knows."""
    passages = m.passages._replace(match=m.passages.match.copy())
    return m._replace(past=m.past.copy(), passages=passages, offered=m.offered.copy())


def _width(vocab_size: int) -> torch.dtype:
    return torch.uint8 if vocab_size <= 256 else torch.int32
