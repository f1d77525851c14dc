"""What each strategy asks of a process in a step: what it holds, sends, and updates.

This is the only place that says so; it follows `charlm.training.summing` and
`charlm.training.sharding`. P processes, N weights, G bytes of their gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass

from charlm.costs.work import FLOAT, Work

MOMENTS = 2  # of AdamW, each as large as the weights (Rajbhandari et al. 2020, ZeRO, section 3.1)
INDEX = 8  # bytes of the number of a row
SHARED = 2 * 1.25  # files of a process in shared memory, and their size (`charlm.training.slots`)


@dataclass(frozen=True)
class Demand:
    """What a process does in a step, besides its micro-batches.

    Attributes:
        sent: Bytes that it sends; it receives as many.
        calls: Exchanges that follow one another. One that brings data to all and back counts twice.
        held: Bytes in memory, by purpose.
        adamw: Share of AdamW's update that it computes.
        muon: Share of Muon's.
        split: Whether weights are split; then a CPU computes without `charlm.fused`, and FSDP2 exchanges.
        overlaps: Whether a GPU exchanges while it computes.
        by_gloo: What of `sent` and `calls` CPUs exchange by PyTorch's gloo, if FSDP2 does not: the rest
            goes through memory that they share.
    """

    sent: float
    calls: float
    held: dict[str, float]
    adamw: float = 1.0
    muon: float = 1.0
    split: bool = False
    overlaps: bool = False
    by_gloo: tuple[float, float] = (0.0, 0.0)

    @property
    def held_bytes(self) -> float:
        """Bytes in memory."""
        return sum(self.held.values())


Strategy = Callable[[Work, int, int, bool], Demand]


def none(work: Work, processes: int, micro: int, cores: bool) -> Demand:
    """One process: it sends nothing."""
    return Demand(0.0, 0.0, _whole(work, processes, micro, cores))


def exact(work: Work, processes: int, micro: int, cores: bool) -> Demand:
    """`ddp` in the order of the tree: each process collects the sums of all, (P - 1) G bytes.

    Each orthogonalises 1/P of the hidden matrices, and collects the rest.
    """
    held = _whole(work, processes, micro, cores)
    micro_batches = work.windows // processes // micro
    branches = micro_batches.bit_length() - 1  # sums that wait for a neighbour
    own = _gradients(work, work.windows / processes, cores)
    held["exchange"] = own * (_collected(processes, cores) + branches)
    held["exchange"] += _matrices(work, processes, cores)
    sent = (processes - 1) * own + _results(work, processes)
    return Demand(sent, _gathers(work), held, muon=1 / processes)


def reduced(work: Work, processes: int, micro: int, cores: bool) -> Demand:
    """`ddp` in any order: a ring moves 2 (P - 1)/P G bytes (Patarasuk and Yuan 2009, theorem 1).

    The rows of a table are collected from all processes, as in the tree.
    """
    held = _whole(work, processes, micro, cores)
    dense = FLOAT * (work.dense if cores else work.weights)
    rows = _gradients(work, work.windows / processes, cores) - dense
    held["exchange"] = dense + rows * _collected(processes, cores)
    held["exchange"] += _matrices(work, processes, cores)
    ring = 2 * (processes - 1) / processes * dense
    sent = ring + (processes - 1) * rows + _results(work, processes)
    return Demand(sent, _gathers(work) + 2, held, muon=1 / processes, by_gloo=(ring, 2))


def fsdp2(work: Work, processes: int, micro: int, cores: bool) -> Demand:
    """Split weights: a process holds 1/P of weights, gradients and moments, and one whole block.

    Blocks are collected before the forward and before the backward pass of each micro-batch, the rest
    once; gradients are added up once in a step (Zhao et al. 2023, PyTorch FSDP). Each moves (P - 1)/P of
    their bytes: about 3 (P - 1)/P G in all with one micro-batch. Muon collects the means of the
    hidden matrices, and each process orthogonalises all of them.
    """
    share = 1 / processes
    micro_batches = work.windows // processes // micro
    rest = work.weights - work.in_blocks
    collected = micro_batches * (2 * work.in_blocks + rest)
    moved = collected + work.weights + work.hidden
    a_block = work.in_blocks / max(1, work.blocks)
    held = {
        "weights": FLOAT * work.weights * share,
        "gradients": FLOAT * work.weights * share,
        "optimizer": MOMENTS * FLOAT * work.weights * share,
        "activations": float(micro * work.kept),
        "constants": float(work.constants),
        # Whole: the rest, the block that is computed and the next one, and gradients: of one block,
        # but of all where several micro-batches are added up first. Muon: all hidden matrices.
        "exchange": FLOAT
        * (rest + 2 * a_block + (work.weights if micro_batches > 1 else rest + a_block))
        + FLOAT * work.hidden,
    }
    calls = micro_batches * (2 * work.blocks + 1) + work.blocks + 4
    sent = (1 - share) * FLOAT * moved
    return Demand(sent, calls, held, adamw=share, split=True, overlaps=True)


STRATEGIES: dict[str, Strategy] = {
    "none": none,
    "ddp exact": exact,
    "ddp reduced": reduced,
    "fsdp2": fsdp2,
}


def _collected(processes: int, cores: bool) -> float:
    """Return how many times what a process gives away is held by each.

    Those of all, and its own in one piece; on one machine only its own, in two files.
    """
    if processes == 1:
        return 1
    return SHARED if cores else processes + 1


def _matrices(work: Work, processes: int, cores: bool) -> float:
    """Return the bytes of the hidden matrices that Muon, if it is shared on one machine, holds at once."""
    return FLOAT * work.hidden if cores and processes > 1 else 0.0


def _gathers(work: Work) -> float:
    """Return how many exchanges a step of `ddp` makes: to meet, of gradients, and of Muon's results."""
    return 3 if work.hidden else 2


def _results(work: Work, processes: int) -> float:
    """Return the bytes of Muon's results that a process collects from all others, or less in bfloat16."""
    return FLOAT * work.hidden * (processes - 1) / processes


def _gradients(work: Work, windows: float, cores: bool) -> float:
    """Return the bytes of the gradients of so many windows."""
    if not cores:
        return float(FLOAT * work.weights)
    return FLOAT * work.dense + work.rows(windows) * (FLOAT * work.width + INDEX)


def _whole(work: Work, processes: int, micro: int, cores: bool) -> dict[str, float]:
    """Return what a process holds that has all weights."""
    windows = work.windows / processes
    return {
        "weights": float(FLOAT * work.weights),
        "gradients": _gradients(work, windows, cores),
        "optimizer": float(MOMENTS * FLOAT * work.weights),
        "activations": float(micro * work.kept),
        "constants": float(work.constants),
    }
