"""Learning by gradients: the training step.

A step depends only on the weights, the optimizers' state, a state that is carried on, the seed and the
step number: the windows and the dropout masks are computed from (seed, step, micro-batch). So a run that was stopped and resumed
ends with the same bits as an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from charlm.backprop.by_hand import ByHand
from charlm.config import Config
from charlm.errors import NonFiniteError, Phrase, Setting, Words
from charlm.evaluation.unknown import escape_nats
from charlm.fused.blocks import fused_forward
from charlm.models import LanguageModel, next_token_loss
from charlm.models.device import choose_dtype, precision
from charlm.runs.records import CompileRecord, NoteRecord, Record, SkipRecord, TrainRecord
from charlm.runs.state import TrainingState
from charlm.text import Batches
from charlm.text.batches import DROPOUT_STREAM, ConsecutiveBatches, batches_of, random_words
from charlm.text.escapes import count_escapes
from charlm.training.carrying import Carried
from charlm.training.compile_cost import cost_of, keep_times, program
from charlm.training.compiling import Forward, compile_model, worth_trying
from charlm.training.kept_memory import keep_memory
from charlm.training.learner import Clock, Job, Learner
from charlm.training.loading import load_kernels
from charlm.training.muon import Muon
from charlm.training.optimizers import build_optimizers, set_learning_rate
from charlm.training.ranks import ONE, Ranks
from charlm.training.schedule import learning_rate
from charlm.training.sharding import ShardedMuon, ShardedSums, Shards
from charlm.training.sharing import SharedMuon
from charlm.training.summing import StepSums
from charlm.training.threads import ThreadChoice

MOST_SKIPPED = 3  # updates in a row
NAMED = 2  # gradients in a message


class GradientLearner(Learner):
    """Learning by gradients; the model has its first weights and is on its device."""

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        batches: Batches,
        clock: Clock,
        ranks: Ranks = ONE,
    ) -> None:
        self.config = config
        self.model = model
        self.parameters = dict(model.named_parameters())  # to look for them takes a while
        self.batches = batches
        self.clock = clock
        self.state = TrainingState()
        self.total_steps = config.train.max_steps
        self.device = model.device
        self.dtype = choose_dtype(config.run.dtype, self.device)
        split = config.train.parallel == "fsdp2"
        self.shards = Shards(model, ranks) if split and ranks.size > 1 else None
        muon: Callable[..., Muon] = partial(SharedMuon, ranks) if ranks.size > 1 else Muon
        if self.shards:
            muon = partial(ShardedMuon, self.shards)
        self.optimizers = build_optimizers(model, config.train, self.dtype, muon)
        self.micro_batch_size = config.train.micro_batch_size or config.train.batch_size
        exact = config.train.exact
        exact = self.device.type == "cpu" if exact == "auto" else exact
        micro_batches = config.train.batch_size // self.micro_batch_size
        self.sums = (
            ShardedSums(self.shards, self.optimizers, micro_batches)
            if self.shards
            else StepSums(self.parameters, micro_batches, exact, ranks)
        )
        self.dropout = config.model.has_dropout
        self.by_hand = ByHand(model) if config.train.gradients == "by_hand" else None
        fused = config.run.fused and not self.by_hand and not split
        self.fused = fused_forward(model) if fused else None
        self.eager: Forward = self.fused or self.shards or model
        self.forward = self.eager
        self.carried = Carried(model, batches) if isinstance(batches, ConsecutiveBatches) else None
        self.threads: ThreadChoice | None = None
        self.remarks: list[str] = []
        self.last_step = 0.0  # seconds
        self.should_stop: Callable[[], bool] = lambda: False  # asked between micro-batches

    def spent(self) -> float:
        """Return the share of the budget or of the steps that is done."""
        share = self.clock.share()
        if share is not None:
            return 1.0 if self.clock.is_over(self.last_step) else share
        return self.state.step / self.total_steps if self.total_steps else 1.0

    def prepare(self) -> Iterator[Record]:
        """Load kernels, and compile the model if the configuration says so; this can take a minute.

        In a budget, the schedule begins after it.
        """
        started, budgeted = self.clock.seconds(), self.clock.budget is not None
        for _ in load_kernels(self.config):
            pass
        yield from self._compile(self.clock.left() if budgeted else None)
        before, self.form = self.form, self._form()
        if before not in (None, self.form):
            text = f"not bit-exact: steps were {before}, now they are {self.form}"
            yield NoteRecord(text=text)
        if budgeted:
            now = self.clock.seconds()
            self.state.before = self.state.before + now - started if self.state.step else now
            self.clock.before = self.state.before
            # Compiled code has its number; several processes must sum over the same number.
            alone = self.sums.ranks.size == 1
            if self.device.type == "cpu" and self.form != "compiled" and alone:
                self.threads = ThreadChoice()

    def _compile(self, left: float | None) -> Iterator[Record]:
        """Compile the model if that is asked for, or worth it in the seconds left of a budget."""
        choice = self.config.run.compile
        if choice == "auto" and self.config.train.parallel != "none":
            choice = False  # what each process measures must not decide what it computes
        name = program(self.config, self.model, self.micro_batch_size, self.dtype)
        cost = cost_of(name)
        # The fused form takes no longer than compiled code (docs/experiments.md).
        if self.carried or (
            choice == "auto"
            and (self.fused or not worth_trying(self.config, self.model, left, cost))
        ):
            choice = False
        if choice:
            yield CompileRecord(expected=cost.seconds, cached=cost.cached)
        windows = self.micro_batch_size
        attempt = compile_model(self.model, choice, windows, self.dtype, self.eager)
        self.forward, times = attempt.forward, attempt.times
        if attempt.reason:
            yield NoteRecord(text=attempt.reason)
        if times:
            keep_times(name, times)
            if choice == "auto" and left is not None and times.compiled > times.eager:
                self.forward = self.eager  # the clock decides the bits in a budget anyway
                slow = f"{times.compiled:.2g} s compiled, and {times.eager:.2g} s eager"
                yield NoteRecord(text=f"compile: not used, because a pass takes {slow}")

    def _form(self) -> str:
        if self.forward is not self.eager:
            return "compiled"
        return "fused" if self.fused else "plain"

    def take_remarks(self) -> list[str]:
        """Return remarks for the user on the last step, once."""
        taken, self.remarks = self.remarks, []
        return taken

    def close(self) -> None:
        """Give the process all its threads again, and the system the memory that was kept."""
        keep_memory(False)
        if self.threads:
            self.threads.restore()

    @property
    def split(self) -> bool:
        """Whether weights are split among processes in a step."""
        return self.shards is not None

    def complete(self, optimizers: bool = False) -> None:
        """Bring together weights that are split among processes; see `Learner`."""
        if self.shards:
            self.shards.join(self.optimizers.values() if optimizers else ())

    @property
    def saves_parts(self) -> bool:
        """Whether each process writes its part of a checkpoint."""
        return self.shards is not None and self.config.train.sharded_saves

    def bytes_of_parts(self) -> int:
        """Return how many bytes the parts of all processes take."""
        assert self.shards
        return self.shards.bytes_of_parts(self.optimizers.values())

    def write_parts(self, folder: Path) -> Mapping[str, Sequence[int]]:
        """Write this process's part of weights and optimizers; see `Learner`."""
        assert self.shards
        return self.shards.write_parts(folder, self.optimizers)

    def step(self) -> TrainRecord | SkipRecord:
        """Do one optimizer update at the scheduled learning rate."""
        started = time.perf_counter()
        record = self.update(self.learning_rate())
        self.last_step = time.perf_counter() - started
        if self.threads and (remark := self.threads.took(self.last_step)):
            self.remarks.append(remark)
        return record

    def learning_rate(self) -> float:
        """Return the learning rate of the next update."""
        rate = learning_rate(self.config.train, self.state.step, self.clock.share())
        return rate * self.state.rate_factor

    def update(self, rate: float) -> TrainRecord | SkipRecord:
        """Do one optimizer update at this learning rate.

        The loss in its record is the mean over the batch before the update. Raises NonFiniteError if
        the loss or a gradient is NaN or infinite, and the update is not skipped.
        """
        started = time.perf_counter()
        keep_memory(self.config.run.keep_memory and self.device.type == "cpu")
        state = self.state
        set_learning_rate(self.optimizers.values(), rate)
        loss, norm = self.gradients()
        reason = None
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers.values():
                optimizer.step()
            state.skipped = 0
        else:
            reason = self._non_finite(loss, norm, rate)
            state.skipped += 1
        chars = self.batches.chars(state.step)
        state.step += 1
        if self.carried:
            self.carried.advance(sound=reason is None)
        state.seconds = self.clock.seconds()
        if reason:
            return SkipRecord(step=state.step, reason=reason, seconds=state.seconds)
        return TrainRecord(
            step=state.step,
            loss_nats=loss,
            learning_rate=rate,
            grad_norm=norm,
            chars_per_second=chars / max(time.perf_counter() - started, 1e-9),
            seconds=state.seconds,
        )

    def gradients(self) -> tuple[float, float]:
        """Compute the gradient of the step's batch; return the mean loss and the gradient's norm."""
        train = self.config.train
        if not self.model.training:  # to tell each part takes a while
            self.model.train()
        loss = self.sums.of(self._accumulate, self.should_stop)
        gradients = list(_gradients(self.parameters).values())
        norm = self.sums.norm(gradients)
        clipped = train.grad_clip / (norm + 1e-6)
        # If the norm is infinite, this would make some of them NaN, and hide which were.
        if train.grad_clip and clipped < 1 and norm.isfinite():
            torch._foreach_mul_(gradients, clipped)
        return loss.item(), norm.item()

    def _accumulate(self, micro_batch: int) -> Tensor:
        """Add the gradient of one micro-batch; return its share of the mean loss of the batch."""
        step, train, micro = self.state.step, self.config.train, self.micro_batch_size
        first = micro_batch * micro
        if self.dropout:
            sample = step * train.batch_size + first
            seed = random_words(self.config.run.seed, DROPOUT_STREAM, sample, 1)[0]
            torch.manual_seed(int(seed >> np.uint64(1)))  # only dropout draws from this generator
        total = torch.zeros((), device=self.device)
        escapes = 0
        for ids, targets in self.batches.groups(step, first, micro, filled=not self.by_hand):
            escapes += count_escapes(targets, self.batches.escape)
            share = int((targets >= 0).sum()) / self.batches.chars(step)
            x, y = (
                torch.from_numpy(one).to(self.device, non_blocking=True) for one in (ids, targets)
            )
            with precision(self.device, self.dtype):
                if self.by_hand:
                    total += self.by_hand(x, y, share)
                    continue
                logits = self._logits(x, first)
            loss = next_token_loss(logits.float(), y) * share
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if escapes:  # they have no gradient, and count in the loss as in an evaluation
            total += escapes * escape_nats(self.model.vocab_size) / self.batches.chars(step)
        return total

    def _logits(self, x: Tensor, first: int) -> Tensor:
        """Return the logits of a micro-batch, whose state may be carried on from the step before."""
        if not self.carried:
            return self.forward(x)
        state = self.carried.before(self.state.step, first, len(x))
        reads: Any = self.forward  # the model, or its fused form
        logits, state = reads.go_on(x, state)
        self.carried.after(first, state)
        return logits  # type: ignore[no-any-return]

    def carried_tensors(self) -> dict[str, Tensor]:
        """Return the state that the next step begins with."""
        return self.carried.tensors() if self.carried else {}

    def restore_carried(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `carried_tensors` returned."""
        if self.carried:
            self.carried.restore(tensors, self.micro_batch_size)

    def _non_finite(self, loss: float, norm: float, rate: float) -> str:
        """Return why an update is skipped, or raise NonFiniteError; the weights are unchanged.

        The gradients are computed again: a different result is a fault of the machine.
        """
        what = f"gradient norm {norm}" if math.isfinite(loss) else f"loss {loss}"
        worst = _worst_gradients(self.parameters, self.shards.ranks if self.shards else ONE)
        if all(map(math.isfinite, self.gradients())):
            count = "not"
            mend: Words = Phrase("suspect the machine, go on with {}", Setting("resume", True))
        else:
            count, mend = "again", "lower train.learning_rate"
        what = f"{what}, {count} when repeated (learning rate {rate:.3g}); {worst}"
        where = f"step {self.state.step + 1}"
        if self.config.train.non_finite == "skip" and self.state.skipped < MOST_SKIPPED:
            return f"{where}: {what}"
        raise NonFiniteError(where, what, mend)


def _gradients(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradients by name; of a sparse one, those values that it holds."""
    found = {}
    for name, p in parameters.items():
        if p.grad is not None:
            p.grad = p.grad.coalesce() if p.grad.is_sparse else p.grad
            found[name] = p.grad.values() if p.grad.is_sparse else p.grad
    return found


def _worst_gradients(parameters: dict[str, nn.Parameter], ranks: Ranks) -> str:
    """Name the gradients with the most values that are not finite, else the largest gradients.

    `ranks`: Processes that each have some rows of all gradients; all of them call it together.
    """
    gradients = _gradients(parameters)
    own = torch.zeros(2, len(parameters), dtype=torch.float64)
    for i, name in enumerate(parameters):
        if name in gradients and (g := gradients[name]).numel():
            own[0, i], own[1, i] = (~g.isfinite()).sum(), g.abs().max()
    every = torch.stack([part for (part,) in ranks.gather([own])])
    broken, largest = every[:, 0].sum(0), every[:, 1].amax(0)
    where, counted = ("in", broken) if broken.any() else ("largest in", largest)
    sizes = dict(zip(parameters, counted.tolist(), strict=True))
    found = sorted(filter(sizes.get, sizes), key=lambda name: -sizes[name])
    return f"{where} {', '.join(found[:NAMED]) or 'none'}"


def gradient_learner(job: Job) -> GradientLearner:
    """Return the learner of a run on its training part."""
    config, train = job.config, job.corpus.splits["train"]
    sizes = config.model.block_size, config.train.batch_size, config.run.seed
    batches = batches_of(train, *sizes, carry_state=config.train.carry_state)
    learner = GradientLearner(config, job.model, batches, job.clock, job.ranks)
    learner.should_stop = job.should_stop
    return learner
