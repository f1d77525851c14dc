import itertools

import pytest
import torch

from charlm.models.ngram_embedding import ROWS, NGramEmbedding, ngram_rows


def slowly(text, t, n, vocab):
    """The row of the n characters that end at position t, one number at a time."""
    last = [text[t - i] + 1 if t >= i else 0 for i in range(n)]
    key = last[0]
    for number in last[1:]:
        key = (key * (vocab + 1) + number) % (2**31 - 1)
    return (n - 2) * ROWS + ((key * 2_654_435_769) % 2**32 >> 19)


@pytest.mark.parametrize("vocab", [2, 65, 1_114_112])
def test_rows_equal_those_worked_out_one_by_one(vocab, generator):
    idx = torch.randint(vocab, (2, 7), generator=generator)

    found = ngram_rows(idx, 5, vocab)

    assert found.shape == (2, 7, 4)
    for b, t, n in itertools.product(range(2), range(7), range(2, 6)):
        assert found[b, t, n - 2] == slowly(idx[b].tolist(), t, n, vocab)


def test_each_length_has_rows_of_its_own():
    rows = ngram_rows(torch.randint(65, (4, 500)), 6, 65)

    for n in range(2, 7):
        assert (rows[..., n - 2] // ROWS == n - 2).all()


def test_pairs_of_a_small_alphabet_hardly_share_rows():
    pairs = torch.cartesian_prod(torch.arange(65), torch.arange(65))  # 4,225 in 8,192 rows

    distinct = ngram_rows(pairs, 2, 65)[:, 1, 0].unique()

    expected = ROWS * (1 - (1 - 1 / ROWS) ** len(pairs))  # if they fell at random
    assert len(distinct) > 0.97 * expected


def test_only_what_stands_before_counts():
    idx = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 1, 4, 1, 5, 8]])

    rows = ngram_rows(idx, 4, 10)

    assert torch.equal(rows[0, 2, :1], rows[1, 2, :1])  # the pair 1, 4
    assert (rows[0, 2, 1:] != rows[1, 2, 1:]).all()  # the longer ones reach the 3 or the 2
    assert torch.equal(rows[0, 4], rows[1, 4])  # 1, 4, 1, 5 and all within
    assert torch.equal(ngram_rows(idx[:, :1], 4, 10), rows[:, :1])


def test_the_embedding_is_the_sum_of_its_rows(generator):
    module = NGramEmbedding(7, 3, 5).eval()
    idx = torch.randint(7, (2, 4), generator=generator)

    table, rows = module.table.weight, ngram_rows(idx, 3, 7)
    torch.testing.assert_close(module(idx), table[rows[..., 0]] + table[rows[..., 1]])


def test_in_training_half_of_the_rows_are_left_out_and_the_mean_stays(generator):
    module = NGramEmbedding(7, 3, 1)
    torch.nn.init.ones_(module.table.weight)
    torch.manual_seed(0)

    sums = module(torch.randint(7, (1000, 10), generator=generator))

    values, counts = sums.unique(return_counts=True)
    assert values.tolist() == [0, 2, 4]  # none of the two rows, one, both
    assert (counts / 10_000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


@pytest.mark.parametrize("training", [False, True])
def test_a_sparse_gradient_holds_each_row_once_and_is_that_of_autograd(training, generator):
    module = NGramEmbedding(5, 4, 3).train(training)
    idx = torch.randint(5, (2, 30), generator=generator)  # few pairs: many come again
    weights = torch.randn(2, 30, 3, generator=generator)
    gradients = []
    for sparse in (False, True):
        module.sparse, module.table.weight.grad = sparse, None
        torch.manual_seed(1)  # the same n-grams are dropped
        (module(idx) * weights).sum().backward()
        gradients.append(module.table.weight.grad)

    dense, found = gradients

    torch.testing.assert_close(found.to_dense(), dense)
    assert found._indices()[0].tolist() == ngram_rows(idx, 4, 5).unique().tolist()
