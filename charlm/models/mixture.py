"""Several models as one: their predictions multiplied, or averaged.

    log-linear   log p = (sum of weight_e * log p_e) / temperature, renormalised
    linear       p = sum of weight_e * p_e, then to the power 1 / temperature, renormalised

The product is sharp where the experts agree and lets one that is sure rule a character out; the
mean keeps whatever any expert thinks possible. Genest and Zidek 1986, "Combining probability
distributions", sections 2 and 3; for experts that are counted, Jelinek and Mercer 1980 (linear)
and Klakow 1998, "Log-linear interpolation of language models".
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.models.base import LanguageModel

RIDGE = 1e-4  # pulls weights to equal ones, where experts are too alike to tell them apart
CHUNK = 4096  # predictions worked on at a time: their arrays stay in a CPU's cache


class MixtureModel(LanguageModel):
    """Experts and their weights.

    Args:
        vocab_size: Number of distinct characters (V), the same for all.
        block_size: Longest text it is shown at once; an expert with a shorter block sees at least
            half a block of context.
        experts: By name.
        combine: `log-linear` or `linear`.
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
        self.experts = nn.ModuleDict(experts)
        self.combine = combine
        self.any_length = all(expert.any_length for expert in experts.values())
        if self.any_length:
            self.memory = max(expert.memory for expert in experts.values())
        # Weights add up to 1; together with the temperature they say all there is to say.
        self.register_buffer("weights", torch.full((len(experts),), 1 / len(experts)))
        self.register_buffer("temperature", torch.ones(()))

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.weights.device

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw the first weights of each expert."""
        for expert in self._experts():
            expert.init_weights(generator)

    def forward(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of the next character at every position."""
        return self.join(logits_within(expert, idx) for expert in self._experts())

    def start(self, batch_size: int) -> list[Any]:
        """Return the states of the experts."""
        return [expert.start(batch_size) for expert in self._experts()]

    def step(self, idx: Int[Tensor, "B n"], state: list[Any]) -> tuple[Float[Tensor, "B V"], Any]:
        """Let every expert read on.

        Past the block of an expert this differs a little from `forward`, which gives that expert
        half a block of context where here it has the whole.
        """
        read = [expert.step(idx, own) for expert, own in zip(self._experts(), state, strict=True)]
        return self.join(logits for logits, _ in read), [own for _, own in read]

    def _experts(self) -> list[LanguageModel]:
        return list(self.experts.values())  # type: ignore[arg-type]

    def join(self, logits: Iterable[Float[Tensor, "*shape V"]]) -> Float[Tensor, "*shape V"]:
        """Join the experts' logits; one expert's are held at a time."""
        total: Tensor | None = None
        for weight, own in zip(self.weights, logits, strict=True):
            log_p = own.float().log_softmax(dim=-1)
            share = weight * (log_p if self.combine == "log-linear" else log_p.exp())
            total = share if total is None else total.add_(share)
        assert total is not None, "a mixture has at least one expert"
        return (total if self.combine == "log-linear" else total.log()) / self.temperature

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights, the temperature, and each expert's tensors behind its name."""
        own = {"weights": self.weights, "temperature": self.temperature}
        for name, expert in self.experts.items():
            assert isinstance(expert, LanguageModel)
            own |= {f"experts.{name}.{key}": value for key, value in expert.tensors().items()}
        return own

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors of a checkpoint.

        Raises:
            ValueError: They are not a mixture's of these experts.
        """
        left = dict(tensors)
        for name in ("weights", "temperature"):
            own, found = self.get_buffer(name), left.pop(name, None)
            if found is None or found.shape != own.shape or not bool(found.isfinite().all()):
                raise ValueError(f"{name} is missing or does not fit {len(self.experts)} experts")
            own.copy_(found)
        for name, expert in self.experts.items():
            assert isinstance(expert, LanguageModel)
            start = f"experts.{name}."
            names = [key for key in left if key.startswith(start)]
            try:
                expert.adopt({key.removeprefix(start): left.pop(key) for key in names})
            except ValueError as error:
                raise ValueError(f"{start}{error}") from None
        if left:
            raise ValueError(f"{min(left)} belongs to another model; was config.yaml changed?")


def logits_within(model: LanguageModel, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
    """Return a model's logits for a text that may be longer than its block.

    The block moves on by half of itself, so that every position but the first ones has at least
    half a block behind it.
    """
    block, length = model.block_size, idx.shape[1]
    if model.any_length or length <= block:
        return model(idx)  # type: ignore[no-any-return]
    half = max(1, block // 2)
    parts = [model(idx[:, :block])]
    for start in range(block, length, half):
        parts.append(model(idx[:, start + half - block : start + half])[:, block - half :])
    return torch.cat(parts, dim=1)


def fit_weights(
    logits: Float[Tensor, "E N V"], targets: Int[Tensor, "N"], combine: str
) -> tuple[Float[Tensor, "E"], Float[Tensor, ""]]:
    """Return the weights and the temperature that predict the targets best.

    Both ways are convex problems with one answer. A log-linear mixture's weights may be negative:
    what an expert says is then read as what the others have said already.

    Args:
        logits: Of each expert for each prediction.
        targets: What came next.
        combine: `log-linear` (Newton's method) or `linear` (expectation maximisation for weights,
            Newton's method for the temperature).

    Returns:
        Weights that add up to 1, and the temperature.
    """
    log_p = logits.log_softmax(dim=-1)
    if combine == "log-linear":
        powers = _fit_powers(log_p, targets)
        return powers / powers.sum(), 1 / powers.sum()
    of_target = log_p[:, torch.arange(len(targets)), targets].double().exp()
    weights = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64)
    for _ in range(200):
        share = weights[:, None] * of_target
        weights = (share / share.sum(dim=0)).mean(dim=1)
    mixed = (weights.float()[:, None, None] * log_p.exp()).sum(dim=0, keepdim=True).log()
    return weights.float(), 1 / _fit_powers(mixed, targets).sum()


def _fit_powers(
    log_p: Float[Tensor, "E N V"], targets: Int[Tensor, "N"], steps: int = 20
) -> Float[Tensor, "E"]:
    """Return the powers to which probabilities are raised before they are multiplied.

    The gradient is the mean of what the model expects of log p_e, less what it was at the target;
    the second derivative is the covariance of the log p_e under the model.
    """
    experts, count, _ = log_p.shape
    powers = torch.full((experts,), 1 / experts, dtype=torch.float64)
    equal = powers.clone()
    for _ in range(steps):
        gradient = RIDGE * (powers - equal)
        curvature = RIDGE * torch.eye(experts, dtype=torch.float64)
        for first in range(0, count, CHUNK):
            some, y = log_p[:, first : first + CHUNK], targets[first : first + CHUNK]
            p = torch.einsum("e,env->nv", powers.float(), some).softmax(dim=-1)
            expected = torch.einsum("nv,env->en", p, some)
            observed = some[:, torch.arange(len(y)), y]
            gradient += (expected - observed).sum(dim=1).double() / count
            second = torch.einsum("env,fnv->ef", some * p, some) - expected @ expected.T
            curvature += second.double() / count
        move = torch.linalg.solve(curvature, gradient)
        powers -= move
        if float(move.abs().max()) < 1e-5:
            break
    return powers.float()
