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
from charlm.evaluation.protocols import chars_a_pass, rows_a_pass, windows
from charlm.evaluation.records import rows_to_score, stretches
from charlm.models.base import stopping_between_layers
from charlm.models.bit_mixing import Mixer
from charlm.models.bit_reading import score_and_learn
from charlm.models.bitwise import BitwiseMixture
from charlm.models.growing import PIECE, GrowingNGram
from charlm.models.mean_weights import MeanWeights
from charlm.models.onednn import by_onednn
from charlm.models.view import classes_of
from charlm.runs.mixture import JOINER, RESTORE, Fitted
from charlm.runs.weights import load_tensors
from charlm.storage import write_file
from charlm.text.borders import Borders
from charlm.text.rows import Rows
from charlm.text.tokens import Split
from charlm.training.fitting import Joined, Outcome
from charlm.training.joining import JoiningLearner

MIXED = 8192  # characters read to measure the speed
OFFERED = 1 << 22  # probabilities offered at a time: 16 MiB


class BitwiseLearner(JoiningLearner):
    """Trains a bitwise mixture: its mixer is fitted instead of weights."""

    model: BitwiseMixture

    @torch.no_grad()
    def fit(self) -> Outcome:
        """Let the mixer read the training part; save what it learned, in case the run is stopped.

        Raises Stopped if `should_stop`, which is called often, says so; the model is as it was then.
        """
        joiner, cut = self.model.joiner, len(self.first)
        text = self.whole.read(0, len(self.whole)).astype(np.int64)
        if self.whole.boundary is not None:
            cut -= 1  # both parts have the boundary between them
        mixer = joiner.begin(text, classes_of(self.job.tokenizer))
        self.model.eval()
        offers = Offers(self.model, self.mixture.experts, self.whole.boundary)
        self._read_first(mixer, offers, text[:cut])
        offers.reach_slice(self.first)
        started = time.perf_counter()
        loss_nats, alone_nats, chars = self._read_slice(mixer, offers, text[cut:])
        joiner.keep(mixer, text)
        seconds = (time.perf_counter() - started) / len(self.slice)
        write_file(self.run.path / JOINER, save(joiner.state_dict()))
        experts = len(offers.experts)
        equal = Joined(torch.full((experts,), 1 / experts), torch.ones(()))
        return Outcome(equal, loss_nats, alone_nats, chars, seconds)

    def _read_first(self, mixer: Mixer, offers: "Offers", text: Int[ndarray, "n"]) -> None:
        """Let a mixer read the text before the slice, with the predictions of growing counts."""
        size = max(1, min(PIECE, OFFERED // (len(offers.experts) * self.model.vocab_size)))
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        # The counts grow while the mixer learns from the piece before: neither needs Python's lock.
        with ThreadPoolExecutor(1) as other:
            waiting = other.submit(offers.of_counts, pieces[0])
            for ids, following in zip_longest(pieces, pieces[1:]):
                check_stop(self.job.should_stop)
                offered = waiting.result()
                if following is not None:
                    waiting = other.submit(offers.of_counts, following)
                self._learn(mixer, ids, offered)

    def _read_slice(
        self, mixer: Mixer, offers: "Offers", text: Int[ndarray, "n"]
    ) -> tuple[float, list[float], int]:
        """Let a mixer read the slice, with the predictions of all experts; give it its mean weights.

        Returns its mean loss and that of each expert, in nats, and over how many characters.
        """
        nats, alone, chars = 0.0, np.zeros(len(offers.experts)), 0
        mean = MeanWeights(mixer, len(text))
        for ids, offered in self._with_offers(offers, text):
            for part in (slice(at, at + mean.every) for at in range(0, len(ids), mean.every)):
                p = self._learn(mixer, ids[part], offered[part])
                nats -= float(np.log(p if part.start else p[1:]).sum())
                mean.add()
            alone -= offered[np.arange(len(ids) - 1), :, ids[1:]].sum(axis=0, dtype=np.float64)
            chars += len(ids) - 1
        mean.use()
        chars = max(1, chars)
        return nats / chars, (alone / chars).tolist(), chars

    def _with_offers(
        self, offers: "Offers", text: Int[ndarray, "n"]
    ) -> Iterator[tuple[Int[ndarray, "m"], Float[ndarray, "m X V"]]]:
        """Yield the slice, some characters at a time, and what all experts predict after each."""
        if self.slice.boundary is None:
            for some in _windows(text, self.model.block_size, chars_a_pass(self.model, True)):
                yield some.ravel(), offers.of_all(some, self.job.should_stop)
            return
        cut, most = windows(self.model.block_size), rows_a_pass(self.model, 1, True)
        records = most * len(Borders(self.slice)) // len(self.slice)
        for stretch in stretches(self.slice, records=max(1, records)):
            rows = rows_to_score(stretch, cut, self.slice.boundary, most)
            yield stretch.ids[:-1], offers.of_rows(stretch.ids[:-1], rows, self.job.should_stop)
        last = stretch.ids[-1:]
        yield last, offers.of_counts(last)

    def _learn(
        self, mixer: Mixer, ids: Int[ndarray, "n"], offers: Float[ndarray, "n X V"]
    ) -> Float[ndarray, "n"]:
        """Let a mixer read on; return the probability of each character before it is learned from."""
        p = np.empty(len(ids))
        score_and_learn(mixer, ids, offers, p)
        self.job.progress("mixing", int(mixer.passages.clock[0]), len(self.whole))
        return p

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
        offers = Offers(self.model, self.mixture.experts, self.whole.boundary)
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

    def __init__(
        self, model: BitwiseMixture, specs: Mapping[str, ExpertConfig], boundary: int | None
    ) -> None:
        self.experts = [by_onednn(expert) for expert in model.experts.values()]
        self.vocab_size, self.device = model.vocab_size, model.device
        self.counted: dict[int, NGramConfig] = {
            place: one.model
            for place, one in enumerate(specs.values())
            if isinstance(one.model, NGramConfig) and not one.run
        }
        self.growing = {
            place: GrowingNGram(config, self.vocab_size, boundary=boundary)
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
                    parts = torch.split(x, rows_a_pass(expert, x.shape[1]))
                    log_p = [expert.read(part).float().log_softmax(dim=-1) for part in parts]
                found[:, place] = torch.cat(log_p).flatten(0, 1).cpu().numpy()
        return found

    def of_rows(
        self, ids: Int[ndarray, "n"], rows: Iterator[Rows], should_stop: Callable[[], bool]
    ) -> Float[ndarray, "n X V"]:
        """Return what all experts predict after each character of some records, which are `rows`."""
        found = self.of_counts(ids)
        for some in rows:
            check_stop(should_stop)
            x, there = torch.from_numpy(some.x).to(self.device), some.y >= 0
            places = (some.at[:, None] + np.arange(some.x.shape[1]))[there]
            for place, expert in enumerate(self.experts):
                if place not in self.growing:
                    log_p = expert.read(x).float().log_softmax(dim=-1).cpu().numpy()
                    found[places, place] = log_p[there]
        return found

    def reach_slice(self, first: Split) -> None:
        """Start the experts that count only the end of the text before the slice."""
        for place, config in self.counted.items():
            if place not in self.growing:
                self.growing[place] = GrowingNGram(config, self.vocab_size, first)


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
