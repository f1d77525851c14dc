"""The training loop: it drives a learner and yields a record of each event. It prints nothing.

Several processes run the same loop in step; only the first of them writes (see `ranks`).
"""

import contextlib
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import replace

import torch

from charlm.errors import (
    CharlmError,
    CheckpointError,
    DataError,
    MachineError,
    NonFiniteError,
    Stopped,
)
from charlm.models.registry import kind_for
from charlm.runs.board import Board
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.load import load_from_run
from charlm.runs.metrics import MetricsLog, NoLog
from charlm.runs.provenance import provenance_of
from charlm.runs.records import (
    EndRecord,
    EvalRecord,
    NoteRecord,
    Record,
    RollbackRecord,
    SampleRecord,
    SaveRecord,
)
from charlm.runs.state import (
    TrainingState,
    form_of,
    load_carried,
    load_checkpoint,
)
from charlm.storage.atomic import remove_folder
from charlm.storage.machine import is_gone
from charlm.training.kept_memory import keep_memory
from charlm.training.learner import Job, Learner
from charlm.training.ranks import ONE, LostError, Met
from charlm.training.saving import write_checkpoint

LOWEST_FACTOR = 0.5**3  # of the learning rate: at most three rollbacks


class TrainingLoop:
    """One run, from its current step to its end.

    Args:
        job: The parts of the run.
        checkpoint: Where to continue; None starts at the beginning.
        learner: Does the steps; None: the learner of this kind of model.

    Attributes:
        saved_step: The last step with a checkpoint; -1 for none.
        stopped: Whether it ended because `should_stop` said so.
    """

    def __init__(
        self, job: Job, checkpoint: Checkpoint | None = None, learner: Learner | None = None
    ) -> None:
        self.job = job
        self.learner = learner = learner or kind_for(job.config.model).find("learner")(job)
        self.config, self.run, self.tokenizer = job.config, job.run, job.tokenizer
        self.clock, self.ranks = job.clock, job.ranks
        self.met: Met | None = None  # what several processes agreed on for this turn
        self.board: Board | None = None
        self.saved_step = -1
        self.saved_with = (-1, -1)  # the last steps evaluated and sampled that its checkpoint knows
        self.stopped = False
        self.prepared = False
        if checkpoint:
            provenance_of(checkpoint).check(self.config, self.tokenizer.to_json())
            learner.state = self._load(checkpoint)
            learner.form = form_of(checkpoint)
            self._mark_saved()
            self.clock.add(self.state.seconds)
        elif other := self.config.train.init_from:
            try:
                load_from_run(learner.model, other, "best", self.config.model, self.tokenizer)
            except CheckpointError as error:
                raise error.within("train.init_from") from None
        self.val = job.corpus.splits["val"]
        self.prompt = job.prompt  # an unknown character is refused before any work

    @property
    def state(self) -> TrainingState:
        """How far the run is."""
        return self.learner.state

    def records(self) -> Generator[Record, None, None]:
        """Train to the end, yielding a record of each step, evaluation, sample and save.

        Raises:
            NonFiniteError: The loss, a gradient or a weight became NaN or infinite.
            MachineError: A checkpoint could not be written, or another process is gone.
            DataError: The text became shorter; the steps before that are saved.
        """
        # Steps after the checkpoint are repeated, with their records.
        log = self.run.metrics_path, self.state.metrics_bytes
        self.metrics = MetricsLog(*log) if self.ranks.first else NoLog()
        self.ranks.share_weights(self.learner.model)
        try:
            self.board = self._board()
            ended = False
            while not (ended or self.stopped):
                try:
                    ended = yield from self._turn()
                except NonFiniteError as error:
                    yield self._logged(self._roll_back(error))
                except (DataError, LostError) as error:  # the steps so far are sound
                    unsaved = self.state.step > max(self.saved_step, 0)
                    if unsaved and self.ranks.first and not self.learner.split:
                        with contextlib.suppress(LostError):
                            yield from self.save()
                    raise self._with_what_is_saved(error) from None
            # A run that was stopped has not come to its end; the log then records the last save, too.
            if self.saved_step == self.state.step and not self.stopped:
                self._logged(EndRecord(step=self.state.step))
        finally:
            self.learner.close()
            self.metrics.close()
            if self.board:
                self.board.close()

    def _board(self) -> Board | None:
        """Return what writes the records for TensorBoard too, if that is asked for."""
        if not self.config.run.tensorboard or not self.ranks.first:
            return None
        at = self.state.step, self.state.seconds
        return Board(self.run.board_path, self.run.metrics_path, *at, self.job.remark)

    def _turn(self) -> Generator[Record, None, bool]:
        """Evaluate, sample and save if due, then do a step; return whether the run ended."""
        train, last, new_best = self.config.train, self._spent() >= 1, False
        if self._evaluation_due(last):
            try:
                yield self._logged(self._evaluate())
                yield from self._notes()
            except Stopped:
                self.stopped = True  # a resumed run evaluates again
            new_best = self.state.best_step == self.state.step
        if self._due(train.sample_every, self.state.sampled_step) and not self.stopped:
            try:
                yield self._logged(self._sample())
            except MachineError as error:
                yield NoteRecord(text=f"a sample could not be saved; training continues: {error}")
            except Stopped:
                self.stopped = True  # a resumed run draws it again
        impatient = train.patience is not None and self.state.bad_evals >= train.patience
        ended = (last or impatient) and not self.stopped
        self.stopped = self.stopped or (
            not ended and (self.met.stop if self.met else self.job.should_stop())
        )
        ending = ended or self.stopped
        if self._save_due(ending) or new_best:
            yield from self.save(ending)
        if ending:
            return ended
        try:
            if not self.prepared:
                yield from self.learner.prepare()
                self.prepared = True
                self._tell_share()  # a budget's schedule begins now
            yield self._logged(self.learner.step())
            yield from self._notes()
        except Stopped:  # a resumed run does it again
            self.stopped = True
            if self._save_due(ending=True):
                yield from self.save(ending=True)
        return False

    def _spent(self) -> float:
        """Return the share of the run that is done, after several processes have met."""
        if self.ranks.size == 1:
            return self.learner.spent()
        job, self.clock.told = self.job, None
        share, spent = self.clock.share(), self.learner.spent()
        self.met = self.ranks.meet(job.should_stop(), job.should_save(), spent, share)
        self.clock.told = self.met.share
        return self.met.spent

    def _tell_share(self) -> None:
        """Let several processes have the share of a budget that the first one has."""
        if self.ranks.size > 1 and self.clock.budget is not None:
            self.clock.told = None
            self.clock.told = self.ranks.told(self.clock.share() or 0.0)

    def _notes(self) -> Iterator[Record]:
        for text in [*self.job.take_remarks(), *self.learner.take_remarks()]:
            yield NoteRecord(text=text)

    def _due(self, every: int, done: int) -> bool:
        """Tell whether an action is due that is repeated every so many steps, last at step `done`."""
        step = self.state.step
        return bool(every and step and step % every == 0 and done != step)

    def _evaluation_due(self, last: bool) -> bool:
        regular = self.state.step % self.config.train.eval_every == 0
        due = self.state.evaluated_step != self.state.step and (regular or last)
        return self.learner.ready and len(self.val) > 1 and due

    def _save_due(self, ending: bool) -> bool:
        if not self.learner.ready:
            return False
        # Save initial weights from another run at once, because that run may change.
        first = self.config.train.init_from is not None and self.saved_step < 0
        asked = self.met.save if self.met else self.job.should_save()
        regular = self._due(self.config.train.save_every, self.saved_step)
        # A stop may have saved this step before it was evaluated or sampled.
        with_all = self.state.evaluated_step, self.state.sampled_step
        saved = self.saved_step == self.state.step and self.saved_with == with_all
        return regular or ((first or asked or ending) and not saved)

    def _evaluate(self) -> EvalRecord:
        started = time.perf_counter()
        state = self.state
        keep_memory(False)
        self.learner.complete()
        self._refuse_broken_weights()
        score = self.job.score(self.val)
        self.clock.reserved = time.perf_counter() - started
        if not math.isfinite(score.loss_nats):
            raise self._diverged(f"validation loss {score.loss_nats}")
        state.evaluated_step, state.val_loss_nats = state.step, score.loss_nats
        if state.best_loss_nats is None or score.loss_nats < state.best_loss_nats:
            state.best_loss_nats, state.best_step, state.bad_evals = score.loss_nats, state.step, 0
        else:
            state.bad_evals += 1
        state.seconds = self.clock.seconds()
        return EvalRecord(
            step=state.step,
            chars=score.chars,
            loss_nats=score.loss_nats,
            best=state.best_step == state.step,
            seconds=state.seconds,
        )

    def _sample(self) -> SampleRecord:
        """Write a sample, always with the same prompt and seed, to compare steps; or raise Stopped."""
        state = self.state
        keep_memory(False)
        self.learner.complete()
        text = self.ranks.first_does(self.job.sample)
        state.sampled_step = state.step
        if text is not None:
            self.run.write_sample(state.step, text)
        state.seconds = self.clock.seconds()
        return SampleRecord(step=state.step, text=text or "", seconds=state.seconds)

    def save(self, ending: bool = False) -> Iterator[Record]:
        """Save a checkpoint. A failed save is reported and retried.

        Raises MachineError if it failed and was the first save, or the last (`ending`).
        """
        state = self.state
        keep_memory(False)
        if not self.learner.saves_parts:
            self.learner.complete(optimizers=True)
        self._refuse_broken_weights()
        state.seconds = self.clock.seconds()
        before = self.metrics.length if self.ranks.first else 0
        record = self._logged(SaveRecord(step=state.step, seconds=state.seconds))
        try:
            write_checkpoint(self.job, self.learner, self.metrics)
        except MachineError as error:
            # If only the last flush failed, the checkpoint exists and refers to the record.
            if self.run.checkpoints.path(state.step).exists():
                self._mark_saved()
            else:
                with contextlib.suppress(MachineError):
                    self.metrics.cut(before)
            if ending or self.saved_step < 0 or isinstance(error, LostError):
                raise
            saved = self._what_is_saved()
            yield NoteRecord(text=f"a save failed; training continues, {saved}: {error}")
            return
        self._mark_saved()
        yield record

    def _mark_saved(self) -> None:
        """Take note that there is a checkpoint of the present state."""
        self.saved_step = self.state.step
        self.saved_with = self.state.evaluated_step, self.state.sampled_step

    def _refuse_broken_weights(self) -> None:
        """Raise NonFiniteError if weights overflowed in an update with a finite gradient."""
        sound = {n: p.isfinite().all() for n, p in self.learner.model.named_parameters()}
        # Each process may have some rows only, and all of them must find the same.
        ranks = self.ranks if self.learner.split else ONE
        every = ranks.gather([torch.stack([*sound.values()])]) if sound else []
        for name, *told in zip(sound, *(own.tolist() for (own,) in every), strict=True):
            if not all(told):
                raise self._diverged(f"{name} became NaN or infinite")

    def _diverged(self, what: str) -> NonFiniteError:
        return NonFiniteError(f"step {self.state.step}", what, "lower train.learning_rate")

    def _roll_back(self, error: NonFiniteError) -> RollbackRecord:
        """Return to the best checkpoint and halve the learning rate, or raise the error.

        Checkpoints keep the factor of the learning rate, so a run that is killed and resumed rolls
        back at the same steps and equally often.
        """
        factor = self.state.rate_factor / 2
        wanted = self.config.train.non_finite == "rollback" and factor >= LOWEST_FACTOR
        if not wanted or self.saved_step < 0:
            raise self._with_what_is_saved(error) from None
        checkpoint = self._cleared_to_best()
        back = self._load(checkpoint)
        # An expert's steps from `late_from` on read the slice, also when they are repeated.
        self.learner.state = replace(back, rate_factor=factor, late_from=self.state.late_from)
        self._mark_saved()
        self.metrics.cut(back.metrics_bytes)
        if self.board:
            self.board.go_on(back.step)
        return RollbackRecord(
            step=back.step,
            reason=f"{error.where}: {error.what}",
            rate_factor=factor,
            seconds=self.clock.seconds(),
        )

    def _load(self, checkpoint: Checkpoint) -> TrainingState:
        """Load a checkpoint into the learner; return the state of training."""
        self.learner.complete()
        state = load_checkpoint(checkpoint, self.learner.model, self.learner.optimizers)
        load_carried(checkpoint, self.learner.restore_carried)
        return state

    def _cleared_to_best(self) -> Checkpoint:
        """Return the best checkpoint, after those that follow it were removed."""
        checkpoints, best = self.run.checkpoints, None
        if self.ranks.first:
            best = checkpoints.choose("best", untrained=True)
            checkpoints.clear_after(best, remove_folder)
        step = self.ranks.told(float(best.step) if best else -1.0)
        return best or checkpoints.choose(str(round(step)))

    def _with_what_is_saved(self, error: CharlmError) -> CharlmError:
        """Return the error with the step that is saved; the loop of an expert has added its own."""
        if not self.learner.ready:
            return error
        return error.replace(what=f"{error.what}; {self._what_is_saved()}")

    def _what_is_saved(self) -> str:
        there = self.saved_step >= 0 and not is_gone(self.run.checkpoints.path(self.saved_step))
        return f"step {self.saved_step} is saved" if there else "nothing is saved"

    def _logged(self, record: Record) -> Record:
        as_json = record.as_json()
        self.metrics.append(as_json)
        if self.board:
            self.board.add(as_json)
        return record
