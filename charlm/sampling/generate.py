"""Text as it comes: one character of each row at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.errors import NonFiniteError
from charlm.models.base import LanguageModel
from charlm.sampling.choose import draw, next_probabilities


@dataclass(frozen=True)
class Settings:
    """How characters are chosen.

    Args:
        temperature: Divides the logits; 0 takes the likeliest.
        top_k: Draw only from this many likeliest characters.
        top_p: Draw only from the likeliest that together have this probability.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


@dataclass(frozen=True)
class Drawn:
    """One more character of each row.

    Args:
        idx: Its id, (B,).
        logprob: Its log-probability under the model itself, before temperature and filters, in
            nats, (B,).
    """

    idx: Int[Tensor, "B"]
    logprob: Float[Tensor, "B"]


def generate(
    model: LanguageModel,
    prompt: Int[Tensor, "B T"],
    count: int,
    settings: Settings,
    seeds: Sequence[int],
) -> Iterator[Drawn]:
    """Draw `count` characters after each row of `prompt`, one of each row at a time.

    Args:
        model: In whichever mode; it is run in evaluation mode and put back after each character.
        prompt: At least one character; of a prompt longer than the model's block the last counts.
        count: Characters to draw.
        settings: How they are chosen.
        seeds: One for each row; a row's text depends on its own seed only.

    Raises:
        NonFiniteError: The model's logits are NaN or infinite.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    state, idx = model.start(prompt.shape[0]), prompt
    for _ in range(count):
        with torch.no_grad():
            was_training = model.training
            model.eval()
            logits, state = model.step(idx, state)
            model.train(was_training)
            logits = logits.float().cpu()
            if not logits.isfinite().all():
                raise NonFiniteError(
                    "the model's logits are NaN or infinite: its training diverged; use an earlier "
                    "checkpoint"
                )
            probabilities = next_probabilities(
                logits,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
            )
            uniform = torch.stack(
                [torch.rand((), generator=g, dtype=torch.float64) for g in generators]
            )
            chosen = draw(probabilities, uniform)
            logprob = logits.log_softmax(dim=-1).gather(-1, chosen[:, None])[:, 0]
        yield Drawn(chosen, logprob)
        idx = chosen[:, None].to(prompt.device)
