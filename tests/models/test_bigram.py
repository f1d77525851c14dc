import numpy as np
import torch
from torch.nn import functional as F

from charlm.models import BigramModel, next_token_loss


def test_logits_are_rows_of_the_table(generator):
    model = BigramModel(5, block_size=4)
    torch.nn.init.normal_(model.table.weight, generator=generator)
    idx = torch.tensor([[0, 3, 3, 1]])

    logits = model(idx)

    assert torch.equal(logits[0], model.table.weight[[0, 3, 3, 1]])


def test_trained_to_the_end_it_reaches_the_conditional_entropy_of_the_text(generator):
    ids = torch.randint(4, (200,), generator=generator)
    counts = np.zeros((4, 4))
    for now, after in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        counts[now, after] += 1
    p = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(counts * np.log(p, where=p > 0, out=np.zeros_like(p))).sum() / counts.sum()
    model = BigramModel(4, block_size=199)
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)

    for _ in range(500):
        loss = next_token_loss(model(ids[None, :-1]), ids[None, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert abs(loss.item() - entropy) < 1e-4
    learned = F.softmax(model.table.weight, dim=-1).detach().numpy()
    np.testing.assert_allclose(learned, p, atol=5e-3)
