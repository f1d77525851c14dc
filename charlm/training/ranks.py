"""The processes that train one model together, and what they tell each other.

Each process has a rank, from 0. All of them do the same steps at the same time, and each decides
everything that follows from the model alone; what depends on a clock, a disk or a signal is decided by
the first and told to the others, or found out by all together. Only the first writes.

Tensors go through memory that all processes share, if they run on one machine, else through gloo. All
processes meet in gloo each time, where none may be late by more than `TIMEOUT`. What the first does
alone (a sample, a save) may take longer: the others wait for a key in the store.

torch.distributed does not ask who connects, so the network between the processes must be private.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store

from charlm.errors import MachineError, Stopped
from charlm.evaluation.score import Floats
from charlm.training.slots import Slots, bytes_of, pack, unpack

TIMEOUT = 120.0  # seconds between the first and the last process at one place
ALONE = 6 * 3600.0  # seconds that the others wait for what the first does alone
LOOK = 0.01  # seconds between two looks at the store
GAVE_UP, HERE, WRITTEN = range(3)  # what a process says before tensors are exchanged

Result = TypeVar("Result")


class Met(NamedTuple):
    """What all processes know before a step."""

    stop: bool  # one was asked to stop
    save: bool  # one was asked to save
    spent: float  # share of the run, by the first
    share: float | None  # of the budget, by the first


class LostError(MachineError):
    """Another process has ended or does not answer."""


class Ranks:
    """The processes of a run: this one, alone."""

    rank, size = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def meet(self, stop: bool, save: bool, spent: float, share: float | None) -> Met:
        """Return what all processes know: see `Met`."""
        return Met(stop, save, spent, share)

    def told(self, number: float) -> float:
        """Return the number that the first process has."""
        return number

    def first_does(self, work: Callable[[], Result]) -> Result | None:
        """Let the first do work while the others wait; return its result to the first only.

        Raises `Stopped` in all if the work does, and MachineError in the others if it fails.
        """
        return work()

    def rows(self, own: Floats | None) -> list[Floats]:
        """Return the rows that each process has, (n, k) each; None: this one was stopped.

        Raises `Stopped` if one was.
        """
        if own is None:
            raise Stopped
        return [own]

    def give_up(self) -> None:
        """Let all processes raise `Stopped` instead of adding up their gradients."""

    def gather(self, own: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the tensors of each process; `Stopped` if one gave up.

        Those of two processes may differ in their first dimension only. They are not to be changed,
        and stay until the next call.
        """
        return [list(own)]

    def all_reduce(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of the tensors of all processes, added in any order."""
        return list(own)

    def together(self, work: Callable[[], Result]) -> Result:
        """Do work within which PyTorch exchanges tensors; all processes do it together."""
        return work()

    def share_weights(self, model: nn.Module) -> None:
        """Give all processes the weights of the first."""

    def close(self) -> None:
        """Leave the others, once all have come to the end."""


class Group(Ranks):
    """Several processes, once it is open.

    Args:
        store: Where they find each other, theirs alone.
        rank: Of this one.
        size: How many they are.
        timeout: Seconds that a process may be late.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: float = TIMEOUT) -> None:
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.slots: Slots | None = None  # memory that all share, on one machine
        self._turn = 0
        self._alone = 0  # what the first has done alone

    def open(self) -> None:
        """Connect to the others, which do so at the same time."""
        with self._linked():
            dist.init_process_group(
                "gloo",
                store=PrefixStore("gloo", self.store),
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=self.timeout),
            )
            if self.first:
                self.store.set("slots", secrets.token_hex(8))
            name = self.store.get("slots").decode()
        with contextlib.suppress(OSError):  # on several machines, or on one without such memory
            self.slots = Slots(name, self.rank, self.size, self._all_did)

    def _all_did(self, own: bool) -> bool:
        return bool(self._all(torch.tensor([own])).all())

    def close(self) -> None:
        """Leave the others, once all have come to the end."""
        with self._linked():
            dist.barrier()
        dist.destroy_process_group()
        if self.slots:
            self.slots.close()

    def meet(self, stop: bool, save: bool, spent: float, share: float | None) -> Met:
        """Return what all processes know: see `Met`."""
        none = float("nan")
        own = torch.tensor(
            [stop, save, spent, none if share is None else share], dtype=torch.float64
        )
        every = self._all(own)
        stops, saves = every[:, 0].any().item(), every[:, 1].any().item()
        spent, told = every[0, 2].item(), every[0, 3].item()
        return Met(bool(stops), bool(saves), spent, None if share is None else told)

    def told(self, number: float) -> float:
        """Return the number that the first process has."""
        return self._all(torch.tensor([number], dtype=torch.float64))[0].item()

    def first_does(self, work: Callable[[], Result]) -> Result | None:
        """Let the first do work while the others wait; return its result to the first only.

        Raises `Stopped` in all if the work does, and MachineError in the others if it fails.
        """
        self._alone += 1
        key, result = f"alone/{self._alone}", None
        if self.first:
            said = "failed"
            try:
                result, said = work(), "done"
            except Stopped:
                said = "stopped"
                raise
            finally:
                with self._linked():
                    self.store.set(key, said)
            return result
        with self._linked():
            self.store.wait([key], timedelta(seconds=ALONE))
            said = self.store.get(key).decode()
        if said == "stopped":
            raise Stopped
        if said == "failed":
            raise MachineError("process 0", "has failed, and says why")
        return None

    def rows(self, own: Floats | None) -> list[Floats]:
        """Return the rows that each process has, (n, k) each; None: this one was stopped.

        Raises `Stopped` if one was.
        """
        shape = (-1, 0) if own is None else own.shape
        shapes = self._all(torch.tensor(shape)).tolist()
        if any(count < 0 for count, _ in shapes):
            raise Stopped
        assert own is not None
        most = max(count for count, _ in shapes)
        padded = torch.zeros(most, own.shape[1], dtype=torch.float64)
        padded[: len(own)] = torch.from_numpy(own)
        every: list[Floats] = [x.numpy() for x in self._all(padded)]
        return [x[:count] for x, (count, _) in zip(every, shapes, strict=True)]

    def give_up(self) -> None:
        """Let all processes raise `Stopped` instead of adding up their gradients."""
        self._all(torch.tensor([GAVE_UP, 0]))

    def gather(self, own: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the tensors of each process; `Stopped` if one gave up.

        Those of two processes may differ in their first dimension only. They are not to be changed,
        and stay until the next call.
        """
        turn, slots = 1 - self._turn, self.slots
        written = slots is not None and slots.write(turn, own)
        sizes, in_slots = self._agreed(bytes_of(own), written)
        self._turn = turn  # not before: one that gives up takes no turn
        if slots and in_slots:
            found = [slots.read(r, turn, size) for r, size in enumerate(sizes)]
        else:
            buffer = torch.zeros(max(sizes), dtype=torch.uint8)
            pack(own, buffer)
            found = list(self._all(buffer))
        return [
            list(own) if r == self.rank else unpack(buffer, own) for r, buffer in enumerate(found)
        ]

    def all_reduce(self, own: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of the tensors of all processes, added in any order."""
        self._agreed(0, False)
        buffer = torch.cat([x.flatten() for x in own])
        with self._linked():
            dist.all_reduce(buffer)
        sums = torch.split(buffer, [x.numel() for x in own])
        return [x.view(like.shape) for x, like in zip(sums, own, strict=True)]

    def together(self, work: Callable[[], Result]) -> Result:
        """Do work within which PyTorch exchanges tensors; all processes do it together."""
        try:
            return work()
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                raise self._lost() from error
            raise

    def share_weights(self, model: nn.Module) -> None:
        """Give all processes the weights of the first."""
        with self._linked():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    def _agreed(self, size: int, written: bool) -> tuple[list[int], bool]:
        """Return the number that each process has, and whether all have written; or raise `Stopped`."""
        told = self._all(torch.tensor([WRITTEN if written else HERE, size]))
        states = told[:, 0]
        if (states == GAVE_UP).any():
            raise Stopped
        return told[:, 1].tolist(), bool((states == WRITTEN).all())

    def _all(self, own: Tensor) -> Tensor:
        """Return the tensors of all processes, (size, ...)."""
        every = own.new_empty(self.size, *own.shape)
        with self._linked():
            dist.all_gather(list(every.unbind()), own)
        return every

    @contextlib.contextmanager
    def _linked(self) -> Iterator[None]:
        """Raise LostError if a process does not answer."""
        try:
            yield
        except RuntimeError as error:  # of gloo and of the store; they have no common class
            raise self._lost() from error

    def _lost(self) -> LostError:
        return LostError(f"process {self.rank} of {self.size}", self._who_is_lost())

    def _who_is_lost(self) -> str:
        """Say which processes no longer answer: those still there say so at about the same time."""
        lost = "another one ended or stopped answering"
        with contextlib.suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", "")
            time.sleep(1)
            gone = [r for r in range(self.size) if not self.store.check([f"left/{r}"])]
            if gone:  # those among them that were only busy have not looked yet
                names = ", ".join(map(str, gone))
                who = f"process {names}" if len(gone) == 1 else f"one of the processes {names}"
                lost = f"{who} ended or stopped answering"
        return lost


ONE = Ranks()


def in_turn(parts: list[Floats]) -> Floats:
    """Return the rows of all processes in one array, where process r has rows r, r + size, ..."""
    whole = np.zeros((sum(map(len, parts)), parts[0].shape[1]))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole
