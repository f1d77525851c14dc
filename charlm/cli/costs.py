"""What `charlm explain --processes` prints: a step in several processes, by each strategy."""

import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from charlm.cli import output
from charlm.cli.signals import load_torch
from charlm.costs.written import BYTES, COUNTS, TIMES, written
from charlm.errors import MachineError, Phrase, Setting, UsageError, number_of

if TYPE_CHECKING:
    from charlm.config import Config
    from charlm.costs.devices import GPU
    from charlm.costs.estimate import Estimate, Machine
    from charlm.costs.work import Work

COLUMNS = 80
MOST = 4096  # processes of which it is asked whether they pay
TITLES = ("strategy", "micro", "step", "chars/s", "speed-up", "of ideal", "memory", "sent")


def chosen_gpu(kind: str | None, share: float | None) -> "GPU | None":
    """Return a kind of GPU, of whose peak a share is reached; UsageError if it is unknown."""
    from charlm.costs.devices import gpu

    if kind is None:
        if share is not None:
            what = "a share of a GPU's peak, but this machine is measured"
            raise UsageError(Setting("share", share), what, "add --gpus KIND")
        return None
    found = gpu(kind)
    return found if share is None else replace(found, share=share)


def check_shared(config: "Config", processes: int) -> None:
    """Raise UsageError if so many processes cannot share a step, as training does."""
    from charlm.costs.estimate import micro_batch

    if config.model.trained_by == "gradients":
        micro_batch(config, processes)


def explain_costs(
    config: "Config", vocab: int, processes: int, gpu: "GPU | None", json: bool
) -> None:
    """Print a step of one model in so many processes, on GPUs or on the cores of this machine.

    Raises:
        UsageError: So many processes cannot share the step.
        MachineError: They do not fit into this machine's memory, so nothing can be measured, or one of
            them was killed.
    """
    from charlm.costs.estimate import best, most_that_pay, rows
    from charlm.costs.work import work_of

    if config.model.trained_by != "gradients":
        _explain_one_process(config, processes, json)
        return
    work = work_of(config, vocab)
    machine: Machine = gpu or _measured(config, work, vocab, processes)
    found = rows(config, work, machine, processes)
    alone = best(work, machine, 1)
    chosen = best(work, machine, processes)
    if alone and (chosen is None or alone.seconds <= chosen.seconds):
        chosen = alone
    pays = most_that_pay(work, machine, min(work.windows, MOST))
    base = found[0]
    if json:
        facts = {
            "model": config.model.type,
            "weights": work.weights,
            "batch_windows": work.windows,
            "batch_chars": work.batch_chars,
            "processes": processes,
            "machine": machine.describe(processes),
            "strategies": [_as_json(one, base, machine) for one in found],
            "best": chosen and _as_json(chosen, base, machine),
            "most_that_pay": pays and _as_json(pays, base, machine),
        }
        output.result_json(facts)
        return
    windows = f"{number_of(work.windows, 'window')} of {work.chars:,}"
    output.result(f"{config.model.type}: {work.weights:,} weights, a batch of {windows}")
    output.result(f"{textwrap.fill(machine.describe(processes), COLUMNS)}\n")
    cells = [TITLES, *(_cells(one, base, machine) for one in found)]
    for line in output.aligned(cells, right=range(1, 8), shorten=()):
        output.result(line)
    if not all(one.fits for one in found):
        output.result("!: does not fit into memory")
    output.result("")
    for said in (_best(chosen, base), _pays(pays, work, machine)):
        output.result(textwrap.fill(said, COLUMNS))


def _explain_one_process(config: "Config", processes: int, json: bool) -> None:
    """Say that several processes do not train such a model."""
    kind = config.model.type
    if json:
        output.result_json({"model": kind, "processes": processes, "strategies": []})
        return
    how = "its experts are trained one after another" if config.model.members() else "it is counted"
    output.result(f"{kind}: one process trains it, because {how}")


