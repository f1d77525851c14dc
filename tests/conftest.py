"""What many tests share: a tiny text, a tiny configuration, a trained run, and the command line.

No test needs a network or a GPU, and none writes outside its `tmp_path`.
"""

import functools
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from beartype import BeartypeConf
from beartype.claw import beartype_packages
from hypothesis import settings

from tests.checked import check_once

# Types are checked here too, but not shapes: these packages have none, and looking for them takes
# as long as the rest of a short function. The others are in pyproject.toml.
beartype_packages(
    ("charlm.lifecycle", "charlm.runs", "charlm.text"), conf=BeartypeConf(claw_is_pep526=False)
)
check_once()
# How long an example takes depends on what else runs: that is no failure.
settings.register_profile("charlm", deadline=None)
settings.load_profile("charlm")
os.environ["TERMINAL_WIDTH"] = "100"  # help texts wrap to the terminal otherwise
# Tensors as small as those of a test are slower on several threads, far slower on a busy machine.
torch.set_num_threads(1)
# No test in this process cuts the power, so nothing waits for the disk; a closed file is still an
# error. Tests of what is flushed, and when, watch the calls.
os.fsync = os.fstat  # type: ignore[assignment]
# typer builds all commands again for each call, which takes as long as many a command.
typer.main.get_command = functools.cache(typer.main.get_command)

# Files that compile many kernels, each file others. With the first on one core and the second on
# another, no two processes compile the same ones at the same time; later tests load them.
COMPILING = (
    "fused/test_fused.py",
    "coding/test_portable.py",
    "models/test_adaptive.py",
    "sampling/test_readers.py",
)

TEXT = (
    "the quick brown fox jumps over the lazy dog.\nPack my box with five dozen liquor jugs!\n" * 30
)

TINY = """\
data:
  source: text.txt
model:
  type: gpt
  style: modern
  block_size: 8
  n_layer: 2
  n_head: 2
  n_embd: 16
train:
  max_steps: 6
  batch_size: 4
  warmup_steps: 2
  eval_every: 3
run:
  device: cpu
"""


@dataclass
class Result:
    """What one command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of an error; fails if there is not exactly one."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("charlm: error: ")]
        assert len(lines) == 1, self.stderr
        return lines[0].removeprefix("charlm: error: ")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that compile most; see `COMPILING`."""
    first = [Path(__file__).parent / name for name in COMPILING]
    items.sort(key=lambda item: first.index(item.path) if item.path in first else len(first))


@pytest.fixture(autouse=True)
def _single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test depend on what the machine is faster at."""
    monkeypatch.setattr("charlm.models.device.bfloat16_is_faster", lambda: False)


@pytest.fixture(autouse=True)
def _own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test change how this process allocates memory."""
    monkeypatch.setattr("charlm.training.kept_memory.can_keep_memory", lambda: False)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, with no variable of the machine's own in the way."""
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "CHARLM_DATA",
        "CHARLM_DEBUG",
    ):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone, too (--debug does)
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def charlm(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run one command in this process: `charlm("train", "--config", "tiny.yaml")`."""
    from charlm.cli.main import run

    def command(*arguments: object) -> Result:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        _check_advice([str(argument) for argument in arguments], captured.err)
        return Result(code, captured.out, captured.err)

    return command


def _check_advice(arguments: list[str], stderr: str) -> None:
    """Check that each option which a message names is one of the command that it is named for."""
    verbs = "|".join(_options())
    ran = next((name for name in sorted(_options(), reverse=True) if _runs(arguments, name)), None)
    for line in re.findall(r"^charlm: (?:error|note): (.*)$", stderr, re.MULTILINE):
        verb = ran
        for other, option in re.findall(rf"charlm ({verbs})\b|(?<![\w-])(--?[a-z][a-z-]*)", line):
            verb = other or verb
            typed = any(option in argument for argument in arguments)  # a message may quote it
            if option and verb and not typed and f"ulimit {option}" not in line:
                assert option in _options()[verb], f"{line!r} names no option of charlm {verb}"


def _runs(arguments: list[str], name: str) -> bool:
    words = [word for word in arguments if word != "--debug"]
    return words[: len(name.split())] == name.split()


@functools.cache
def _options() -> dict[str, set[str]]:
    """Return the options of each command of charlm."""
    from charlm.cli.main import app

    found: dict[str, set[str]] = {}

    def walk(group: Any, name: str) -> None:
        for word, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, f"{name}{word} ")
            names = [[*one.opts, *one.secondary_opts] for one in command.params]
            found[name + word] = {"--help", "-h", *(option for some in names for option in some)}

    walk(typer.main.get_command(app), "")
    return found


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A configuration that trains in a fraction of a second, beside its text."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from charlm.cli.main import run

    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert run(["train", "--config", "tiny.yaml", "--out", "runs/tiny", "-q"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of the tiny configuration: the path of its run folder."""
    shutil.copytree(_trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "tiny"


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator: equal numbers in every run of the suite."""
    return torch.Generator().manual_seed(0)
