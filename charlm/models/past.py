"""What attention has read, kept: the next character then costs one position instead of a window.

Keys and values of characters that were read do not change when more are read, as long as all of
them stay in view. When the window is full there are two ways on:

    it slides     where positions are told apart by their distance alone (`modern`): each character
                  sees the last `block_size` at every layer, the oldest fall out one by one
    it is halved  where each position has an embedding of its own (`gpt2` and the lessons): what
                  was read would have to be read anew at every character, all of it one place
                  further left. So half of it is forgotten at once and the other half read again,
                  once in half a block: two positions a character, where nanoGPT reads a block
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class KeysValues:
    """Of one layer, in memory that is taken once.

    Args:
        slots: Characters that there is room for.
        window: How far back a character sees, itself included.
    """

    def __init__(self, slots: int, window: int) -> None:
        self.slots = slots
        self.window = window
        self.used = 0
        self.held: Tensor | None = None

    def add(
        self, key: Float[Tensor, "B H n D"], value: Float[Tensor, "B H n D"]
    ) -> tuple[Float[Tensor, "B H S D"], Float[Tensor, "B H S D"], Bool[Tensor, "n S"] | None]:
        """Take n more, at most `window`.

        Returns:
            Keys and values of all that the first of the n sees, up to the last of them, and the
            mask that says which of these each sees; None: all.
        """
        n = key.shape[-2]
        if self.held is None:
            shape = (2, *key.shape[:2], self.slots, key.shape[-1])
            self.held = torch.empty(shape, dtype=key.dtype, device=key.device)
        first, used, end = self.make_room(n)
        self.held[0, :, :, used:end] = key
        self.held[1, :, :, used:end] = value
        keys, values = self.held[:, :, :, first:end]
        return keys, values, None if n == 1 else band(n, used - first, self.window, key.device)

    def make_room(self, n: int) -> tuple[int, int, int]:
        """Count n more as taken, at most `window`.

        Returns:
            The first slot that the first of them sees, their own first, and the one after them.
        """
        if self.used + n > self.slots:
            # Each copy frees slots - window of them, so its cost is shared by as many characters.
            assert self.held is not None, "there is room for a window"
            last = self.held[..., self.used - self.window + 1 : self.used, :].clone()
            self.used = self.window - 1
            self.held[..., : self.used, :] = last
        used, self.used = self.used, self.used + n
        return max(0, used + 1 - self.window), used, self.used


def band(n: int, before: int, window: int, device: torch.device) -> Bool[Tensor, "n S"]:
    """Return which of `before` + n characters each of the last n sees: itself, and those before."""
    query = torch.arange(before, before + n, device=device)[:, None]
    key = torch.arange(before + n, device=device)
    return (key <= query) & (key > query - window)


def halved(length: int, block_size: int) -> int:
    """Return how many characters are in view when `length` are read one by one, or at once.

    All, up to a block. From there on the view begins further on by half a block whenever it would
    become longer.
    """
    half = max(1, block_size // 2)
    moves = max(0, -(-(length - block_size) // half))
    return length - moves * half
