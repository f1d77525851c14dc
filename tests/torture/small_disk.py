"""Train on a real disk that is small, then full, then read-only; print what each command did.

`python -m tests.torture.small_disk FOLDER` mounts a disk of 4 MiB there, so it needs a mount namespace
of its own, as `unshare --user --map-root-user --mount` gives.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZE = "4m"
TRAIN = ("train", "--config", "config.yaml", "--out", "run", "-q")
RESUME = ("train", "--resume", "--out", "run", "-q")
READERS = (
    ("sample", "--run", "run", "--max-new-chars", "8"),
    ("eval", "--run", "run"),
    ("verify", "run"),
)


def main(folder: Path) -> None:
    """Do all of it, and print a JSON object of results by name."""
    import torch

    from charlm.runs import RunFolder
    from charlm.training.gradients import GradientLearner
    from tests.torture.trials import begin

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], check=True)
    os.chdir(begin(disk / "work", "modern, muon").parent)

    found["too large to begin"] = command(*TRAIN, "model.n_embd=256")

    step = GradientLearner.step

    def filling(self: GradientLearner) -> Any:
        if self.state.step == 12:
            fill(Path("filler"))
        if self.state.step == 22:
            Path("filler").unlink()
        return step(self)

    GradientLearner.step = filling  # type: ignore[method-assign]
    found["full for a while"] = command(*TRAIN)
    GradientLearner.step = step  # type: ignore[method-assign]
    run = RunFolder(Path("run"))
    found["saved"] = [checkpoint.step for checkpoint in run.checkpoints.all()]

    fill(Path("filler"))
    found["full"] = command(*RESUME, "train.max_steps=35")
    found["full, new"] = command(*TRAIN[:-2], "other", "-q")
    found["left behind"] = Path("other").exists()
    found["full, read"] = [command(*reader) for reader in READERS]
    found["saved when full"] = [checkpoint.step for checkpoint in run.checkpoints.all()]
    Path("filler").unlink()

    subprocess.run(["mount", "-o", "remount,ro", "tmpfs", disk], check=True)
    found["read-only"] = command(*RESUME, "train.max_steps=35")
    found["read-only, new"] = command(*TRAIN[:-2], "other", "-q")
    found["read-only, read"] = [command(*reader) for reader in READERS]
    subprocess.run(["mount", "-o", "remount,rw", "tmpfs", disk], check=True)

    found["in the end"] = command(*RESUME, "train.max_steps=35")
    found["undisturbed"] = command(*TRAIN[:-2], "other", "-q")
    both = (run.checkpoints.path(30), RunFolder(Path("other")).checkpoints.path(30))
    found["equal"] = [
        len({(path / name).read_bytes() for path in both}) == 1
        for name in ("model.safetensors", "optimizer.safetensors")
    ]
    print(json.dumps(found))


def command(*arguments: str) -> dict[str, Any]:
    """Run a charlm command; return its exit code and what it said."""
    from charlm.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(arguments))
    return {"code": code, "said": err.getvalue().splitlines()}


def fill(path: Path) -> None:
    """Leave no byte free."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
