"""Whether an exported model computes the same: its logits beside ours, before it is put in place."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.errors import MachineError
from charlm.evaluation.predicting import evaluating
from charlm.models import LanguageModel

CHARS = 512  # that are compared
SEED = 0

Logits = Callable[[Int[Tensor, "B T"]], Float[Tensor, "B T V"]]


def random_ids(model: LanguageModel, length: int) -> Int[Tensor, "B T"]:
    """Return random texts of this length, at least 512 characters in all."""
    generator = torch.Generator().manual_seed(SEED)
    shape = -(-CHARS // length), length
    return torch.randint(model.vocab_size, shape, generator=generator)


def largest_difference(model: LanguageModel, other: Logits) -> float:
    """Return the largest difference between the logits of two models after 512 random characters.

    They are read in windows of the block.
    """
    idx = random_ids(model, min(model.block_size, CHARS))
    with evaluating(model), torch.no_grad():
        ours = model(idx.to(model.device)).float().cpu()
        theirs = other(idx).float().cpu()
    return float((ours - theirs).abs().max())


def check_going_on(what: str, model: LanguageModel, other: Logits, most: float) -> float:
    """Like `check_same`, for texts of more than three blocks, and at least 512 characters in all."""
    idx = random_ids(model, 3 * model.block_size + 1)
    with evaluating(model), torch.no_grad():
        ours, _ = model.go_on(idx, model.start(len(idx)))
        return _checked(what, float((ours - other(idx)).abs().max()), most)


def check_same(what: str, model: LanguageModel, other: Logits, most: float) -> float:
    """Return the largest difference between two models' logits, or raise MachineError above `most`."""
    return _checked(what, largest_difference(model, other), most)


def _checked(what: str, found: float, most: float) -> float:
    if not found <= most:
        what_differs = f"its logits differ from the run's by {found:.2g}, more than {most:.2g}"
        raise MachineError(what, what_differs, "nothing was written; this is a fault of charlm")
    return found
