"""Commands in processes of their own that can be killed, without waiting for torch each time.

`python -m tests.torture.lives` imports what training needs once, then forks a process for each
command that it reads from standard input. `Lives` is the other end.
"""

import functools
import gc
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
SLOWEST = 200.0  # seconds that a life of a few dozen tiny steps may take
IMPATIENT = 3  # the step after which "no patience" waits for another process for 2 seconds only


@dataclass(frozen=True)
class Plan:
    """How a life is disturbed.

    Args:
        after: Seconds from its start to the signal; None: none is sent from outside.
        number: Which signal.
        operation: Count of durable operations before the one at which it kills itself, or that
            fails; None: none does.
        error: What that operation fails with (errno); None: it kills the process.
        sticky: Whether all after it fail too.
        step: After which step it sends itself the signal; None: none.
        broken: What is wrong with its program: a name of `BREAKS`; None: nothing.
    """

    after: float | None = None
    number: int = signal.SIGKILL
    operation: int | None = None
    error: int | None = None
    sticky: bool = False
    step: int | None = None
    broken: str | None = None


@dataclass(frozen=True)
class Life:
    """How it went.

    Args:
        code: Exit code; negative: the signal that ended it.
        seconds: From start to end.
        waited: Seconds from the signal to the end; None without one.
        steps: The last step that it finished; 0: none.
        operations: Durable operations below its run folder's parent.
        stderr: What it said.
    """

    code: int
    seconds: float
    waited: float | None
    steps: int
    operations: int
    stderr: str


