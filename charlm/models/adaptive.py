"""Models that learn while they read: each character is predicted, and may then be learned from.

    reader = model.adaptive(options, trained_on)    has read nothing yet
    log_p = reader.first()                          (V,): predicts the first character
    log_p = reader.go_on(ids)                       (n,) -> (n, V): reads n characters
    log_p = reader.log_probability(ids, targets)    (n,) -> (n,): only of what follows each of them
    other = reader.fork()                           goes on from here, but does not learn

A prediction depends only on the characters before it, so a text can be decoded with a reader like
the one that encoded it. The model does not change: a reader copies what it changes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

if TYPE_CHECKING:
    from charlm.models.base import LanguageModel


class AdaptiveReader(ABC):
    """Reads one text once. A new reader has read nothing.

    Reading n characters at once gives the same predictions as reading them one by one, within 1e-6; a
    bitwise mixture rounds those of its experts, so single ones may differ by 1e-3.
    """

    @abstractmethod
    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n >= 1 more characters; return log-probabilities in float32, on the CPU.

        Row t scores the character that follows `ids[t]`. It may depend on everything up to `ids[t]`,
        as context and as examples to learn from.
        """

    def log_probability(
        self, ids: Int[ndarray, "n"], targets: Int[ndarray, "n"]
    ) -> Float[Tensor, "n"]:
        """Like `go_on`, but return only the log-probability of the character that follows each."""
        return self.go_on(ids)[torch.arange(len(ids)), torch.from_numpy(targets.astype("int64"))]

    @abstractmethod
    def first(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of a text's first character."""

    def fork(self) -> "AdaptiveReader":
        """Return a reader that goes on from here and learns no more; there may be several.

        They share what was learned, so this one must not read on while they do.
        """
        raise NotImplementedError(f"{type(self).__name__}.fork")

    @property
    def learned(self) -> tuple[str, ...]:
        """What changes while it reads: `counts`, `mixing weights`, `weights`; empty for nothing."""
        return ()


class Unchanging(AdaptiveReader):
    """Reads a text with a model that does not learn from it.

    Attributes:
        state: The model's state.
        single: A function that reads one character with this state faster than the model does, if
            there is one. None: it is made when needed, from the weights as they are then.
        boundary: The id between records, at which the model begins anew; None: there are none.
    """

    def __init__(self, model: "LanguageModel", boundary: int | None = None) -> None:
        self.model, self.boundary = model, boundary
        self.state: Any = model.start(1)
        self.single: Callable[[Int[ndarray, "1 1"]], Float[ndarray, "1 V"]] | None = None

    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters."""
        if self.boundary is not None:
            return torch.cat([self._go_on(part) for part in self._records(ids, self.boundary)])
        return self._go_on(ids)

    def _records(self, ids: Int[ndarray, "n"], boundary: int) -> Iterator[Int[ndarray, "m"]]:
        """Yield the records in some characters, and forget the one before each."""
        begins = np.flatnonzero(ids == boundary)
        for part in np.split(ids, begins):
            if len(part) and part[0] == boundary:
                self.state, self.single = self.model.start(1), None
            if len(part):
                yield part

    def _go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        idx = ids.astype("int64")[None]
        with torch.no_grad():
            if len(ids) == 1 and (single := self._single()):
                return torch.from_numpy(single(idx)).log_softmax(dim=-1)
            moved = torch.from_numpy(idx).to(self.model.device)
            logits, self.state = self.model.go_on(moved, self.state)
            return logits[0].float().log_softmax(dim=-1).cpu()

    def _single(self) -> Callable[[Int[ndarray, "1 1"]], Float[ndarray, "1 V"]] | None:
        if self.single is None and self._sharing:
            self.single = self._sharing(self.model, self.state).read
        return self.single

    @cached_property
    def _sharing(self) -> Any:
        """A constructor of a faster reader of one character that shares the model's state, or None."""
        from charlm.models.registry import kind_of

        on_cpu = self.model.device.type == "cpu"
        return getattr(kind_of(self.model).find("reader"), "sharing", None) if on_cpu else None

    def fork(self) -> "Unchanging":
        """Return a reader that goes on from here."""
        other = copy(self)
        with torch.no_grad():
            other.state, other.single = self.model.repeat(self.state, 1), None
        return other

    def first(self) -> Float[Tensor, "V"]:
        """Return equal probabilities: such a model predicts only from a character before."""
        return uniform(self.model.vocab_size)


def uniform(vocab_size: int) -> Float[Tensor, "V"]:
    """Return the log-probabilities of V equally likely characters."""
    return torch.zeros(vocab_size).log_softmax(dim=-1)
