"""Models that learn while they read: each character is predicted, and may then be learned from.

    reader = model.adaptive(options, trained_on)    nothing has been read
    log_p = reader.first()                          (V,) of the first character
    log_p = reader.go_on(ids)                       (n,) -> (n, V), for the next n characters

A prediction depends on the characters before it only, so a text can be decoded with the same reader
that encoded it. The model stays as it is: a reader copies what it changes.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

if TYPE_CHECKING:
    from charlm.models.base import LanguageModel


class AdaptiveReader(ABC):
    """Reads one text once. A new reader has read nothing.

    Reading n characters at once gives the same predictions as reading them one by one, within 1e-6.
    """

    @abstractmethod
    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n >= 1 more characters; return log-probabilities in float32, on the CPU.

        Row t scores the character that follows `ids[t]`. It may depend on everything up to `ids[t]`,
        as context and as examples to learn from.
        """

    @abstractmethod
    def first(self) -> Float[Tensor, "V"]:
        """Return the log-probabilities of a text's first character."""

    @property
    def learned(self) -> tuple[str, ...]:
        """What changes while it reads, in words: `counts`, `mixing weights`; empty for nothing."""
        return ()


class Unchanging(AdaptiveReader):
    """Reads a text with a model that does not learn from it."""

    def __init__(self, model: "LanguageModel") -> None:
        self.model = model
        self.state: Any = model.start(1)

    def go_on(self, ids: Int[ndarray, "n"]) -> Float[Tensor, "n V"]:
        """Read n more characters."""
        idx = torch.from_numpy(ids.astype("int64")).to(self.model.device)[None]
        with torch.no_grad():
            logits, self.state = self.model.go_on(idx, self.state)
            return logits[0].float().log_softmax(dim=-1).cpu()

    def first(self) -> Float[Tensor, "V"]:
        """Return equal probabilities: without a character before it, such a model has no opinion."""
        return uniform(self.model.vocab_size)


def uniform(vocab_size: int) -> Float[Tensor, "V"]:
    """Return the log-probabilities of V equally likely characters."""
    return torch.zeros(vocab_size).log_softmax(dim=-1)
