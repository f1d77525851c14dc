"""How the processes of a launch find each other, before they train as a group.

The store is torchrun's and outlives a process: when torchrun starts its processes again after one of
them died, the store still has what those before them left. So each start has a name of its own, which
its first process draws and gives to each of the others that greets it.
"""

import json
import secrets
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from charlm.errors import MachineError, check_stop, number_of
from charlm.training.ranks import ALONE, LOOK, TIMEOUT, Group, LostError

RUN = "charlm/run"  # the key of the run folder, for processes that are started again
ENVIRONMENT = "environment"
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
        timeout: Seconds that the first waits for the others.

    Raises:
        LostError: One of the others did not come.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        should_stop: Callable[[], bool] = lambda: False,
        timeout: float = TIMEOUT,
    ) -> None:
        self.rank, self.size, self.should_stop = rank, size, should_stop
        self.timeout = timeout
        self._base = PrefixStore("charlm", store)
        self.store = self._greet_all() if rank == 0 else self._be_greeted()

    def claim(self) -> bool:
        """Tell whether this process is the first that fails; the others keep silent."""
        try:
            return int(self.store.add("failed", 1)) == 1
        except RuntimeError:  # the store is gone
            return self.rank == 0

    def send(self, orders: dict[str, Any]) -> None:
        """Tell the others what to do; only the first does, once."""
        self.store.set("orders", json.dumps(orders))

    def orders(self) -> dict[str, Any]:
        """Wait for what the first process says."""
        self._wait(["orders"], ALONE)
        found: dict[str, Any] = json.loads(self.store.get("orders"))
        return found

    def group(self) -> Group:
        """Return the processes as a group, which `open` connects."""
        return Group(self.store, self.rank, self.size, self.timeout)

    def open(self, group: Group) -> None:
        """Wait until all processes are ready for the first step, and connect them."""
        self.store.set(f"ready/{self.rank}", "")
        self._wait([f"ready/{r}" for r in range(self.size)], READY)
        group.open()

    def _wait(self, keys: list[str], seconds: float) -> None:
        """Wait until all keys are there; LostError if one of the processes has failed or is late."""
        where, ends = f"process {self.rank} of {self.size}", time.monotonic() + seconds
        while not self.store.check(keys):
            if self.store.check(["failed"]):
                raise LostError(where, "another one has failed")
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
        return mine

    def _be_greeted(self) -> Store:
        """Greet the first process, and take the name of the start from it."""
        hello, answer = secrets.token_hex(8), f"welcome/{self.rank}"
        self._base.set(f"hello/{self.rank}", hello)
        ends = time.monotonic() + ALONE
        while time.monotonic() < ends:
            if self._base.check([answer]):
                told, _, name = self._base.get(answer).decode().partition(" ")
                if told == hello:
                    mine = PrefixStore(name, self._base)
                    mine.set(f"here/{self.rank}", "")
                    return mine
            check_stop(self.should_stop)
            time.sleep(LOOK)
        raise LostError(ENVIRONMENT, "process 0 did not come", "start all of them")
