"""Training a mixture: its experts, then their weights, then the text that was held back for them.

    1  experts are trained on the training part without its last slice (`model.tune_fraction`)
    2  the weights are fitted on that slice, which no expert has seen, never on validation
    3  the slice is given back: counts are taken anew, trained experts spend their last updates
       on the whole part, every second one on the slice alone
    4  the joined model is scored and saved, as one step

A text's end is the best guide to how it goes on (the same play, the same names), so step 3 matters:
see docs/experiments.md.
"""

import contextlib
import json
import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from charlm.config import ExpertConfig, MixtureConfig, NGramConfig, dump_yaml
from charlm.errors import CheckpointError
from charlm.evaluation import Interrupted
from charlm.models import LanguageModel, MixtureModel, NGramModel, next_token_loss
from charlm.models.device import precision
from charlm.models.mixture import fit_weights, logits_within
from charlm.models.saved import WEIGHTS, load_weights
from charlm.storage import RunFolder, machine_errors, verify_folder, write_file
from charlm.text import Batches, Corpus
from charlm.text.tokens import Split
from charlm.training.fit import fit_ngram
from charlm.training.loop import Record, Trainer
from charlm.training.setup import held_back, newest_sound

LATE = 0.85  # share of an expert's training before it is given the slice
RESERVE = 0.1  # share of a wall-clock budget kept at first for fitting weights and for scoring
WINDOWS = 32  # predicted at a time while the weights are fitted
MAX_LOGITS = 1 << 26  # of all experts on the slice: 256 MiB of float32


