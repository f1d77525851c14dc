import torch

from charlm.models import AveragingModel
from charlm.models.averaging import averaging_matrix


def test_rows_of_the_matrix_average_everything_so_far():
    expected = torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]])

    torch.testing.assert_close(averaging_matrix(3), expected)


def test_the_product_equals_a_running_mean_computed_in_a_loop(generator):
    x = torch.randn(2, 6, 3, generator=generator)

    means = averaging_matrix(6) @ x

    for t in range(6):
        torch.testing.assert_close(means[:, t], x[:, : t + 1].mean(dim=1))


def test_the_matrix_is_no_weight_of_the_model():
    assert not any("averaging" in name for name in AveragingModel(5, 4, 3).state_dict())
