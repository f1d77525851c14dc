"""Weights that are split among processes; the processes are threads here, without FSDP2.

`tests/torture/test_processes.py` starts real ones.
"""

import pytest
import torch
from torch import nn

from charlm.config import TrainConfig
from charlm.models.base import LanguageModel
from charlm.runs.optimizer_state import optimizer_tensors, restore_optimizers
from charlm.training import build_optimizers
from charlm.training.muon import Muon
from charlm.training.sharding import ShardedMuon, Shards
from tests.training.together import in_threads

SHAPES = {"embedding": (11, 6), "matrix": (8, 6), "wide": (3, 8), "gain": (5,), "one": (1,)}


class Model(LanguageModel):
    """Parameters of many shapes."""

    def __init__(self):
        super().__init__(11, 8)
        generator = torch.Generator().manual_seed(1)
        for name, shape in SHAPES.items():
            part = nn.Module()
            part.weight = nn.Parameter(torch.randn(shape, generator=generator))
            self.add_module(name, part)


class Local:
    """What FSDP2 keeps of a parameter in one process."""

    def __init__(self, x):
        self.x, self.grad = x, None

    def to_local(self):
        return self.x


def in_shards(size, work):
    """Return what `work(shards)` returns in each process."""

    def one(ranks):
        shards = Shards(Model(), ranks)
        shards._module = True
        parameters = shards.parameters.items()
        shards._split = {k: Local(torch.empty_like(shards.own(p))) for k, p in parameters}
        return work(shards)

    return in_threads(size, one)


def stepped(model, train, gradients, shards=None):
    """Update a model twice; return its optimizers."""

    def muon(*arguments, **options):
        return ShardedMuon(shards, *arguments, **options) if shards else Muon(*arguments, **options)

    optimizers = build_optimizers(model, train, muon=muon)
    for step in gradients:
        if shards:
            shards.cut(optimizers.values())
        for name, p in model.named_parameters():
            p.grad = shards.own(step[name]).clone() if shards else step[name].clone()
        for optimizer in optimizers.values():
            optimizer.step()
    return optimizers


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_split_steps_leave_the_weights_and_moments_of_whole_ones(size, optimizer):
    generator = torch.Generator().manual_seed(2)
    gradients = [
        {f"{k}.weight": torch.randn(shape, generator=generator) for k, shape in SHAPES.items()}
        for _ in range(2)
    ]
    model, train = Model(), TrainConfig(optimizer=optimizer)
    expected = optimizer_tensors(stepped(model, train, gradients), model)

    def work(shards):
        optimizers = stepped(shards.model, train, gradients, shards)
        shards.join(optimizers.values())
        shards.join(optimizers.values())  # a second time, nothing is left to do
        return shards.model, optimizer_tensors(optimizers, shards.model)

    found = in_shards(size, work)

    for own, _ in found:
        for name, p in own.named_parameters():
            torch.testing.assert_close(p, dict(model.named_parameters())[name], rtol=0, atol=1e-6)
    kept = found[0][1]
    assert kept.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(kept[name], x, rtol=0, atol=1e-7)


def test_weights_and_moments_that_were_loaded_are_split_and_joined_bit_for_bit():
    model, train = Model(), TrainConfig(optimizer="muon")
    gradients = [{name: torch.ones_like(p) for name, p in model.named_parameters()}]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    kept = {
        name: torch.randn_like(x) if x.ndim else x
        for name, x in optimizer_tensors(stepped(model, train, gradients), model).items()
    }

    def work(shards):
        optimizers = build_optimizers(shards.model, train)
        restore_optimizers(optimizers, shards.model, kept)
        shards.cut(optimizers.values())
        sizes = sum(x.numel() for x in optimizer_tensors(optimizers, shards.model).values())
        sizes += sum(p.numel() for p in shards.model.parameters())
        shards.join(optimizers.values())
        return (
            sizes,
            dict(shards.model.named_parameters()),
            optimizer_tensors(optimizers, shards.model),
        )

    found = in_shards(4, work)

    whole = sum(x.numel() for x in [*weights.values(), *kept.values()])
    assert all(sizes < 0.4 * whole for sizes, _, _ in found)
    for _, own, _ in found:
        assert all(torch.equal(own[name], x) for name, x in weights.items())
    assert all(torch.equal(found[0][2][name], x) for name, x in kept.items())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_parts_of_all_processes_take_as_many_bytes_as_what_is_whole(optimizer):
    model, train = Model(), TrainConfig(optimizer=optimizer)
    gradients = [{name: torch.ones_like(p) for name, p in model.named_parameters()}]
    kept = optimizer_tensors(stepped(model, train, gradients), model)
    whole = [*model.state_dict().values(), *(x for x in kept.values() if x.ndim)]

    def work(shards):
        optimizers = stepped(shards.model, train, gradients, shards)
        split = shards.bytes_of_parts(optimizers.values())
        shards.join()
        return split, shards.bytes_of_parts(optimizers.values())

    for found in in_shards(2, work):
        assert found == (sum(x.nbytes for x in whole),) * 2
