"""Ask a server of a tiny model for what its OpenAPI description allows, and for what it does not.

Schemathesis makes the requests and judges the answers: none is the server's mistake, each has a status, a type
and a body that the description names, and what the description forbids is refused.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TEXT = "the quick brown fox jumps over the lazy dog. ROMEO: to be\n" * 60
TINY = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16"]
TINY += ["train.max_steps=5", "train.sample_every=0", "eval.baselines=false"]
# The alphabet of a model, which no schema can say: a request may be refused for its characters.
LEFT_OUT = "positive_data_acceptance"
SLOWEST = 20  # seconds for an answer


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[tuple[str, Path]]:
    """Train and serve a tiny model; give the address, and the file that has what the server says."""
    charlm = [sys.executable, "-m", "charlm"]
    (folder / "text.txt").write_text(TEXT)
    train = ["train", "-c", "gpt", "data.source=text.txt", *TINY, "-q", "--out", "tiny"]
    subprocess.run([*charlm, *train], cwd=folder, check=True, capture_output=True)
    log = folder / "log"
    with log.open("w") as out:
        serve = ["serve", "tiny", "--port", "0", "--max-chars", "50"]
        options = {"cwd": folder, "env": {**os.environ, "PYTHONUNBUFFERED": "1"}}
        server = subprocess.Popen([*charlm, *serve], stderr=out, **options)
    try:
        address = None
        while not address:
            if server.poll() is not None:
                sys.exit(f"fuzz: error: the server did not start\n{log.read_text()}")
            address = re.search(r" at (http\S+)", log.read_text())
        yield address[1], log
    finally:
        server.terminate()
        server.wait(60)


def searched(folder: Path, seconds: int) -> tuple[str, list[str]]:
    """Ask for so long, in an empty folder; return a summary, and what is wrong."""
    command = Path(sys.executable).with_name("schemathesis")
    if not command.exists():
        sys.exit("fuzz: error: schemathesis is missing; pip install -e '.[fuzz]'")
    with _serving(folder) as (address, log):
        asked = [command, "run", f"{address}/openapi.json", "--max-time", str(seconds)]
        asked += ["--checks", "all", "--exclude-checks", LEFT_OUT, "--continue-on-failure"]
        asked += ["--request-timeout", str(SLOWEST), "--no-color"]
        done = subprocess.run(asked, cwd=folder, capture_output=True, text=True)
        said = log.read_text().splitlines()[1:]  # the first line is the address
    generated = re.search(r"([\d,]+) generated", done.stdout)
    wrong = [f"the server's log: {line}" for line in said]
    if done.returncode or not generated:
        _, _, told = done.stdout.partition("FAILURES")
        wrong += [line for line in (told or done.stdout + done.stderr).splitlines() if line.strip()]
    return f"{generated[1] if generated else 0} requests", wrong
