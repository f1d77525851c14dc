"""Recurrent models against torch's own layers, and against their formulas, number by number."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from charlm.models import build_model
from charlm.models.mingru import (
    PIECE,
    convolve,
    log_positive,
    one_by_one,
    positive,
    scan,
)
from charlm.models.mlp import side_by_side
from charlm.models.recurrent import GRUCell, LSTMCell, RNNCell, through_time
from tests.models.conftest import CONFIGS, VOCAB
from tests.models.test_contract import knowing

B, T, C, H = 3, 7, 5, 4


def cell_of(kind, generator):
    cell = kind(C, H, generator).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return cell


def inputs(generator):
    return torch.randn(B, T, C, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "theirs"), [(RNNCell, nn.RNN), (LSTMCell, nn.LSTM)])
def test_the_cells_are_those_of_torch(kind, theirs, generator):
    cell, x = cell_of(kind, generator), inputs(generator)
    layer = theirs(C, H, batch_first=True).double()
    weights = {
        "weight_ih_l0": cell.input.weight,
        "bias_ih_l0": cell.input.bias,
        "weight_hh_l0": cell.state.weight,
        "bias_hh_l0": torch.zeros_like(cell.input.bias),
    }
    layer.load_state_dict(weights)
    first = cell.begin(B)

    out, last = through_time(cell, x, first)

    h, *c = (one[None].contiguous() for one in first)
    expected, expected_last = layer(x, (h, *c) if c else h)
    torch.testing.assert_close(out, expected)
    for found, wanted in zip(last, expected_last if c else [expected_last], strict=True):
        torch.testing.assert_close(found, wanted[0])


def test_the_gru_is_its_formula_number_by_number(generator):
    cell, x = cell_of(GRUCell, generator), inputs(generator)
    out, _ = through_time(cell, x, cell.begin(B))
    names = {name: p.tolist() for name, p in cell.named_parameters()}

    def dot(row, vector):
        return math.fsum(a * b for a, b in zip(row, vector, strict=True))

    def sigmoid(a):
        return 1 / (1 + math.exp(-a))

    for b in range(B):
        h = names["start"]
        for t, x_t in enumerate(x[b].tolist()):
            of_x = [dot(row, x_t) for row in names["input.weight"]]
            of_x = [a + c for a, c in zip(of_x, names["input.bias"], strict=True)]
            of_h = [dot(row, h) for row in names["state.weight"]]
            update = [sigmoid(of_x[j] + of_h[j]) for j in range(H)]
            reset = [sigmoid(of_x[H + j] + of_h[H + j]) for j in range(H)]
            kept = [reset[j] * h[j] for j in range(H)]
            new = [
                math.tanh(of_x[2 * H + j] + dot(names["candidate.weight"][j], kept))
                for j in range(H)
            ]
            h = [(1 - update[j]) * h[j] + update[j] * new[j] for j in range(H)]
            assert out[b, t].tolist() == pytest.approx(h, rel=1e-12)


def test_an_lstm_that_forgets_nothing_keeps_its_memory_for_ever(generator):
    cell = cell_of(LSTMCell, generator)
    with torch.no_grad():
        cell.input.weight.zero_()
        cell.state.weight.zero_()
        cell.input.bias.copy_(torch.tensor([-1e3] * H + [1e3] * H + [0.0] * H + [1e3] * H))
    _, (h, c) = through_time(cell, inputs(generator), cell.begin(B))

    torch.testing.assert_close(c, cell.begin(B)[1], rtol=0, atol=0)
    torch.testing.assert_close(h, c.tanh(), rtol=0, atol=0)


def test_an_lstm_begins_by_remembering():
    cell = LSTMCell(C, H, None)

    write, forget, content, read = cell.input.bias.tolist()[::H]
    assert (write, forget, content, read) == (0, 1, 0, 0)


def test_a_residual_layer_that_adds_nothing_changes_nothing(generator):
    deep = knowing(CONFIGS["lstm"])  # three layers, all as wide as the embedding
    config = CONFIGS["lstm"].model_copy(update={"n_layer": 1})
    flat = build_model(config, VOCAB).eval()
    with torch.no_grad():
        for layer in deep.layers[1:]:
            layer.input.bias[-12:] = -1e4  # the gate that reads stays closed
        flat.load_state_dict({n: deep.state_dict()[n] for n in flat.state_dict()})
    idx = torch.randint(VOCAB, (2, 9), generator=generator)

    torch.testing.assert_close(deep(idx), flat(idx))


def test_a_tied_head_needs_equal_widths():
    config = CONFIGS["lstm"].model_copy(update={"n_hidden": 8})

    with pytest.raises(ValueError, match="n_embd 12 to equal the 8"):
        build_model(config, VOCAB)


# --- minGRU ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1, 2, PIECE, 3 * PIECE + 5])
def test_the_scan_over_logarithms_is_the_recurrence(generator, time):
    x = 4 * torch.randn(B, time, 2 * H, generator=generator, dtype=torch.float64)
    h = torch.rand(B, H, generator=generator, dtype=torch.float64)
    both = [(x.clone().requires_grad_(), h.clone().requires_grad_()) for _ in range(2)]
    d = torch.randn(B, time, H, generator=generator, dtype=torch.float64)

    outs = [form(*given) for form, given in zip((scan, one_by_one), both, strict=True)]

    torch.testing.assert_close(*outs, rtol=1e-11, atol=0)
    found, expected = (torch.autograd.grad(o, g, d) for o, g in zip(outs, both, strict=True))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_gates_that_are_nearly_shut_or_open_lose_no_digits():
    x = torch.cat(
        [torch.tensor([60.0, -60.0, 60.0, -60.0]), torch.tensor([3.0, -3.0, -90.0, 90.0])]
    )
    x = x.expand(1, 500, -1)
    h = torch.full((1, 4), 0.25)

    found = scan(x, h)

    assert found.isfinite().all()
    torch.testing.assert_close(
        found[0, -1], torch.tensor([3.5, 0.25, 0, 0.25]), rtol=1e-4, atol=1e-6
    )


def test_the_positive_function_and_its_logarithm_agree():
    x = torch.linspace(-30, 30, 2001, dtype=torch.float64)

    assert (positive(x) > 0).all()
    assert positive(torch.zeros(1)) == 0.5
    torch.testing.assert_close(log_positive(x), positive(x).log())
    assert (positive(x).diff() > 0).all()


def test_a_convolution_is_that_of_torch(generator):
    x, before = torch.randn(B, T, C, generator=generator), torch.randn(B, 3, C, generator=generator)
    weight = torch.randn(4, 1, C, generator=generator)

    found = convolve(x, weight, before)

    joined = torch.cat([before, x], dim=1).mT
    torch.testing.assert_close(found, F.conv1d(joined, weight.movedim(2, 0).mT, groups=C).mT)


# --- The MLP --------------------------------------------------------------------------------------


def test_the_last_vectors_lie_side_by_side_oldest_first():
    x = torch.arange(4.0)[None, :, None]  # 0, 1, 2, 3, one channel

    assert side_by_side(x, torch.tensor([-1.0]), 3).tolist() == [
        [[-1, -1, 0], [-1, 0, 1], [0, 1, 2], [1, 2, 3]]
    ]


def test_an_mlp_of_one_character_can_be_any_bigram_table(generator):
    config = CONFIGS["mlp"].model_copy(update={"context": 1, "n_embd": VOCAB, "n_hidden": VOCAB})
    model = build_model(config, VOCAB)
    table = torch.randn(VOCAB, VOCAB, generator=generator)
    with torch.no_grad():
        model.token_embedding.weight.copy_(100 * torch.eye(VOCAB))  # tanh(100) is 1
        model.hidden.weight.copy_(torch.eye(VOCAB))
        model.head.weight.copy_(table.T)
    idx = torch.randint(VOCAB, (2, 5), generator=generator)

    torch.testing.assert_close(model(idx), table[idx])
