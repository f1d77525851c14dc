"""The mean of a mixer's weights over the end of a text, instead of the last ones.

Weights that go on learning follow the last characters closely, at the price of noise. A text from which
nothing is learned is predicted better with their mean (Polyak and Juditsky 1992, "Acceleration of
stochastic approximation by averaging"); one that is learned from, as well as with the last ones.
"""

import numpy as np

from charlm.models.bit_mixing import Mixer

WEIGHTS = ("weights", "final", "refined")  # arrays of a mixer; the others are counted
TIMES = 32  # the weights are added up


class MeanWeights:
    """Adds up the weights of a mixer, as integers: every machine finds the same mean.

    Args:
        mixer: The mixer.
        chars: The number of characters that the mean is over; `every` so many, call `add`.
    """

    def __init__(self, mixer: Mixer, chars: int) -> None:
        self.mixer = mixer
        self.every = max(1, chars // TIMES)
        self.count = 0
        self.sums = [np.zeros_like(getattr(mixer, name), np.int64) for name in WEIGHTS]

    def add(self) -> None:
        """Add the weights as they are now."""
        self.count += 1
        for total, name in zip(self.sums, WEIGHTS, strict=True):
            total += getattr(self.mixer, name)

    def use(self) -> None:
        """Let the mixer go on with the mean, if anything was added."""
        if self.count:
            for total, name in zip(self.sums, WEIGHTS, strict=True):
                getattr(self.mixer, name)[:] = (total + self.count // 2) // self.count
