"""What must hold however a command is disturbed; each function returns what did not, in words."""

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from charlm.errors import CharlmError
from charlm.runs import RunFolder
from charlm.runs.metrics import read_metrics
from charlm.storage import verify_folder
from charlm.storage.lock import is_locked
from charlm.storage.regular import is_folder
from tests.torture import sparse
from tests.torture.lives import ROOT, Life, Lives, Plan

TEXT = (
    "the quick brown fox jumps over the lazy dog.\nPack my box with five dozen liquor jugs!\n" * 30
)
SAVE_EVERY = 5
STEPS = (
    f"{{max_steps: 30, batch_size: 4, warmup_steps: 2, eval_every: 10, save_every: {SAVE_EVERY}, "
    "sample_every: 10, sample_chars: 8, %s}"
)
REST = (
    "\neval: {baselines: false}\nrun: {device: cpu, dtype: float32, compile: false}\n"
    "data: {source: text.txt}\n"
)
GPT = "{type: gpt, style: %s, block_size: 8, n_layer: 2, n_head: 2, n_embd: 16, dropout: %s}"


def _run(model: str, train: str = "") -> str:
    return f"model: {model}\ntrain: {STEPS % train}{REST}"


RUNS = {
    "bigram": _run("{type: bigram, block_size: 8}"),
    "gpt2, dropout, accumulation": _run(GPT % ("gpt2", 0.1), "micro_batch_size: 1"),
    "modern, muon": _run(GPT % ("modern", 0), "optimizer: muon"),
    "by hand": _run(GPT % ("gpt2", 0), "gradients: by_hand"),
    "mixture": _run(
        "\n  type: mixture\n  block_size: 8\n  experts:\n"
        "    counts: {model: {type: ngram, order: 3, block_size: 8}}\n"
        f"    gpt: {{model: {GPT % ('modern', 0.1)}, train: {STEPS % ''}}}"
    ),
}

_NGRAMS = GPT.replace("dropout: %s", "dropout: 0.1, n_gram: 3")
SHARED = {  # by several processes
    "shared gpt2": _run(GPT % ("gpt2", 0.1), "parallel: ddp, micro_batch_size: 1").replace(
        "compile: false", "compile: false, fused: false"
    ),
    "shared modern": _run(
        _NGRAMS % "modern", "parallel: ddp, micro_batch_size: 1, optimizer: muon"
    ).replace("float32", "bfloat16"),
    "shared gru": _run(
        "{type: gru, block_size: 8, n_layer: 2, n_embd: 8, n_hidden: 12}",
        "parallel: ddp, micro_batch_size: 1",
    ),
}


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=3")
TWO_MACHINES = (
    *TORCHRUN[:3],
    *("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"),
    *("--rdzv-id=charlm", "--rdzv-conf=last_call_timeout=15"),
)
# Which of two machines is lost. The process of the lower address is the first.
LOST = {
    "the second": ("127.0.0.1", "127.0.0.2"),
    "the first process": ("127.0.0.2", "127.0.0.1"),
    "the first process, which came later": ("127.0.0.2", "127.0.0.1"),
}
SLOWEST_LAUNCH = 300.0  # seconds
SLOWEST_ORPHAN = 10.0

COMPILED, SHORT, LONG = "compiled ", "short ", "long "  # before a name of `RUNS` or `SHARED`
_SHORTER = {
    "max_steps: 30": "max_steps: 12",
    "eval_every: 10": "eval_every: 4",
    f"save_every: {SAVE_EVERY}": "save_every: 4",
    "sample_every: 10": "sample_every: 6",
}

_LONGER = {
    "max_steps: 30": "max_steps: 200",
    "eval_every: 10": "eval_every: 100",
    f"save_every: {SAVE_EVERY}": "save_every: 50",
    "sample_every: 10": "sample_every: 100",
}


