"""Products by oneDNN against torch's own."""

import pytest
import torch
from torch import nn

from charlm.models import onednn
from tests.models.conftest import CONFIGS, VOCAB
from tests.models.test_contract import knowing


@pytest.fixture
def used(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(onednn, "is_faster", lambda: True)


@pytest.mark.parametrize("name", ["multihead", "gpt2", "modern", "mixture"])
@torch.no_grad()
def test_a_model_by_onednn_says_the_same_of_the_same_weights(used, generator, name):
    model = knowing(CONFIGS[name]).eval()
    idx = torch.randint(VOCAB, (3, 5), generator=generator)

    other = onednn.by_onednn(model)

    assert any(type(part) is onednn.Linear for part in other.modules())
    assert not any(type(part) is onednn.Linear for part in model.modules())
    torch.testing.assert_close(other(idx), model(idx), atol=1e-5, rtol=1e-5)
    next(part for part in model.modules() if isinstance(part, nn.Linear)).weight.neg_()
    torch.testing.assert_close(other(idx), model(idx), atol=1e-5, rtol=1e-5)


def test_other_machines_keep_torchs_products(monkeypatch):
    model = knowing(CONFIGS["gpt2"])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")

    assert onednn.by_onednn(model) is model
