"""Small runs of many kinds, made once."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from markupsafe import Markup

from charlm.cli.main import run
from charlm.reporting.opened import open_run
from charlm.runs import RunFolder
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
LSTM = "{type: lstm, block_size: 24, n_layer: 2, n_embd: 8, n_hidden: 8}"
KINDS = {
    "gpt": (GPT, "text.txt", ""),
    "bigram": (BIGRAM, "text.txt", ""),
    "lstm": (LSTM, "text.txt", ""),
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


def each(*names):
    """Return kinds of runs as parameters; those whose kernels take a second to load are slow."""
    mixed = ("context-mixing", "bitwise")
    slow = pytest.mark.slow
    return [pytest.param(name, marks=slow if name in mixed else ()) for name in names]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A function that trains one of `KINDS` when it is first asked for it; it returns the folder."""
    folder = tmp_path_factory.mktemp("reported")
    (folder / "text.txt").write_text(TEXT)
    (folder / "names.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "hostile.txt").write_bytes(HOSTILE.encode())
    rare = TEXT[:2000] + "☃ ☂ a☃b ♞ and ☃ more ♘ " * 4
    (folder / "rare.txt").write_text(rare, encoding="utf-8")

    def run_of(name):
        if (folder / name).exists():
            return folder / name
        model, text, more = KINDS[name]
        here = Path.cwd()
        os.chdir(folder)
        try:
            Path("run.yaml").write_text(
                f"data: {{source: {text}{more}}}\nmodel: {model}\n"
                "train: {max_steps: 4, batch_size: 4, warmup_steps: 1, eval_every: 2}\n"
                "eval: {baselines: false}\nrun: {device: cpu, dtype: float32, fused: false}\n"
            )
            assert run(["train", "--config", "run.yaml", "--out", name, "-q"]) == 0
        finally:
            os.chdir(here)
        return folder / name

    return run_of


@pytest.fixture(scope="session")
def opened(runs):
    """A function that opens one of `KINDS`, ready to predict."""

    def open_it(name):
        found = open_run(RunFolder(runs(name)), "cpu")
        found.model.prepare()
        return found

    return open_it


@contextmanager
def without_charts():
    """While in this context, pages have no charts, which take seconds to draw, and short samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("charlm.reporting.writing.CHARS", 50)
        patch.setattr("charlm.reporting.page.charts_of", lambda *_: iter(()))
        patch.setattr("charlm.reporting.page.vega_script", lambda: Markup("// Vega"))
        yield
