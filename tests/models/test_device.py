import pytest
import torch

from charlm.errors import MachineError
from charlm.models import device

MEASURE = device.bfloat16_is_faster.__wrapped__  # a fixture puts another in its place


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

    with pytest.raises(
        MachineError, match=r"run\.device=cuda:9: not available; this machine has cpu, mps"
    ):
        device.choose_device("cuda:9")


@pytest.mark.parametrize("faster", [False, True])
def test_the_cpu_multiplies_in_what_it_is_faster_at_unless_told_otherwise(faster, monkeypatch):
    monkeypatch.setattr(device, "bfloat16_is_faster", lambda: faster)
    cpu = torch.device("cpu")

    assert device.choose_dtype("auto", cpu) is (torch.bfloat16 if faster else torch.float32)
    assert device.choose_dtype("bfloat16", cpu) is torch.bfloat16
    assert device.choose_dtype("float32", cpu) is torch.float32


@pytest.mark.parametrize(("seconds", "faster"), [(0.6, True), (0.7, False), (2.0, False)])
def test_bfloat16_must_be_half_as_fast_again(seconds, faster, monkeypatch):
    # A clock that moves by what the product last tried should take.
    clock, took = [0.0], {torch.float32: 1.0, torch.bfloat16: seconds}

    class Product:
        def __init__(self, dtype):
            self.dtype = dtype
            self.T = self

        def __matmul__(self, other):
            clock[0] += took[self.dtype]

    monkeypatch.setattr(torch, "ones", lambda *shape, dtype: Product(dtype))
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])

    assert MEASURE() == faster


def test_precision_concerns_products_only():
    x = torch.ones(2, 2)
    with device.precision(torch.device("cpu"), torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        assert (x + x).dtype is torch.float32
    with device.precision(torch.device("cpu"), torch.float32):
        assert (x @ x).dtype is torch.float32
