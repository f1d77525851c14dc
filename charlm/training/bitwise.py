"""Training a bitwise mixture: its mixer reads the training part once, character by character.

Each character is predicted from the predictions of the experts, then learned from. An expert's
prediction must not depend on text that it has seen: n-grams count while they read, so they predict
from the beginning on; the others were trained on all but the slice, so they predict only there.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from safetensors.torch import save
from torch import Tensor

from charlm.config import ExpertConfig, NGramConfig
from charlm.errors import CheckpointError, check_stop
from charlm.evaluation.protocols import chars_a_pass
from charlm.models.base import stopping_between_layers
from charlm.models.bit_reading import score_and_learn
from charlm.models.bit_tables import Array
from charlm.models.bitwise import BitwiseMixture
from charlm.models.growing import PIECE, GrowingNGram
from charlm.models.view import classes_of
from charlm.runs.mixture import JOINER, RESTORE, Fitted
from charlm.runs.weights import load_tensors
from charlm.storage import write_file
from charlm.text.tokens import Split
from charlm.training.fitting import Joined, Outcome
from charlm.training.joining import JoiningLearner
from charlm.training.learner import Progress

MIXED = 8192  # characters read to measure the speed
OFFERED = 1 << 22  # probabilities offered at a time: 16 MiB


class BitwiseLearner(JoiningLearner):
    """Trains a bitwise mixture: its mixer is fitted instead of weights."""

    model: BitwiseMixture

    def fit(self) -> Outcome:
        """Let the mixer read the training part; save what it learned, in case the run is stopped."""
        most, should_stop = chars_a_pass(self.model, True), self.job.should_stop
        parts, classes = (self.first, self.slice), classes_of(self.job.tokenizer)
        found = learn_bits(
            self.model,
            self.mixture.experts,
            *parts,
            classes,
            most,
            should_stop,
            self.job.progress,
        )
        write_file(self.run.path / JOINER, save(self.model.joiner.state_dict()))
        return found

    def take(self, fitted: Fitted) -> None:
        """Take what was fitted; after a stop, read what the mixer had learned from its file."""
        super().take(fitted)
        if not len(self.model.joiner.text):
            path = self.run.path / JOINER
            try:
                self.model.joiner.load_state_dict(load_tensors(path))
            except ValueError as error:
                raise CheckpointError(path, str(error), RESTORE) from None

    @torch.no_grad()
    def time_to_join(self, logits: Float[Tensor, "E N V"]) -> float:
        """Measure how many seconds it takes to mix the predictions of a character."""
        ids = self.first.read(0, min(MIXED, len(self.first))).astype(np.int64)
        classes, joiner = classes_of(self.job.tokenizer), self.model.joiner
        # What is compiled is compiled before the time is taken: for scoring, samples and learning.
        few = torch.from_numpy(ids[None, :2]).to(self.model.device)
        self.model.log_probability(few, few)
        self.model.step(few, self.model.start(1))
        joiner.give_mixer()
        offers = Offers(self.model, self.mixture.experts)
        mixer = joiner.begin(ids, classes, len(self.whole))
        # The first pass makes the machine give all of the table's memory, once.
        for _ in range(2):
            started = time.perf_counter()
            score_and_learn(mixer, ids, offers.of_counts(ids), np.empty(len(ids)))
        return (time.perf_counter() - started) / len(ids)

    def time_to_fit(self, most: float, predicting: float, joining: float) -> float:
        """Return the seconds to read the training part, and to predict the slice."""
        return joining * len(self.whole) + predicting * len(self.slice)


class Offers:
    """The experts' predictions of a text in order, each where the expert has not seen the text."""

    def __init__(self, model: BitwiseMixture, specs: Mapping[str, ExpertConfig]) -> None:
        self.experts = list(model.experts.values())
        self.vocab_size, self.device = model.vocab_size, model.device
        self.counted: dict[int, NGramConfig] = {
            place: one.model
            for place, one in enumerate(specs.values())
            if isinstance(one.model, NGramConfig) and not one.run
        }
        self.growing = {
            place: GrowingNGram(config, self.vocab_size)
            for place, config in self.counted.items()
            if config.last_chars is None
        }

    def of_counts(self, ids: Int[ndarray, "n"]) -> Float[ndarray, "n X V"]:
        """Return what growing counts predict after each character; NaN for all other experts."""
        found = np.full((len(ids), len(self.experts), self.vocab_size), np.nan, np.float32)
        for place, reader in self.growing.items():
            found[:, place] = reader.go_on(ids).numpy()
        return found

    def of_all(
        self, windows: Int[ndarray, "R T"], should_stop: Callable[[], bool]
    ) -> Float[ndarray, "n X V"]:
        """Return what all experts predict after each character of the slice, R windows in order."""
        found = self.of_counts(windows.ravel())
        x = torch.from_numpy(windows).to(self.device)
        for place, expert in enumerate(self.experts):
            if place not in self.growing:
                check_stop(should_stop)
                with stopping_between_layers(expert, should_stop):
                    log_p = expert.read(x).float().log_softmax(dim=-1)
                found[:, place] = log_p.flatten(0, 1).cpu().numpy()
        return found

    def reach_slice(self, first: Split) -> None:
        """Start the experts that count only the end of the text before the slice."""
        for place, config in self.counted.items():
            if place not in self.growing:
                self.growing[place] = GrowingNGram(config, self.vocab_size, first)


