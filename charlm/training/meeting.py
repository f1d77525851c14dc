"""How the processes of a launch find each other, before they train as a group.

The store is torchrun's and outlives a process: when torchrun starts its processes again after one of
them died, the store still has what those before them left. So each start has a name of its own, which
its first process draws and gives to each of the others that greets it.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from charlm.errors import MachineError, Stopped, check_stop, number_of
from charlm.training.ranks import ALONE, LOOK, TIMEOUT, Group, LostError

ENVIRONMENT = "environment"
GO, STOP = "go", "stop"
LEAVE = 10.0  # seconds that the process with the store waits for the others to end
READY = 600.0  # seconds from the first process that has opened the run to the last


def connected(timeout: float = TIMEOUT) -> Store:
    """Return the store that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT name.

    Raises MachineError if there is none, or another program has its port.
    """
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        what = f"no connection through MASTER_ADDR and MASTER_PORT ({reason})"
        mend = "start all processes, and choose a free port"
        raise MachineError(ENVIRONMENT, what, mend) from None
    found: Store = store
    return found


class Meeting:
    """The processes of one start; this one has met all others.

    Args:
        store: What `connected` returns.
        rank: Of this process.
        size: How many there are.
        should_stop: Asked while waiting; then `Stopped` is raised.
        earlier: The run that this one knows from an earlier start, if it does.
        timeout: Seconds that the first waits for the others.

    Attributes:
        earlier: Of the first: the run that one of them knows.

    Raises:
        LostError: One of the others did not come, or the store is gone. All methods raise it, too.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        should_stop: Callable[[], bool] = lambda: False,
        earlier: str = "",
        timeout: float = TIMEOUT,
    ) -> None:
        self.rank, self.size, self.should_stop = rank, size, should_stop
        self.earlier, self.timeout = earlier, timeout
        self._orders = 0  # that were given, or heard
        self._base = PrefixStore("charlm", store)
        with self._linked():
            self.store = self._greet_all() if rank == 0 else self._be_greeted()

    def claim(self) -> bool | None:
        """Tell whether this process is the first that fails; None: the store is gone."""
        try:
            return int(self.store.add("failed", 1)) == 1
        except RuntimeError:
            return None

    def send(self, orders: dict[str, Any]) -> None:
        """Tell the others what to do next; only the first does."""
        with self._linked():
            self.store.set(self._next_order(), json.dumps(orders))

    def orders(self) -> dict[str, Any]:
        """Wait for what the first process says next."""
        key = self._next_order()
        with self._linked():
            self._wait([key], ALONE)
            found: dict[str, Any] = json.loads(self.store.get(key))
        return found

    def stop(self) -> bool:
        """Let the others stop too while they wait; False: all were ready before, and go on."""
        return self._decided(STOP) == STOP

    def leave(self, last: bool) -> None:
        """Tell that this process ends; `last`: after the others, or some seconds, as it has the store."""
        with self._linked():
            self.store.set(f"ended/{self.rank}", "")
            ends = time.monotonic() + LEAVE
            keys = [f"ended/{r}" for r in range(self.size)]
            while last and not self.store.check(keys) and time.monotonic() < ends:
                time.sleep(LOOK)

    def _decided(self, own: str) -> str:
        """Return whether all go on or stop: what the first process that asks for it wants."""
        with self._linked():
            return self.store.compare_set("decided", "", own).decode()

    def _next_order(self) -> str:
        self._orders += 1
        return f"orders/{self._orders}"

    def group(self) -> Group:
        """Return the processes as a group, which `open` connects."""
        return Group(self.store, self.rank, self.size, self.timeout)

    def open(self, group: Group) -> None:
        """Wait until all processes are ready for the first step, and connect them.

        Raises Stopped in all of them, or in none.
        """
        decided = GO
        try:
            with self._linked():
                self.store.set(f"ready/{self.rank}", "")
                self._wait([f"ready/{r}" for r in range(self.size)], READY)
        except Stopped:
            decided = STOP
        if self._decided(decided) == STOP:
            raise Stopped
        group.open()

    @contextlib.contextmanager
    def _linked(self) -> Iterator[None]:
        """Raise LostError where the store, which the first machine or process has, is gone."""
        try:
            yield
        except RuntimeError as error:
            where = f"process {self.rank} of {self.size}"
            raise LostError(where, "process 0 or its machine ended") from error

    def _wait(self, keys: list[str], seconds: float) -> None:
        """Wait until all keys are there; LostError if one of the processes has failed or is late.

        Raises Stopped if one of them was stopped.
        """
        where, ends = f"process {self.rank} of {self.size}", time.monotonic() + seconds
        while not self.store.check(keys):
            if self.store.check(["failed"]):
                raise LostError(where, "another one has failed")
            if self.store.check(["decided"]) and self.store.get("decided").decode() == STOP:
                raise Stopped
            if time.monotonic() > ends:
                raise LostError(where, f"another one did not come within {seconds:g} s")
            check_stop(self.should_stop)
            time.sleep(LOOK)

    def _greet_all(self) -> Store:
        """Draw a name for this start, and tell it to each process that greets."""
        name, ends = secrets.token_hex(8), time.monotonic() + self.timeout
        mine = PrefixStore(name, self._base)
        answered: dict[int, str] = {}
        missing = list(range(1, self.size))
        while missing:
            for r in missing:
                if self._base.check([f"hello/{r}"]):
                    hello = self._base.get(f"hello/{r}").decode()  # or that of a process before it
                    if hello != answered.get(r):
                        self._base.set(f"welcome/{r}", f"{hello} {name}")
                        answered[r] = hello
            missing = [r for r in missing if not mine.check([f"here/{r}"])]
            if time.monotonic() > ends:
                who = number_of(len(missing), "process", "processes")
                ranks = ", ".join(map(str, missing))
                what = f"{who} of {self.size} did not come within {self.timeout:g} s: {ranks}"
                raise LostError(ENVIRONMENT, what, "start all of them")
            check_stop(self.should_stop)
            time.sleep(LOOK)
        known = [mine.get(f"here/{r}").decode() for r in range(1, self.size)]
        self.earlier = next(filter(None, [self.earlier, *known]), "")
        return mine

    def _be_greeted(self) -> Store:
        """Greet the first process, and take the name of the start from it."""
        hello, answer = secrets.token_hex(8), f"welcome/{self.rank}"
        self._base.set(f"hello/{self.rank}", hello)
        ends = time.monotonic() + READY
        while time.monotonic() < ends:
            if self._base.check([answer]):
                told, _, name = self._base.get(answer).decode().partition(" ")
                if told == hello:
                    mine = PrefixStore(name, self._base)
                    mine.set(f"here/{self.rank}", self.earlier)
                    return mine
            check_stop(self.should_stop)
            time.sleep(LOOK)
        raise LostError(ENVIRONMENT, "process 0 did not come", "start all of them")
