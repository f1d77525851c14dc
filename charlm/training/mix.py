"""Training a mixture: its experts, then their weights, then the text that was held back for them.

    1  experts are trained on the training part without its last slice (`model.tune_fraction`)
    2  the weights are fitted on that slice, which no expert has seen, never on validation
    3  the slice is given back: counts are taken anew, trained experts spend their last updates
       on the whole part, some of them on the slice alone: `SLICE_PASSES`
    4  the joined model is scored and saved, as one step

A text's end is the best guide to how it goes on (the same play, the same names), so step 3 matters:
see docs/experiments.md.

Every expert that is trained has a run folder of its own, `experts/NAME/`, `mixture.json` keeps what
step 2 found, and `belongs.json` what it all rests on. They are there to resume from until the
joined model is saved; then it is whole.
"""

import contextlib
import json
import math
import time
from collections.abc import Collection, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer

from charlm.config import Config, MixtureConfig, NGramConfig, dump_yaml
from charlm.errors import NonFiniteError, Stopped, check_stop
from charlm.evaluation.protocols import chars_a_pass, spread_windows
from charlm.models import LanguageModel, MixtureModel, NGramModel, next_token_loss
from charlm.models.mixture import fit_weights, join
from charlm.runs.belongs import BELONGS, belongs
from charlm.runs.folder import Checkpoint
from charlm.runs.mixture import (
    FITTED,
    Fitted,
    expert_from_run,
    expert_run,
    read_fitted_of,
    saved_experts,
    sha256_of_weights,
)
from charlm.runs.state import drift
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder
from charlm.text import Batches, Corpus
from charlm.text.tokens import Split
from charlm.training.fit import fit_ngram
from charlm.training.loop import Record, Trainer

LATE = 0.7  # share of an expert's training before it is given the slice
RESERVE = 0.05  # share of a wall-clock budget kept for what was not measured: Newton's steps
SLICE_PASSES = 3.0  # over the slice alone, after that: more is learnt by heart, not from
MAX_TUNED = 1 << 16  # characters to fit on: a weight for each expert does not need more
MAX_LOGITS = 1 << 26  # of all experts on them: 256 MiB of float32
TRIED = 2048  # characters predicted to see how long it takes
SAVED_A_SECOND = 2e8  # bytes; a guess, for the end of a wall-clock budget


