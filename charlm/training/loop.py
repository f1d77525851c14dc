"""The training loop. It yields records and prints nothing.

A step is a pure function of the weights, the optimizer's state, the seed and the step's number:
which windows it draws and what dropout drops are computed from (seed, step, micro-batch). So a
run that was stopped and resumed ends with the same bits as one that was not.
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from charlm.backprop.by_hand import ByHand
from charlm.config import Config
from charlm.errors import CheckpointError, DataError, MachineError, NonFiniteError, Stopped
from charlm.evaluation import score_windows
from charlm.models import LanguageModel, next_token_loss
from charlm.models.device import choose_device, choose_dtype, precision
from charlm.runs import RunFolder
from charlm.runs.belongs import belongs, belongs_to
from charlm.runs.folder import Checkpoint, MetricsLog
from charlm.runs.state import TrainingState, load_checkpoint, save_checkpoint
from charlm.runs.weights import load_from_run
from charlm.sampling import Context, encode_prompt, generate, settings_of
from charlm.storage.machine import is_gone
from charlm.text import Batches, Corpus, Tokenizer
from charlm.text.batches import DROPOUT_STREAM, random_words
from charlm.training.compiling import Forward, compile_model, worth_trying
from charlm.training.non_finite import worst_gradients
from charlm.training.optimizers import build_optimizers, set_learning_rate
from charlm.training.schedule import learning_rate

Record = dict[str, Any]

MOST_SKIPPED = 3  # steps in a row that are left out for a loss or gradient that is not finite
LOWEST_FACTOR = 0.5**3  # of the learning rate, after as many returns to an earlier checkpoint


class Trainer:
    """One run from where it is to its end.

    Args:
        config: What is asked for.
        run: Its folder, locked by the caller.
        corpus: The text.
        tokenizer: Its alphabet.
        model: With its first weights.
        checkpoint: Where to continue from; None starts at the beginning.
        should_stop: Polled at every step: finish it, save, and end.
        should_save: Polled at every step: finish it, save, and go on; its answer is used up.
        began: When the run began by `time.perf_counter`, for the seconds in records.

    Attributes:
        state: Where training is.
        stopped: Whether it ended because `should_stop` said so.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        corpus: Corpus,
        tokenizer: Tokenizer,
        model: LanguageModel,
        *,
        checkpoint: Checkpoint | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        should_save: Callable[[], bool] = lambda: False,
        began: float | None = None,
    ) -> None:
        self.config = config
        self.run = run
        self.tokenizer = tokenizer
        self.should_stop = should_stop
        self.should_save = should_save
        self.stopped = False
        self.device = choose_device(config.run.device)
        self.dtype = choose_dtype(config.run.dtype, self.device)
        self.model = model.to(self.device)
        self.optimizers = self._optimizers()
        self.state = TrainingState()
        self.saved_step = -1
        if checkpoint:
            belongs_to(checkpoint).check(config, tokenizer.to_json())
            self.state = load_checkpoint(checkpoint, self.model, self.optimizers)
            self.saved_step = self.state.step
        elif config.train.init_from:
            try:
                name = config.train.init_from
                load_from_run(self.model, name, "best", config.model, tokenizer)
            except CheckpointError as error:
                raise CheckpointError(
                    f"train.init_from: {error}; it is needed until the first save"
                ) from None
        self.began = (time.perf_counter() if began is None else began) - self.state.seconds
        self.compile_due = False
        self.compiled = checkpoint.facts.get("compiled") if checkpoint else None
        self.eval_seconds = 0.0  # what the last evaluation took
        self.train, self.val = corpus.splits["train"], corpus.splits["val"]
        self.prompt = encode_prompt(tokenizer, config.sample.prompt)
        self._prepare()

    @property
    def total_steps(self) -> int:
        """How many updates there are to be, where they are counted."""
        return self.config.train.max_steps

    def _optimizers(self) -> dict[str, Optimizer]:
        return build_optimizers(self.model, self.config.train, self.dtype)

    def _prepare(self) -> None:
        """Make what a step needs."""
        config = self.config
        self.batches = Batches(
            self.train, config.model.block_size, config.train.batch_size, config.run.seed
        )
        self.micro_batch_size = config.train.micro_batch_size or config.train.batch_size
        self.dropout = config.model.has_dropout
        self.by_hand = ByHand(self.model) if config.train.gradients == "by_hand" else None
        self.forward: Forward = self.model
        self.compile_due = True  # before the first step, if there is one

    def _compile(self) -> Iterator[Record]:
        """Compile the model if that is asked for, or pays; it can take a minute."""
        choice = self.config.run.compile
        if choice == "auto" and not worth_trying(self.config, self.model):
            choice = False
        if choice:
            yield {"kind": "compile"}
        self.forward, reason = compile_model(self.model, choice, self.micro_batch_size, self.dtype)
        if reason:
            yield {"kind": "note", "text": reason}
        before, self.compiled = self.compiled, self.forward is not self.model
        if before not in (None, self.compiled):
            was = "compiled, now they are not" if before else "not compiled, now they are"
            yield {"kind": "note", "text": f"not bit-exact: steps were {was}"}
        self.compile_due = False

    def records(self) -> Generator[Record, None, None]:
        """Train to the end, yielding a record of each step, evaluation, sample and save.

        Raises:
            NonFiniteError: The loss, a gradient or a weight became NaN or infinite; what is saved
                did not.
            MachineError: A checkpoint could not be written; older ones are unharmed.
            DataError: The text became shorter; the steps until then are saved.
        """
        # What the checkpoint does not vouch for is done, and recorded, again.
        self.metrics = MetricsLog(self.run.metrics, keep=self.state.metrics_bytes)
        try:
            ended = False
            while not (ended or self.stopped):
                try:
                    ended = yield from self._turn()
                except NonFiniteError as error:
                    yield self._logged(self._roll_back(error))
                except DataError:  # no step can follow, but those that were done are sound
                    if self.state.step > max(self.saved_step, 0):
                        yield from self._save()
                    raise
            if self.saved_step == self.state.step:  # so that the log knows of the last save too
                self.metrics.append({"kind": "end", "step": self.state.step})
        finally:
            self.metrics.close()

    def _turn(self) -> Generator[Record, None, bool]:
        """Evaluate, sample and save where that is due, then do a step; return whether it ended."""
        last = self._spent() >= 1
        new_best = interrupted = False
        if self._evaluation_due(last):
            try:
                yield self._logged(self._evaluate())
            except Stopped:
                interrupted = True  # the evaluation is done again on resume
            new_best = self.state.best_step == self.state.step
        if self._sample_due() and not interrupted:
            try:
                yield self._logged(self._sample())
            except MachineError as error:
                yield {"kind": "note", "text": f"a sample is not kept, going on: {error}"}
        patience = self.config.train.patience
        impatient = patience is not None and self.state.bad_evals >= patience
        ended = (last or impatient) and not interrupted
        self.stopped = interrupted or (not ended and self.should_stop())
        ending = ended or self.stopped
        if self._save_due(ending) or new_best:
            yield from self._save(ending)
        if ending:
            return ended
        if self.compile_due:
            yield from self._compile()
        try:
            yield self._logged(self._step())
        except Stopped:  # within a step that is a whole fit; it is done again on resume
            self.stopped = True
        return False

    def _spent(self) -> float:
        """Return the share of the run that is done: of its steps, or of its minutes."""
        train = self.config.train
        if train.minutes is None:
            return self.state.step / train.max_steps if train.max_steps else 1.0
        # The last evaluation belongs to the budget; the one before it tells how long it takes.
        budget = max(train.minutes * 60 - self.eval_seconds, 1e-3)
        return (time.perf_counter() - self.began) / budget

    def _evaluation_due(self, last: bool) -> bool:
        step = self.state.step
        regular = step % self.config.train.eval_every == 0
        return len(self.val) > 1 and self.state.evaluated_step != step and (regular or last)

    def _sample_due(self) -> bool:
        every, step = self.config.train.sample_every, self.state.step
        return bool(every and step and step % every == 0 and self.state.sampled_step != step)

    def _save_due(self, ending: bool) -> bool:
        every, step = self.config.train.save_every, self.state.step
        regular = bool(every and step and step % every == 0)
        # What another run began with may change or go: it is kept at once.
        first = self.config.train.init_from is not None and self.saved_step < 0
        asked = self.should_save()
        return self.saved_step != step and (regular or first or asked or ending)

    def _step(self) -> Record:
        """Do one optimizer update; the loss is the mean over its batch before the update."""
        started = time.perf_counter()
        state, train = self.state, self.config.train
        rate = self._learning_rate()
        set_learning_rate(self.optimizers.values(), rate)
        loss, norm = self._gradients()
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            for optimizer in self.optimizers.values():
                optimizer.step()
            state.skipped = 0
        else:
            reason = self._non_finite(loss, norm, rate)
            state.skipped += 1
        state.step += 1
        state.seconds = time.perf_counter() - self.began
        if not finite:
            return {"kind": "skip", "step": state.step, "reason": reason, "seconds": state.seconds}
        chars = train.batch_size * self.config.model.block_size
        return {
            "kind": "train",
            "step": state.step,
            "loss_nats": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "chars_per_second": chars / max(time.perf_counter() - started, 1e-9),
            "seconds": state.seconds,
        }

    def _gradients(self) -> tuple[float, float]:
        """Work out the gradient of the step's batch; return the mean loss and the gradient's norm.

        A pure function of the weights, the seed and the step's number.
        """
        train = self.config.train
        self.model.train()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        for first in range(0, train.batch_size, self.micro_batch_size):
            loss += self._accumulate(first)
        parameters = list(self.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if train.grad_clip and norm.isfinite():  # else all would become what one of them is
            torch.nn.utils.clip_grads_with_norm_(parameters, train.grad_clip, norm)
        return loss.item(), norm.item()

    def _non_finite(self, loss: float, norm: float, rate: float) -> str:
        """Say why a step is left out; the weights are as they were.

        The step is run again: what does not happen twice is the machine's fault, not the recipe's.

        Raises:
            NonFiniteError: It is not to be left out.
        """
        what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
        worst = worst_gradients(self.model)
        again = all(map(math.isfinite, self._gradients()))
        count = "not when run again" if again else "twice"
        reason = f"{what} at step {self.state.step + 1}, {count} (rate {rate:.3g}); {worst}"
        if self.config.train.non_finite == "skip" and self.state.skipped < MOST_SKIPPED:
            return reason
        mend = "suspect the machine; go on with --resume" if again else "lower train.learning_rate"
        raise NonFiniteError(f"{reason}; {self._what_is_saved()}; {mend}")

    def _roll_back(self, error: NonFiniteError) -> Record:
        """Return to the best checkpoint, to go on from there at half the learning rate.

        How often that was done is in the rate's factor, which checkpoints keep: a run that is killed
        on the way and resumed comes to the same point and does the same.

        Raises:
            NonFiniteError: That is not asked for, there is none, or it was done often enough.
        """
        checkpoint = self.run.choose("best") if self.saved_step >= 0 else None
        factor = self.state.rate_factor / 2
        if self.config.train.non_finite != "rollback" or not checkpoint or factor < LOWEST_FACTOR:
            raise error
        self.run.remove_after(checkpoint.step)
        self.state = load_checkpoint(checkpoint, self.model, self.optimizers)
        self.state.rate_factor = factor
        self.saved_step = self.state.step
        self.metrics.cut(self.state.metrics_bytes)
        return {
            "kind": "rollback",
            "step": self.state.step,
            "reason": str(error).split("; ", 1)[0],
            "rate_factor": factor,
            "seconds": time.perf_counter() - self.began,
        }

    def _learning_rate(self) -> float:
        """Return the learning rate of the next update."""
        spent = None if self.config.train.minutes is None else self._spent()
        rate = learning_rate(self.config.train, self.state.step, spent)
        return rate * self.state.rate_factor

    def _accumulate(self, first: int) -> Tensor:
        """Add the gradient of one micro-batch; return its share of the batch's mean loss."""
        train, micro = self.config.train, self.micro_batch_size
        x, y = (
            torch.from_numpy(ids).to(self.device, non_blocking=True)
            for ids in self.batches.get(self.state.step, first, micro)
        )
        if self.dropout:
            sample = self.state.step * train.batch_size + first
            seed = random_words(self.config.run.seed, DROPOUT_STREAM, sample, 1)[0]
            torch.manual_seed(int(seed >> np.uint64(1)))  # the seed of dropout alone
        share = micro / train.batch_size
        with precision(self.device, self.dtype):
            if self.by_hand:
                return self.by_hand(x, y, share)
            logits = self.forward(x)
        loss = next_token_loss(logits.float(), y) * share
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _refuse_broken_weights(self) -> None:
        """Notice an update that overflowed: a finite gradient times a huge rate need not be finite.

        Raises:
            NonFiniteError: A weight is NaN or infinite; nothing was saved of it.
        """
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                raise NonFiniteError(
                    f"{name} became NaN or infinite by step {self.state.step}; "
                    f"{self._what_is_saved()}; lower train.learning_rate"
                )

    def _what_is_saved(self) -> str:
        there = self.saved_step >= 0 and not is_gone(self.run.checkpoint_path(self.saved_step))
        return f"step {self.saved_step} is saved" if there else "nothing is saved"

    def _evaluate(self) -> Record:
        started = time.perf_counter()
        state = self.state
        self._refuse_broken_weights()
        score = score_windows(
            self.model,
            self.val,
            self.config.model.block_size,
            max_chars=self.config.eval.max_chars,
            should_stop=self.should_stop,
        )
        self.eval_seconds = time.perf_counter() - started
        if not math.isfinite(score.loss_nats):
            raise NonFiniteError(
                f"validation loss {score.loss_nats} at step {state.step}; {self._what_is_saved()}; "
                "lower train.learning_rate"
            )
        state.evaluated_step, state.val_loss_nats = state.step, score.loss_nats
        if state.best_loss_nats is None or score.loss_nats < state.best_loss_nats:
            state.best_loss_nats, state.best_step, state.bad_evals = score.loss_nats, state.step, 0
        else:
            state.bad_evals += 1
        state.seconds = time.perf_counter() - self.began
        return {
            "kind": "eval",
            "step": state.step,
            "split": "val",
            "protocol": "windows",
            "chars": score.chars,
            "loss_nats": score.loss_nats,
            "best": state.best_step == state.step,
            "seconds": state.seconds,
        }

    def _sample(self) -> Record:
        """Write a sample from the fixed prompt and seed, so that one step compares to another."""
        settings, state = self.config.sample, self.state
        count, seed = self.config.train.sample_chars, self.config.run.seed
        self.model.eval()
        drawn = generate(Context(self.model, self.prompt), count, settings_of(settings), [seed])
        text = self.tokenizer.decode([*self.prompt.tolist(), *(int(d.idx[0]) for d in drawn)])
        state.sampled_step = state.step
        self.run.write_sample(state.step, text)
        state.seconds = time.perf_counter() - self.began
        return {"kind": "sample", "step": state.step, "text": text, "seconds": state.seconds}

    def _save(self, ending: bool = False) -> Iterator[Record]:
        """Save; where that fails and training goes on, say so: the next save may succeed.

        Raises:
            MachineError: It failed, and nothing was saved before or nothing comes after.
        """
        state = self.state
        self._refuse_broken_weights()
        state.seconds = time.perf_counter() - self.began
        before = self.metrics.length
        record = self._logged({"kind": "save", "step": state.step, "seconds": state.seconds})
        try:
            state.metrics_bytes = self.metrics.flush()
            together = belongs(self.config, self.tokenizer.to_json())
            save_checkpoint(self.run, state, self.model, self.optimizers, together, self.compiled)
        except MachineError as error:
            # Where only the last flush failed the checkpoint is there, and vouches for the record.
            if not self.run.checkpoint_path(state.step).exists():
                with contextlib.suppress(MachineError):
                    self.metrics.cut(before)
            if ending or self.saved_step < 0:
                raise
            yield {"kind": "note", "text": f"not saved, going on; {self._what_is_saved()}: {error}"}
            return
        self.saved_step = state.step
        yield record

    def _logged(self, record: Record) -> Record:
        self.metrics.append(record)
        return record
