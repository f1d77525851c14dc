import pytest
import torch

from charlm.config import GPTConfig, TrainConfig
from charlm.models import LanguageModel, build_model
from charlm.runs.optimizer_state import hidden_matrices, optimizer_tensors, restore_optimizers
from charlm.training import build_optimizers
from charlm.training.adamw import TableAdamW
from charlm.training.optimizers import set_learning_rate
from tests.models.conftest import CONFIGS


def gpt(style="modern"):
    config = GPTConfig(type="gpt", style=style, block_size=4, n_layer=2, n_head=2, n_embd=8)
    return build_model(config, 7, seed=1)


def step(model, optimizers, seed):
    for i, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(seed * 1000 + i)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in optimizers.values():
        optimizer.step()


@pytest.mark.parametrize("style", ["gpt2", "modern"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_in_exactly_one_group(style, kind):
    model = gpt(style)
    optimizers = build_optimizers(model, TrainConfig(optimizer=kind))

    grouped = [
        id(p)
        for optimizer in optimizers.values()
        for group in optimizer.param_groups
        for p in group["params"]
    ]

    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_matrices_and_embeddings_are_decayed_and_vectors_are_not():
    optimizers = build_optimizers(gpt("gpt2"), TrainConfig(weight_decay=0.3))

    for group in optimizers["adamw"].param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0.0)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = gpt()
    optimizers = build_optimizers(model, TrainConfig(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    taken = {names[id(p)] for g in optimizers["muon"].param_groups for p in g["params"]}

    assert taken == set(hidden_matrices(model))
    assert all(name.startswith("blocks.") for name in taken)
    assert {"token_embedding.weight", "head.weight"} == set(names.values()) - taken


@pytest.mark.parametrize("name", ["averaging", "attention", "multihead", "gpt2", "modern, n-grams"])
def test_hidden_matrices_are_the_linear_layers_below_the_head_in_their_order(name):
    model = build_model(CONFIGS[name], 7)
    linear = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "head"
    ]

    assert list(hidden_matrices(model)) == linear


def test_a_matrix_is_hidden_by_where_it_stands_not_by_its_module():
    class Raw(LanguageModel):
        def __init__(self):
            super().__init__(7, 4)
            self.table = torch.nn.Embedding(7, 8)
            self.mixing = torch.nn.Parameter(torch.zeros(8, 8))
            self.gain = torch.nn.Parameter(torch.zeros(8))
            self.head = torch.nn.Parameter(torch.zeros(8, 7))

    assert list(hidden_matrices(Raw())) == ["mixing"]


def test_adamw_equals_the_formula_over_two_steps():
    # Kingma and Ba 2015, algorithm 1, with the decoupled decay of Loshchilov and Hutter 2019.
    model = gpt("gpt2")
    train = TrainConfig(learning_rate=0.01, beta1=0.8, beta2=0.9, weight_decay=0.5)
    optimizers = build_optimizers(model, train)
    parameter = model.token_embedding.weight
    expected = parameter.detach().double().clone()
    mean = square = torch.zeros_like(expected)

    for t in (1, 2):
        step(model, optimizers, seed=t)
        gradient = parameter.grad.double()
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        update = (mean / (1 - 0.8**t)) / ((square / (1 - 0.9**t)).sqrt() + 1e-8)
        expected = expected * (1 - 0.01 * 0.5) - 0.01 * update

    torch.testing.assert_close(parameter.detach().double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_restored_state_continues_bit_for_bit(kind):
    train = TrainConfig(optimizer=kind)
    model, other = gpt(), gpt()
    optimizers, others = build_optimizers(model, train), build_optimizers(other, train)
    for seed in (1, 2):
        step(model, optimizers, seed)
    tensors = {k: v.clone() for k, v in optimizer_tensors(optimizers, model).items()}
    other.load_state_dict(model.state_dict())

    restore_optimizers(others, other, tensors)
    step(model, optimizers, 3)
    step(other, others, 3)

    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_learning_rate_reaches_every_group():
    optimizers = build_optimizers(gpt("gpt2"), TrainConfig(optimizer="muon"))

    set_learning_rate(optimizers.values(), 0.123)

    rates = {g["lr"] for o in optimizers.values() for g in o.param_groups}
    assert rates == {0.123}


@pytest.mark.parametrize("saved", [0, 2])
def test_a_table_moves_as_under_torchs_adamw_with_the_zeros_written_out(saved, generator):
    options = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.5, "fused": True}
    ours, theirs = (torch.nn.Parameter(torch.ones(9, 3)) for _ in range(2))
    vector = torch.nn.Parameter(torch.ones(2))
    own, reference = (
        TableAdamW([vector, ours], **options),
        torch.optim.AdamW([theirs], **options),
    )
    looked_up = [[0, 3, 4, 8], [4], [], [1, 2, 3], [8]]  # row 5 never

    for i, rows in enumerate(looked_up):
        theirs.grad = torch.zeros(9, 3)
        theirs.grad[rows] = torch.randn(len(rows), 3, generator=generator)
        ours.grad = theirs.grad.to_sparse(1) if i >= saved else theirs.grad.clone()
        vector.grad = torch.ones(2)
        own.step()
        reference.step()

        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(own.state[ours], reference.state[theirs])
        assert ours.grad is not None
    assert vector.tolist() == pytest.approx([vector[0].item()] * 2)
    assert vector[0] < 0.9
