"""Times of this machine, measured: of one process, and of one for each core at once.

A process that computes while the others do is slower than alone: cores share memory and clock. So the
times of many are taken in as many processes, which exchange tensors as training does.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import FileStore  # type: ignore[attr-defined]

from charlm.config import Config, changed
from charlm.config.cores import own_cores
from charlm.costs.cores import (
    Cores,
    Link,
    Times,
    timed_processes,
    timed_windows,
    turns_of_fsdp2,
)
from charlm.errors import MachineError, Phrase, Setting
from charlm.models import build_model
from charlm.models.ngram_embedding import NGramEmbedding
from charlm.text import Batches, IdArray
from charlm.training.gradients import GradientLearner
from charlm.training.kept_memory import keep_memory
from charlm.training.learner import Clock
from charlm.training.loading import load_kernels
from charlm.training.optimizers import set_learning_rate
from charlm.training.ranks import ONE, Group, Ranks
from charlm.training.summing import TreeSum

SECONDS = 2.0  # of all rounds of a process
FEWEST, ROUNDS = 3, 9
LONG = 10.0  # seconds after which fewer rounds are enough: of a large model, one is
SIDE = 1 << 10  # of the tensor that is exchanged
EXCHANGES = 7
TEXT = 1 << 16  # characters
MEND = Phrase("free some memory, or ask for {}", Setting("gpus", "h100"))

Measured = list[tuple[float, ...]]  # seconds of each round


def measured(
    config: Config, vocab_size: int, micro: int, processes: int, split: bool = True
) -> Cores:
    """Measure this machine for a model; this takes some seconds, or minutes if the model is large.

    Args:
        config: Of a model that is trained by gradients on a CPU.
        vocab_size: Its alphabet.
        micro: Windows in a micro-batch.
        processes: How many are planned; 1: measure no others.
        split: Whether to measure what weights that are split need, too.

    Raises:
        MachineError: A process was killed.
    """
    for _ in load_kernels(config):  # once, and not in each process
        pass
    micro = timed_windows(config.model.flops_per_char(vocab_size) * config.model.block_size, micro)
    count, workers = own_cores(), timed_processes(processes)
    alone = _times([_rounds(config, vocab_size, micro, ONE)], micro)
    if processes == 1:
        return Cores(count, alone, alone, alone, *[Link(0.0, 0.0)] * 3)
    with TemporaryDirectory(prefix="charlm-") as folder, _for_processes():
        job = config.model_dump(), vocab_size, micro, workers, split, str(Path(folder) / "store")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            # None begins before all have met, so each is in a process of its own.
            try:
                found = list(pool.map(_worker, range(workers), [job] * workers))
            except BrokenExecutor:
                what = f"one of the {workers} processes was killed, maybe because memory was short"
                raise MachineError("measuring", what, MEND) from None
    crowd = max(1.0, workers / count)
    fused, dense, *links = zip(*found, strict=True)
    together = _times(list(fused), micro, crowd)
    apart = _times(list(dense), micro, crowd) if split else together
    return Cores(count, alone, together, apart, *(_slower(link, crowd) for link in links))


def _worker(rank: int, job: tuple[Any, ...]) -> tuple[Measured, Measured, Link, Link, Link]:
    """Return what one of several processes measures: rounds, the same for split weights, and links."""
    document, vocab_size, micro, workers, split, store = job
    torch.set_num_threads(1)
    group = Group(FileStore(store, workers), rank, workers)
    config = Config.model_validate(document)
    group.open()
    try:
        fused = _rounds(config, vocab_size, micro, group)
        unfused = changed(config, ["run.fused=false"])
        dense = _rounds(unfused, vocab_size, micro, group, dense=True) if split else fused

        def collect(x: torch.Tensor) -> None:
            tree: TreeSum[torch.Tensor] = TreeSum(torch.add)
            for (part,) in group.gather([x]):
                tree.push(part)
            tree.total()

        others = workers - 1
        shared = _link(lambda side: partial(collect, torch.ones(side, side)), others, others)
        # A ring that adds up makes 2 (P - 1) turns, each with a P-th of the tensor. FSDP2 makes half
        # of them before it computes and half after it, in two exchanges of the whole tensor.
        sent = 2 * others / workers
        gloo = _link(
            lambda side: partial(dist.all_reduce, torch.ones(side, side)), 2 * others, sent
        )
        fsdp2 = _link(_layer, 2 * turns_of_fsdp2(workers), 2.0) if split else gloo
    finally:
        group.close()
    return fused, dense, shared, gloo, fsdp2


def _layer(side: int) -> Callable[[], None]:
    """Return a forward and backward pass of a split matrix, which does little but exchange it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layer: Any = fully_shard(
        nn.Linear(side, side, bias=False), mesh=init_device_mesh("cpu", (dist.get_world_size(),))
    )
    x = torch.ones(1, side)

    def both() -> None:
        layer(x).sum().backward()
        layer.zero_grad()

    return both