@dataclass
class _Phases:
    """The batches of an expert: without the slice, then with it.

    Args:
        early: From the training part without the slice.
        whole: From all of it.
        slice: From the slice alone; None where it is too short for a window.
        late_from: The first step that reads the slice; None: not yet.
    """

    early: Batches
    whole: Batches
    slice: Batches | None
    late_from: int | None = None

    def get(
        self, step: int, first: int = 0, count: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return inputs and targets of a batch, as `Batches` does."""
        batches = self.early
        if self.late_from is not None and step >= self.late_from:
            batches = self.whole
            if self.slice and step % self._turn(self.late_from, self.slice) == 0:
                batches = self.slice
        return batches.get(step, first, count)

    @staticmethod
    def _turn(late_from: int, part: Batches) -> int:
        """Return n: every n-th of the late steps reads the slice, the second at most."""
        steps = late_from * (1 - LATE) / LATE  # to come, if the rest is as fast
        chars = steps * part.batch_size * part.block_size
        return max(2, round(chars / (SLICE_PASSES * len(part.split))))


class _ExpertTrainer(Trainer):
    """The run of one expert, inside the mixture's folder; it can wait while others train."""

    def with_late(self, whole: Split, part: Split) -> "_ExpertTrainer":
        """Say what it reads once the weights are fitted: the whole training part, and its slice."""
        model, train, seed = self.config.model, self.config.train, self.config.run.seed
        late = [
            Batches(split, model.block_size, train.batch_size, seed)
            for split in (whole, part)
            if len(split) > model.block_size
        ]
        self.phases = _Phases(self.batches, late[0], late[1] if late[1:] else None)
        self.batches = self.phases  # type: ignore[assignment]
        self.going = self.records()
        return self

    def give(self, seconds: float) -> None:
        """Let it train for so long by the clock in all, what it had already included."""
        train = self.config.train.model_copy(update={"minutes": seconds / 60})
        self.config = self.config.model_copy(update={"train": train})

    def until(self, share: float) -> Iterator[Record]:
        """Go on until this share is done, and save: the wait that follows may be the end."""
        self.began = time.perf_counter() - self.state.seconds  # waiting is not training
        # One without a step to do still has its first weights to save.
        while self._spent() < share or (self.state.step == 0 and self.saved_step < 0):
            record = next(self.going, None)
            if record is None:
                break
            yield record
        if self.saved_step != self.state.step:
            yield from self._save()

    def _save(self, ending: bool = False) -> Iterator[Record]:
        late = self.phases.late_from
        self.state.late_from = -1 if late is None else late
        yield from super()._save(ending)


class Mixer(Trainer):
    """A run of a mixture: its experts' runs, and one step that joins them."""

    model: MixtureModel
    fitted: Fitted

    @property
    def total_steps(self) -> int:
        """The updates of all experts that are trained here, and the joining."""
        return sum(config.train.max_steps for config in self.config.training_runs().values()) + 1

    def _optimizers(self) -> dict[str, Optimizer]:
        return {}

    def _prepare(self) -> None:
        assert isinstance(self.config.model, MixtureConfig)
        self.mixture = self.config.model
        self.whole = self.train
        cut = len(self.whole) - self.mixture.held_back(len(self.whole))
        self.first, self.slice = self.whole.part(0, cut), self.whole.part(cut, len(self.whole))
        self.from_runs: dict[str, Checkpoint] = {}  # of experts that come from runs
        self.remarks: list[str] = []  # on going on with the runs of experts

    def _spent(self) -> float:
        return float(self.state.step)

    def _evaluation_due(self, last: bool) -> bool:
        return self.state.step > 0 and super()._evaluation_due(last)

    def _save_due(self, ending: bool) -> bool:
        # What is not joined yet is no model; its experts save themselves.
        return self.state.step > 0 and super()._save_due(ending)

    def records(self) -> Generator[Record, None, None]:
        """Train what is left to train, then join; records of experts carry their name.

        Raises:
            NonFiniteError: An expert's loss or weights became NaN or infinite.
            CheckpointError: The run of an expert, or what was fitted, is missing or damaged.
            MachineError: A checkpoint could not be written; older ones are unharmed.
        """
        if self.state.step == 0:
            try:
                yield from self._experts()
            except Stopped:
                self.stopped = True
            if self.stopped:
                return
        yield from super().records()

    def _experts(self) -> Iterator[Record]:
        """Train the experts and fit their weights."""
        begun = (self.run.path / BELONGS).exists()
        checkpoints = saved_experts(self.run, self.config, self.tokenizer, self.remarks)
        fitted = read_fitted_of(self.run, self.config, checkpoints)
        for name, spec in self.mixture.experts.items():
            if spec.run:
                self.from_runs[name] = expert_from_run(
                    self.run, self.config, name, fitted, self.tokenizer, self._expert(name)
                )
        # No checkpoint of the mixture keeps yet what its experts and their weights rest on.
        together = belongs(self.config, self.tokenizer.to_json())
        write_file(self.run.path / BELONGS, together)
        trainers = {}
        for name, config in self.config.training_runs().items():
            trainers[name] = self._trainer(name, config, checkpoints[name])
            if begun and not checkpoints[name]:
                self.remarks.append(f"expert {name}: no checkpoint yet: starting at step 0")
        for text in dict.fromkeys(self.remarks):
            yield {"kind": "note", "text": text}
        # What was spent before a stop belongs to the minutes, and to the seconds of records.
        self.began -= sum(trainer.state.seconds for trainer in trainers.values())
        with contextlib.ExitStack() as closing:
            for trainer in trainers.values():  # none may write on after this has ended
                closing.callback(trainer.going.close)
            yield from self._trained_and_fitted(trainers, fitted)
        if not self.stopped:
            self._count(self.whole)

    def _trained_and_fitted(
        self, trainers: dict[str, _ExpertTrainer], fitted: Fitted | None
    ) -> Iterator[Record]:
        """Train the experts up to the slice, fit the weights on it, train them on."""
        if fitted is None:
            counted = self._count(self.first)
            if self.config.train.minutes is not None:
                # An expert predicts as fast before it is trained as after.
                predicted = self._seconds_a_char() * (len(self.slice) + self._to_score())
                reserve = counted + predicted + RESERVE * self._seconds_left()
                self._share_minutes(trainers.values(), reserve)
            yield from self._train(trainers, LATE)
            if self.stopped:
                return
            fitted = self._fit(trainers, counted)
            content = json.dumps(asdict(fitted), indent=1) + "\n"
            write_file(self.run.path / FITTED, content.encode())
        else:
            self.began -= fitted.seconds
        self._take(fitted)
        yield {"kind": "tune", **asdict(fitted)}
        self._share_minutes(trainers.values(), fitted.reserve)
        for name, trainer in trainers.items():
            trainer.phases.late_from = fitted.steps[name]
        yield from self._train(trainers, math.inf)

    def _train(self, trainers: dict[str, _ExpertTrainer], share: float) -> Iterator[Record]:
        """Train one expert after the other until this share is done."""
        for name, trainer in trainers.items():
            try:
                for record in trainer.until(share):
                    yield {**record, "expert": name}
            except NonFiniteError as error:
                raise NonFiniteError(f"model.experts.{name}: {error}") from None
            if trainer.stopped:
                self.stopped = True
                return

    def _expert(self, name: str) -> LanguageModel:
        return self.model.experts[name]

    def _trainer(
        self, name: str, config: Config, checkpoint: Checkpoint | None = None
    ) -> _ExpertTrainer:
        """Open the run of an expert, or begin it."""
        run = expert_run(self.run, name)
        written = dump_yaml(config.model_dump()).encode()
        if checkpoint:
            self.remarks += [f"not bit-exact: {change}" for change in drift(checkpoint)]
        nothing = self.first.part(0, 0)
        if self.config.train.minutes is not None:  # shared out, once it is known what is left
            minutes = self.config.train.minutes / len(self.config.training_runs())
            train = config.train.model_copy(update={"minutes": minutes})
            config = config.model_copy(update={"train": train})
        trainer = _ExpertTrainer(
            config,
            run,
            Corpus({"train": self.first, "val": nothing, "test": nothing}, {}),
            self.tokenizer,
            self._expert(name),
            checkpoint=checkpoint,
            should_stop=self.should_stop,
            should_save=self.should_save,
        )
        with machine_errors(run.path):
            make_folder(run.path / "checkpoints")
        write_file(run.tokenizer, self.tokenizer.to_json().encode())
        write_file(run.config, written)
        with contextlib.suppress(OSError):  # so that an expert can be scored alone, as any run
            run.tokens.symlink_to(Path("..", "..", self.run.tokens.name))
        run.set_aside_after(checkpoint.step if checkpoint else -1)
        return trainer.with_late(self.whole, self.slice)

    def _seconds_left(self) -> float:
        """Return what is left of the minutes, in seconds; nothing where steps are counted."""
        return (self.config.train.minutes or 0) * 60 - (time.perf_counter() - self.began)

    def _share_minutes(self, trainers: Collection[_ExpertTrainer], reserve: float) -> None:
        """Divide the time that is left, less a reserve, so that all have had the same in the end."""
        if self.config.train.minutes is None:
            return
        left = self._seconds_left() - reserve
        waiting = sorted(trainers, key=lambda trainer: trainer.state.seconds)
        while waiting:
            total = left + sum(trainer.state.seconds for trainer in waiting)
            most = waiting.pop()
            # One may have had more before the run was stopped and the minutes were lowered.
            share = max(most.state.seconds, total / (len(waiting) + 1))
            most.give(share)
            left -= share - most.state.seconds

    def _count(self, part: Split) -> float:
        """Fit the counted experts; return the seconds that it took."""
        started = time.perf_counter()
        for name, spec in self.mixture.experts.items():
            model = self._expert(name)
            if not spec.run and isinstance(model, NGramModel):
                assert isinstance(spec.model, NGramConfig)
                fit_ngram(model, spec.model, part, self.run, self.should_stop)
        return time.perf_counter() - started

    def _fit(self, trainers: dict[str, _ExpertTrainer], counted: float) -> Fitted:
        """Fit weights and temperature on the slice.

        Args:
            trainers: Of the experts that are trained.
            counted: Seconds that counting took; it will be done again.
        """
        started = time.perf_counter()
        names = list(self.mixture.experts)
        most = MAX_LOGITS // (self.model.vocab_size * len(names))
        logits, targets = self._predict(min(most, MAX_TUNED))
        predicted = time.perf_counter() - started
        combine = self.mixture.combine
        weights, temperature = fit_weights(logits, targets, combine, self.should_stop)

        def loss(logits: Float[Tensor, "N V"]) -> float:
            return next_token_loss(logits[None], targets[None]).item()

        # Scoring a character takes as long as predicting one took here.
        to_save = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        return Fitted(
            weights=dict(zip(names, weights.tolist(), strict=True)),
            temperature=temperature.item(),
            loss_nats=loss(join(logits, weights, temperature, combine)),
            alone_nats=dict(zip(names, map(loss, logits), strict=True)),
            chars=len(targets),
            steps={name: one.step for name, one in self.from_runs.items()}
            | {name: one.state.step for name, one in trainers.items()},
            seconds=counted + time.perf_counter() - started,
            reserve=counted
            + predicted / len(targets) * self._to_score()
            + to_save / SAVED_A_SECOND,
            weights_sha256={name: sha256_of_weights(c) for name, c in self.from_runs.items()},
        )

    def _to_score(self) -> int:
        """Return how many characters of validation will be scored."""
        return min(len(self.val), self.config.eval.max_chars or len(self.val))

    def _seconds_a_char(self) -> float:
        """Return how long all experts take to predict a character."""
        started = time.perf_counter()
        _, targets = self._predict(TRIED)
        return (time.perf_counter() - started) / len(targets)

    @torch.no_grad()
    def _predict(self, most: int) -> tuple[Float[Tensor, "E N V"], Int[Tensor, "N"]]:
        """Return the logits of every expert on the slice, in windows as it will be scored.

        Args:
            most: Characters to predict at most, in windows spread evenly over the slice.
        """
        self.model.eval()
        experts, vocab_size = self.model.experts.values(), self.model.vocab_size
        length = min(self.mixture.block_size, len(self.slice) - 1)
        rows = max(1, chars_a_pass(self.model) // length)
        passes = list(spread_windows(len(self.slice) - 1, length, most, rows))
        count = sum(len(one.starts) for one in passes) * length
        logits = torch.empty(len(experts), count, vocab_size)
        targets = torch.empty(count, dtype=torch.int64)
        done = 0
        for one in passes:
            ids = [self.slice.read(int(start), length + 1) for start in one.starts]
            batch = torch.from_numpy(np.stack(ids).astype(np.int64)).to(self.device)
            here = slice(done, done + len(ids) * length)
            done = here.stop
            targets[here] = batch[:, 1:].flatten()
            for own, expert in zip(logits, experts, strict=True):
                check_stop(self.should_stop)
                own[here] = expert.read(batch[:, :-1]).flatten(0, 1)
        return logits, targets

    def _take(self, fitted: Fitted) -> None:
        """Set what was found."""
        self.fitted = fitted
        weights = [fitted.weights[name] for name in self.mixture.experts]
        self.model.weights.copy_(torch.tensor(weights))
        self.model.temperature.fill_(fitted.temperature)

    def _step(self) -> Record:
        """Join: the experts are trained and the weights are set; this makes them one model."""
        self.state.step = 1
        self.state.seconds = time.perf_counter() - self.began
        return {
            "kind": "train",
            "step": 1,
            "loss_nats": self.fitted.loss_nats,
            "weights": self.fitted.weights,
            "temperature": self.fitted.temperature,
            "seconds": self.state.seconds,
        }