@dataclass
class _Phases:
    """The batches of an expert: without the slice, then with it.

    Args:
        early: From the training part without the slice.
        late: From the whole part and from the slice, in turn.
        late_from: The first step that may read the slice; None: not yet.
    """

    early: Batches
    late: list[Batches]
    late_from: int | None = None

    def get(
        self, step: int, first: int = 0, count: int | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return inputs and targets of a batch, as `Batches` does."""
        late = self.late_from is not None and step >= self.late_from
        batches = self.late[step % len(self.late)] if late else self.early
        return batches.get(step, first, count)


class _ExpertTrainer(Trainer):
    """The run of one expert, inside the mixture's folder; it can wait while others train.

    Attributes:
        budget: Seconds it has; None when steps are counted.
    """

    budget: float | None = None

    def allow(self, whole: Split, held_back: Split) -> None:
        """Say what it may read once the weights are fitted."""
        config = self.config
        parts = [part for part in (whole, held_back) if len(part) > config.model.block_size]
        late = [
            Batches(part, config.model.block_size, config.train.batch_size, config.run.seed)
            for part in parts
        ]
        self.phases = _Phases(self.batches, late)
        self.batches = self.phases  # type: ignore[assignment]
        self.paused = time.perf_counter()

    def spent(self) -> float:
        """Return the share of its steps, or of its seconds, that is done."""
        if self.budget is None:
            return super()._spent()
        return (time.perf_counter() - self.began) / max(self.budget, 1e-3)

    _spent = spent

    def until(self, share: float, records: Iterator[Record]) -> Iterator[Record]:
        """Go on until this share is done, and save: the wait that follows may be the end."""
        self.began += time.perf_counter() - self.paused
        while self.spent() < share:
            record = next(records, None)
            if record is None:
                break
            yield record
        if self.saved_step != self.state.step:
            yield self._save()
        self.paused = time.perf_counter()


class Mixer(Trainer):
    """A run of a mixture: its experts' runs, and one step that joins them."""

    model: MixtureModel

    @property
    def total_steps(self) -> int:
        """The updates of all experts that are trained here, and the joining."""
        experts = self.mixture.experts.items()
        trained = [spec for name, spec in experts if self._is_trained(name)]
        return sum(spec.train.max_steps for spec in trained) + 1

    def _optimizers(self) -> dict[str, Optimizer]:
        return {}

    def _is_trained(self, name: str) -> bool:
        counted = isinstance(self.expert(name), NGramModel)
        return not counted and not self.mixture.experts[name].run

    def _prepare(self) -> None:
        assert isinstance(self.config.model, MixtureConfig)
        self.mixture = self.config.model
        self.whole = self.train
        cut = len(self.whole) - held_back(len(self.whole), self.mixture.tune_fraction)
        self.first = self.whole.part(0, cut)
        self.slice = self.whole.part(cut, len(self.whole))
        self.plan_path = self.run.path / "mixture.json"

    def _spent(self) -> float:
        return float(self.state.step)

    def _evaluation_due(self, last: bool) -> bool:
        return self.state.step > 0 and super()._evaluation_due(last)

    def records(self) -> Iterator[Record]:
        """Train what is left to train, then join; records of experts carry their name.

        Raises:
            NonFiniteError: An expert's loss or weights became NaN or infinite.
            MachineError: A checkpoint could not be written; older ones are unharmed.
        """
        if self.state.step == 0:
            try:
                yield from self._experts()
            except Interrupted:
                self.stopped = True
            if self.stopped:
                return
        yield from super().records()

    def _experts(self) -> Iterator[Record]:
        """Train the experts and fit their weights; records of an expert carry its name."""
        plan = self._read_plan()
        trainers: dict[str, _ExpertTrainer] = {}
        for name, spec in self.mixture.experts.items():
            if spec.run:
                load_expert(self.expert(name), RunFolder(Path(spec.run)))
            elif self._is_trained(name):
                trainers[name] = self._expert_trainer(name, spec)
        going = {name: trainer.records() for name, trainer in trainers.items()}
        self._share_time(trainers.values(), RESERVE * self._seconds_left())
        if plan is None:
            for name, trainer in trainers.items():
                yield from self._named(name, trainer, trainer.until(LATE, going[name]))
                if self.stopped:
                    return
            self._count(self.first)
            plan = self._fit_weights()
            plan["late_from"] = {name: trainer.state.step for name, trainer in trainers.items()}
            write_file(self.plan_path, (json.dumps(plan, indent=1) + "\n").encode())
            # Scoring a character takes as long as it took here; so much is kept for the end.
            to_score = min(len(self.val), self.config.eval.max_chars or len(self.val))
            self._share_time(
                trainers.values(), 1.2 * plan["seconds"] / plan["chars"] * to_score + 1.0
            )
        self._set_weights(plan)
        yield {"kind": "tune", **plan}
        for name, trainer in trainers.items():
            trainer.phases.late_from = plan["late_from"][name]
            yield from self._named(name, trainer, trainer.until(math.inf, going[name]))
            if self.stopped:
                return
        self._count(self.whole)

    def _named(
        self, name: str, trainer: _ExpertTrainer, records: Iterator[Record]
    ) -> Iterator[Record]:
        for record in records:
            yield {**record, "expert": name}
        self.stopped = self.stopped or trainer.stopped

    def expert(self, name: str) -> LanguageModel:
        """Return an expert's model."""
        model = self.model.experts[name]
        assert isinstance(model, LanguageModel)
        return model

    def _expert_trainer(self, name: str, spec: ExpertConfig) -> _ExpertTrainer:
        """Open the run of an expert, or begin it."""
        config = self.config.model_copy(update={"model": spec.model, "train": spec.train})
        run = RunFolder(self.run.path / "experts" / name)
        with machine_errors(run.path):
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_file(run.tokenizer, self.tokenizer.to_json().encode())
        write_file(run.config, dump_yaml(config.model_dump()).encode())
        with contextlib.suppress(OSError):  # so that an expert can be scored alone, as any run
            run.tokens.symlink_to(Path("..", "..", self.run.tokens.name))
        nothing = self.whole.part(0, 0)
        corpus = Corpus({"train": self.first, "val": nothing, "test": nothing}, {})
        trainer = _ExpertTrainer(
            config,
            run,
            corpus,
            self.tokenizer,
            self.expert(name),
            checkpoint=newest_sound(run, []),
            should_stop=self.should_stop,
        )
        trainer.allow(self.whole, self.slice)
        return trainer

    def _seconds_left(self) -> float:
        if self.config.train.minutes is None:
            return math.inf
        return self.config.train.minutes * 60 - (time.perf_counter() - self.began)

    def _share_time(self, trainers: Collection[_ExpertTrainer], reserve: float) -> None:
        """Give every trainer an equal share of the seconds that are left, less a reserve."""
        if self.config.train.minutes is not None and trainers:
            share = (self._seconds_left() - reserve) / len(trainers)
            for trainer in trainers:
                trainer.budget = trainer.state.seconds + share

    def _count(self, part: Split) -> None:
        """Fit the counted experts."""
        for name, spec in self.mixture.experts.items():
            model = self.expert(name)
            if not spec.run and isinstance(model, NGramModel):
                assert isinstance(spec.model, NGramConfig)
                fit_ngram(model, spec.model, part, self.run, self._poll)

    @torch.no_grad()
    def _fit_weights(self) -> dict[str, Any]:
        """Fit weights and temperature on the slice; return them with what they were fitted on."""
        started = time.perf_counter()
        length = self.mixture.block_size
        vocab = self.model.vocab_size
        limit = max(length, MAX_LOGITS // (vocab * len(self.mixture.experts)))
        logits: list[list[Tensor]] = [[] for _ in self.mixture.experts]
        targets = []
        self.model.eval()
        for rows in _windows(self.slice, min(length, len(self.slice) - 1), limit):
            self._poll()
            batch = torch.from_numpy(rows).to(self.device)
            targets.append(batch[:, 1:].flatten().cpu())
            for own, name in zip(logits, self.mixture.experts, strict=True):
                with precision(self.device, self.dtype):
                    found = logits_within(self.expert(name), batch[:, :-1])
                own.append(found.float().flatten(0, 1).cpu())
        stacked, y = torch.stack([torch.cat(own) for own in logits]), torch.cat(targets)
        weights, temperature = fit_weights(stacked, y, self.mixture.combine)
        self.model.weights.copy_(weights)
        self.model.temperature.copy_(temperature)
        joined = self.model.join(own[None] for own in stacked)
        alone = [next_token_loss(own[None], y[None]).item() for own in stacked]
        return {
            "chars": len(y),
            "loss_nats": next_token_loss(joined, y[None]).item(),
            "weights": dict(zip(self.mixture.experts, weights.tolist(), strict=True)),
            "temperature": temperature.item(),
            "alone_nats": dict(zip(self.mixture.experts, alone, strict=True)),
            "seconds": time.perf_counter() - started,
        }

    def _set_weights(self, plan: Mapping[str, Any]) -> None:
        weights = [plan["weights"][name] for name in self.mixture.experts]
        self.model.weights.copy_(torch.tensor(weights))
        self.model.temperature.fill_(plan["temperature"])

    def _read_plan(self) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] = json.loads(self.plan_path.read_bytes())
            [plan["weights"][name] for name in self.mixture.experts]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.plan_path}: cannot be read ({error!r}); delete it to fit the weights again"
            ) from None
        return plan

    def _poll(self) -> None:
        if self.should_stop():
            raise Interrupted

    def _step(self) -> Record:
        """Join: the experts are trained and the weights are set; this makes them one model."""
        self.state.step = 1
        self.state.seconds = time.perf_counter() - self.began
        plan = self._read_plan()
        assert plan is not None
        return {
            "kind": "train",
            "step": 1,
            "loss_nats": plan["loss_nats"],
            "weights": plan["weights"],
            "temperature": plan["temperature"],
            "seconds": self.state.seconds,
        }


def _windows(ids: Split, length: int, limit: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield consecutive windows with the character after them, some at a time, (n, T + 1).

    Of a text longer than `limit`, windows spread evenly over it.
    """
    full = (len(ids) - 1) // length
    chosen = min(full, max(1, limit // length))
    starts = np.arange(chosen) * full // chosen * length
    for first in range(0, chosen, WINDOWS):
        rows = [ids.read(int(start), length + 1) for start in starts[first : first + WINDOWS]]
        yield np.stack(rows).astype(np.int64)


def load_expert(model: LanguageModel, run: RunFolder) -> None:
    """Read the best checkpoint of a run into a model of the same kind.

    Raises:
        CheckpointError: It is missing, damaged, or another kind of model.
    """
    checkpoint = run.choose("best")
    verify_folder(checkpoint.path)
    load_weights(model, checkpoint.path / WEIGHTS)
