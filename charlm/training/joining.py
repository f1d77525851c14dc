"""Learning a mixture.

    1  the experts are trained on the training part without its last slice (`model.tune_fraction`)
    2  the weights are fitted on that slice, which no expert has read; never on the validation part
    3  the experts learn the slice too: n-grams are counted again, and the others train their last
       steps on the whole part, some on the slice alone (`SLICE_PASSES`)
    4  one step joins them; the mixture is scored and saved

Step 3 matters because the end of a text predicts best what comes next (the same play, the same
names): see docs/experiments.md.

Each expert that is trained here has its own run folder, `experts/NAME/`. `mixture.json` keeps the
result of step 2, and `belongs.json` the configuration. A resume needs them until the mixture is
saved.
"""

import contextlib
import json
import math
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.config import MixtureConfig, NGramConfig
from charlm.errors import NonFiniteError, Stopped, check_stop
from charlm.evaluation.protocols import chars_a_pass, spread_windows
from charlm.models import MixtureModel, NGramModel, next_token_loss
from charlm.models.mixture import fit_weights, join
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.mixture import (
    FITTED,
    Fitted,
    expert_from_run,
    expert_run,
    read_fitted_of,
    sha256_of_weights,
)
from charlm.runs.provenance import PROVENANCE, provenance_json
from charlm.runs.records import NoteRecord, Record, TrainRecord, TuneRecord
from charlm.runs.state import drift, newest_sound
from charlm.storage import write_file
from charlm.text.tokens import Split
from charlm.training.counting import count_text
from charlm.training.expert import LATE, Expert
from charlm.training.learner import Job, OneStepLearner

MAX_TUNED = 1 << 16  # characters to fit the weights on: so few numbers do not need more
MAX_LOGITS = 1 << 26  # of all experts on these characters: 256 MiB of float32
RESERVE = 0.05  # share of a budget for what is not measured: fitting the weights
TRIED = 2048  # characters predicted to measure the speed
SAVED_A_SECOND = 2e8  # bytes; a guess, for the last save in a budget


