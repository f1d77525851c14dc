"""Weights that are split among processes: each holds some rows of each, their gradients and moments.

Only while one block is computed does a process hold all rows of it: PyTorch's FSDP2 collects them
before, and afterwards adds up the gradients of all processes and gives each process those of its rows
(Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data parallel"). AdamW is
computed for each number by itself, so each process does it for its rows. Muon needs a whole matrix.

Between steps the model can be made whole again, in every process: then evaluations, samples and
checkpoints are those of one process. The next step splits it again.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from charlm.config.shares import check_shares, own_share
from charlm.errors import MachineError
from charlm.models import LanguageModel
from charlm.models.ngram_embedding import NGramEmbedding
from charlm.runs.optimizer_state import optimizer_tensors
from charlm.runs.state import OPTIMIZER
from charlm.runs.weights import WEIGHTS
from charlm.training.muon import Muon
from charlm.training.ranks import Ranks
from charlm.training.summing import TreeSum


class Shards:
    """The rows of a model's weights that this process holds.

    While they are `apart`, each parameter of the model is these rows, and so are its gradient and
    what an optimizer keeps of it; else it is whole.

    Args:
        model: A model of `blocks`.
        ranks: The processes, at least two. They need not be connected yet.
    """

    def __init__(self, model: LanguageModel, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        self.parameters = dict(model.named_parameters())
        self.shapes = {id(p): p.shape for p in self.parameters.values()}  # when whole
        self.apart = False
        self._module: Any = None  # computes with split weights
        self._split: dict[str, Any] = {}  # its parameters
        self._mesh: Any = None

    def __call__(self, idx: Tensor) -> Tensor:
        """Return the logits; all processes call this together."""
        logits: Tensor = self._module(idx)
        return logits

    def own(self, x: Float[Tensor, "R *rest"]) -> Float[Tensor, "r *rest"]:
        """Return this process's rows of a tensor, maybe none."""
        parts = x.chunk(self.ranks.size)  # as FSDP2 cuts
        return parts[self.ranks.rank] if self.ranks.rank < len(parts) else x[:0]

    def whole(self, own: Float[Tensor, "r *rest"]) -> Float[Tensor, "R *rest"]:
        """Return all rows of a tensor; all processes call this together."""
        return torch.cat([part for (part,) in self.ranks.gather([own])])

    @torch.no_grad()
    def cut(self, optimizers: Iterable[Optimizer]) -> None:
        """Leave in each process its rows of weights and of what optimizers keep."""
        if self.apart:
            return
        if self._module is None:
            self._module = self._sharded()
            self._split = dict(self._module.named_parameters())
        for name, p in self.parameters.items():
            self._split[name].to_local().copy_(self.own(p))
        self.attach()
        for state, p in _states(optimizers):
            for key, x in state.items():
                if x.shape == self.shapes[id(p)]:
                    state[key] = self.own(x).clone()
        self.apart = True

    @torch.no_grad()
    def join(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Give every process all weights, and the first all that optimizers keep of them."""
        if self.apart:
            for p in self.parameters.values():
                rows = self.whole(p.data)
                p.grad = None
                p.data = rows
        self.apart = False
        kept = [
            (state, key, self.shapes[id(p)])
            for state, p in _states(optimizers)
            for key in sorted(key for key, x in state.items() if x.ndim)
        ]
        # Those of a checkpoint are whole in all processes, those joined before only in the first.
        split = any(state[key].shape != shape for state, key, shape in kept)
        if not (kept and self.ranks.told(float(split))):
            return
        for state, key, _ in kept:
            rows = self.whole(state[key])
            if self.ranks.first:
                state[key] = rows

    @torch.no_grad()
    def attach(self) -> None:
        """Make the parameters of the model those of the split one, with their gradients."""
        for name, p in self.parameters.items():
            split = self._split[name]
            p.grad = None  # of another shape
            p.data = split.to_local()
            p.grad = None if split.grad is None else split.grad.to_local()
            split.grad = None

    def bytes_of_parts(self, optimizers: Iterable[Optimizer]) -> int:
        """Return how many bytes weights, and what optimizers keep of them, take when whole."""
        kept = [(p, x) for state, p in _states(optimizers) for x in state.values() if x.ndim]
        weights = [(p, p) for p in self.parameters.values()]
        return sum(self.shapes[id(p)].numel() * x.itemsize for p, x in [*weights, *kept])

    def write_parts(
        self, folder: Path, optimizers: Mapping[str, Optimizer]
    ) -> dict[str, Sequence[int]]:
        """Write this process's rows of weights and of what optimizers keep; all do so together.

        Return the shapes of all tensors when whole, by file and name. Raises MachineError in all
        processes if one of them cannot write.
        """
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        self.cut(optimizers.values())
        tensors = {
            f"{WEIGHTS}/{name}": self._placed(x, x)
            for name, x in self.model.state_dict(keep_vars=True).items()
        }
        for path, x in optimizer_tensors(optimizers, self.model).items():
            p = self.parameters[path.split("/")[1]]
            tensors[f"{OPTIMIZER}/{path}"] = self._placed(p, x) if x.ndim else x
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            self.ranks.together(partial(save, tensors, storage_writer=writer))
        except CheckpointException as error:  # no Exception, so nothing else would catch it
            reasons = [str(one[0]) for one in error.failures.values()]
            raise MachineError(folder, f"could not be written ({reasons[0][:80]})") from None
        return {name: x.shape for name, x in tensors.items()}

    def _placed(self, p: Tensor, own: Tensor) -> Tensor:
        """Return this process's rows with their place among all rows of the parameter `p`."""
        from torch.distributed.tensor import DTensor, Shard

        shape = self.shapes.get(id(p))
        if shape is None:  # a buffer, which all processes have
            return own
        mesh, stride = self._mesh, torch.empty(shape, device="meta").stride()
        rows = own.detach()
        return DTensor.from_local(
            rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )

    def will_add(self, last: bool) -> None:
        """Say whether the next backward pass is the last one of a step, which adds up all."""
        self._module.set_requires_gradient_sync(last)

    def _sharded(self) -> nn.Module:
        """Return a copy of the model that FSDP2 has split."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        copied = copy.deepcopy(self.model).train()
        for part in copied.modules():
            if isinstance(part, NGramEmbedding):
                part.sparse = False  # FSDP2 adds up dense gradients only
        mesh = self._mesh = init_device_mesh(self.model.device.type, (self.ranks.size,))
        parts: list[Any] = [*copied.blocks, copied]  # type: ignore[misc]
        for part in parts:
            fully_shard(part, mesh=mesh)
            # Each loss is a share of the batch's mean, so gradients are added and not averaged.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo cannot scale
        return copied


class ShardedSums:
    """Adds up the losses and gradients of a step, over processes that share its weights.

    It is used like `StepSums`. FSDP2 adds in an order that depends on the number of processes.

    Args:
        shards: The weights.
        optimizers: By name.
        micro_batches: In a step, over all processes.

    Raises:
        UsageError: So many processes cannot share so many micro-batches.
    """

    def __init__(
        self, shards: Shards, optimizers: Mapping[str, Optimizer], micro_batches: int
    ) -> None:
        self.shards, self.optimizers, self.ranks = shards, optimizers, shards.ranks
        check_shares(micro_batches, self.ranks.size, exact=False)
        self.own = own_share(micro_batches, self.ranks.rank, self.ranks.size)

    def of(self, gradient: Callable[[int], Tensor], should_stop: Callable[[], bool]) -> Tensor:
        """Return the sum of the losses; that of each process's gradients is left in `.grad`.

        `should_stop` is not asked: within a step, processes cannot stop one by one.
        """
        self.shards.cut(self.optimizers.values())
        loss = self.ranks.together(partial(self._own, gradient))
        self.shards.attach()
        tree: TreeSum[Tensor] = TreeSum(torch.add)
        for (part,) in self.ranks.gather([loss]):
            tree.push(part)
        return tree.total()

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the norm of all gradients of all processes."""
        own = torch.nn.utils.get_total_norm(gradients)
        parts = [part for (part,) in self.ranks.gather([own])]
        total: Tensor = torch.linalg.vector_norm(torch.stack(parts))
        return total

    def _own(self, gradient: Callable[[int], Tensor]) -> Tensor:
        """Return the loss of this process's micro-batches."""
        losses = []
        for micro_batch in self.own:
            self.shards.will_add(last=micro_batch == self.own[-1])
            losses.append(gradient(micro_batch))
        return torch.stack(losses).sum()


class ShardedMuon(Muon):
    """Muon for matrices of which each process has some rows.

    The running means stay split. All processes collect their whole sums, and each orthogonalises them.
    """

    def __init__(self, shards: Shards, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shards = shards

    def shape(self, matrix: nn.Parameter) -> torch.Size:
        """Return the shape of a whole matrix."""
        return self.shards.shapes[id(matrix)]

    def orthogonal(
        self, means: Float[Tensor, "N r C"], shape: torch.Size
    ) -> Float[Tensor, "N r C"]:
        """Return this process's rows of the orthogonal factors."""
        rows = means.transpose(0, 1)
        whole = self.shards.whole(rows).transpose(0, 1).contiguous()
        factors = super().orthogonal(whole, shape)
        return self.shards.own(factors.transpose(0, 1)).transpose(0, 1)


def _states(optimizers: Iterable[Optimizer]) -> list[tuple[dict[str, Any], nn.Parameter]]:
    """Return what optimizers keep of each parameter, in the same order in all processes."""
    return [
        (optimizer.state[p], p)
        for optimizer in optimizers
        for p in itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups)
        if p in optimizer.state
    ]
