"""Fitting a mixture's weights: what its experts predict on a slice that none of them has read."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.errors import check_stop
from charlm.evaluation.protocols import chars_a_pass, spread_windows
from charlm.models import MixtureModel, next_token_loss
from charlm.models.mixture import fit_weights, join
from charlm.text.tokens import Split

MAX_TUNED = 1 << 16  # characters to fit on: a weight for each expert does not need more
MAX_LOGITS = 1 << 26  # of all experts on them: 256 MiB of float32


@dataclass(frozen=True)
class Tuned:
    """What was fitted.

    Args:
        weights: Of each expert.
        temperature: Of their product or mean.
        loss_nats: Of the mixture on the slice.
        alone_nats: Of each expert there.
        chars: Predictions that these losses are means of.
        seconds_a_char: How long all experts took to predict one character.
    """

    weights: dict[str, float]
    temperature: float
    loss_nats: float
    alone_nats: dict[str, float]
    chars: int
    seconds_a_char: float


def tune(
    model: MixtureModel, text: Split, block_size: int, should_stop: Callable[[], bool]
) -> Tuned:
    """Fit weights and temperature on a text; the model keeps its own.

    Args:
        model: The mixture.
        text: What no expert has read.
        block_size: Characters in a window, as it will be scored.
        should_stop: Asked often.

    Raises:
        Stopped: It was asked to stop.
    """
    started = time.perf_counter()
    names = [name for name, _ in model.experts.items()]
    most = min(MAX_LOGITS // (model.vocab_size * len(names)), MAX_TUNED)
    logits, targets = predict(model, text, block_size, most, should_stop)
    predicted = time.perf_counter() - started
    weights, temperature = fit_weights(logits, targets, model.combine, should_stop)

    def loss(logits: Float[Tensor, "N V"]) -> float:
        return next_token_loss(logits[None], targets[None]).item()

    return Tuned(
        weights=dict(zip(names, weights.tolist(), strict=True)),
        temperature=temperature.item(),
        loss_nats=loss(join(logits, weights, temperature, model.combine)),
        alone_nats=dict(zip(names, map(loss, logits), strict=True)),
        chars=len(targets),
        seconds_a_char=predicted / len(targets),
    )


@torch.no_grad()
def predict(
    model: MixtureModel,
    text: Split,
    block_size: int,
    most: int,
    should_stop: Callable[[], bool],
) -> tuple[Float[Tensor, "E N V"], Int[Tensor, "N"]]:
    """Return the logits of every expert on a text, and the characters that came next.

    Args:
        model: The mixture.
        text: What to predict.
        block_size: Characters in a window, as it will be scored.
        most: Characters to predict at most, in windows spread evenly over the text.
        should_stop: Asked between passes.
    """
    model.eval()
    experts = list(model.experts.values())
    length = min(block_size, len(text) - 1)
    rows = max(1, chars_a_pass(model) // length)
    passes = list(spread_windows(len(text) - 1, length, most, rows))
    count = sum(len(one.starts) for one in passes) * length
    logits = torch.empty(len(experts), count, model.vocab_size)
    targets = torch.empty(count, dtype=torch.int64)
    done = 0
    for one in passes:
        ids = [text.read(int(start), length + 1) for start in one.starts]
        batch = torch.from_numpy(np.stack(ids).astype(np.int64)).to(model.device)
        here = slice(done, done + len(ids) * length)
        done = here.stop
        targets[here] = batch[:, 1:].flatten()
        for own, expert in zip(logits, experts, strict=True):
            check_stop(should_stop)
            own[here] = expert.read(batch[:, :-1]).flatten(0, 1)
    return logits, targets
