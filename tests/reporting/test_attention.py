"""What a page shows of the heads is what `model.attention` returns."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

import charlm
from charlm.reporting.attention import lookings
from charlm.reporting.passage import passage_from, passage_of


@pytest.fixture
def looked(opened):
    def look(name, passage):
        run = opened(name)
        return [*lookings(run, passage(run))]

    return look


def unpacked(look):
    """Return the weights that the page's script computes, (L, H, T, T)."""
    size = len(look.symbols)
    shape = len(look.layers), len(look.layers[0]), size, size
    rows, columns = np.tril_indices(size)
    weights = np.zeros(shape)
    shades = np.frombuffer(base64.b64decode(look.shades), np.uint8)
    weights[..., rows, columns] = (shades.reshape(*shape[:2], -1) / 255) ** 2
    return weights


def test_the_script_gets_the_weights(runs, looked):
    (look,) = looked("gpt", lambda run: passage_from(run, "the lazy dog"))

    expected = charlm.load(runs("gpt"), device="cpu").attention("the lazy dog")

    np.testing.assert_allclose(unpacked(look), expected, atol=1 / 255)
    assert "".join(symbol for symbol, _, _ in look.symbols) == "the lazy dog"


def test_each_picture_shows_a_whole_matrix(runs, looked):
    (look,) = looked("gpt", lambda run: passage_from(run, "the lazy dog"))
    expected = charlm.load(runs("gpt"), device="cpu").attention("the lazy dog")

    for layer, row in enumerate(look.layers):
        for head, one in enumerate(row):
            data = base64.b64decode(one.picture.removeprefix("data:image/png;base64,"))
            pixels = np.array(Image.open(io.BytesIO(data)).convert("RGBA"))
            weights = expected[layer, head]
            np.testing.assert_array_equal(pixels[..., 3], np.rint(255 * np.sqrt(weights)))
            distance = np.arange(12)[:, None] - np.arange(12)
            assert one.back == pytest.approx((weights * distance).sum(axis=1).mean(), abs=1e-5)
            assert one.itself == pytest.approx(np.diag(weights).mean())
            assert one.before == pytest.approx(np.diag(weights, -1).mean())


def test_a_window_is_no_longer_than_the_block(looked):
    (look,) = looked("gpt", lambda run: passage_of(run, 100))

    assert len(look.symbols) == 16


def test_of_records_the_longest_is_read_from_its_boundary(runs, looked):
    (look,) = looked("records", lambda run: passage_from(run, "ana\nbelirosa\nco"))

    assert "".join(symbol for symbol, _, _ in look.symbols) == "\U0010ffffbelirosa"
    expected = charlm.load(runs("records"), device="cpu").attention("belirosa")
    np.testing.assert_allclose(unpacked(look), expected, atol=1 / 255)


def test_models_without_attention_show_none(looked):
    for name in ("bigram", "ngram"):
        assert looked(name, passage_of) == []


def test_experts_with_attention_show_it(looked):
    (look,) = looked("linear", passage_of)

    assert look.name == "gpt"
