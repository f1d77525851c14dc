"""A run folder with something odd in one of its places, and every command that uses the run.

What is odd is a link, a pipe, a socket, a device, a file with another name elsewhere, a file that is
far larger than the disk, or a file or folder of the wrong kind. A command must end within seconds, as
it promises, and must not touch anything outside of the folder. The property tests and
`scripts/fuzz places` try cases from here: `tests/fuzz/test_places.py` a few, the script all of them.

`python -m tests.fuzz.places FOLDER SECONDS FIRST EVERY` tries every so many of them from a first one on.
"""

import contextlib
import faulthandler
import io
import os
import random
import re
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import TEXT, TINY
from tests.fuzz.targets import LINE_BREAKS

SECONDS = 20  # for one command
MIB = 600  # of memory that one command may take more than all before it
SPARSE = 40 << 30  # bytes
CODES = {0, 2, 3, 4, 5}  # how a command may end; 1 is a fault of charlm

MIXTURE = """\
data: {source: text.txt}
model:
  type: mixture
  block_size: 8
  experts:
    counts: {model: {type: ngram, order: 2}}
    bigram: {model: {type: bigram}, train: {max_steps: 4, batch_size: 4, warmup_steps: 1}}
train: {sample_every: 1, warmup_steps: 1}
run: {device: cpu}
"""
RUNS = ("gpt", "mixture", "start")


@dataclass(frozen=True)
class Case:
    """One case.

    Args:
        run: One of `RUNS`: a finished run, an unjoined mixture, or a start that was killed.
        place: The path in it.
        leftover: `old`, `new` or `trash`: as a crash leaves it, beside `place`; "": in its place.
        kind: What is there, one of `KINDS`.
        command: What is run, one of `COMMANDS`.
    """

    run: str
    place: str
    leftover: str
    kind: str
    command: str


# ---------------------------------------------------------------------------- what is odd


def _link(target: str) -> Callable[[Path, Path], None]:
    return lambda path, outside: path.symlink_to(outside / target)