def _link(exchange: Callable[[int], Callable[[], object]], messages: float, tensors: float) -> Link:
    """Time an exchange of so many messages, in which a process sends so many times a tensor.

    `exchange` takes the side of a square tensor, and returns what is timed.
    """
    small, large = (
        median([_seconds(work) for _ in range(EXCHANGES)][1:])
        for work in (exchange(1), exchange(SIDE))
    )
    return Link(small / messages, max(0.0, large - small) / (tensors * 4 * SIDE**2))


def _slower(links: tuple[Link, ...], crowd: float) -> Link:
    """Return the link of the process for which it was slowest, had each a core of its own."""
    latency, a_byte = (max(x) for x in zip(*map(astuple, links), strict=True))
    return Link(latency / crowd, a_byte / crowd)


def _rounds(
    config: Config, vocab_size: int, micro: int, ranks: Ranks, dense: bool = False
) -> Measured:
    """Time parts of a step, again and again, while other processes do the same.

    They are: gradients of half a micro-batch, of one, and of two; AdamW's update, and Muon's.
    """
    keep_memory(config.run.keep_memory)
    model = build_model(config.model, vocab_size, config.run.seed)
    ids = np.random.default_rng(0).integers(vocab_size, size=TEXT + config.model.block_size)
    one, half, two = (
        _learner(config, model, IdArray(ids), windows, min(windows, micro))
        for windows in (micro, max(1, micro // 2), 2 * micro)
    )
    for part in model.modules():  # after the learners, whose optimizers let tables be sparse
        if dense and isinstance(part, NGramEmbedding):
            part.sparse = False
    set_learning_rate(one.optimizers.values(), 0.0)
    updates = [one.optimizers[name].step for name in ("adamw", "muon") if name in one.optimizers]
    parts: list[Callable[[], object]] = [half.gradients, two.gradients, one.gradients, *updates]

    def a_round() -> tuple[float, ...]:
        taken = []
        for part in parts:
            ranks.told(0.0)  # all begin together
            taken.append(_seconds(part))
        return tuple(taken)

    a_round()  # loads kernels, makes moments and fills caches
    found: Measured = []
    began = time.perf_counter()
    while len(found) < ROUNDS:
        spent = ranks.told(time.perf_counter() - began)
        if found and spent >= (SECONDS if len(found) >= FEWEST else LONG):
            break
        found.append(a_round())
    one.close()
    return found


def _learner(
    config: Config, model: Any, text: IdArray, windows: int, micro: int
) -> GradientLearner:
    train = config.train.model_copy(
        update={"batch_size": windows, "micro_batch_size": micro, "parallel": "none"}
    )
    config = config.model_copy(update={"train": train})
    batches = Batches(text, config.model.block_size, windows, config.run.seed)
    return GradientLearner(config, model, batches, Clock(time.perf_counter()))


def _slowest(found: list[Measured]) -> list[float]:
    """Return the median of each part, where each round takes as long as its slowest process."""
    rounds = [tuple(map(max, zip(*same, strict=True))) for same in zip(*found, strict=True)]
    return [median(column) for column in zip(*rounds, strict=True)]


def _a_pass(found: list[Measured]) -> float:
    """Return the seconds of a micro-batch."""
    _, two, one, *_ = _slowest(found)
    return max(two - one, one / 4)


def _times(found: list[Measured], micro: int, crowd: float = 1.0) -> Times:
    """Return the times of a process that has 1/crowd of a core."""
    half, _, one, adamw, *muon = _slowest(found)
    whole = _a_pass(found)
    a_window = min(max(0.0, one - half) / max(1, micro - micro // 2), whole / micro)
    a_pass, rest = whole - micro * a_window, max(0.0, one - whole)
    return Times(*(x / crowd for x in (a_pass, a_window, adamw, sum(muon), rest)))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@contextmanager
def _for_processes() -> Iterator[None]:
    """Let processes that begin now have one thread each, as torchrun does.

    They import nothing from the current folder unless this process does.
    """
    names = ("OMP_NUM_THREADS", "PYTHONSAFEPATH")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)