def begin(folder: Path, name: str) -> Path:
    """Make a folder with a text and a configuration in it; return where the run will be."""
    config = (RUNS | SHARED)[name.removeprefix(COMPILED).removeprefix(SHORT).removeprefix(LONG)]
    if name.startswith(COMPILED):
        config = config.replace("compile: false", "compile: true")
    for prefix, changes in ((SHORT, _SHORTER), (LONG, _LONGER)):
        for as_usual, other in changes.items() if name.startswith(prefix) else ():
            config = config.replace(as_usual, other)
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text(TEXT)
    (folder / "config.yaml").write_text(config)
    return folder / "run"


def command(run: Path) -> tuple[str, ...]:
    """Return what begins a run, or goes on with it."""
    if (run / "config.yaml").exists():
        return ("train", "--resume", "--out", "run", "-q")
    return ("train", "--config", "config.yaml", "--out", "run", "-q")


def outcome(run: Path) -> dict[str, object]:
    """Return all that a finished run left, but for what depends on the clock."""
    found: dict[str, object] = {}
    for folder in [run, *sorted(run.glob("experts/*"))]:
        name = folder.name
        last = RunFolder(folder).checkpoints.last()
        if last:
            verify_folder(last.path)
            for file in sorted(last.path.iterdir()):
                if file.suffix == ".safetensors":
                    found[f"{name}: {file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
            state = json.loads((last.path / "state.json").read_bytes())
            found[f"{name}: state"] = state | {"seconds": 0, "metrics_bytes": 0}
        clocks = {"seconds": 0, "chars_per_second": 0}
        if (folder / "metrics.jsonl").exists():
            found[f"{name}: records"] = [
                record | clocks
                for record in read_metrics(folder / "metrics.jsonl")
                if record["kind"] != "save"
            ]
        found[f"{name}: samples"] = {
            file.name: file.read_text() for file in sorted(folder.glob("samples/*"))
        }
    found["temporary"] = [str(path.relative_to(run)) for path in run.rglob(".tmp-*")]
    return found


def saved_step(run: Path) -> int:
    """Return the newest step that verifies, of a run and of its experts together; 0: none."""
    steps = 0
    for folder in [run, *run.glob("experts/*")]:
        for checkpoint in reversed(RunFolder(folder).checkpoints.all()):
            try:
                verify_folder(checkpoint.path)
            except CharlmError:
                continue
            steps += checkpoint.step
            break
    return steps


@dataclass
class Straight:
    """A run that nothing disturbed.

    Args:
        name: Of `RUNS`.
        outcome: What it left.
        life: How it went.
    """

    name: str
    outcome: dict[str, object]
    life: Life


def straight(lives: Lives, folder: Path, name: str) -> Straight:
    """Run one undisturbed."""
    run = begin(folder, name)
    lives.live(folder, *command(run))  # the first is slower
    shutil.rmtree(run)
    life = lives.live(folder, *command(run))
    assert life.code == 0, life.stderr
    return Straight(name, outcome(run), life)


@dataclass
class Tally:
    """What trials came to.

    Args:
        failures: What did not hold.
        kills: Lives that were ended by a signal they could not answer.
        inside: Of these, so many at a durable operation.
        redone: Steps done again, after each kill.
        waited: Seconds from each signal to the end.
    """

    failures: list[str] = field(default_factory=list)
    kills: int = 0
    inside: int = 0
    redone: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)


