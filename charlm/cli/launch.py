"""A command that torchrun started in several processes: who does what, and who speaks.

The first process does all that a command does; the others wait for its orders and then train along.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from charlm.cli import output
from charlm.cli.escaping import one_word, quoted
from charlm.cli.exits import mistake_of
from charlm.cli.signals import StopSignals
from charlm.errors import CheckpointError, MachineError, Stopped, UsageError
from charlm.storage import write_file

if TYPE_CHECKING:
    from charlm.config import Config
    from charlm.lifecycle.begin import PreparedRun
    from charlm.runs import RunFolder
    from charlm.training.meeting import Meeting
    from charlm.training.ranks import Group, Ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
FAILED = 1  # what the others end with if the first gives them nothing to do


def _start() -> Path | None:
    """Return a folder that only processes of one torchrun know, new for each start of theirs.

    torchrun makes a folder for logs, and there `attempt_N/RANK/error.json`. Only what is beside
    `attempt_N` stays: a start after a machine has come removes it and makes it again.
    """
    start = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parent.parent
    return start if start.name.startswith("attempt_") else None


def _from_here(place: str) -> Path:
    """Return an absolute path as a user would give it in the current folder."""
    path, here = Path(place), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


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
        self.start = _start()
        self.memory = self.start.parent / "charlm-run" if self.start else None
        self._store: Any = None
        self._meeting: Meeting | None = None
        self._group: Group | None = None
        self._known: str | None = None
        self._stop: StopSignals | None = None
        self._ordered = False

    @property
    def follows(self) -> bool:
        """Whether another process is the first."""
        return self.rank > 0

    def watch(self, stop: StopSignals) -> None:
        """Stop when torchrun has ended, and not at once for a signal that comes twice."""
        self._stop = stop
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        # torchrun sends each signal on, also one that came to all.
        stop.repeated = by_torchrun or self.size > 1
        if by_torchrun:
            stop.parent = self.parent

    def meet(self, stop: StopSignals) -> "Meeting":
        """Find the other processes, once."""
        from charlm.training.meeting import Meeting

        if not self._meeting:
            own = self._remembered()
            self._meeting = Meeting(self._connected(), self.rank, self.size, stop.requested, own)
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
            what = f"none trains in one process, and {self.size} were started"
            raise UsageError("train.parallel", what, "set it to ddp or fsdp2, or start one")
        device = choose_device(config.run.device).type
        if device != "cpu":
            what = f"{train.parallel} is for CPUs, and this run is on {device}"
            raise UsageError("train.parallel", what, "set run.device=cpu")
        micro = train.micro_batch_size or train.batch_size
        check_shares(train.batch_size // micro, self.size, train.in_order)
        self.meet(stop)

    def earlier_run(self, stop: StopSignals) -> "RunFolder | None":
        """Return the run that processes of this launch began before these were started again.

        One of them knows it, if its torchrun took part; a machine that has just come does not. Raises
        CheckpointError if another process sees this run and this one does not.
        """
        from charlm.runs import RunFolder

        found = self._remembered()
        if not found and self.memory and self.size > 1:
            found = self.meet(stop).earlier
        if not found:
            return None
        run = RunFolder(_from_here(found))
        if not run.exists():
            mend = "let every machine see the folder of the run at this path"
            raise CheckpointError(run.path, "not found by process 0", mend)
        return run

    def remember(self, run: Path) -> None:
        """Let processes of this launch that are started again go on with a run.

        Call it now and then: what is old in /tmp is removed on many systems.
        """
        place = str(run.absolute())
        if self.memory:
            with contextlib.suppress(MachineError):  # it is needed only after a kill
                write_file(self.memory, json.dumps([sys.argv, place]).encode())
        if self._meeting and not self.follows and self._known is None:
            self._meeting.send({"run": place})
        self._known = place

    def _remembered(self) -> str:
        """Return the run that the same command of the same torchrun has begun, or nothing."""
        from charlm.runs import RunFolder

        if not self.memory:
            return ""
        try:
            command, place = json.loads(self.memory.read_bytes())
        except (OSError, ValueError):
            return ""
        begun = command == sys.argv and RunFolder(Path(place)).exists()  # else it was taken back
        return str(place) if begun else ""

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

        Where the first process ends without giving orders, the others end with its code. Where one is
        stopped while it waits for others, these stop too.
        """
        code: int | None = FAILED
        try:
            yield
            code = 0
        except Stopped:
            code = None
            if self._stop:  # else it would end as if by Ctrl-C where another was stopped
                ended_code(self._stop)
            raise
        except Exception as error:
            if isinstance(error, typer.Exit):
                code = error.exit_code
                raise
            from charlm.training.ranks import LostError

            # The store may end with torchrun, and with it what the processes agree on.
            if self._stop and self._stop.orphaned and isinstance(error, LostError):
                code = ended_code(self._stop)
                self._say_what_is_saved()
                raise typer.Exit(code) from None
            mistake = mistake_of(error)
            code = mistake.exit_code if mistake else FAILED
            if self._meeting and not self._speaks(self._meeting.claim()):
                raise typer.Exit(code) from None
            raise
        finally:
            if self._meeting:
                with contextlib.suppress(MachineError):
                    self._end(self._meeting, code)

    def _end(self, meeting: "Meeting", code: int | None) -> None:
        """Let the others end as well, if they still wait for this process; None: it was stopped."""
        if code is None:
            meeting.stop()
        elif not self.follows and not self._ordered:
            meeting.send({"end": code})
        has_store = not self.follows and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        meeting.leave(has_store and not self._ordered)

    def _say_what_is_saved(self) -> None:
        """Say that torchrun has ended, and how far the run is; the first does."""
        from charlm.runs import RunFolder

        if self._known and not self.follows:
            last = RunFolder(Path(self._known)).checkpoints.last()
            saved = f"step {last.step} is saved" if last else "nothing is saved"
            place = str(_from_here(self._known))
            output.say(f"torchrun has ended; {saved}; continue with:\n{self.resume_command(place)}")

    def resume_command(self, place: str) -> str:
        """Return a command that goes on with a run in as many processes."""
        start = "charlm" if self.size == 1 else "torchrun ... -m charlm"
        return f"{start} train --resume --out {quoted(place)}"

    def _speaks(self, claimed: bool | None) -> bool:
        """Tell whether this process says why it fails; `claimed`: see `Meeting.claim`.

        Where the first machine or process is lost, and the store with it, one speaks on each other
        machine. It marks that in the folder of this start.
        """
        if not self.start:
            return os.environ.get("LOCAL_RANK") == "0" if claimed is None else claimed
        if claimed is False:
            return False
        try:
            (self.start / "charlm-failed").touch(exist_ok=False)
        except OSError:  # another one has said it
            return claimed is True
        return True

    def _connected(self) -> Any:
        from charlm.training.meeting import connected

        self._store = self._store or connected()
        return self._store


