"""Other processes that do a job on one stretch of a text after another.

They are programs of their own, started and answered by lines of JSON through pipes: that works from
any program, also from one whose main module must not be imported again, or which has threads. A
process ends when its pipe does, so none is left if this one is killed. Signals that ask a whole group
of processes to end are for this one, which ends the others.
"""

import json
import os
import subprocess  # nosec B404
import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, Any

from charlm.config.cores import own_cores
from charlm.errors import CharlmError, MachineError
from charlm.text.stretch_jobs import JOBS, Result

MOST = 8  # this process hashes what they read and write in order, and keeps up with so many
# Signals are ignored before the rest is imported, which takes a second.
_PROGRAM = """
import signal
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    if hasattr(signal, name):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
from charlm.text.workers import serve
serve()
"""

Task = Mapping[str, Any]


def in_order(
    job: str, setup: Mapping[str, Any], tasks: Sequence[Task], count: int | None = None
) -> Generator[Result]:
    """Do tasks in several processes, and yield their results in the order of the tasks.

    Args:
        job: One of `JOBS`.
        setup: What it is made of.
        tasks: What it is called with.
        count: How many processes; None: one for each core. With one, it is this process.

    Raises:
        Exception: That of the first task, in their order, that raises one.
        MachineError: A process was killed.
    """
    if count is None:
        count = min(own_cores(), MOST)
    if count < 2 or len(tasks) < 2:
        work = JOBS[job](**setup)
        for task in tasks:
            yield _done_here(work, task)
        return
    workers = [_Worker(job, setup) for _ in range(min(count, len(tasks)))]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(task: Task) -> Result | None:
        worker = idle.get()
        try:
            return worker.ask(task)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            for task, found in zip(tasks, pool.map(ask, tasks), strict=True):
                yield found if found is not None else _done_here(JOBS[job](**setup), task)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.end()


def _done_here(work: Any, task: Task) -> Result:
    """Do a task in this process; an error says all there is to say."""
    try:
        result: Result = work(**task)
    except CharlmError:
        result = work(**task, count_lines=True)  # it takes longer, and raises the same again
    return result


class _Worker:
    """A process that does tasks."""

    def __init__(self, job: str, setup: Mapping[str, Any]) -> None:
        command = [sys.executable, "-P", "-c", _PROGRAM]  # -P: not from the current folder
        self._process = subprocess.Popen(  # nosec B603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            process_group=None if os.name == "nt" else 0,
        )
        self._write({"job": job, "setup": setup})

    def ask(self, task: Task) -> Result | None:
        """Let it do a task, and return its result; None if it raised an error.

        Raise MachineError if the process is gone.
        """
        self._write(task)
        assert self._process.stdout
        answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            code = self._process.wait()
            how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            mend = "start the same command again; what is finished is kept if it names a run folder"
            raise MachineError("a process that reads the text", how, mend)
        result: Result | None = json.loads(answer)
        return result

    def end(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            _close(pipe)

    def _write(self, content: Task) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it is gone; reading its answer says so
            pass


def _close(pipe: IO[bytes] | None) -> None:
    try:
        if pipe:
            pipe.close()
    except BrokenPipeError:
        pass


def serve() -> None:
    """Be such a process: read the job, then tasks, and answer each."""
    out, sys.stdout = sys.stdout, sys.stderr
    begin = json.loads(sys.stdin.readline() or "{}")
    work: Any = None
    for line in sys.stdin:
        try:
            work = work or JOBS[begin["job"]](**begin["setup"])
            answer = work(**json.loads(line))
        except Exception:  # who asked does it again, and shows the error
            answer = None
        try:
            out.write(json.dumps(answer) + "\n")
            out.flush()
        except (
            BrokenPipeError
        ):  # who asked is gone; the interpreter would complain about it at its end
            os._exit(1)