def _measured(config: "Config", work: "Work", vocab: int, processes: int) -> "Machine":
    """Measure this machine, if the processes that are timed fit into its memory."""
    from charlm.config.cores import cores_are_taken
    from charlm.config.memory import human_bytes, machine_bytes
    from charlm.costs.cores import seconds_to_measure, timed_processes, timed_windows
    from charlm.costs.demands import none
    from charlm.costs.estimate import micro_batch
    from charlm.costs.work import FLOAT

    micro, split = micro_batch(config, processes), work.blocks > 0
    # Where weights are split, the gradient of a table is dense. Two micro-batches are added up.
    timed = timed_windows(work.flops * work.chars, micro)
    needed = none(work, 1, timed, not split).held_bytes + FLOAT * work.weights
    needed *= timed_processes(processes)
    if needed > machine_bytes():
        what = (
            f"measuring takes about {human_bytes(round(needed))} of memory, and this process may "
        )
        what += f"use {human_bytes(machine_bytes())}"
        raise MachineError("model and train", what, Phrase("ask for {}", Setting("gpus", "h100")))
    minutes = round(seconds_to_measure(work, micro, processes) / 60)
    long = f"about {number_of(minutes, 'minute')}" if minutes else "some seconds"
    output.note(f"measuring this machine for {long}; nothing else should run")
    if cores_are_taken():
        output.note("other programs keep the cores busy, so the times will be wrong")
    load_torch()
    from charlm.costs.measuring import measured

    return measured(config, vocab, micro, processes, split)


def _cells(one: "Estimate", base: "Estimate", machine: "Machine") -> tuple[str, ...]:
    held = written(one.bytes_held, BYTES)
    return (
        one.strategy,
        f"{one.micro:,}" if one.micro < 10**6 else written(one.micro, COUNTS),
        written(one.seconds, TIMES),
        written(one.chars_per_second, COUNTS),
        f"{base.seconds / one.seconds:.3g}",
        f"{100 * _efficiency(one, base, machine):.0f} %",
        held if one.fits else f"{held}!",
        written(one.sent, BYTES) if one.sent else "-",
    )


def _efficiency(one: "Estimate", base: "Estimate", machine: "Machine") -> float:
    """Return the speed-up over how many times more hardware there is."""
    return base.seconds / one.seconds / machine.hardware(one.processes)


def _best(chosen: "Estimate | None", base: "Estimate") -> str:
    """Say which strategy to choose, and what its step consists of."""
    if chosen is None:
        return "best: none, because none fits into memory"
    parts = {
        "computing": chosen.computing,
        "the update": chosen.updating,
        "exchanging": chosen.exchanging,
        "waiting for messages": chosen.waiting,
    }
    whole = sum(parts.values())
    shares = [f"{100 * s / whole:.0f} % {name}" for name, s in parts.items() if s >= whole / 200]
    if chosen.processes == 1:
        said = "best: one process (train.parallel=none)"
    else:
        name, _, order = chosen.strategy.partition(" ")
        exact = {"exact": " train.exact=true", "reduced": " train.exact=false"}.get(order, "")
        said = f"best: train.parallel={name}{exact} train.micro_batch_size={chosen.micro}"
    why = "the shortest step that fits into memory"
    overlap = ", at the same time where possible" if chosen.overlaps else ""
    return f"{said}, {written(chosen.seconds, TIMES)}: {why}. It is {', '.join(shares)}{overlap}."


def _pays(pays: "Estimate | None", work: "Work", machine: "Machine") -> str:
    """Say how many processes still pay."""
    if pays is None:
        return "This model does not fit into memory, in however many processes."
    many = "1 process pays" if pays.processes == 1 else f"up to {pays.processes:,} processes pay"
    step = f"{pays.strategy}, {written(pays.seconds, TIMES)}"
    return (
        f"With batches of {number_of(work.windows, 'window')}, {many} ({step}): "
        "more gain less than a tenth."
    )


def _as_json(one: "Estimate", base: "Estimate", machine: "Machine") -> dict[str, Any]:
    return {
        "strategy": one.strategy,
        "processes": one.processes,
        "micro_batch_windows": one.micro,
        "step_seconds": one.seconds,
        "compute_seconds": one.computing,
        "update_seconds": one.updating,
        "exchange_seconds": one.exchanging,
        "latency_seconds": one.waiting,
        "overlaps": one.overlaps,
        "chars_per_second": one.chars_per_second,
        "speedup": base.seconds / one.seconds,
        "efficiency": _efficiency(one, base, machine),
        "memory_bytes": round(one.bytes_held),
        "memory_bytes_by_purpose": {name: round(held) for name, held in one.held.items()},
        "sent_bytes": round(one.sent),
        "fits": one.fits,
    }