class JoiningLearner(OneStepLearner):
    """Learning a mixture: each expert has a loop of its own, then one step joins them."""

    model: MixtureModel

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.config, self.run, self.clock = job.config, job.run, job.clock
        self.mixture = cast(MixtureConfig, job.config.model)
        self.trained = job.config.training_runs()
        # The steps of all experts that are trained here, and the step that joins them.
        self.total_steps = sum(one.train.max_steps for one in self.trained.values()) + 1
        self.whole = job.corpus.splits["train"]
        cut = len(self.whole) - self.mixture.held_back(len(self.whole))
        self.first, self.slice = self.whole.part(0, cut), self.whole.part(cut, len(self.whole))
        self.fitted: Fitted | None = None

    def prepare(self) -> Iterator[Record]:
        """Train the experts and fit their weights; the records of an expert have its name.

        Raises:
            NonFiniteError: An expert's loss or weights became NaN or infinite.
            CheckpointError: An expert's run or mixture.json is missing or damaged.
            MachineError: A checkpoint could not be written; older ones are intact.
            Stopped: `should_stop` said so; the experts are saved.
        """
        begun = (self.run.path / PROVENANCE).exists()
        remarks: list[str] = []
        checkpoints = {
            name: newest_sound(expert_run(self.run, name), remarks) for name in self.trained
        }
        self.fitted = read_fitted_of(self.run, self.config, checkpoints)
        taken = {
            name: expert_from_run(
                self.run,
                self.config,
                name,
                self.fitted,
                self.job.tokenizer,
                self.model.experts[name],
            )
            for name, spec in self.mixture.experts.items()
            if spec.run
        }
        # There is no checkpoint of the mixture yet that would keep its configuration.
        together = provenance_json(self.config, self.job.tokenizer.to_json())
        write_file(self.run.path / PROVENANCE, together)
        experts = []
        for name, config in self.trained.items():
            checkpoint = checkpoints[name]
            experts.append(Expert(self.job, name, config, self.first, self.slice, checkpoint))
            if checkpoint:
                remarks += [f"not bit-exact: {change}" for change in drift(checkpoint)]
            elif begun:
                remarks.append(f"expert {name}: no checkpoint yet: starting at step 0")
        for text in dict.fromkeys(remarks):
            yield NoteRecord(text=text)
        # Time from before a stop counts for the budget, and for the seconds of records.
        self.clock.add(sum((expert.seconds for expert in experts), 0.0))
        with contextlib.ExitStack() as closing:
            for expert in experts:  # none may write after the loop of the mixture has ended
                closing.callback(expert.records.close)
            yield from self._train_and_fit(experts, taken)
        self._count(self.whole)

    def _train_and_fit(
        self, experts: list[Expert], taken: dict[str, Checkpoint]
    ) -> Iterator[Record]:
        """Train the experts without the slice, fit the weights on it, then train on with the slice."""
        if self.fitted is None:
            counted = self._count(self.first)
            if self.clock.budget is not None:
                # Predicting takes the same time before and after training.
                predicted = self._seconds_a_char() * (len(self.slice) + self._to_score())
                left = self.clock.left()
                self._share_time(experts, left - (counted + predicted + RESERVE * left))
            yield from self._train(experts, LATE)
            self.fitted = self._fit(experts, taken, counted)
            content = json.dumps(asdict(self.fitted), indent=1) + "\n"
            write_file(self.run.path / FITTED, content.encode())
        else:
            self.clock.add(self.fitted.seconds)
        fitted = self.fitted
        weights = [fitted.weights[name] for name in self.mixture.experts]
        self.model.weights.copy_(torch.tensor(weights))
        self.model.temperature.fill_(fitted.temperature)
        yield TuneRecord(
            weights=fitted.weights,
            temperature=fitted.temperature,
            loss_nats=fitted.loss_nats,
            alone_nats=fitted.alone_nats,
            chars=fitted.chars,
        )
        if self.clock.budget is not None:
            self._share_time(experts, self.clock.left() - fitted.reserve)
        for expert in experts:
            expert.give_slice(fitted.steps[expert.name])
        yield from self._train(experts, math.inf)

    def _train(self, experts: list[Expert], share: float) -> Iterator[Record]:
        """Train one expert after another until this share of their runs is done.

        Raises:
            Stopped: `should_stop` said so.
        """
        for expert in experts:
            try:
                yield from expert.until(share)
            except NonFiniteError as error:
                raise error.within(f"model.experts.{expert.name}") from None
            if expert.loop.stopped:
                raise Stopped

    def _share_time(self, experts: Collection[Expert], left: float) -> None:
        """Divide the remaining seconds so that all experts have trained equally long in the end."""
        waiting = sorted(experts, key=lambda expert: expert.seconds)
        while waiting:
            total = left + sum(expert.seconds for expert in waiting)
            most = waiting.pop()
            # After a stop, with fewer minutes, one may have trained longer than its share.
            share = max(most.seconds, total / (len(waiting) + 1))
            most.loop.clock.budget = share
            left -= share - most.seconds

    def _count(self, part: Split) -> float:
        """Count the text for the n-gram experts; return the seconds this took."""
        started = time.perf_counter()
        for name, spec in self.mixture.experts.items():
            if not spec.run and spec.model and spec.model.trained_by == "counting":
                model, config = cast(NGramModel, self.model.experts[name]), spec.model
                count_text(model, cast(NGramConfig, config), part, self.run, self.job.should_stop)
        return time.perf_counter() - started

    def _fit(self, experts: list[Expert], taken: dict[str, Checkpoint], counted: float) -> Fitted:
        """Fit weights and temperature on the slice.

        Args:
            experts: Those trained here.
            taken: The checkpoints of those from other runs.
            counted: Seconds that counting took; it is done again after the fit.
        """
        started = time.perf_counter()
        names, combine = list(self.mixture.experts), self.mixture.combine
        most = MAX_LOGITS // (self.model.vocab_size * len(names))
        logits, targets = self._predict(min(most, MAX_TUNED))
        predicted = time.perf_counter() - started
        weights, temperature = fit_weights(logits, targets, combine, self.job.should_stop)

        def loss(logits: Float[Tensor, "N V"]) -> float:
            return next_token_loss(logits[None], targets[None]).item()

        # Scoring a character takes as long as predicting one.
        scoring = predicted / len(targets) * self._to_score()
        saving = sum(t.nbytes for t in self.model.state_dict().values()) / SAVED_A_SECOND
        return Fitted(
            weights=dict(zip(names, weights.tolist(), strict=True)),
            temperature=temperature.item(),
            loss_nats=loss(join(logits, weights, temperature, combine)),
            alone_nats=dict(zip(names, map(loss, logits), strict=True)),
            chars=len(targets),
            steps={name: one.step for name, one in taken.items()}
            | {one.name: one.loop.state.step for one in experts},
            seconds=counted + time.perf_counter() - started,
            reserve=counted + scoring + saving,
            weights_sha256={name: sha256_of_weights(one) for name, one in taken.items()},
        )

    def _to_score(self) -> int:
        """Return how many validation characters will be scored."""
        val = len(self.job.corpus.splits["val"])
        return min(val, self.config.eval.max_chars or val)

    def _seconds_a_char(self) -> float:
        """Return how many seconds all experts take to predict one character."""
        started = time.perf_counter()
        _, targets = self._predict(TRIED)
        return (time.perf_counter() - started) / len(targets)

    @torch.no_grad()
    def _predict(self, most: int) -> tuple[Float[Tensor, "E N V"], Int[Tensor, "N"]]:
        """Return each expert's logits on the slice, in the windows of scoring, and the targets.

        Args:
            most: Characters to predict at most, in windows spread evenly over the slice.
        """
        self.model.eval()
        experts, vocab_size = list(self.model.experts.values()), self.model.vocab_size
        length = min(self.mixture.block_size, len(self.slice) - 1)
        rows = max(1, chars_a_pass(self.model) // length)
        passes = list(spread_windows(len(self.slice) - 1, length, most, rows))
        count = sum(len(one.starts) for one in passes) * length
        logits = torch.empty(len(experts), count, vocab_size)
        targets = torch.empty(count, dtype=torch.int64)
        done = 0
        for one in passes:
            ids = [self.slice.read(int(start), length + 1) for start in one.starts]
            batch = torch.from_numpy(np.stack(ids).astype(np.int64)).to(self.model.device)
            here = slice(done, done + len(ids) * length)
            done = here.stop
            targets[here] = batch[:, 1:].flatten()
            for own, expert in zip(logits, experts, strict=True):
                check_stop(self.job.should_stop)
                own[here] = expert.read(batch[:, :-1]).flatten(0, 1)
        return logits, targets

    def step(self) -> TrainRecord:
        """Join the experts: they are trained and their weights are set."""
        assert self.fitted is not None, "prepare comes before the first step"
        self.state.step = 1
        self.state.seconds = self.clock.seconds()
        return TrainRecord(
            step=1,
            loss_nats=self.fitted.loss_nats,
            weights=self.fitted.weights,
            temperature=self.fitted.temperature,
            seconds=self.state.seconds,
        )