def killed(
    lives: Lives, folder: Path, like: Straight, seed: int, tally: Tally, broken: str | None = None
) -> None:
    """Kill a run again and again, one time in three at a durable operation, then let it end."""
    rng = random.Random(seed)
    run = begin(folder, like.name)
    for _ in range(rng.randint(2, 6)):
        inside = rng.random() < 1 / 3
        plan = Plan(
            operation=rng.randrange(like.life.operations) if inside else None,
            after=None if inside else rng.uniform(0, like.life.seconds),
            broken=broken,
        )
        before = saved_step(run)
        life = lives.live(folder, *command(run), plan=plan)
        if life.code != -signal.SIGKILL:
            if life.code:
                tally.failures.append(f"{like.name}, seed {seed}: {life.code}: {life.stderr}")
                return
            break
        tally.kills += 1
        tally.inside += inside
        tally.redone.append(max(before, life.steps) - saved_step(run))
    life = lives.live(folder, *command(run), plan=Plan(broken=broken))
    if life.code:
        tally.failures.append(f"{like.name}, seed {seed}: {life.code}: {life.stderr}")
        return
    tally.failures += [f"{like.name}, seed {seed}: {key} differs" for key in differing(run, like)]


def differing(run: Path, like: Straight) -> list[str]:
    """Return what a finished run left otherwise than the undisturbed one."""
    found = outcome(run)
    return sorted(
        key for key in like.outcome.keys() | found.keys() if found.get(key) != like.outcome.get(key)
    )


def signalled(
    lives: Lives, folder: Path, like: Straight, seed: int, tally: Tally, broken: str | None = None
) -> None:
    """Ask a run to stop at a random instant; it must lose no step and end as it would have.

    A broken program is asked after a random step: to see that it fails, it must be asked in one.
    """
    rng = random.Random(seed)
    run = begin(folder, like.name)
    number = rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    plan = Plan(
        step=rng.randint(1, 29) if broken else None,
        after=None if broken else rng.uniform(0, like.life.seconds),
        number=number,
        broken=broken,
    )
    life = lives.live(folder, *command(run), plan=plan)
    when = f"at step {plan.step}" if broken else f"after {plan.after:.3f} s"
    where = f"{like.name}, seed {seed}, {number.name} {when}"
    if life.code not in (0, 128 + number, -number):
        tally.failures.append(f"{where}: exit {life.code}: {life.stderr}")
        return
    # Before its first step there is nothing to lose, nor when all is done.
    if life.code < 0 and life.steps and differing(run, like):
        tally.failures.append(f"{where}: ended by the signal at step {life.steps}")
    if life.code:
        if life.waited is not None:
            tally.waited.append(life.waited)
        if saved_step(run) < life.steps:
            tally.failures.append(f"{where}: step {life.steps} done, {saved_step(run)} saved")
    life = lives.live(folder, *command(run))
    if life.code or differing(run, like):
        tally.failures.append(f"{where}: exit {life.code}: {life.stderr}, {differing(run, like)}")


REFUSALS = ("once", "from then on", "then a kill")


def halfway(lives: Lives, folder: Path, like: Straight) -> Path:
    """Leave a run half done, as a kill does, for `refused` to go on with; return its folder."""
    lives.live(folder, *command(begin(folder, like.name)), plan=Plan(operation=half(like)))
    return folder


def half(like: Straight) -> int:
    """Return how many durable operations half a run has: the other half has one more at most."""
    return like.life.operations // 2


