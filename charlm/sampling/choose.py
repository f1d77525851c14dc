"""From logits to one character, in small pure steps. Each works on rows: (B, V)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keep_top_k(logits: Float[Tensor, "B V"], k: int) -> Float[Tensor, "B V"]:
    """Rule out all but the k likeliest characters of each row; exactly k, ties or not."""
    if k >= logits.shape[-1]:
        return logits
    values, indices = logits.topk(k)
    return torch.full_like(logits, -math.inf).scatter(-1, indices, values)


def keep_top_p(logits: Float[Tensor, "B V"], p: float) -> Float[Tensor, "B V"]:
    """Rule out all but the fewest likeliest characters that together have probability p.

    Nucleus sampling: Holtzman et al. 2020, "The curious case of neural text degeneration", 3.1.
    """
    values, indices = logits.sort(descending=True, stable=True)
    probabilities = values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of everything likelier than this one
    values = values.masked_fill(before >= p, -math.inf)
    values[:, 0] = logits.amax(dim=-1)  # the likeliest stays, however small p is
    return torch.full_like(logits, -math.inf).scatter(-1, indices, values)


def next_probabilities(
    logits: Float[Tensor, "B V"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "B V"]:
    """Return the distribution that the next character is drawn from, in float64.

    Args:
        logits: The model's, of any float type.
        temperature: Divides the logits; below 1 sharpens, 0 puts all on the likeliest character.
        top_k: Keep this many likeliest characters, at least 1.
        top_p: Of these, keep the likeliest that together have this probability, in (0, 1].
    """
    logits = logits.double()
    if temperature == 0:
        top_k, temperature = 1, 1.0
    # The largest becomes 0 first: a small temperature would otherwise overflow to infinity.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return logits.softmax(dim=-1)


def draw(probabilities: Float[Tensor, "B V"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Return, for each row, the character in whose share of [0, 1) its number falls.

    Inverting the distribution function takes one random number a row, so what a row draws does
    not depend on how many rows are drawn beside it.

    Args:
        probabilities: Rows that sum to 1 up to rounding.
        uniform: One number in [0, 1) for each row.
    """
    ends = probabilities.cumsum(dim=-1)
    total = ends[:, -1]
    # Rounding must not carry a number to the very end, behind the last possible character.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(ends, point[:, None], right=True)[:, 0]
