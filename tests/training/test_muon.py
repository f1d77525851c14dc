import math

import numpy as np
import pytest
import torch
from torch import nn

from charlm.training.muon import ROUNDS, Muon, orthogonalize


def closest_quintic(low, high):
    """Remez: the a x + b x^3 + c x^5 nearest to 1 on [low, high], and how far from it that is."""
    x = np.linspace(low, high, 4)
    for _ in range(100):
        # At four points it is off by the same error, above and below in turn.
        *p, error = np.linalg.solve(np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1), np.ones(4))
        a, b, c = p
        extrema = np.sort([r.real for r in np.roots([5 * c, 0, 3 * b, 0, a]) if r.real > 0])
        x = np.array([low, *extrema, high])
    return p, abs(error)


def test_the_rounds_are_the_best_for_singular_values_down_to_three_thousandths():
    low, high = 0.003, 1.0
    for found in ROUNDS:
        expected, error = closest_quintic(low, high)
        assert found == pytest.approx(expected, abs=1e-6)
        low, high = 1 - error, 1 + error


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5)])
def test_it_lifts_singular_values_and_leaves_directions_alone(shape, generator):
    u, _, vt = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    values = torch.logspace(0, -2, min(shape))
    matrix = (u * values) @ vt

    (found,) = orthogonalize(7 * matrix[None], torch.float32)

    inside = u.T @ found @ vt.T
    assert (inside - inside.diag().diag()).abs().max() < 1e-4
    assert 0.35 <= inside.diag().min() <= inside.diag().max() <= 1.65
    expected = (values / values.norm()).double()
    for a, b, c in ROUNDS:
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(inside.diag().double(), expected, atol=1e-4, rtol=0)


def test_each_matrix_of_a_stack_is_its_own(generator):
    matrices = [torch.randn(4, 9, generator=generator) * scale for scale in (1, 100)]

    together = orthogonalize(torch.stack(matrices), torch.float32)

    for matrix, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(found, orthogonalize(matrix[None], torch.float32)[0])


def test_a_matrix_and_its_transpose_have_factors_that_are_transposes(generator):
    matrix = torch.randn(1, 4, 9, generator=generator)

    wide, tall = (orthogonalize(m.clone(), torch.float32) for m in (matrix, matrix.mT))

    torch.testing.assert_close(tall, wide.mT)


def test_no_gradient_makes_no_update():
    assert not orthogonalize(torch.zeros(1, 3, 4), torch.float32).any()


def test_it_moves_as_torchs_own_but_for_the_rounds(generator, monkeypatch):
    # Its five rounds, in its bfloat16: then nothing else is left to differ.
    monkeypatch.setattr("charlm.training.muon.ROUNDS", 5 * [(3.4445, -4.7750, 2.0315)])
    shapes = [(5, 3), (3, 5), (5, 3), (2, 2)]
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
    own = Muon(ours, **options, dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, **options, adjust_lr_fn="match_rms_adamw")

    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        own.step()
        reference.step()
        for one, other in zip(ours, theirs, strict=True):
            size = 0.1 * 0.2 * math.sqrt(max(one.shape))  # that of one update
            torch.testing.assert_close(one, other, atol=0.1 * size, rtol=0)
            assert torch.equal(
                own.state[one]["momentum_buffer"], reference.state[other]["momentum_buffer"]
            )
            assert (one - 1).abs().max() > size / 4
