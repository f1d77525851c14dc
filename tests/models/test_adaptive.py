import numpy as np
import pytest
import torch

from charlm.config import AdaptConfig
from charlm.models import build_model
from charlm.text.tokens import IdArray
from tests.models.conftest import VOCAB


@pytest.fixture
def text(generator):
    return torch.randint(VOCAB, (30,), generator=generator).numpy()


def test_reading_at_once_and_one_by_one_predict_the_same(each_config, text):
    model = build_model(each_config, VOCAB).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained_on = IdArray(np.arange(3 * VOCAB) % VOCAB)

    whole = model.adaptive(AdaptConfig(), trained_on).go_on(text)

    reader = model.adaptive(AdaptConfig(), trained_on)
    single = torch.cat([reader.go_on(text[i : i + 1]) for i in range(len(text))])
    torch.testing.assert_close(single, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.exp().sum(dim=-1), torch.ones(len(text)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_no_prediction_depends_on_a_later_character(each_config, text):
    model = build_model(each_config, VOCAB).eval()
    trained_on = IdArray(np.arange(3 * VOCAB) % VOCAB)
    other = text.copy()
    other[20] = (other[20] + 1) % VOCAB

    found = [model.adaptive(AdaptConfig(), trained_on).go_on(ids) for ids in (text, other)]

    assert torch.equal(found[0][:20], found[1][:20])


def test_a_fork_learns_no_more(each_config, text):
    model = build_model(each_config, VOCAB).eval()
    trained_on = IdArray(np.arange(3 * VOCAB) % VOCAB)
    reader = model.adaptive(AdaptConfig(weights=True, every=4), trained_on)
    reader.go_on(text[:12])

    found = [reader.fork().go_on(ids) for ids in (text[12:], np.full(9, 3), text[12:])]

    assert torch.equal(found[0], found[2])


def test_a_fork_goes_on_where_its_reader_is(each_config, text):
    model = build_model(each_config, VOCAB).eval()
    reader = model.adaptive(AdaptConfig(counts=False, mixing=False))
    reader.go_on(text[:12])

    torch.testing.assert_close(reader.fork().go_on(text[12:]), reader.go_on(text[12:]))