@torch.no_grad()
def learn_bits(
    model: BitwiseMixture,
    specs: Mapping[str, ExpertConfig],
    first: Split,
    part: Split,
    classes: Array,
    chars_a_pass: int,
    should_stop: Callable[[], bool],
    progress: Progress = lambda what, done, total: None,
) -> Outcome:
    """Let the mixer read `first`, then the slice `part`; the model keeps what it learned.

    Raises:
        Stopped: `should_stop`, which is called often, said so; the model's mixer is as it was.
    """
    text = np.concatenate([one.read(0, len(one)) for one in (first, part)]).astype(np.int64)
    mixer = model.joiner.begin(text, classes)
    offers = Offers(model.eval(), specs)
    size = max(1, min(PIECE, OFFERED // (len(specs) * model.vocab_size)))
    pieces = [text[at : min(at + size, len(first))] for at in range(0, len(first), size)]
    # The counts grow while the mixer learns from the piece before: neither needs Python's lock.
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(offers.of_counts, pieces[0])
        for ids, following in zip_longest(pieces, pieces[1:]):
            check_stop(should_stop)
            offered = waiting.result()
            if following is not None:
                waiting = other.submit(offers.of_counts, following)
            score_and_learn(mixer, ids, offered, np.empty(len(ids)))
            progress("mixing", int(mixer.passages.clock[0]), len(text))
    offers.reach_slice(first)
    started = time.perf_counter()
    nats, alone, chars = 0.0, np.zeros(len(specs)), 0
    for windows in _windows(text[len(first) :], model.block_size, chars_a_pass):
        ids, offered = windows.ravel(), offers.of_all(windows, should_stop)
        p = np.empty(len(ids))
        score_and_learn(mixer, ids, offered, p)
        progress("mixing", int(mixer.passages.clock[0]), len(text))
        nats -= float(np.log(p[1:]).sum())
        alone -= offered[np.arange(len(ids) - 1), :, ids[1:]].sum(axis=0, dtype=np.float64)
        chars += len(ids) - 1
    model.joiner.keep(mixer, text)
    equal = Joined(torch.full((len(specs),), 1 / len(specs)), torch.ones(()))
    seconds = (time.perf_counter() - started) / len(part)
    chars = max(1, chars)
    return Outcome(equal, nats / chars, (alone / chars).tolist(), chars, seconds)


def _windows(
    ids: Int[ndarray, "n"], length: int, chars_a_pass: int
) -> Iterator[Int[ndarray, "R T"]]:
    """Yield a text as windows, some at a time, the last alone if it is shorter."""
    whole = len(ids) // length * length
    rows = max(1, chars_a_pass // length)
    for first in range(0, whole, rows * length):
        yield ids[first : min(first + rows * length, whole)].reshape(-1, length)
    if whole < len(ids):
        yield ids[None, whole:]
