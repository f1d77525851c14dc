"""Steps of models, and machines of round numbers."""

from dataclasses import replace

import pytest

from charlm.config import load_config
from charlm.costs.cores import Cores, Link, Times
from charlm.costs.devices import GPUS
from charlm.costs.work import work_of


@pytest.fixture
def work():
    return work_of(load_config("gpt", ["train.batch_size=64"]), 65)


@pytest.fixture
def dense():
    """A model without a table of n-grams."""
    return work_of(load_config("gpt", ["train.batch_size=64", "model.n_gram=1"]), 65)


@pytest.fixture
def cores():
    """Two cores: a pass takes 1 s and 2 s a window alone, and twice as much beside another."""
    alone = Times(a_pass=1.0, a_window=2.0, adamw=0.3, muon=0.2, rest=0.1)
    together = Times(a_pass=2.0, a_window=4.0, adamw=0.6, muon=0.4, rest=0.2)
    split = replace(together, a_pass=3.0, a_window=6.0)
    return Cores(
        2,
        alone,
        together,
        split,
        shared=Link(0.01, 1e-9),
        gloo=Link(0.02, 4e-9),
        fsdp2=Link(0.03, 8e-9),
    )


@pytest.fixture
def gpu():
    return replace(GPUS["h100"], share=0.5)
