import pytest

from charlm.cli.spelling import spelling
from charlm.errors import Setting

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