class Lives:
    """Start commands and see how they end, one at a time."""

    def __enter__(self) -> "Lives":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as a launch sets it, before torch is loaded
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.lives"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(SLOWEST)
        assert self.process.stdout
        self.process.stdout.close()

    def live(self, folder: Path, *arguments: str, plan: Plan | None = None) -> Life:
        """Run a charlm command in a folder."""
        return self._ask(folder, arguments, plan or Plan(), 1)[0]

    def crowd(self, folder: Path, *arguments: str, count: int) -> list[Life]:
        """Run a command so many times at once; the one that goes on is asked to stop."""
        return self._ask(folder, arguments, Plan(), count)

    def beside(
        self, folder: Path, training: tuple[str, ...], commands: list[tuple[str, ...]]
    ) -> list[Life]:
        """Run commands one after the other beside a run that trains; its own life comes last."""
        return self._ask(folder, training, Plan(), 1, commands)

    def together(
        self,
        folder: Path,
        *arguments: str,
        size: int,
        plan: Plan | None = None,
        of: int = 0,
        logs: Sequence[Path] = (),
    ) -> list[Life]:
        """Run a command in so many processes, as torchrun does; the plan is of one of them.

        `logs`: For each process, the folder of logs of the torchrun that starts it.
        """
        launch = {"size": size, "of": of, "logs": list(map(str, logs))}
        return self._ask(folder, arguments, plan or Plan(), 1, launch=launch)

    def _ask(
        self,
        folder: Path,
        arguments: tuple[str, ...],
        plan: Plan,
        count: int,
        beside: list[tuple[str, ...]] | None = None,
        launch: dict[str, Any] | None = None,
    ) -> list[Life]:
        job = {
            "launch": launch,
            "folder": str(folder),
            "arguments": arguments,
            "plan": asdict(plan),
            "count": count,
            "beside": beside,
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return [Life(**life) for life in json.loads(self.process.stdout.readline())]


# --- the other end -----------------------------------------------------------------------------


def _serve() -> None:
    import torch
    import torch._dynamo  # optimizers import it when first used, which takes seconds
    import typer

    import charlm.cli.training_output
    import charlm.lifecycle.follow
    import charlm.lifecycle.resume
    import charlm.training.meeting
    from charlm.cli import main

    assert charlm.cli.training_output
    assert charlm.lifecycle.follow
    assert charlm.lifecycle.resume
    assert charlm.training.meeting
    torch.set_num_threads(1)
    os.fsync = os.fstat  # type: ignore[assignment]  # what was written outlives a killed process
    typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(main.app)
    gc.freeze()  # else each child copies all of it when it first collects
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a command answers it
    shared = mmap.mmap(-1, 16)
    for line in sys.stdin:
        job = json.loads(line)
        if job["beside"]:
            lives = _beside(job, shared)
        elif job["launch"]:
            lives = _together(job)
        else:
            lives = _crowd(job) if job["count"] > 1 else [_live(job, shared)]
        print(json.dumps([asdict(life) for life in lives]), flush=True)


def _live(job: dict[str, Any], shared: mmap.mmap) -> Life:
    plan = Plan(**job["plan"])
    shared[:] = bytes(16)
    said = Path(job["folder"], "stderr")
    began = time.perf_counter()
    process = _fork(job, plan, shared, said)
    sent = None
    if plan.after is not None:
        _wait(process, began + plan.after)
        sent = time.perf_counter()
        os.kill(process, plan.number)  # not reaped yet: its number is still its own
    _wait(process, began + SLOWEST)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    ended = time.perf_counter()
    steps, operations = struct.unpack("qq", shared[:])
    return Life(
        code=os.waitstatus_to_exitcode(status),
        seconds=ended - began,
        waited=None if sent is None else ended - sent,
        steps=steps,
        operations=operations,
        stderr=said.read_text() if said.exists() else "",
    )


def _fork(job: dict[str, Any], plan: Plan, shared: mmap.mmap, said: Path) -> int:
    process = os.fork()
    if not process:
        code = 1
        try:
            code = _child(job, plan, shared, said)
        except BaseException:
            traceback.print_exc()  # as the interpreter would
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return process


def _crowd(job: dict[str, Any]) -> list[Life]:
    said, began = {}, {}
    for i in range(job["count"]):
        path = Path(job["folder"], f"stderr-{i}")
        now = time.perf_counter()
        process = _fork(job, Plan(), mmap.mmap(-1, 16), path)
        said[process], began[process] = path, now
    lives = []
    while said:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        late = time.perf_counter() > now + SLOWEST
        if len(said) == 1 or late:  # the winner, or what waits for it
            for process in said:
                os.kill(process, signal.SIGTERM)
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if not ended:
            time.sleep(0.002)
            continue
        process, status = os.waitpid(ended.si_pid, 0)
        code, path = os.waitstatus_to_exitcode(status), said.pop(process)
        seconds = time.perf_counter() - began[process]
        lives.append(Life(code, seconds, None, 0, 0, path.read_text()))
    return lives


def _together(job: dict[str, Any]) -> list[Life]:
    size, of = job["launch"]["size"], job["launch"]["of"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began, processes, said, counts = time.perf_counter(), [], [], []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in names.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        if job["launch"]["logs"]:
            log = Path(job["launch"]["logs"][rank], "attempt_0", str(rank), "error.json")
            os.environ["TORCHELASTIC_ERROR_FILE"] = str(log)
        said.append(Path(job["folder"], f"stderr-{rank}"))
        counts.append(mmap.mmap(-1, 16))
        plan = Plan(**job["plan"]) if rank == of else Plan(broken=job["plan"]["broken"])
        processes.append(_fork(job, plan, counts[-1], said[-1]))
    for name in (*names, "MASTER_ADDR", "TORCHELASTIC_ERROR_FILE"):
        os.environ.pop(name, None)
    if job["plan"]["after"] is not None:
        _wait(processes[of], began + job["plan"]["after"])
        os.kill(processes[of], job["plan"]["number"])
    lives = []
    for rank, (process, path, shared) in enumerate(zip(processes, said, counts, strict=True)):
        if rank != of or job["plan"]["number"] != signal.SIGSTOP:
            _wait(process, began + SLOWEST)
        os.kill(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        steps, operations = struct.unpack("qq", shared[:])
        seconds = time.perf_counter() - began
        lives.append(Life(code, seconds, None, steps, operations, path.read_text()))
    return lives


def _beside(job: dict[str, Any], shared: mmap.mmap) -> list[Life]:
    said, began = Path(job["folder"], "stderr-training"), time.perf_counter()
    process = _fork(job, Plan(), mmap.mmap(-1, 16), said)
    while not list(Path(job["folder"]).glob("*/checkpoints/step-*")):
        assert time.perf_counter() < began + SLOWEST
        time.sleep(0.01)
    lives = [_live({**job, "arguments": command}, shared) for command in job["beside"]]
    os.kill(process, signal.SIGTERM)
    _, status = os.waitpid(process, 0)
    code, seconds = os.waitstatus_to_exitcode(status), time.perf_counter() - began
    return [*lives, Life(code, seconds, None, 0, 0, said.read_text())]


def _wait(process: int, until: float) -> None:
    """Wait until a process has ended, but do not reap it, or until a time."""
    while time.perf_counter() < until:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)


def _child(job: dict[str, Any], plan: Plan, shared: mmap.mmap, said: Path) -> int:
    import torch.distributed
    from torch.distributed.distributed_c10d import _set_pg_timeout

    from charlm.cli.main import run
    from charlm.training.gradients import GradientLearner
    from tests.torture.disk import watched

    os.chdir(job["folder"])
    sys.argv = ["charlm", *job["arguments"]]
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    _break(plan.broken)

    def count(what: str, path: Path | None) -> None:
        (operations,) = struct.unpack("q", shared[8:])
        shared[8:] = struct.pack("q", operations + 1)
        at = plan.operation
        if at is not None and (operations == at or (plan.sticky and operations > at)):
            if plan.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(plan.error, os.strerror(plan.error or 0), str(path) if path else None)

    step = GradientLearner.step

    def counted(self: GradientLearner) -> Any:
        record = step(self)
        shared[:8] = struct.pack("q", self.state.step)
        if self.state.step == IMPATIENT and plan.broken == "no patience":
            _set_pg_timeout(timedelta(seconds=2), torch.distributed.group.WORLD)
        if self.state.step == plan.step:
            os.kill(os.getpid(), plan.number)
        return record

    GradientLearner.step = counted  # type: ignore[method-assign]
    with watched(Path(job["folder"]), count):
        return run(job["arguments"])


BREAKS = (
    "random batches",
    "no cut of the log",
    "no flag",
    "another order",
    "no patience",
    "no slots",
)


def _break(what: str | None) -> None:
    """Take something out of the program, to see that it is missed.

    What flushing and renaming are for, a kill does not show: `tests.torture.test_power` does.
    """
    if what == "random batches":  # the next batch depends on how many were drawn before
        import numpy as np

        from charlm.text import Batches

        generator, get = np.random.default_rng(0), Batches.get

        def drawn(self: Batches, step: int, *rest: Any) -> Any:
            return get(self, int(generator.integers(1000)), *rest)

        Batches.get = drawn  # type: ignore[method-assign]
    elif what == "no cut of the log":
        from charlm.runs.metrics import MetricsLog

        begin = MetricsLog.__init__

        def whole(self: MetricsLog, path: Path, keep: int = 0) -> None:
            begin(self, path, path.stat().st_size if path.exists() else 0)

        MetricsLog.__init__ = whole  # type: ignore[method-assign]
    elif what == "no flag":  # signals end the process where it is
        from charlm.cli.signals import StopSignals

        StopSignals.__enter__ = lambda self: self  # type: ignore[method-assign]
        StopSignals.__exit__ = lambda self, *error: None  # type: ignore[method-assign]
    elif what == "another order":  # of sums: micro-batches are dealt like cards
        from charlm.training.summing import StepSums

        made = StepSums.__init__

        def dealt(self: StepSums, parameters: Any, micro: int, exact: bool, ranks: Any) -> None:
            made(self, parameters, micro, exact, ranks)
            self.own = range(ranks.rank, micro, ranks.size)

        StepSums.__init__ = dealt  # type: ignore[method-assign]
    elif what == "no slots":  # processes that share no memory, as on two machines
        from charlm.training import slots

        slots.PLACE = Path("nowhere")
    elif what and what != "no patience":
        raise ValueError(what)


if __name__ == "__main__":
    _serve()
