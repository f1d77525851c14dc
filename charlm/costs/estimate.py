"""The time and memory of a step by each strategy, and the best choice."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from charlm.config import Config
from charlm.config.shares import can_share, check_shares, start_one_of
from charlm.costs.demands import STRATEGIES, Demand
from charlm.costs.work import Work
from charlm.errors import UsageError

PAYS = 1.1  # times faster than any smaller number of processes: then more of them still pay


class Machine(Protocol):
    """What computes: `GPU` or `Cores`. All times are in seconds, of one process among `processes`."""

    @property
    def cores(self) -> bool:
        """Whether processes run on the cores of one machine.

        Then the gradient of a table holds only the rows that were looked up, and what processes
        exchange is in memory that they share.
        """

    def describe(self, processes: int) -> str:
        """Return a line about so many of them."""

    def pass_seconds(self, work: Work, micro: int, demand: Demand, processes: int) -> float:
        """Time a micro-batch, forward and back."""

    def update_seconds(self, work: Work, demand: Demand, processes: int) -> float:
        """Time the optimizers and the rest of a step."""

    def exchange_seconds(self, demand: Demand, processes: int) -> float:
        """Time the bytes that are sent."""

    def latency_seconds(self, demand: Demand, processes: int) -> float:
        """Time messages, whatever their size."""

    def fits(self, held: float, processes: int) -> bool:
        """Tell whether so many bytes in each process fit."""

    def hardware(self, processes: int) -> int:
        """Return how many times more hardware they are than one process has."""


@dataclass(frozen=True)
class Estimate:
    """A step by one strategy.

    Attributes:
        strategy: Its name in `STRATEGIES`.
        processes: How many train together.
        micro: Windows in a micro-batch.
        chars: In a batch.
        computing: Seconds of forward and backward passes.
        updating: Seconds of the optimizers.
        exchanging: Seconds in which bytes pass.
        waiting: Seconds of messages whatever their size.
        overlaps: Whether it exchanges while it computes.
        sent: Bytes that a process sends.
        held: Bytes that it holds, by purpose.
        fits: Whether these fit into memory.
    """

    strategy: str
    processes: int
    micro: int
    chars: int
    computing: float
    updating: float
    exchanging: float
    waiting: float
    overlaps: bool
    sent: float
    held: dict[str, float]
    fits: bool

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        exchange = self.exchanging + self.waiting
        both = max(self.computing, exchange) if self.overlaps else self.computing + exchange
        return both + self.updating

    @property
    def chars_per_second(self) -> float:
        """Characters a second of all processes together."""
        return self.chars / self.seconds

    @property
    def bytes_held(self) -> float:
        """Bytes that a process holds."""
        return sum(self.held.values())


def estimate(work: Work, machine: Machine, strategy: str, processes: int, micro: int) -> Estimate:
    """Estimate a step; the processes must be able to share its micro-batches."""
    demand = STRATEGIES[strategy](work, processes, micro, machine.cores)
    passes = work.windows // processes // micro
    return Estimate(
        strategy,
        processes,
        micro,
        work.batch_chars,
        passes * machine.pass_seconds(work, micro, demand, processes),
        machine.update_seconds(work, demand, processes),
        machine.exchange_seconds(demand, processes),
        machine.latency_seconds(demand, processes),
        demand.overlaps and machine.hardware(2) > 1,
        demand.sent,
        demand.held,
        machine.fits(demand.held_bytes, processes),
    )


def micro_batch(config: Config, processes: int) -> int:
    """Return the windows of a micro-batch: those of the configuration, or a process's whole share.

    Raises UsageError if so many processes cannot share the step.
    """
    train = config.train
    if train.micro_batch_size is not None:
        check_shares(train.batch_size // train.micro_batch_size, processes, train.in_order)
        return train.micro_batch_size
    if train.batch_size % processes:
        fitting = [n for n in range(1, train.batch_size + 1) if train.batch_size % n == 0]
        what = f"cannot share {train.batch_size} windows in a step"
        mend = start_one_of(fitting, "train.batch_size")
        raise UsageError(f"{processes:,} processes", what, mend)
    return train.batch_size // processes


def rows(config: Config, work: Work, machine: Machine, processes: int) -> list[Estimate]:
    """Return a step by each strategy, the first of them by one process.

    Raises UsageError if so many processes cannot share the step.
    """
    micro = micro_batch(config, processes)
    alone = micro_batch(config, 1)
    found = [estimate(work, machine, "none", 1, alone)]
    if processes > 1:
        micro_batches = work.windows // micro
        for name in several(work):
            if can_share(micro_batches, processes, name == "ddp exact"):
                found.append(estimate(work, machine, name, processes, micro))
    return found


def several(work: Work) -> list[str]:
    """Return the strategies of several processes that this model can be trained by."""
    return [name for name in STRATEGIES if name != "none" and (name != "fsdp2" or work.blocks)]


def choices(work: Work, machine: Machine, processes: int) -> Iterator[Estimate]:
    """Yield steps by each strategy and each size of micro-batch that so many processes can share."""
    share, left = divmod(work.windows, processes)
    for micro in range(1, share + 1) if not left else ():
        if share % micro:
            continue
        for name in several(work) if processes > 1 else ["none"]:
            if can_share(work.windows // micro, processes, name == "ddp exact"):
                yield estimate(work, machine, name, processes, micro)


def best(work: Work, machine: Machine, processes: int) -> Estimate | None:
    """Return the fastest step that fits into memory, of so many processes; None: none fits."""
    fitting = [one for one in choices(work, machine, processes) if one.fits]
    return min(fitting, key=lambda one: one.seconds, default=None)


def most_that_pay(work: Work, machine: Machine, most: int) -> Estimate | None:
    """Return the step of the largest number of processes, up to `most`, that still pays.

    A number pays if its step is faster than that of any smaller number by a tenth.
    """
    found: Estimate | None = None
    for processes in range(1, most + 1):
        one = best(work, machine, processes) if work.windows % processes == 0 else None
        if one and (found is None or found.seconds >= PAYS * one.seconds):
            found = one
    return found
