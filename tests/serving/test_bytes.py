"""A model of bytes: JSON has characters where they are whole, and says what is none."""

import httpx
import numpy as np
import pytest

from charlm.library import load, train
from charlm.serving.app import Server
from charlm.serving.service import Served
from tests.serving.conftest import serving


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """One that has read two bytes of each three-byte character, so that it writes stray bytes."""
    path = tmp_path_factory.mktemp("bytes")
    (path / "text").write_bytes("é☃".encode()[:4] * 400)
    keys = {"data": {"unit": "bytes", "val_fraction": 0.1}, "eval": {"baselines": False}}
    return load(train("ngram", path / "text", out=path / "run", model={"order": 3}, **keys))


@pytest.fixture(scope="module")
def ask(model):
    """A function that asks a server of it."""
    with serving(Server([Served("raw", model)])) as address:
        yield lambda path, **asked: httpx.post(
            f"{address}/v1/{path}", json={"model": "raw", **asked}
        ).json()


def test_a_stray_byte_is_the_mark_for_it(ask, model):
    asked = {"prompt": "é", "max_tokens": 8, "seed": 3, "logprobs": 2}
    (found,) = ask("completions", **asked)["choices"]

    assert found["text"] == model.generate("é", seed=3, max_new_chars=8, temperature=1)
    assert "\ufffd" in found["text"]
    assert "é" in found["text"]
    assert "bytes:\\xe2" in found["logprobs"]["tokens"]
    assert found["text"].encode()  # no half of a surrogate pair, which strict readers refuse
    likely = ask("next", prompt="é", top=1)["next"]
    assert [one["text"] for one in likely] == ["bytes:\\xe2"]


def test_an_echo_has_whole_characters(ask, model):
    (found,) = ask("completions", prompt="é☃", max_tokens=0, echo=True, logprobs=0)["choices"]

    assert (found["text"], found["logprobs"]["tokens"]) == ("é☃", ["é", "☃"])
    snowman = model.score("é☃").nats[2:]
    first, second = found["logprobs"]["token_logprobs"]
    assert first is None
    assert second == pytest.approx(-np.sum(snowman), abs=1e-3)