def refused(
    lives: Lives,
    folder: Path,
    like: Straight,
    begun: Path,
    operation: int,
    error: int,
    how: str,
    tally: Tally,
) -> None:
    """Let a durable operation fail in a run that goes on; nothing that was saved may be harmed.

    Args:
        begun: What `halfway` left; it goes on in a copy.
        how: A name of `REFUSALS`.
    """
    run = shutil.copytree(begun, folder) / "run"
    # A kill comes at any instant, before the failure too.
    kill = random.Random(operation).uniform(0, like.life.seconds) if how == "then a kill" else None
    sticky = how == "from then on"
    before = saved_step(run)
    plan = Plan(operation=operation, error=error, sticky=sticky, after=kill)
    life = lives.live(folder, *command(run), plan=plan)
    where = f"{like.name}, operation {operation}, {errno.errorcode[error]}, {how}"
    codes = {0, 5} | ({-signal.SIGKILL} if kill else set())
    if life.code not in codes or "Traceback" in life.stderr:
        tally.failures.append(f"{where}: exit {life.code}: {life.stderr}")
    if saved_step(run) < before:
        tally.failures.append(f"{where}: {before} saved before, {saved_step(run)} now")
    life = lives.live(folder, *command(run))
    # A sample that could not be kept is not written again: it is nothing that anything rests on.
    differ = {key for key in differing(run, like) if not key.endswith(("samples", "records"))}
    steps = [r["step"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]
    if life.code or differ or steps != list(range(1, 31)):
        tally.failures.append(f"{where}: exit {life.code}: {life.stderr}, {differ}, {steps}")


def afresh(folder: Path, name: str, steps: int, tally: Tally) -> None:
    """Do each step in a process of its own; all must leave what one process leaves.

    Interpreters, not forks: each has its own order of sets, and whatever else differs between two.
    """
    config = (
        RUNS[name]
        .replace("max_steps: 30", f"max_steps: {steps}, schedule: constant")
        .replace("warmup_steps: 2", "warmup_steps: 0")
        .replace(
            "eval_every: 10, save_every: 5, sample_every: 10", "eval_every: 1, sample_every: 1"
        )
    )
    for place in ("one", "many"):
        begin(folder / place, name)
        (folder / place / "config.yaml").write_text(config)
    ends = {"one": [steps], "many": range(1, steps + 1)}
    for place, last_steps in ends.items():
        for last in last_steps:
            line = command(folder / place / "run")
            done = subprocess.run(
                [sys.executable, "-m", "charlm", *line, f"train.max_steps={last}"],
                capture_output=True,
                text=True,
                cwd=folder / place,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )
            if done.returncode:
                tally.failures.append(f"{name}, step {last}: {done.returncode}: {done.stderr}")
                return
    one, many = (outcome(folder / place / "run") for place in ends)
    tally.failures += [f"{name}: {key} differs" for key in one if one[key] != many.get(key)]


def torn(folder: Path, like: Straight, seed: int, tally: Tally) -> None:
    """Kill processes of a run that torchrun started, or torchrun; go on in other numbers of them."""
    rng = random.Random(seed)
    run = begin(folder, like.name)
    for _ in range(20):
        size = rng.choice([1, 2, 4])
        torchrun = *TORCHRUN, f"--nproc-per-node={size}"
        agent = _agent(folder, "said", torchrun, command(run))
        killing, killed = rng.random() < 0.9, None
        while killing and _comes_to(agent, run, saved_step(run) + 1):
            if killed:
                tally.waited.append(time.monotonic() - killed)  # until they had saved again
            time.sleep(rng.uniform(0, 0.1))
            workers = _children(agent.pid)
            victim = agent.pid if not workers or rng.random() < 0.2 else rng.choice(workers)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                tally.kills += 1
            killed = time.monotonic()
            killing = victim != agent.pid and rng.random() < 0.6
        code = agent.wait(SLOWEST_LAUNCH)
        if not code:
            break
        _wait_for_lock(run)
    else:
        tally.failures.append(f"{like.name}, seed {seed}: no end: {(folder / 'said').read_text()}")
        return
    _compare(run, like, f"seed {seed}", tally)


def _compare(run: Path, like: Straight, trial: str, tally: Tally) -> None:
    """Compare a finished run of 30 steps with the undisturbed one; each step is recorded once."""
    steps = [r["step"] for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]
    if steps != list(range(1, 31)):
        tally.failures.append(f"{like.name}, {trial}: recorded {steps}")
    tally.failures += [f"{like.name}, {trial}: {key} differs" for key in differing(run, like)]


def in_any_number(lives: Lives, folder: Path, name: str, tally: Tally) -> None:
    """Train 200 steps in 2 and 4 processes, and in changing numbers after kills; all end like one."""
    like = straight(lives, folder / "one", name)
    whole = Plan()
    changing = (2, Plan(step=80)), (4, Plan(step=150)), (1, whole)
    for number, parts in enumerate((((2, whole),), ((4, whole),), changing)):
        run = begin(folder / str(number), name)
        for size, plan in parts:
            ended = lives.together(run.parent, *command(run), size=size, plan=plan)
            tally.kills += plan.step is not None
            expected = -signal.SIGKILL if plan.step else 0
            if ended[0].code != expected:
                tally.failures.append(f"{name}: {ended}")
        tally.failures += [f"{name}, {number}: {key} differs" for key in differing(run, like)]


def divided(folder: Path, like: Straight, which: str, tally: Tally) -> None:
    """Train on two agents, as on two machines; kill all of one, and let the other go on alone."""
    run = begin(folder, like.name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents: list[subprocess.Popen[bytes]] = []
    halted: list[int] = []
    later, begins = "later" in which, command(run)
    try:
        for machine, address in enumerate(LOST[which]):
            # Where the first agent is they meet, so it has to stay.
            torchrun = *TWO_MACHINES, f"--local-addr={address}", f"--rdzv-endpoint=127.0.0.1:{port}"
            # Without this, PyTorch 2.13.0 cannot take in a machine later (docs/scale.md).
            settings = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": str(int(which != "the second"))}
            agents.append(_agent(folder, f"said-{machine}", torchrun, begins, **settings))
            _wait_for_port(port)
            if later and not machine:
                _comes_to(agents[0], run, SAVE_EVERY)
                halted = _children(agents[0].pid)
                for process in halted:  # else it may have ended before the other machine is there
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGSTOP)
        stays, lost = agents
        _wait_for_sigterm(halted)
        while halted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(halted.pop(), signal.SIGCONT)
        earlier = saved_step(run)
        together = _comes_to(lost, run, earlier + SAVE_EVERY) and bool(_children(lost.pid))
        victims = [lost.pid, *_children(lost.pid)]
        before = saved_step(run)
        for process in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        tally.kills += 1
        began = time.monotonic()
        codes = stays.wait(SLOWEST_LAUNCH), lost.wait()
        tally.waited.append(time.monotonic() - began)
    finally:
        for agent in agents:
            agent.kill()
        for process in halted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    said_by = [(folder / f"said-{machine}").read_text() for machine in range(2)]
    # The one that stays noticed the loss, so the other did train with it.
    noticed = re.search(r"error: process \d of 2: ", said_by[0])
    together = together and bool(noticed) and before < 30
    if not together or codes != (0, -signal.SIGKILL):
        what = f"{codes}, killed after {before}: {said_by}"
        tally.failures.append(f"{like.name}, {which}: {what}")
        return
    _compare(run, like, which, tally)


def _wait_for_sigterm(processes: list[int]) -> None:
    """Wait until processes that were halted have a SIGTERM that waits for them."""
    ends = time.monotonic() + SLOWEST_LAUNCH
    for process in processes:
        while not _has_sigterm(process):
            assert time.monotonic() < ends, "the processes that train alone were not stopped"
            time.sleep(0.05)


def _has_sigterm(process: int) -> bool:
    """Tell whether a SIGTERM waits for a process, or the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    waiting = re.findall(r"(?:Sig|Shd)Pnd:\s+(\w+)", status)
    return any(int(signals, 16) >> (signal.SIGTERM - 1) & 1 for signals in waiting)


def _agent(
    folder: Path, said: str, torchrun: tuple[str, ...], arguments: tuple[str, ...], **settings: str
) -> subprocess.Popen[bytes]:
    """Start charlm by torchrun in a folder; all that it prints goes to a file there."""
    with (folder / said).open("w") as file:
        return subprocess.Popen(
            [*torchrun, "-m", "charlm", *arguments],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **settings},
            stdout=file,
            stderr=file,
        )


def _wait_for_port(port: int) -> None:
    """Wait until somebody listens there."""
    ends = time.monotonic() + SLOWEST_LAUNCH
    while time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise AssertionError("the first agent does not listen")


def _comes_to(agent: subprocess.Popen[bytes], run: Path, step: int) -> bool:
    """Wait until a run has saved a step; tell whether it did before it ended."""
    while agent.poll() is None:
        with contextlib.suppress(CharlmError, OSError):
            if any(one >= step for one, _ in RunFolder(run).checkpoints.saved()):
                return True
        time.sleep(0.005)
    return False


def _children(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [
            int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()
        ]
    return []


def _wait_for_lock(run: Path) -> None:
    """Wait until processes whose torchrun was killed have ended too."""
    ends = time.monotonic() + SLOWEST_ORPHAN
    while is_folder(run) and is_locked(run):
        assert time.monotonic() < ends, "a process goes on without torchrun"
        time.sleep(0.05)


def crowded(lives: Lives, folder: Path, count: int, tally: Tally) -> None:
    """Start one command many times at once; one may begin, and the others must name it."""
    run = begin(folder, "bigram")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 30", "max_steps: 1000000"))
    *losers, winner = lives.crowd(folder, *command(run), count=count)
    if winner.code != 143:
        tally.failures.append(f"the winner ended with {winner.code}: {winner.stderr}")
    for life in losers:
        tally.waited.append(life.seconds)
        named = re.search(r"process \d+ on \S+ \(since ", life.stderr)
        if life.code != 5 or not named or len(life.stderr.splitlines()) != 1:
            tally.failures.append(f"a loser ended with {life.code}: {life.stderr}")


def read_beside(lives: Lives, folder: Path, count: int, tally: Tally) -> None:
    """Sample, score, compare and verify a run that saves and prunes at every step; nothing may fail."""
    run = begin(folder, "modern, muon")
    config = folder / "config.yaml"
    text = config.read_text().replace("max_steps: 30", "max_steps: 1000000")
    config.write_text(text.replace(f"save_every: {SAVE_EVERY}", "save_every: 1"))
    kinds = [
        ("sample", "--run", "run", "--max-new-chars", "8"),
        ("verify", "run"),
        ("sample", "--run", "run", "--max-new-chars", "8", "--checkpoint", "last"),
        ("eval", "--run", "run", "--checkpoint", "last"),
        ("compare", "run"),
    ]
    readers = [kinds[i % len(kinds)] for i in range(count)]
    *lives_of_readers, training = lives.beside(folder, command(run), readers)
    for reader, life in zip(readers, lives_of_readers, strict=True):
        if life.code:
            tally.failures.append(f"{' '.join(reader)}: exit {life.code}: {life.stderr}")
    if training.code != 143:
        tally.failures.append(f"training ended with {training.code}: {training.stderr}")
    tally.waited += [life.seconds for life in lives_of_readers]


def larger_than_memory(folder: Path) -> tuple[dict[str, object], list[str]]:
    """Train on 100 GiB of ids; return the figures, and what did not hold."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.sparse", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        return {}, [done.stderr]
    found = json.loads(done.stdout)
    above = found["above_baseline_bytes"]
    figures = {
        "GiB of ids": found["bytes"] >> 30,
        "MiB of disk": found["disk_bytes"] >> 20,
        "steps": found["steps"],
        "MiB of memory above the imports": above >> 20,
        f"KiB more after {sparse.READS:,} reads": found["growth_bytes"] >> 10,
        "of the windows beyond 4 GiB": f"{found['beyond_4_gib']}/{found['windows']}",
    }
    failures = []
    if above > sparse.ALLOWED:
        failures.append(f"{above:,} bytes above the imports")
    if found["growth_bytes"] > sparse.GROWTH:
        failures.append(f"{found['growth_bytes']:,} bytes more after {sparse.READS:,} reads")
    if found["steps"] != 30 or found["beyond_4_gib"] < 0.9 * found["windows"]:
        failures.append(str(found))
    return figures, failures
