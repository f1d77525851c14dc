"""This machine as a device: what was measured on its cores, carried over to other numbers of processes."""

import math
from dataclasses import astuple, dataclass

from charlm.config.cores import own_cores
from charlm.config.memory import machine_bytes
from charlm.costs.demands import Demand
from charlm.costs.work import Work

MOST = 16  # processes that are timed together
MOST_FLOPS = 10**11  # of a micro-batch that is timed: a larger one takes longer with its windows
ROUND = 4  # micro-batches, about
A_CORE = 3e10  # operations a second: a guess, to say how long measuring takes


def timed_processes(processes: int) -> int:
    """Return how many processes are timed together, where so many are planned."""
    return 1 if processes == 1 else max(2, min(processes, own_cores(), MOST))


def timed_windows(flops: int, micro: int) -> int:
    """Return the windows of a micro-batch that is timed; `flops`: of a window."""
    return max(1, min(micro, MOST_FLOPS // max(1, flops)))  # a table has none


def turns_of_fsdp2(processes: int) -> float:
    """Return how many messages an exchange of FSDP2 takes as long as, however few bytes it sends.

    What is done around an exchange takes ten times as long as gloo's messages: four processes waited
    twice as long as two, each with as much of a core (docs/scale.md). Beyond four it is a guess.
    """
    return math.log2(processes)


def seconds_to_measure(work: Work, micro: int, processes: int) -> float:
    """Guess how long measuring takes: two rounds alone, in processes, and with split weights."""
    flops = work.flops * work.chars
    a_round = (ROUND * timed_windows(flops, micro) * flops + work.muon_flops) / A_CORE
    together = 0 if processes == 1 else 2 if work.blocks else 1
    return 2 * a_round * (1 / own_cores() + together)


@dataclass(frozen=True)
class Times:
    """Seconds of a process.

    Attributes:
        a_pass: Of a micro-batch, whatever its size: forward, back, and adding its gradients.
        a_window: Of each window of it, in addition.
        adamw: Of AdamW's update.
        muon: Of Muon's.
        rest: Of a step: windows to read, the norm of the gradients, clipping.
    """

    a_pass: float
    a_window: float
    adamw: float
    muon: float
    rest: float


@dataclass(frozen=True)
class Link:
    """A way between two processes.

    Attributes:
        latency: Seconds of a message, whatever its size.
        seconds_a_byte: In which a process collects what others give away, and adds it up; of FSDP2,
            a byte of the whole tensor.
    """

    latency: float
    seconds_a_byte: float


@dataclass(frozen=True)
class Cores:
    """The cores of one machine.

    Attributes:
        count: How many there are.
        alone: Times of one process with a thread for each core.
        together: Times of a process of one thread while each core has one.
        split: The same for weights that are split: no pass is fused, and all gradients are dense.
        shared: The way through memory that processes share.
        gloo: The way through PyTorch's gloo.
        fsdp2: The same with what FSDP2 does before and after: it copies into new memory, and back.
    """

    count: int
    alone: Times
    together: Times
    split: Times
    shared: Link
    gloo: Link
    fsdp2: Link

    cores = True  # see `Machine`

    def describe(self, processes: int) -> str:
        """Return a line about so many processes here."""
        threads = self.threads(processes)
        each = "1 thread" if threads == 1 else f"{threads} threads"
        of = "1 process" if processes == 1 else f"{processes:,} processes"
        cores = "1 core" if self.count == 1 else f"{self.count} cores"
        return f"{of} of {each} (OMP_NUM_THREADS={threads}) on {cores}, measured here"

    def threads(self, processes: int) -> int:
        """Return how many threads each process should have."""
        return max(1, self.count // processes)

    def pass_seconds(self, work: Work, micro: int, demand: Demand, processes: int) -> float:
        """Return the seconds of a micro-batch, forward and back."""
        times, crowd = self._times(demand, processes)
        return crowd * (times.a_pass + micro * times.a_window)

    def update_seconds(self, work: Work, demand: Demand, processes: int) -> float:
        """Return the seconds of the optimizers and the rest of a step."""
        times, crowd = self._times(demand, processes)
        return crowd * (times.adamw * demand.adamw + times.muon * demand.muon + times.rest)

    def exchange_seconds(self, demand: Demand, processes: int) -> float:
        """Return the seconds of exchanging: cores copy each byte, so processes wait for cores, too."""
        exchanges = self._exchanges(demand, processes)
        seconds = sum(sent * link.seconds_a_byte for link, sent, _ in exchanges)
        return seconds * self._crowd(processes)

    def latency_seconds(self, demand: Demand, processes: int) -> float:
        """Return the seconds of messages whatever their size: P - 1 in each exchange of a ring."""
        turns = turns_of_fsdp2(processes) if demand.split else processes - 1
        exchanges = self._exchanges(demand, processes)
        seconds = sum(calls * turns * link.latency for link, _, calls in exchanges)
        return seconds * self._crowd(processes)

    def _exchanges(self, demand: Demand, processes: int) -> list[tuple[Link, float, float]]:
        """Return what passes each link: bytes, and exchanges.

        FSDP2 copies whole tensors in and out, also the part that is not sent.
        """
        if demand.split:
            return [(self.fsdp2, demand.sent * processes / (processes - 1), demand.calls)]
        sent, calls = demand.by_gloo
        return [(self.gloo, sent, calls), (self.shared, demand.sent - sent, demand.calls - calls)]

    def fits(self, held: float, processes: int) -> bool:
        """Tell whether so many bytes in each process fit into the machine."""
        return held * processes <= machine_bytes()

    def hardware(self, processes: int) -> int:
        """Return 1: one process has all cores, too."""
        return 1

    def _crowd(self, processes: int) -> float:
        """Return how many processes share a core."""
        return max(1.0, processes / self.count)

    def _times(self, demand: Demand, processes: int) -> tuple[Times, float]:
        """Return times, and a factor: with fewer processes than cores, threads share the work.

        What a step takes of all cores together is then assumed to stay as it was with one process. Split
        weights were only timed in processes of one thread; threads are assumed to help them as they help
        others.
        """
        if demand.split and processes < self.count:
            return self.split, processes * sum(astuple(self.alone)) / sum(astuple(self.together))
        if demand.split:
            return self.split, self._crowd(processes)
        if processes < self.count:
            return self.alone, float(processes)
        return self.together, self._crowd(processes)
