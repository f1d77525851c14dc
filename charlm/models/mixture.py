"""Several models as one: the product or the mean of their predictions.

    log-linear   log p = (sum of weight_e * log p_e) / temperature, renormalised
    gated        the same, but for each character a gate adds to weight_e / temperature (see `gate`)
    linear       p = sum of weight_e * p_e, then to the power 1 / temperature, renormalised

The product is sharp where the experts agree, and one confident expert can rule a character out. The
mean keeps every character that any expert thinks possible. Genest and Zidek 1986, "Combining
probability distributions", sections 2 and 3; for counted experts, Jelinek and Mercer 1980 (linear)
and Klakow 1998, "Log-linear interpolation of language models".
"""

from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, ValuesView
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.config import AdaptConfig, ModelConfig
from charlm.errors import check_stop
from charlm.models.adaptive import AdaptiveReader
from charlm.models.base import LanguageModel, check_names, check_tensor
from charlm.models.gate import Gate, features_of
from charlm.models.registry import construct
from charlm.text.tokens import Ids

RIDGE = 1e-4  # pulls weights of nearly identical experts towards equal ones
CHUNK = 1 << 18  # numbers processed at a time: 1 MiB of float32, which fits into a CPU's cache
GAIN = 1e-9  # nats: a step that promises less is the last, and rounding hides what it gains
FLOOR = -1e4  # least log p: 0 times minus infinity would be NaN
LEAST_POWER = 1e-7  # of a misleading mean: a temperature of ten million is a uniform guess


