import platform

import pytest
import torch

from charlm import __version__


def test_one_screen_says_what_the_machine_offers(charlm, monkeypatch):
    monkeypatch.setattr("charlm.cli.doctor._matmul_rate", lambda *_: 12.4e9)

    result = charlm("doctor")

    lines = result.stdout.splitlines()
    rows = {line.split()[0]: line for line in reversed(lines)}
    assert (result.code, result.stderr) == (0, "")
    assert len(lines) <= 24
    assert rows["charlm"].endswith(__version__)
    assert platform.python_version() in rows["python"]
    assert rows["torch"].endswith(torch.__version__)
    assert "cpu" in rows["devices"]
    assert "cpu      float32 matrix products at 12 GFLOP/s" in lines


@pytest.mark.parametrize(
    ("possible", "new", "said"),
    [
        (True, 4e-3, "stays in training: 8 MiB of new memory take 4 ms to fill, used memory 2 ms"),
        (True, 2.2e-3, "returns to the system: 8 MiB of new memory take 2.2 ms to fill, used"),
        (False, 4e-3, "is left to the C library, which is not glibc or was set up by you"),
    ],
)
def test_what_training_does_with_memory_is_said_with_the_reason(
    charlm, monkeypatch, possible, new, said
):
    monkeypatch.setattr("charlm.cli.doctor._matmul_rate", lambda *_: 1e9)
    monkeypatch.setattr("charlm.training.kept_memory.can_keep_memory", lambda: possible)
    monkeypatch.setattr("charlm.training.kept_memory.fill_times", lambda: (new, 2e-3))

    assert f"freed    memory {said}" in charlm("doctor").stdout


def test_a_product_takes_time(monkeypatch):
    from charlm.cli.doctor import _matmul_rate

    assert 1e6 < _matmul_rate(torch.device("cpu"), torch.float32, size=64, repeats=2) < 1e15


def test_a_device_that_fails_is_a_line_and_not_the_end(charlm, monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr("charlm.cli.doctor._matmul_rate", fail)

    result = charlm("doctor")

    assert result.code == 0
    assert "cpu      torch.float32: no kernel\n" in result.stdout


def test_a_missing_compiler_is_said(charlm, monkeypatch):
    monkeypatch.setattr("charlm.cli.doctor._matmul_rate", lambda *_: 1e9)
    monkeypatch.setattr("shutil.which", lambda name: None)

    assert "c++      none: run.compile=true does not work" in charlm("doctor").stdout
