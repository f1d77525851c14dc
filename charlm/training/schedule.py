"""The learning rate as a function of training progress."""

import math

from charlm.config import TrainConfig

WARM = 0.1  # share of a wall-clock budget after which the warm-up ends, however few updates fit


def learning_rate(train: TrainConfig, step: int, spent: float | None = None) -> float:
    """Return the learning rate of the update after `step` updates.

    Args:
        train: Peak and final rate, warm-up, shape.
        step: Updates done so far, from 0.
        spent: Share of the wall-clock budget used, in [0, 1]; None when steps are counted.

    Returns:
        Rising linearly over `warmup_steps` (or a tenth of the budget), then by the schedule. The cosine with its warm-up is
        nanoGPT's, to the letter: Loshchilov and Hutter 2017, SGDR, equation 5, without restarts.
        `wsd` (warm-up, stable, decay) is Hu et al. 2024, MiniCPM, section 4.
    """
    if step < train.warmup_steps and (spent is None or spent < WARM):
        warm = (step + 1) / (train.warmup_steps + 1)
        return train.learning_rate * max(warm, 0.0 if spent is None else spent / WARM)
    if spent is None:
        spent = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    spent = min(max(spent, 0.0), 1.0)
    match train.schedule:
        case "constant":
            return train.learning_rate
        case "cosine":
            height = 0.5 * (1 + math.cos(math.pi * spent))
        case "wsd":
            height = min(1.0, (1 - spent) / train.DECAY_SHARE)
    return train.min_lr + height * (train.learning_rate - train.min_lr)
