import pytest
import torch

from charlm.errors import MachineError
from charlm.models import device


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(device, "available_devices", lambda: ["cpu"])

    assert device.choose_device("auto") == torch.device("cpu")


def test_auto_prefers_the_first_gpu(monkeypatch):
    monkeypatch.setattr(device, "available_devices", lambda: ["cpu", "cuda:1", "cuda:0"])

    assert device.choose_device("auto") == torch.device("cuda:0")
    assert device.choose_device("cuda") == torch.device("cuda:0")
    assert device.choose_device("cuda:1") == torch.device("cuda:1")


def test_an_absent_device_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setattr(device, "available_devices", lambda: ["cpu", "mps"])

    with pytest.raises(MachineError, match="'cuda:9' is not available; this machine has cpu, mps"):
        device.choose_device("cuda:9")


def test_the_cpu_multiplies_in_float32_unless_told_otherwise():
    cpu = torch.device("cpu")

    assert device.choose_dtype("auto", cpu) is torch.float32
    assert device.choose_dtype("bfloat16", cpu) is torch.bfloat16


def test_precision_concerns_products_only():
    x = torch.ones(2, 2)
    with device.precision(torch.device("cpu"), torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        assert (x + x).dtype is torch.float32
    with device.precision(torch.device("cpu"), torch.float32):
        assert (x @ x).dtype is torch.float32
