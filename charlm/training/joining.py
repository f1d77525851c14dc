"""Learning a mixture.

    1  the experts are trained on the training part without its last slice (`model.tune_fraction`)
    2  the weights are fitted on that slice, which no expert has read; never on the validation part.
       The best expert is used alone if that predicts better (`fitting`)
    3  the experts learn the slice too: n-grams are counted again, and the others train their last
       steps on the whole part, some on the slice alone (`SLICE_PASSES`)
    4  one step joins them; the mixture is scored and saved

Step 3 matters because the end of a text is the best guide to the text after it (the same play, the
same names): see docs/experiments.md.

Each expert that is trained here has its own run folder, `experts/NAME/`. `mixture.json` keeps the
result of step 2, and `belongs.json` the configuration. A resume needs them until the mixture is
saved.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.config import MixtureConfig
from charlm.errors import NonFiniteError, Stopped, check_stop
from charlm.evaluation.protocols import rows_a_pass
from charlm.evaluation.records import batches_to_score
from charlm.evaluation.unknown import mean_escape_nats
from charlm.models import MixtureModel
from charlm.models.base import stopping_between_layers
from charlm.models.gate import Gate
from charlm.models.onednn import by_onednn
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
from charlm.runs.records import (
    EvalRecord,
    NoteRecord,
    Record,
    SampleRecord,
    TrainRecord,
    TuneRecord,
)
from charlm.runs.state import drift, newest_sound
from charlm.storage import write_file
from charlm.text.tokens import Split
from charlm.training.counting import count_text
from charlm.training.expert import LATE, Expert
from charlm.training.fitting import Joined, Outcome, fit_join, loss_of
from charlm.training.learner import Job, OneStepLearner

MAX_TUNED = 1 << 16  # characters to fit the weights on: enough for a few numbers
MAX_LOGITS = 1 << 26  # of all experts on these characters: 256 MiB of float32
MAX_READ = 8  # characters to predict for each that is kept, where the alphabet is large
RESERVE = 0.03  # share of the rest of a budget for what is not measured
# Times as long as joining predictions of a character, to fit the weights with it (and the gate).
FIT, FIT_GATED = 30, 12
SHOWN = 0.25  # share of an evaluation, for the one before the experts learn the slice
TUNING = 0.05  # share of a budget for predicting these characters, and again for the fit
SHOWN_TIME = 0.03  # share of a budget that it may take
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
        self.first, self.slice = self.whole.divided(cut)
        self.experts: list[Expert] = []  # those that are trained here
        self.taken: dict[str, Checkpoint] = {}  # those from other runs
        self.fitted: Fitted | None = None
        # The most characters of the slice to predict, and to keep predictions of all experts of.
        self.tuned = MAX_TUNED
        self.room = max(1, MAX_LOGITS // (self.model.vocab_size * len(self.mixture.experts)))
        self.read = 0  # characters that the last prediction took
        self.shown = SHOWN

    def updates(self) -> dict[str, int]:
        """Return the updates of each expert that is trained here and was not left out."""
        left_out = {name for name, w in self.fitted.weights.items() if not w} if self.fitted else {}
        return {one.name: one.state.step for one in self.experts if one.name not in left_out}

    def prepare(self) -> Iterator[Record]:
        """Train the experts and fit their weights; the records of an expert have its name.

        Raises:
            NonFiniteError: An expert's loss or weights became NaN or infinite.
            CheckpointError: An expert's run or mixture.json is missing or damaged.
            MachineError: A checkpoint could not be written; older ones are intact.
            Stopped: `should_stop` said so; the experts are saved.
        """
        for text in dict.fromkeys(self._open()):
            yield NoteRecord(text=text)
        # Time from before a stop counts for the budget, and for the seconds of records.
        self.clock.add(sum((expert.state.seconds for expert in self.experts), 0.0))
        with contextlib.ExitStack() as closing:
            for expert in self.experts:  # none may write after the loop of the mixture has ended
                closing.callback(expert.events.close)
            yield from self._train_and_fit()
        self._count(self.whole)

    def _open(self) -> list[str]:
        """Begin or continue the runs of the experts, and read the other runs; return remarks."""
        begun = (self.run.path / PROVENANCE).exists()
        remarks: list[str] = []
        checkpoints = {
            name: newest_sound(expert_run(self.run, name), remarks) for name in self.trained
        }
        self.fitted = read_fitted_of(self.run, self.config, checkpoints)
        for name, spec in self.mixture.experts.items():
            if spec.run:
                model, tokenizer = self.model.experts[name], self.job.tokenizer
                self.taken[name] = expert_from_run(
                    self.run, self.config, name, self.fitted, tokenizer, model
                )
        # The mixture has no checkpoint yet that would keep its configuration.
        together = provenance_json(self.config, self.job.tokenizer.to_json())
        write_file(self.run.path / PROVENANCE, together)
        for name, checkpoint in checkpoints.items():
            own = self.trained[name]
            self.experts.append(Expert(self.job, name, own, self.first, self.slice, checkpoint))
            if checkpoint:
                remarks += [f"not bit-exact: {change}" for change in drift(checkpoint, own)]
            elif begun:
                remarks.append(f"expert {name}: no checkpoint yet: starting at step 0")
        return remarks

    def _train_and_fit(self) -> Iterator[Record]:
        """Train the experts without the slice, fit the weights on it, then train on with the slice."""
        budgeted, just_fitted = self.clock.budget is not None, self.fitted is None
        if self.fitted is None:
            counted = self._count(self.first)
            if budgeted:
                self._share_time(self._left_for_training(counted), self.experts)
            yield from self._train(LATE, self.experts)
            self.fitted, remark = self._fit(counted)
            content = json.dumps(asdict(self.fitted), indent=1) + "\n"
            write_file(self.run.path / FITTED, content.encode())
            for text in filter(None, (remark, *self.job.take_remarks())):
                yield NoteRecord(text=text)
        else:
            self.clock.add(self.fitted.seconds)
        self.take(self.fitted)
        used = [expert for expert in self.experts if self.fitted.weights[expert.name]]
        yield TuneRecord(fitted=self.fitted)
        if just_fitted:
            yield from self._show()
        if budgeted:
            self._share_time(self.clock.left() - self.fitted.reserve, used)
        for expert in self.experts:
            expert.give_slice(self.fitted.steps[expert.name])
        yield from self._train(math.inf, used)

    def take(self, fitted: Fitted) -> None:
        """Copy what was fitted into the model."""
        weights = [fitted.weights[name] for name in self.mixture.experts]
        self.model.weights.copy_(torch.tensor(weights))
        self.model.temperature.fill_(fitted.temperature)
        if self.model.gate is not None and fitted.gate:
            self.model.gate.take(fitted.gate)

    def _left_for_training(self, counted: float) -> float:
        """Return the seconds that are left for the experts' steps; counting took `counted`."""
        budget = self.clock.budget
        assert budget is not None
        # Predicting takes the same time before and after training, and so does joining.
        started = time.perf_counter()
        logits, _ = self._predict(TRIED)
        predicting = (time.perf_counter() - started) / self.read
        joining = self.time_to_join(logits)
        self.job.limit_scoring(len(self.job.corpus.splits["val"]), predicting + joining)
        fitting = self.time_to_fit(TUNING * budget, predicting, joining)
        scoring = (1 + self._shown(predicting + joining)) * self._to_score()
        scoring *= predicting + joining
        left = self.clock.left()
        return left - (counted + fitting + scoring + RESERVE * left)

    def time_to_join(self, logits: Float[Tensor, "E N V"]) -> float:
        """Measure how many seconds it takes to join the predictions of a character."""
        experts, combine = len(logits), self.mixture.combine
        gate = Gate(experts) if combine == "gated" else None
        started = time.perf_counter()
        Joined(torch.ones(experts), torch.ones(()), gate).of(logits, combine)
        return (time.perf_counter() - started) / len(logits[0])

    def time_to_fit(self, most: float, predicting: float, joining: float) -> float:
        """Return the seconds that the fit will take, on as much text as `most` seconds allow.

        To predict a character takes `predicting` seconds, and to join the predictions `joining`.
        """
        self.tuned = min(self.tuned, _within(most, predicting))
        fitting = (FIT_GATED if self.mixture.combine == "gated" else FIT) * joining
        self.room = min(self.room, _within(most, fitting))
        read = min(len(self.slice), self.tuned, MAX_READ * self.room)
        return predicting * read + fitting * min(read, self.room)

    def _shown(self, seconds_a_char: float) -> float:
        """Return the share of an evaluation that the first join is scored on; 0 if time is short."""
        budget = self.clock.budget
        chars = self._to_score()
        share = max(SHOWN, min(1.0, TRIED / max(1, chars)))
        long = budget is not None and share * seconds_a_char * chars > SHOWN_TIME * budget
        self.shown = 0.0 if long else share
        return self.shown

    def _show(self) -> Iterator[Record]:
        """Score the first join and let it write, so that its run shows what comes of it."""
        val, train = self.job.corpus.splits["val"], self.config.train
        if len(val) > 1 and self.shown:
            score = self.job.score(val, self.shown)
            yield EvalRecord(
                step=0,
                chars=score.chars,
                loss_nats=score.loss_nats,
                best=False,
                seconds=self.clock.seconds(),
            )
        if train.sample_every:
            text = self.job.sample()
            yield SampleRecord(step=0, text=text, seconds=self.clock.seconds())

    def _train(self, share: float, experts: Sequence[Expert]) -> Iterator[Record]:
        """Train one expert after another until this share of their runs is done, or raise Stopped."""
        for expert in experts:
            try:
                for record in expert.until(share):
                    yield replace(record, expert=expert.name)
            except NonFiniteError as error:
                raise error.within(f"model.experts.{expert.name}") from None
            if expert.stopped:
                raise Stopped

    def _share_time(self, left: float, experts: Sequence[Expert]) -> None:
        """Divide the remaining seconds so that all these experts train equally long in total."""
        waiting = sorted(experts, key=lambda expert: expert.state.seconds)
        while waiting:
            total = left + sum(expert.state.seconds for expert in waiting)
            most = waiting.pop()
            # After resuming with fewer minutes, one may already have trained longer than its share.
            share = max(most.state.seconds, total / (len(waiting) + 1))
            most.clock.budget = share
            left -= share - most.state.seconds

    def _count(self, part: Split) -> float:
        """Count the text for the n-gram experts; return the seconds this took."""
        started = time.perf_counter()
        for name, spec in self.mixture.experts.items():
            if not spec.run and spec.model and spec.model.trained_by == "counting":
                model = self.model.experts[name]
                count_text(
                    model, spec.model, part, self.run, self.job.should_stop, self.job.progress
                )
        return time.perf_counter() - started

    def _fit(self, counted: float) -> tuple[Fitted, str]:
        """Choose the experts that are joined and fit their weights and temperature on the slice.

        Counting took `counted` seconds and will be repeated after the fit. Also return why an expert
        is left out, if one is.
        """
        started = time.perf_counter()
        names = list(self.mixture.experts)
        outcome = self.fit()
        found, extra = outcome.joined, mean_escape_nats(self.slice, self.model.vocab_size)
        # Scoring a character takes as long as predicting it and joining.
        scoring = (1 + self._shown(outcome.seconds)) * outcome.seconds * self._to_score()
        saving = sum(t.nbytes for t in self.model.state_dict().values()) / SAVED_A_SECOND
        steps = {name: checkpoint.step for name, checkpoint in self.taken.items()}
        fitted = Fitted(
            weights=dict(zip(names, found.weights.tolist(), strict=True)),
            temperature=found.temperature.item(),
            gate=found.gate.numbers() if found.gate else [],
            loss_nats=outcome.loss_nats + extra,
            alone_nats={
                name: nats + extra for name, nats in zip(names, outcome.alone_nats, strict=True)
            },
            chars=outcome.chars,
            steps=steps | {one.name: one.state.step for one in self.experts},
            seconds=counted + time.perf_counter() - started,
            reserve=counted + scoring + saving,
            weights_sha256={
                name: sha256_of_weights(one, self.job.tokenizer) for name, one in self.taken.items()
            },
        )
        return fitted, found.remark

    def fit(self) -> Outcome:
        """Choose the experts and fit their weights, and a gate if there is one."""
        started = time.perf_counter()
        names, combine = list(self.mixture.experts), self.mixture.combine
        logits, targets = self._predict(self.tuned)
        seconds = (time.perf_counter() - started) / self.read
        found = fit_join(logits, targets, names, combine, self.job.should_stop)
        joining = time.perf_counter()
        mixed = found.of(logits, combine)
        seconds += (time.perf_counter() - joining) / len(targets)
        alone = [loss_of(own, targets) for own in logits]
        return Outcome(found, loss_of(mixed, targets), alone, len(targets), seconds)

    def _to_score(self) -> int:
        """Return how many validation characters will be scored."""
        val = len(self.job.corpus.splits["val"])
        return min(val, self.job.most_scored or val)

    @torch.no_grad()
    def _predict(self, most: int) -> tuple[Float[Tensor, "E N V"], Int[Tensor, "N"]]:
        """Return each expert's logits on the slice, in the windows of scoring, and the targets.

        At most `most` characters are predicted, in windows spread evenly over the slice. Where their
        logits would take too much memory, as with a large alphabet, an even sample of them is kept.
        """
        self.model.eval()
        experts = [by_onednn(expert) for expert in self.model.experts.values()]
        length = min(self.mixture.block_size, len(self.slice) - 1)
        most = min(most, MAX_READ * self.room, len(self.slice) - 1)
        read = list(batches_to_score(self.slice, length, most, rows_a_pass(self.model, 1)))
        total = sum(int((y >= 0).sum()) for _, y in read)
        # Odd steps meet every place in a window, of which the first have little context.
        every = (total - 1) // self.room
        every += 1 + every % 2
        logits = torch.empty(len(experts), -(-total // every), self.model.vocab_size)
        targets: list[Tensor] = []
        seen = filled = 0
        for ids, following in read:
            x, y = torch.from_numpy(ids).to(self.model.device), torch.from_numpy(following)
            there = y >= 0
            places = seen + there.flatten().cumsum(0).view(y.shape) - 1
            kept = there & (places % every == 0)
            some = slice(filled, filled := filled + int(kept.sum()))
            seen += int(there.sum())
            targets.append(y[kept])
            for own, expert in zip(logits, experts, strict=True):
                check_stop(self.job.should_stop)
                with stopping_between_layers(expert, self.job.should_stop):
                    own[some] = expert.read(x)[kept.to(self.model.device)]
        self.read = total
        return logits, torch.cat(targets)

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


def _within(seconds: float, a_char: float) -> int:
    """Return how many characters can be worked on in so many seconds, at least `TRIED`."""
    return max(TRIED, int(seconds / max(a_char, 1e-9)))