def _socket(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
        one.bind(path.name)  # its whole path may be too long


def _device(path: Path, outside: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


def _sparse(path: Path, outside: Path) -> None:
    path.touch()
    os.truncate(path, SPARSE)


def _hard(path: Path, outside: Path) -> None:
    own = outside / "own"
    if own.is_dir():
        shutil.copytree(own, path, copy_function=os.link)
    else:
        os.link(own if own.exists() else outside / "file", path)


# What is put at a path; `own`, outside, is what was there before, if it was anything.
KINDS: dict[str, Callable[[Path, Path], None]] = {
    "a link to what was there": _link("own"),
    "a link to a file": _link("file"),
    "a link to a folder": _link("folder"),
    "a link to nothing": _link("nothing"),
    "a link to itself": lambda path, outside: path.symlink_to(path.name),
    "a link to /dev/zero": lambda path, outside: path.symlink_to("/dev/zero"),
    "a hard link": _hard,
    "a pipe": lambda path, outside: os.mkfifo(path),
    "a socket": _socket,
    "a device": _device,
    "a sparse file": _sparse,
    "an empty file": lambda path, outside: path.touch(),
    "an empty folder": lambda path, outside: path.mkdir(),
}

# ---------------------------------------------------------------------------- where, and for whom

RESUME = ("train", "--resume", "-q", "train.max_steps=8", "train.sample_every=1", "--out")
QUICK = ("-q", "--out", "other", "train.max_steps=2")
COMMANDS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "resume": lambda run: (*RESUME, run),
    "resume with another text": lambda run: (*RESUME, run, "--allow-new-data"),
    "begin": lambda run: ("train", "-c", "tiny.yaml", "-q", "--out", run),
    "start from its weights": lambda run: (
        *("train", "-c", "tiny.yaml", "--init-from", run, *QUICK),
    ),
    "take it as an expert": lambda run: (
        *("train", "-c", "mixture.yaml", *QUICK[:-1], f"model.experts.old.run={run}"),
    ),
    "sample": lambda run: ("sample", "--run", run, "--max-new-chars", "8"),
    "eval": lambda run: ("eval", "--run", run),
    "eval a text": lambda run: ("eval", "--run", run, "--file", "text.txt"),
    "compare": lambda run: ("compare", run),
    "compare all": lambda run: ("compare",),
    "verify": lambda run: ("verify", run),
    "list": lambda run: ("runs", "list"),
    "remove": lambda run: ("runs", "rm", run, "--yes"),
    "sample from its expert": lambda run: ("sample", "--run", f"{run}/experts/bigram"),
    "eval its expert": lambda run: ("eval", "--run", f"{run}/experts/bigram"),
}
OF_EXPERT = "its expert"
# What a crash leaves behind, and the commands that look at it; `old` is also missing in its place.
LEFTOVERS = {
    "old": ("resume", "resume with another text", "begin", "verify", "sample", "eval", "remove"),
    "new": ("resume", "begin", "verify", "remove"),
    "trash": ("resume", "begin", "verify", "remove"),
}
# Where a run has no file or folder yet, or not always.
MORE = (".lock", ".lock-holder.json", "checkpoints/step-8", "checkpoints/step-99", "mixture.json")
MORE += ("checkpoints/damaged-step-6", "samples/step-8.txt", "samples", "experts", "belongs.json")


def prepare(folder: Path, run: Callable[[list[str]], int]) -> None:
    """Make a folder of runs by the command `run`, for many cases."""
    folder.mkdir()
    with contextlib.chdir(folder):
        Path("text.txt").write_text(TEXT)
        Path("tiny.yaml").write_text(TINY)
        Path("mixture.yaml").write_text(MIXTURE)
        gpt = ["train", "-c", "tiny.yaml", "-q", "--out", "runs/gpt", "train.sample_every=3"]
        assert run(gpt) == 0
        assert run(["train", "-c", "mixture.yaml", "-q", "--out", "runs/mixture"]) == 0
        shutil.rmtree("runs/mixture/checkpoints")  # now it is not joined yet
        Path("runs/mixture/metrics.jsonl").write_bytes(b"")
        Path("runs/start").mkdir()
        Path("runs/start/.lock-holder.json").touch()
        Path("runs/start/checkpoints").mkdir()
        shutil.copytree("runs/gpt/tokens", "runs/start/tokens")
        shutil.copy("runs/gpt/tokenizer.json", "runs/start")


def cases(prepared: Path) -> list[Case]:
    """List all cases, mixed; `prepared` is the folder of `prepare`."""
    kinds = [kind for kind in KINDS if kind != "a device" or os.geteuid() == 0]
    found = [
        Case(run, place, leftover, kind, command)
        for run in RUNS
        for place in _places(prepared / "runs" / run)
        for command in commands(run)
        for leftover in ("", *LEFTOVERS)
        if command in LEFTOVERS.get(leftover, COMMANDS)
        for kind in kinds
    ]
    return random.Random(0).sample(found, len(found))


def commands(run: str) -> list[str]:
    """List the commands for one of `RUNS`."""
    if run == "start":
        return ["begin"]
    return [command for command in COMMANDS if run == "mixture" or not command.endswith(OF_EXPERT)]


def _places(folder: Path) -> list[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    more = (*MORE, "config.yaml", "metrics.jsonl", "baselines.json")
    return sorted(found | {place for place in more if (folder / place).parent.is_dir()})


# ---------------------------------------------------------------------------- one case


class TooSlow(BaseException):
    """A command took too long."""


def answer(case: Case, prepared: Path, scratch: Path, run: Callable[[list[str]], int]) -> str:
    """Lay out a case in `scratch` and run its command; return what is wrong, or "" if nothing is."""
    work, outside = scratch / "work", scratch / "outside"
    for folder in (work, outside):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, work, symlinks=True)
    (outside / "folder/step-6").mkdir(parents=True)
    (outside / "folder/step-6/notes.txt").write_text("precious")
    (outside / "file").write_text('{"kind": "precious"}\n' * 200)
    _lay(case, work / "runs" / case.run, outside)
    if case.command == "resume with another text":
        (work / "text.txt").write_text(TEXT + TEXT[:50])
    before = _look(outside)
    wrong = _run(COMMANDS[case.command](f"runs/{case.run}"), work, run)
    if not wrong and (changed := _difference(before, _look(outside))):
        wrong = f"changed outside: {changed}"
    return wrong and f"{case}: {wrong}"


def _lay(case: Case, folder: Path, outside: Path) -> None:
    """Put what is odd into a run folder."""
    place = path = folder / case.place
    if case.leftover:
        path = place.with_name(f".tmp-{case.leftover}-1234abcd-{place.name}")
    if os.path.lexists(place) and case.leftover in ("", "old"):
        place.rename(outside / "own")
    KINDS[case.kind](path, outside)


def _run(arguments: tuple[str, ...], work: Path, run: Callable[[list[str]], int]) -> str:
    """Run a command; return what is wrong with how it ends."""

    def late(*_: Any) -> None:
        raise TooSlow

    out, err = io.StringIO(), io.StringIO()
    memory, began = _peak(), time.perf_counter()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(work),
        ):
            code = run(list(arguments))
    except TooSlow:
        return f"took more than {SECONDS} s"
    except Exception as error:
        return f"a fault: {error!r}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    errors = [line for line in err.getvalue().split("\n") if line.startswith("charlm: error: ")]
    if code not in CODES or (code and len(errors) != 1):
        return f"exit {code}, {err.getvalue()!r}"
    if any(set(line) & set(LINE_BREAKS) for line in errors):
        return f"more than one line: {errors}"
    if _peak() - memory > MIB << 20:
        return f"took {(_peak() - memory) >> 20} MiB"
    return "" if time.perf_counter() - began < SECONDS else "took too long"


def _peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _look(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return what must not change: names, kinds, sizes, times and contents."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = (
            path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size < 1 << 24 else b""
        )
        facts = (status.st_mode, status.st_size, status.st_mtime_ns, content)
        found[str(path.relative_to(folder))] = facts
    return found


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    return re.sub(r"\s+", " ", ", ".join(changed))


def main(prepared: Path, seconds: float, first: int, every: int) -> None:
    """Try cases until the time is over; print what is wrong, and last how many were tried."""
    from charlm.cli.main import run

    began, tried = time.monotonic(), 0
    with tempfile.TemporaryDirectory(dir=prepared.parent) as scratch:
        for case in cases(prepared)[first::every]:
            if time.monotonic() - began > seconds:
                break
            faulthandler.dump_traceback_later(3 * SECONDS, exit=True)  # if no signal can end it
            if wrong := answer(case, prepared, Path(scratch), run):
                print(wrong, flush=True)
            tried += 1
    faulthandler.cancel_dump_traceback_later()
    print(tried)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
