"""What the shell offers after Tab, asked for as bash does."""

import os
import subprocess
import sys

import pytest

from charlm.cli.main import run
from charlm.config import Config, preset_names
from charlm.config.schema import leaves


@pytest.fixture
def offered(monkeypatch, capsys):
    """Return what is offered for the last word of a command."""

    def words(command):
        monkeypatch.setenv("_CHARLM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", command)
        monkeypatch.setenv("COMP_CWORD", str(command.count(" ")))
        with pytest.raises(SystemExit):
            run([])
        return capsys.readouterr().out.split()

    return words


def test_presets_and_files_are_offered(offered, tiny):
    assert offered("charlm train -c ") == [*preset_names(), "tiny.yaml"]
    assert offered("charlm explain --config ng") == ["ngram"]
    assert offered("charlm config show shakespeare-1m") == ["shakespeare-1min"]


def test_every_key_is_offered(offered):
    assert offered("charlm train train.max") == ["train.max_steps="]
    config = Config.model_validate({"model": {"type": "gpt"}})
    assert {f"{key}=" for key in leaves(config.model_dump())} <= set(offered("charlm train "))


@pytest.mark.parametrize(
    ("word", "values"),
    [("model.style=", ["gpt2", "modern"]), ("eval.baselines=t", ["true"]), ("run.seed=", [])],
)
def test_values_are_offered_if_there_are_few(offered, word, values):
    key = word.partition("=")[0]

    assert offered(f"charlm train {word}") == [f"{key}={value}" for value in values]
    assert "model.type=mixture" in offered("charlm train model.type=")


@pytest.mark.parametrize(
    "command",
    ["sample", "sample --run", "eval", "verify", "compare", "runs rm", "train --resume -o"],
)
def test_runs_are_offered(offered, trained, command):
    assert offered(f"charlm {command} ") == ["tiny"]
    assert offered(f"charlm {command} runs/") == ["runs/tiny"]


@pytest.mark.parametrize(
    "command", ["baselines", "data info", "data fetch", "eval --file", "train --file"]
)
def test_texts_are_offered(offered, command):
    assert offered(f"charlm {command} python-") == ["python-docs", "python-stdlib"]
    assert "shakespeare" in offered(f"charlm {command} ")


def test_checkpoints_and_devices_are_offered(offered):
    assert offered("charlm sample --checkpoint ") == ["best", "last"]
    assert offered("charlm eval --device c") == ["cpu", "cuda"]


@pytest.mark.parametrize("words", ["train -c ", "train train.", "sample ", "baselines "])
def test_torch_is_not_waited_for(words, trained):
    code = (
        "import sys; from charlm.cli.main import run\n"
        "try: run([])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    asked = {"_CHARLM_COMPLETE": "complete_bash", "COMP_CWORD": str(words.count(" ") + 1)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **asked, "COMP_WORDS": f"charlm {words}"},
        timeout=200,
    )

    assert done.stdout.splitlines()[-1] == "False", done.stderr
