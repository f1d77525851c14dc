"""Small runs of many kinds, made once."""

import os
import shutil
from pathlib import Path

import pytest

from charlm.cli.main import run
from tests.cli.test_records import NAMES
from tests.conftest import TEXT

MARKUP = '<script>alert(1)</script> <b a="\'">&amp; \\u003c ]]> <!-- --> {{ 7*7 }} {% x %}\n'
CONTROLS = "\0\x01\x07\x1b[2J\x7f\x9b\r\t\u202e\u2066\u200b\u200d\u2028\ufeff\U000e0041"
RIGHT_TO_LEFT = "שלום עולם. مرحبا بالعالم! "
HOSTILE = (MARKUP + CONTROLS + RIGHT_TO_LEFT + "e\u0301 👩\u200d👧 ") * 12

GPT = "{type: gpt, block_size: 16, n_layer: 2, n_head: 2, n_embd: 16}"
BIGRAM = "{type: bigram, block_size: 16}"
NGRAM = "{type: ngram, order: 3}"
MIXTURE = (
    "{type: mixture, combine: %s, block_size: 24, experts: {gpt: {model: "
    + GPT
    + ", train: {max_steps: 3}}, counts: {model: "
    + NGRAM
    + "}}}"
)
KINDS = {
    "gpt": (GPT, "text.txt", ""),
    "bigram": (BIGRAM, "text.txt", ""),
    "ngram": (NGRAM, "text.txt", ""),
    "context-mixing": ("{type: context-mixing, memory: 1, block_size: 64}", "text.txt", ""),
    "linear": (MIXTURE % "linear", "text.txt", ""),
    "bitwise": (MIXTURE % "bitwise", "text.txt", ""),
    "records": (GPT, "names.txt", ", records: lines, val_fraction: 0.2"),
    "bytes": (GPT, "hostile.txt", ", unit: bytes"),
    "hostile": (BIGRAM, "hostile.txt", ", val_fraction: 0.5"),
    "rare": (NGRAM, "rare.txt", ", min_count: 5, val_fraction: 0.3"),
    "unscored": (BIGRAM, "text.txt", ", val_fraction: 0"),
}


@pytest.fixture(scope="session")
def _runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reported")
    here = Path.cwd()
    os.chdir(folder)
    try:
        Path("text.txt").write_text(TEXT)
        Path("names.txt").write_text("\n".join(NAMES) + "\n")
        Path("hostile.txt").write_bytes(HOSTILE.encode())
        Path("rare.txt").write_text(TEXT[:2000] + "☃ ☂ a☃b ♞ and ☃ more ♘ " * 4, encoding="utf-8")
        for name, (model, text, more) in KINDS.items():
            Path("run.yaml").write_text(
                f"data: {{source: {text}{more}}}\nmodel: {model}\n"
                "train: {max_steps: 4, batch_size: 4, warmup_steps: 1, eval_every: 2}\n"
                "eval: {baselines: false}\nrun: {device: cpu, dtype: float32}\n"
            )
            assert run(["train", "--config", "run.yaml", "--out", name, "-q"]) == 0
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def runs(_runs, tmp_path):
    """Copies of the runs `KINDS`, in the current folder."""
    shutil.copytree(_runs, tmp_path, dirs_exist_ok=True)
    return tmp_path
