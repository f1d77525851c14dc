"""GPUs by the numbers that their makers publish, and assumptions about how much of these is reached.

Dense bfloat16 without sparsity; links in one direction. Nothing here was measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2

from charlm.costs.demands import Demand
from charlm.costs.work import Work
from charlm.errors import Setting, UsageError

# Assumptions. Llama 3 reached 38 to 43 % of the peak (Grattafiori et al. 2024, table 4).
SHARE = 0.4  # of the peak, in large products
REACHED = 0.8  # of a link's bandwidth and of the memory's
LAUNCH = 5e-6  # seconds in which a GPU can be given a kernel, at least
KERNELS = 100  # of a block, forward and back, without compiling
NEAR, FAR = 5e-6, 15e-6  # seconds of a message inside a node, and between nodes
MOVED = 28  # bytes that AdamW reads and writes for each weight: 4 numbers read, 3 written


@dataclass(frozen=True)
class GPU:
    """A device by published numbers.

    Attributes:
        name: With its form.
        peak: FLOP/s, dense bfloat16.
        memory: Bytes.
        memory_rate: Bytes/s.
        inside: Bytes/s that it sends to the others of its node.
        between: Bytes/s that it sends to other nodes: its share of the node's network.
        source: Where the numbers are published.
        share: Of the peak that is reached: assumed.
        in_node: Devices in a node.
    """

    name: str
    peak: float
    memory: float
    memory_rate: float
    inside: float
    between: float
    source: str
    share: float = SHARE
    in_node: int = 8

    cores = False  # see `Machine`; tables are dense, as memory is fast and calls are slow

    def describe(self, processes: int) -> str:
        """Return a line about so many of them."""
        peak = f"{self.share:g} of {self.peak / 1e12:,.0f} TFLOP/s is assumed"
        return f"{processes:,} x {self.name}: {peak}, {REACHED:g} of each bandwidth"

    def pass_seconds(self, work: Work, micro: int, demand: Demand, processes: int) -> float:
        """Return the seconds of a micro-batch, forward and back.

        Kernels are computed while the next are launched; the slower of both counts.
        """
        computing = micro * work.chars * work.flops / (self.peak * self.share)
        return max(computing, LAUNCH * KERNELS * (work.blocks + 1))

    def update_seconds(self, work: Work, demand: Demand, processes: int) -> float:
        """Return the seconds of the optimizers: AdamW moves memory, Muon multiplies."""
        moved = MOVED * (work.weights - work.hidden) * demand.adamw / (self.memory_rate * REACHED)
        hidden = MOVED * work.hidden / (self.memory_rate * REACHED)
        multiplied = work.muon_flops / (self.peak * self.share)
        return moved + (hidden + multiplied) * demand.muon + LAUNCH * KERNELS

    def exchange_seconds(self, demand: Demand, processes: int) -> float:
        """Return the seconds in which what is sent passes the slowest link of a ring."""
        rate = self.inside if processes <= self.in_node else self.between
        return demand.sent / (rate * REACHED)

    def latency_seconds(self, demand: Demand, processes: int) -> float:
        """Return the seconds of messages whatever their size (alpha of Hockney 1994).

        log2 P of them in each exchange, as in the trees of NCCL (Sanders et al. 2009, "Two-tree
        algorithms").
        """
        inside = min(processes, self.in_node)
        hops = NEAR * ceil(log2(inside)) + FAR * ceil(log2(max(1, processes / self.in_node)))
        return demand.calls * hops

    def fits(self, held: float, processes: int) -> bool:
        """Tell whether so many bytes fit."""
        return held <= self.memory

    def hardware(self, processes: int) -> int:
        """Return how many times more hardware they are than what one process has."""
        return processes


TB, GB = 1e12, 1e9
PCIE4 = 32 * GB  # in one direction, 16 lanes
GPUS: Mapping[str, GPU] = {
    "a100": GPU(
        "A100 SXM 80 GB",
        312e12,
        80 * GB,
        2.039 * TB,
        300 * GB,
        25 * GB,
        "NVIDIA A100 datasheet; DGX A100 datasheet (8 x 200 Gb/s)",
    ),
    "h100": GPU(
        "H100 SXM 80 GB",
        989e12,
        80 * GB,
        3.35 * TB,
        450 * GB,
        50 * GB,
        "NVIDIA H100 datasheet; DGX H100 datasheet (8 x 400 Gb/s)",
    ),
    "h200": GPU(
        "H200 SXM 141 GB",
        989e12,
        141 * GB,
        4.8 * TB,
        450 * GB,
        50 * GB,
        "NVIDIA H200 datasheet; DGX H200 datasheet (8 x 400 Gb/s)",
    ),
    "b200": GPU(
        "B200 SXM 180 GB",
        2250e12,
        180 * GB,
        8 * TB,
        900 * GB,
        50 * GB,
        "NVIDIA DGX B200 datasheet (8 x 400 Gb/s)",
    ),
    "l4": GPU(
        "L4 24 GB",
        121e12,
        24 * GB,
        0.3 * TB,
        PCIE4,
        1.5625 * GB,
        "NVIDIA L4 datasheet; Google Cloud g2-standard-96 (8 GPUs, 100 Gb/s)",
    ),
    "l40s": GPU(
        "L40S 48 GB",
        362e12,
        48 * GB,
        0.864 * TB,
        PCIE4,
        12.5 * GB,
        "NVIDIA L40S datasheet; a network of 8 x 100 Gb/s is assumed",
    ),
    "rtx4090": GPU(
        "GeForce RTX 4090 24 GB",
        165.2e12,
        24 * GB,
        1.008 * TB,
        PCIE4,
        1.5625 * GB,
        "NVIDIA Ada GPU architecture whitepaper; 8 in a node with 100 Gb/s are assumed",
    ),
}


def gpu(kind: str) -> GPU:
    """Return a GPU by its kind, in any case, or raise UsageError, which names the kinds."""
    found = GPUS.get(kind.lower())
    if found is None:
        raise UsageError(Setting("gpus"), f"unknown kind {kind!r}", f"choose {', '.join(GPUS)}")
    return found
