"""A command that torchrun started in several processes: who does what, and who speaks.

The first process does all that a command does; the others wait for its orders and then train along.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from charlm.cli.exits import mistake_of
from charlm.cli.signals import StopSignals
from charlm.errors import UsageError

if TYPE_CHECKING:
    from charlm.config import Config
    from charlm.lifecycle.begin import PreparedRun
    from charlm.runs import RunFolder
    from charlm.training.meeting import Meeting
    from charlm.training.ranks import Group, Ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
FAILED = 1  # what the others end with if the first gives them nothing to do


def launched() -> "Launch | None":
    """Return how this process was launched; None: alone. Refuse half-set variables."""
    present = [name for name in VARIABLES if os.environ.get(name)]
    missing = [name for name in VARIABLES if name not in present]
    if not ("RANK" in present or "WORLD_SIZE" in present):
        return None
    if missing:
        what = f"{', '.join(present)} set but not {', '.join(missing)}"
        raise UsageError("environment", what, "unset them, or start through torchrun")
    # The store writes a C++ stack to stderr wherever a process has ended; our line says it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    numbers = []
    for name, least in (("RANK", 0), ("WORLD_SIZE", 1)):
        value = os.environ[name]
        if not value.isdecimal() or int(value) < least:
            raise UsageError("environment", f"{name} is {value!r}", "start through torchrun")
        numbers.append(int(value))
    if numbers[0] >= numbers[1]:
        what = f"RANK is {numbers[0]}, and WORLD_SIZE {numbers[1]}"
        raise UsageError("environment", what, "ranks begin at 0")
    return Launch(*numbers)


class Launch:
    """This process among those of a launch.

    Args:
        rank: Its number, from 0.
        size: How many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.parent = os.getppid()
        self.restartable = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._store: Any = None
        self._meeting: Meeting | None = None
        self._group: Group | None = None
        self._ordered = False

    @property
    def follows(self) -> bool:
        """Whether another process is the first."""
        return self.rank > 0

    def meet(self, stop: StopSignals) -> "Meeting":
        """Find the other processes, once."""
        from charlm.training.meeting import Meeting

        if not self._meeting:
            stop.repeated = True  # torchrun sends each signal on, also one that came to all
            stop.parent = self.parent
            self._meeting = Meeting(self._connected(), self.rank, self.size, stop.requested)
        return self._meeting

    def check(self, config: "Config", stop: StopSignals) -> None:
        """Refuse a configuration that these processes cannot train; else find the others.

        Raises:
            UsageError: It is for one process, for another device, or has too few micro-batches.
            MachineError: Another process did not come, or there is no connection.
        """
        from charlm.config.shares import check_shares
        from charlm.models.device import choose_device

        if self.size == 1:
            return
        train = config.train
        if train.parallel == "none":
            what = f"WORLD_SIZE is {str(self.size)!r}, but train.parallel is none"
            raise UsageError("environment", what, "set train.parallel=ddp or fsdp2, or unset it")
        device = choose_device(config.run.device).type
        if device != "cpu":
            what = f"{train.parallel} is for CPUs, and this run is on {device}"
            raise UsageError("train.parallel", what, "set run.device=cpu")
        micro = train.micro_batch_size or train.batch_size
        check_shares(train.batch_size // micro, self.size, train.in_order)
        self.meet(stop)

    def earlier_run(self) -> "RunFolder | None":
        """Return the run that processes of this launch began before these were started again."""
        from charlm.runs import RunFolder
        from charlm.training.meeting import RUN

        if not (self.restartable and self._connected().check([RUN])):
            return None
        run = RunFolder(Path(self._connected().get(RUN).decode()))
        return run if run.exists() else None

    def remember(self, run: Path) -> None:
        """Let processes of this launch that are started again go on with a run."""
        from charlm.training.meeting import RUN

        if self.restartable:
            self._connected().set(RUN, str(run.absolute()))

    def ranks(self) -> "Ranks":
        """Return the processes that have met."""
        from charlm.training.ranks import ONE

        if self._meeting and not self._group:
            self._group = self._meeting.group()
        return self._group or ONE

    def begin(self, prepared: "PreparedRun") -> None:
        """Let all processes begin with a run; the first calls it."""
        from charlm.lifecycle.follow import orders_for

        if self._meeting and self._group:
            self._ordered = True
            self._meeting.send(orders_for(prepared))
            self._meeting.open(self._group)

    @contextlib.contextmanager
    def speaking(self) -> Iterator[None]:
        """Let only the first process that fails say why; the others end without a word.

        Where the first process ends without giving orders, the others end with its code.
        """
        code = FAILED
        try:
            yield
            code = 0
        except Exception as error:
            if isinstance(error, typer.Exit):
                code = error.exit_code
                raise
            mistake = mistake_of(error)
            code = mistake.exit_code if mistake else FAILED
            if self._meeting and not self._meeting.claim():
                raise typer.Exit(code) from None
            raise
        finally:
            if self._meeting and not self.follows and not self._ordered:
                with contextlib.suppress(RuntimeError):
                    self._meeting.send({"end": code})

    def _connected(self) -> Any:
        from charlm.training.meeting import connected

        self._store = self._store or connected()
        return self._store


def follow(launch: Launch, stop: StopSignals, began: float) -> int:
    """Train along with the first process, as it says; return the exit code."""
    from charlm.lifecycle.follow import followed
    from charlm.models import build_model
    from charlm.training import Job, TrainingLoop

    meeting = launch.meet(stop)
    orders = meeting.orders()
    if "end" in orders:
        return int(orders["end"])
    prepared = followed(orders)
    config, tokenizer = prepared.config, prepared.tokenizer
    model = build_model(config.model, tokenizer.vocab_size, config.run.seed)
    group = meeting.group()
    parts = config, prepared.run, prepared.corpus, tokenizer, model
    job = Job(*parts, stop.requested, stop.save_requested, began, ranks=group)
    loop = TrainingLoop(job, prepared.checkpoint)
    meeting.open(group)
    for _ in loop.records():
        pass
    group.close()
    return ended_code(stop) if loop.stopped else 0


def ended_code(stop: StopSignals) -> int:
    """Return the exit code of a process that was stopped, or that stopped with another."""
    stop.received = stop.received or signal.SIGTERM
    return stop.exit_code