def follow(launch: Launch, stop: StopSignals, began: float) -> int:
    """Train along with the first process, as it says; return the exit code."""
    from charlm.lifecycle.follow import followed
    from charlm.models import build_model
    from charlm.runs.records import SaveRecord
    from charlm.training import Job, TrainingLoop
    from charlm.training.loading import load_kernels

    meeting = launch.meet(stop)
    while "config" not in (orders := meeting.orders()):
        if "end" in orders:
            return int(orders["end"])
        launch.remember(Path(orders["run"]))
    prepared = followed(orders)
    if os.environ["LOCAL_RANK"] == "0" and os.environ.get("GROUP_RANK", "0") != "0":
        place = one_word(prepared.run.path)
        output.say(f"run    {place}: process {launch.rank} of {launch.size}; process 0 reports")
    config, tokenizer = prepared.config, prepared.tokenizer
    model = build_model(config.model, tokenizer.vocab_size, config.run.seed)
    group = meeting.group()
    parts = config, prepared.run, prepared.corpus, tokenizer, model
    job = Job(*parts, stop.requested, stop.save_requested, began, ranks=group)
    loop = TrainingLoop(job, prepared.checkpoint)
    with stop.at_once():  # another machine may have to compile them; nothing is to be saved yet
        for _ in load_kernels(config):
            pass
    meeting.open(group)
    for record in loop.records():
        if isinstance(record, SaveRecord):
            launch.remember(prepared.run.path)
    group.close()
    return ended_code(stop) if loop.stopped else 0


def ended_code(stop: StopSignals) -> int:
    """Return the exit code of a process that was stopped, or that stopped with another."""
    stop.received = stop.received or signal.SIGTERM
    return stop.exit_code
