"""A mixture whose experts are joined bit by bit, by context mixing (see `bit_mixing`).

At each node of a character's walk, an expert's probability of the bit is one more pair of inputs of
the mixer, beside those of the contexts. So how far an expert is trusted depends on the context, and
on the bit.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from charlm.config import AdaptConfig
from charlm.config.context_mixing import table_bits
from charlm.errors import check_stop
from charlm.models.adaptive import AdaptiveReader
from charlm.models.base import LanguageModel, check_tensor
from charlm.models.bit_mixing import Mixer, new_mixer
from charlm.models.bit_reading import LEARN, NO_OFFERS, NOTHING, REMEMBER, WATCH, offer, read
from charlm.models.bit_tables import Array
from charlm.models.context_mixing import PIECE, ContextMixingModel, LearningMixer, forked
from charlm.models.mean_weights import WEIGHTS
from charlm.models.mixture import MixtureModel
from charlm.models.symbol_tree import grow_tree, walks_of
from charlm.text.tokens import Ids


class Joiner(ContextMixingModel):
    """Context mixing with the predictions of experts as inputs.

    Its state is the counted text and the mixers' weights.
    """

    version = "1"  # of reading with weights that are kept
    weights: Tensor
    final: Tensor
    refined: Tensor

    def __init__(
        self, vocab_size: int, block_size: int, contexts: Sequence[str], memory: int, offers: int
    ) -> None:
        super().__init__(vocab_size, block_size, contexts, memory)
        self.offers = offers
        new = self._new(self.tree.numpy(), self.classes.numpy(), 1)
        for name in WEIGHTS:
            self.register_buffer(name, torch.from_numpy(getattr(new, name)))

    def _new(self, tree: Array, classes: Array, bits: int) -> Mixer:
        return new_mixer(walks_of(tree), classes, self.codes, bits, self.offers)

    def begin(self, text: Int[ndarray, "N"], classes: Array, chars: int | None = None) -> Mixer:
        """Return a mixer that has read nothing, sized for a text; `keep` takes it once it has read it.

        `chars`: size its table for so many characters, to measure its speed.
        """
        bits = table_bits(self.codes, chars or len(text), self.room)
        return self._new(grow_tree(text, self.vocab_size), classes, bits)

    def keep(self, mixer: Mixer, text: Int[ndarray, "N"]) -> None:
        """Take what a mixer has learned from a text."""
        self._keep(text=text, tree=mixer.walks.child, classes=mixer.classes)
        self._keep(**{name: getattr(mixer, name).copy() for name in WEIGHTS})
        self.take_mixer(mixer)

    def _counted(
        self,
        text: Array,
        tree: Array,
        classes: Array,
        progress: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> tuple[Mixer, float]:
        """Return a mixer with the counts of the text, and the weights that are kept; and no loss."""
        mixer = self._new(tree, classes, table_bits(self.codes, len(text), self.room))
        for first in range(0, len(text), PIECE):
            check_stop(should_stop)
            piece = text[first : first + PIECE]
            read(mixer, piece, NO_OFFERS, NOTHING, REMEMBER)
            progress(len(piece))
        weights, final, refined = (np.array(getattr(self, name).cpu().numpy()) for name in WEIGHTS)
        return mixer._replace(weights=weights, final=final, refined=refined), 0.0

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check the text and the sizes of the weights, or raise ValueError."""
        super().check_state(state_dict)
        for name in WEIGHTS:
            check_tensor(name, state_dict[name], self.get_buffer(name).shape, torch.int32)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *options: object
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *options)
        for name in WEIGHTS:
            setattr(self, name, state_dict[f"{prefix}{name}"].to(self.device))


class BitwiseMixture(MixtureModel):
    """Experts whose predictions are inputs of a `Joiner`; `weights` and `temperature` are not used."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        experts: Mapping[str, LanguageModel],
        combine: str,
        contexts: Sequence[str],
        memory: int,
    ) -> None:
        super().__init__(vocab_size, block_size, experts, combine)
        self.any_length, self.memory = False, block_size  # the joiner looks at the whole block
        self.joiner = Joiner(vocab_size, block_size, contexts, memory, len(experts))
        self.version += f" with {self.joiner.version}"

    def reads_version(self, saved: str) -> bool:
        """Tell whether weights saved as this version mean the same today."""
        return super().reads_version(saved if " with " in saved else f"{saved} with 1")

    def parts(self) -> dict[str, LanguageModel]:
        """Return the models in it, by the beginnings of the names of their weights."""
        return super().parts() | {"joiner.": self.joiner}

    def read(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the log-probabilities at every position of texts of any length."""
        logits = [expert.read(idx) for expert in self.experts.values()]
        return self.joiner.go_on(idx, self.joiner.start(len(idx)), offers_of(logits))[0]

    def log_probability(
        self, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Return only the log-probability of each target, in nats."""
        self.joiner.check_length(idx)
        offers = offers_of(expert.read(idx) for expert in self.experts.values())
        return self.joiner.log_probability(idx, targets, offers)

    def start(self, batch_size: int) -> list[Any]:
        """Return the states of the experts and of the joiner."""
        return [*super().start(batch_size), self.joiner.start(batch_size)]

    def go_on(
        self, idx: Int[Tensor, "B n"], state: list[Any]
    ) -> tuple[Float[Tensor, "B n V"], list[Any]]:
        """Let every expert read on, and join."""
        experts = zip(self.experts.values(), state[:-1], strict=True)
        went = [expert.go_on(idx, own) for expert, own in experts]
        offers = offers_of(logits for logits, _ in went)
        joined, view = self.joiner.go_on(idx, state[-1], offers)
        return joined, [*(own for _, own in went), view]

    def repeat(self, state: list[Any], count: int) -> list[Any]:
        """Return the states, each repeated."""
        return [*super().repeat(state[:-1], count), self.joiner.repeat(state[-1], count)]

    def adaptive(self, options: AdaptConfig, trained_on: Ids | None = None) -> AdaptiveReader:
        """Return a reader whose experts learn; the joiner learns if `adapt.mixing` says so."""
        experts, how = self.readers(options, trained_on), LEARN if options.mixing else WATCH
        return BitwiseReader(experts, self.joiner.give_mixer(), how)


class BitwiseReader(LearningMixer):
    """Reads one text with readers of the experts, and a mixer that may learn."""

    def __init__(self, experts: list[AdaptiveReader], mixer: Mixer, how: int) -> None:
        super().__init__(mixer, how)
        self.experts = experts
        offer(self.mixer, torch.stack([expert.first() for expert in experts]).numpy())

    @property
    def learned(self) -> tuple[str, ...]:
        """What changes while it reads."""
        own = ("counts", "mixing weights") if self.how == LEARN else ()
        return tuple(dict.fromkeys((*(w for one in self.experts for w in one.learned), *own)))

    @torch.no_grad()
    def _offers(self, ids: Int[ndarray, "n"]) -> Float[ndarray, "n X V"]:
        return torch.stack([expert.go_on(ids) for expert in self.experts], dim=1).numpy()

    def fork(self) -> "BitwiseReader":
        """Return a reader that goes on from here and learns no more."""
        other = copy(self)
        other.mixer, other.how = forked(self.mixer), WATCH
        other.experts = [expert.fork() for expert in self.experts]
        return other


def offers_of(logits: Iterable[Float[Tensor, "B n V"]]) -> Float[ndarray, "B n X V"]:
    """Return log-probabilities of all experts, as the joiner takes them."""
    each = [own.float().log_softmax(dim=-1).cpu() for own in logits]
    return torch.stack(each, dim=2).numpy()
