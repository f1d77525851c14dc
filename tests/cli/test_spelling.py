import ast
import functools
from pathlib import Path

import pytest

import charlm.cli.spelling as spelling_module
from charlm.cli.spelling import spelling
from charlm.errors import Setting
from tests.cli.test_options import commands

TINY = ["-c", "tiny.yaml"]


@pytest.mark.parametrize(
    ("setting", "spelled"),
    [
        (Setting("unknown", "nearest"), "--unknown nearest"),
        (Setting("block_size", 1), "--block-size 1"),
        (Setting("resume", True), "--resume"),
        (Setting("out"), "--out"),
        (Setting("prompt", "a b"), "--prompt 'a b'"),
        (Setting("run.out", "new"), "run.out=new"),
    ],
)
def test_a_setting_is_spelled_as_an_option(monkeypatch, setting, spelled):
    monkeypatch.setattr("charlm.cli.spelling._flags", {})

    assert spelling(setting) == spelled


def test_a_key_is_spelled_as_the_option_that_the_command_has_for_it(charlm, trained):
    charlm("data", "info", "text.txt")
    assert spelling(Setting("data.unit", "bytes")) == "--unit bytes"
    assert spelling(Setting("data.source", "-")) == "-"
    charlm("eval")
    assert spelling(Setting("data.source", "-")) == "--file -"
    charlm("train", *TINY, "--print-config")
    assert spelling(Setting("data.unit", "bytes")) == "data.unit=bytes"
    assert spelling(Setting("run.seed", 3)) == "run.seed=3"


@pytest.fixture
def _no_verb(monkeypatch):
    monkeypatch.setattr("charlm.cli.spelling._flags", {})


@functools.cache
def settings():
    """Return the names of all settings in the code, those of a section without it."""
    found = set()
    for path in (Path(__file__).parents[2] / "charlm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Setting":
                found |= {n.value for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant)}
    return {name for name in found if isinstance(name, str)}


COMMANDS = dict(commands())
OWN = {  # what only these commands can ask for: settings of scoring, sampling and so on
    "run": ("train", "sample", "eval", "verify"),
    "unknown": ("sample", "eval"),
    "prompt": ("sample",),
    "allow": ("sample",),
    "stop": ("sample",),
    "weights": ("sample",),
    "seed": ("sample",),
    "protocol": ("eval", "compare"),
    "block_size": ("eval", "compare"),
    "stride": ("eval",),
    "checkpoint": ("sample", "eval"),
    "device": ("sample", "eval", "compare"),
    "passage": ("report",),
    "token": ("serve",),
    "form": ("export",),
    "meta": ("import",),
    "text": ("import",),
    "n_head": ("import",),
    "host": ("serve",),
    "gpus": ("explain",),
    "share": ("explain",),
    "json": ("explain",),
    "port": ("serve",),
}


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if c.params], ids=" ".join)
@pytest.mark.usefixtures("_no_verb")
def test_a_setting_is_spelled_by_an_option_that_exists(name):
    spelling_module.use(COMMANDS[name].params)
    for setting in settings():
        if "." in setting or name[0] not in OWN.get(setting, name):
            continue
        *command, flag = spelling(Setting(setting)).split()
        verb = tuple(command[1:]) or name
        parameters = COMMANDS[verb].params
        known = {option for one in parameters for option in one.opts}
        known |= {str(one.name).upper() for one in parameters if one.param_type_name == "argument"}
        assert flag in known, setting
