"""How many threads a step uses in a budget of wall time, by how long steps take.

A step is cut into equal parts, one for each thread. On a busy machine one of the threads shares its
core with another program and all others wait for it, so fewer threads may be faster. The number
changes bits, so it changes only where the clock decides the bits anyway.
"""

from statistics import median

import torch

from charlm.errors import number_of

TRIED = 3  # steps with each number of threads, in a trial
SLOWER = 1.5  # times the usual length of a step: a reason for a new trial
BETTER = 0.9  # times the length with the present number: a reason to change it
LATEST = 5  # steps that tell how long a step takes now
PAUSE = 30  # steps between trials, at least


class ThreadChoice:
    """Chooses the number of threads of a run's steps, at its start and when steps slow down."""

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        self._numbers = sorted({self.most, max(1, self.most - 1), -(-self.most // 2)})
        self._untried: list[int] = []  # the last one comes next
        self._taken: dict[int, list[float]] = {}
        self._latest: list[float] = []
        self._usual = 0.0  # seconds; 0: no trial yet
        self._since = 0

    def restore(self) -> None:
        """Give the process all its threads again."""
        torch.set_num_threads(self.most)

    def took(self, seconds: float) -> str | None:
        """Note how long a step took, and set the number for the next; return a remark on a change."""
        if self.most == 1:
            return None
        now = torch.get_num_threads()
        if self._taken:  # a trial is under way
            self._taken[now].append(seconds)
        elif not self._trial_due(now, seconds):
            return None
        else:  # this step filled caches, or was one of the slow ones
            self._taken = {number: [] for number in self._numbers}
            self._untried = [number for number in self._numbers for _ in range(TRIED)]
            self._present = now
        if self._untried:
            torch.set_num_threads(self._untried.pop())
            return None
        return self._choose()

    def _trial_due(self, now: int, seconds: float) -> bool:
        """Tell whether steps became slower, or more threads may be faster again."""
        self._latest = [*self._latest, seconds][-LATEST:]
        self._since += 1
        if not self._usual:
            return True
        slow = len(self._latest) == LATEST and median(self._latest) > SLOWER * self._usual
        return self._since >= PAUSE and (slow or now < self.most)

    def _choose(self) -> str | None:
        """End a trial: change the number if another one was clearly faster."""
        taken = {number: median(found) for number, found in self._taken.items()}
        before, best = self._present, min(taken, key=lambda number: taken[number])
        if taken[best] > BETTER * taken[before]:
            best = before
        torch.set_num_threads(best)
        self._taken, self._latest, self._since, self._usual = {}, [], 0, taken[best]
        if best == before:
            return None
        return (
            f"a step takes {taken[before]:.2g} s with {number_of(before, 'thread')} and "
            f"{taken[best]:.2g} s with {best}, so {best} will be used while that lasts"
        )