class MixtureModel(LanguageModel):
    """Experts and their weights; `combine` is `log-linear`, `gated` or `linear`.

    In a window of `block_size` characters, an expert with a shorter block sees at least half of its
    block as context.
    """

    weights: Tensor
    temperature: Tensor

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        experts: Mapping[str, LanguageModel],
        combine: str = "log-linear",
    ) -> None:
        super().__init__(vocab_size, block_size)
        self.experts = Experts(experts)
        # In version 1, `modern` experts of a shorter block read half a block at a time.
        self.version = f"2 of {', '.join(expert.version for expert in experts.values())}"
        self.combine = combine
        self.any_length = all(expert.any_length for expert in experts.values())
        memories = [expert.memory for expert in experts.values()]
        self.memory = None if None in memories else max(memories)  # type: ignore[type-var]
        self.register_buffer("weights", torch.full((len(experts),), 1 / len(experts)))
        self.register_buffer("temperature", torch.ones(()))
        self.gate = Gate(len(experts)) if combine == "gated" else None
        self.taken: frozenset[str] = frozenset()  # experts from other runs: trained on other text

    @classmethod
    def from_config(
        cls, config: ModelConfig, vocab_size: int, generator: torch.Generator | None = None
    ) -> "MixtureModel":
        """Build the mixture that a configuration describes; experts are drawn in order."""
        experts = {
            name: construct(expert.model, vocab_size, generator)
            for name, expert in config.members().items()
            if expert.model is not None  # always: models of runs were filled in before
        }
        model = cls(vocab_size, experts=experts, **config.sizes())
        model.taken = frozenset(name for name, one in config.members().items() if one.run)
        return model

    def reads_version(self, saved: str) -> bool:
        """Tell whether weights saved as this version mean the same today."""
        # Before version 2, the highest version of the experts was all that was saved.
        before = max(expert.version for expert in self.experts.values())
        slides = any(
            expert.version != "1" and expert.block_size < self.block_size
            for expert in self.experts.values()
        )
        return saved == self.version or (saved == before and not slides)

    @property
    def ngrams(self) -> int:
        """How many counted n-grams its experts store."""
        return sum(expert.ngrams for expert in self.experts.values())

    @property
    def uncounted(self) -> int:
        """How many characters its parts are to count."""
        return sum(part.uncounted for part in self.parts().values())

    def prepare(
        self,
        progress: Callable[[int], None] = lambda chars: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare each part."""
        for part in self.parts().values():
            part.prepare(progress, should_stop)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.weights.device

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position."""
        self.check_length(idx)
        return self.read(idx)

    def read(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits at every position of texts of any length."""
        return self.join(expert.read(idx) for expert in self.experts.values())

    def start(self, batch_size: int) -> list[Any]:
        """Return the states of the experts."""
        return [expert.start(batch_size) for expert in self.experts.values()]

    def go_on(
        self, idx: Int[Tensor, "B n"], state: list[Any]
    ) -> tuple[Float[Tensor, "B n V"], list[Any]]:
        """Let every expert read on."""
        experts = self.experts.values()
        read = [expert.go_on(idx, own) for expert, own in zip(experts, state, strict=True)]
        return self.join(logits for logits, _ in read), [own for _, own in read]

    def repeat(self, state: list[Any], count: int) -> list[Any]:
        """Return the states of the experts, each repeated."""
        experts = self.experts.values()
        return [expert.repeat(own, count) for expert, own in zip(experts, state, strict=True)]

    def adaptive(self, options: AdaptConfig, trained_on: Ids | None = None) -> AdaptiveReader:
        """Return a reader whose experts learn, and which goes on learning how to join them."""
        from charlm.models.adaptive_mixture import AdaptiveMixture  # numba takes half a second

        boundary = None if trained_on is None else trained_on.boundary
        return AdaptiveMixture(self, self.readers(options, trained_on), options.mixing, boundary)

    def readers(self, options: AdaptConfig, trained_on: Ids | None) -> list[AdaptiveReader]:
        """Return a reader of each expert.

        The counts of an expert from another run do not grow: it was not fitted to `trained_on`.
        """
        fixed = options.model_copy(update={"counts": False})
        return [
            expert.adaptive(fixed if name in self.taken else options, trained_on)
            for name, expert in self.experts.items()
        ]

    def join(self, logits: Iterable[Float[Tensor, "*shape V"]]) -> Float[Tensor, "*shape V"]:
        """Join the experts' logits; without a gate, only one expert's are in memory at a time."""
        return join(logits, self.weights, self.temperature, self.combine, self.gate)

    def check_state(self, state_dict: Mapping[str, Tensor]) -> None:
        """Check weights, temperature, and the state of each expert; see `load_state_dict`."""
        parts = self.parts()
        outside = {k: v for k, v in state_dict.items() if not k.startswith(tuple(parts))}
        own = {k: v for k, v in self.named_buffers() if not k.startswith(tuple(parts))}
        check_names(outside, own)
        for name, buffer in own.items():
            check_tensor(name, state_dict[name], buffer.shape, buffer.dtype)
        negative = self.combine == "linear" and bool((state_dict["weights"] < 0).any())
        if state_dict["temperature"] <= 0 or negative:
            raise ValueError("temperature, and weights of a linear mixture, cannot be negative")
        for start, part in parts.items():
            state = {k.removeprefix(start): v for k, v in state_dict.items() if k.startswith(start)}
            try:
                part.check_state(state)
            except ValueError as error:
                raise ValueError(f"{start}{error}") from None

    def parts(self) -> dict[str, LanguageModel]:
        """Return the models in it; each key is the prefix of the names of that model's weights."""
        return {f"experts.{name}.": expert for name, expert in self.experts.items()}


class Experts(nn.Module):
    """Models by name. `nn.ModuleDict` would refuse names of its own attributes, such as `keys`."""

    _modules: dict[str, LanguageModel]  # type: ignore[assignment]

    def __init__(self, experts: Mapping[str, LanguageModel]) -> None:
        super().__init__()
        self._modules.update(experts)

    def __getitem__(self, name: str) -> LanguageModel:
        return self._modules[name]

    def items(self) -> ItemsView[str, LanguageModel]:
        """Return names and models."""
        return self._modules.items()

    def names(self) -> KeysView[str]:
        """Return the names."""
        return self._modules.keys()

    def values(self) -> ValuesView[LanguageModel]:
        """Return the models."""
        return self._modules.values()

    def train(self, mode: bool = True) -> "Experts":
        """Set the mode of each; not `self.training`, as an expert may have that name."""
        for expert in self.values():
            expert.train(mode)
        return self


def join(
    logits: Iterable[Float[Tensor, "*shape V"]],
    weights: Float[Tensor, "E"],
    temperature: Float[Tensor, ""],
    combine: str,
    gate: Gate | None = None,
) -> Float[Tensor, "*shape V"]:
    """Return the logits of a mixture, from those of each of its experts in order."""
    log_ps = (finite_log_p(own.float()) for own in logits)
    if gate is not None:
        together = torch.stack(list(log_ps))
        powers = weights / temperature + gate(features_of(together))
        return torch.einsum("...e,e...v->...v", powers, together)
    total: Tensor | None = None
    for weight, log_p in zip(weights, log_ps, strict=True):
        if combine != "linear":
            total = weight * log_p if total is None else total.add_(weight * log_p)
        else:  # in logarithms: a sum of tiny probabilities would round to 0
            share = weight.log() + log_p
            total = share if total is None else torch.logaddexp(total, share)
    assert total is not None, "a mixture has at least one expert"
    return total / temperature


def finite_log_p(logits: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape V"]:
    """Return log-probabilities, all of them finite."""
    return logits.log_softmax(dim=-1).clamp(min=FLOOR)


def fit_weights(
    logits: Float[Tensor, "E N V"],
    targets: Int[Tensor, "N"],
    combine: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Float[Tensor, "E"], Float[Tensor, ""]]:
    """Return the weights and the temperature that predict the targets best.

    Log-linear, gated: one convex problem, solved by Newton's method for the powers of the experts'
    probabilities, which are weight over temperature. A power may be negative, if other experts
    already contain that expert's knowledge. Linear: the weights by expectation maximisation, then
    the temperature as one power of their mean.

    Returns weights that sum to 1, and the temperature. If the powers of misleading experts sum to
    about zero or less (not linear), the powers themselves, and temperature 1. Raises Stopped
    if `should_stop`, which is called often, says so.
    """
    if combine != "linear":
        powers = _fit_powers(finite_log_p(logits), targets, should_stop)
        total = powers.sum()
        if total < 0.01 * powers.abs().sum():
            return powers.float(), torch.ones(())
        return (powers / total).float(), (1 / total).float()
    log_p = finite_log_p(logits)
    weights = _fit_shares(log_p[:, torch.arange(len(targets)), targets].double(), should_stop)
    mixed = (weights.float().log()[:, None, None] + log_p).logsumexp(dim=0, keepdim=True)
    power = _fit_powers(mixed, targets, should_stop).sum()
    return weights.float(), (1 / power.clamp(min=LEAST_POWER)).float()


def _fit_shares(log_p: Float[Tensor, "E N"], should_stop: Callable[[], bool]) -> Float[Tensor, "E"]:
    """Return the weights of the mean with the highest likelihood of the targets."""
    p = (log_p - log_p.max(dim=0).values).exp()  # scaled, so that no column is all zero
    weights = torch.full((len(p),), 1 / len(p), dtype=torch.float64)
    for _ in range(1000):
        check_stop(should_stop)
        share = weights[:, None] * p
        before, weights = weights, (share / share.sum(dim=0)).mean(dim=1)
        if float((weights - before).abs().max()) < 1e-7:
            break
    return weights


def _fit_powers(
    log_p: Float[Tensor, "E N V"], targets: Int[Tensor, "N"], should_stop: Callable[[], bool]
) -> Float[Tensor, "E"]:
    """Return the powers of the experts' probabilities in the best product, by Newton's method.

    Where experts are confident and wrong, the curvature is almost zero and a full step overshoots,
    so a step is halved until the loss falls.
    """
    powers = torch.full((len(log_p),), 1 / len(log_p), dtype=torch.float64)
    loss, gradient, curvature = _derivatives(powers, log_p, targets, should_stop)
    for _ in range(50):
        move: Tensor = torch.linalg.solve(curvature, gradient)
        if gradient @ move < GAIN:
            powers -= move
            break
        while move.abs().max() > 1e-6:
            tried = _derivatives(powers - move, log_p, targets, should_stop)
            if tried[0] < loss:
                break
            move /= 2
        else:
            break
        powers -= move
        loss, gradient, curvature = tried
    return powers


def _derivatives(
    powers: Float[Tensor, "E"],
    log_p: Float[Tensor, "E N V"],
    targets: Int[Tensor, "N"],
    should_stop: Callable[[], bool],
) -> tuple[Float[Tensor, ""], Float[Tensor, "E"], Float[Tensor, "E E"]]:
    """Return the mean loss of the product with these powers, its gradient and second derivative.

    The gradient is the mean over positions of E[log p_e] - log p_e(target), with the expectation
    under the product. The second derivative is the covariance of the log p_e under the product.
    """
    experts, count, vocab_size = log_p.shape
    off = powers - 1 / experts
    loss, gradient = RIDGE / 2 * off.square().sum(), RIDGE * off
    curvature = RIDGE * torch.eye(experts, dtype=torch.float64)
    chunk = max(1, CHUNK // (experts * vocab_size))
    for first in range(0, count, chunk):
        check_stop(should_stop)
        some, y = log_p[:, first : first + chunk], targets[first : first + chunk]
        at = torch.arange(len(y))
        joined = torch.tensordot(powers.float(), some, dims=1).log_softmax(dim=-1)
        p = joined.exp()
        expected, observed = torch.linalg.vecdot(some, p), some[:, at, y]
        # Only a chunk is summed in float32. A difference of large squares would lose digits.
        centred = (some - expected[..., None]).mul_(p.sqrt()).flatten(1)
        loss -= joined[at, y].double().sum() / count
        gradient += (expected - observed).double().sum(dim=1) / count
        curvature += (centred @ centred.T).double() / count
    return loss, gradient, curvature
