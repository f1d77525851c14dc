"""What a model predicts of a text, pass by pass: the work under every protocol.

No random numbers are drawn, and the model's mode is restored afterwards.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.errors import check_stop
from charlm.evaluation.protocols import Cut, Pass, rows_a_pass
from charlm.evaluation.records import rows_to_score, stretches
from charlm.evaluation.score import Floats
from charlm.models.adaptive import AdaptiveReader
from charlm.models.base import LanguageModel
from charlm.models.loss import Read, surprisal
from charlm.models.onednn import by_onednn
from charlm.text.tokens import Ids

LIKELIEST = 5


class Likeliest(NamedTuple):
    """The most likely ids of each prediction, in order, and their probabilities."""

    ids: Int[np.ndarray, "N k"]
    p: Float[np.ndarray, "N k"]


class Predicted(NamedTuple):
    """What one pass predicts, (R, T) each: surprisals, their ids, the ids before, the most likely."""

    nats: Floats
    targets: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    top: Likeliest | None = None


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """While in this context, a model is in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def predict(
    model: LanguageModel,
    ids: Ids,
    passes: Iterable[Pass],
    should_stop: Callable[[], bool],
    likeliest: bool = False,
    carried: bool = False,
) -> Iterator[Predicted]:
    """Yield the characters to score, pass by pass.

    `carried`: each pass begins with the state that the model has after the one before.
    """
    model = by_onednn(model)
    read: Read = _ReadingOn(model) if carried else model
    for cut in passes:
        check_stop(should_stop)
        rows = np.stack([ids.read(int(start), cut.length + 1) for start in cut.starts])
        batch = torch.from_numpy(rows.astype(np.int64)).to(model.device)
        idx, targets = batch[:, :-1], batch[:, 1:]
        with torch.no_grad():
            if likeliest:
                nats, top = _with_likeliest(read, idx, targets, cut.skip)
            else:
                nats, top = surprisal(read, idx, targets), None
        scored = nats[:, cut.skip :].cpu().double().numpy()  # float32 sums drift
        ids_read = rows.astype(np.int64)[:, cut.skip :]
        yield Predicted(scored, ids_read[:, 1:], ids_read[:, :-1], top)


class _ReadingOn:
    """Reads one text in pieces: like the model, from the state after the piece before."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.state = model, model.start(1)

    def __call__(self, idx: Int[Tensor, "1 T"]) -> Float[Tensor, "1 T V"]:
        logits, self.state = self.model.go_on(idx, self.state)
        return logits


def predict_records(
    model: LanguageModel,
    ids: Ids,
    cut: Cut,
    should_stop: Callable[[], bool],
    max_chars: int | None = None,
    likeliest: bool = False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Predicted]:
    """Yield what `predict` does, for some records at a time, in the order of the text: (1, N) each.

    With `share` (k, n), for group k of records and every n-th after it only.
    """
    model = by_onednn(model)
    assert ids.boundary is not None
    most = rows_a_pass(model, 1, likeliest)
    for stretch in islice(stretches(ids, max_chars), share[0], None, share[1]):
        nats, predicted = np.zeros(len(stretch.ids)), np.zeros(len(stretch.ids), bool)
        top = None
        if likeliest:
            k = min(LIKELIEST, model.vocab_size)
            top = Likeliest(np.zeros((len(nats), k), np.int64), np.zeros((len(nats), k)))
        for rows in rows_to_score(stretch, cut, ids.boundary, most):
            check_stop(should_stop)
            places = rows.at[:, None] + 1 + np.arange(rows.x.shape[1])
            scored = rows.y >= 0
            idx, targets = (
                torch.from_numpy(one).to(model.device) for one in (rows.x, rows.y.clip(min=0))
            )
            with torch.no_grad():
                if top:
                    found, likely = _with_likeliest(model, idx, targets, 0)
                    top.ids[places[scored]] = likely.ids[scored.ravel()]
                    top.p[places[scored]] = likely.p[scored.ravel()]
                else:
                    found = surprisal(model, idx, targets)
            nats[places[scored]] = found.cpu().double().numpy()[scored]
            predicted[places[scored]] = True
        if top:
            top = Likeliest(top.ids[predicted], top.p[predicted])
        at = np.flatnonzero(predicted)
        yield Predicted(nats[at][None], stretch.ids[at][None], stretch.ids[at - 1][None], top)


def _with_likeliest(
    model: Read, idx: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], skip: int
) -> tuple[Float[Tensor, "B T"], Likeliest]:
    log_p = model(idx).float().log_softmax(dim=-1)  # (B, T, V)
    nats = -log_p.gather(-1, targets[..., None])[..., 0]
    return nats, _likeliest(log_p[:, skip:].flatten(0, 1))


def _likeliest(log_p: Float[Tensor, "N V"]) -> Likeliest:
    top = log_p.topk(min(LIKELIEST, log_p.shape[-1]))
    return Likeliest(top.indices.cpu().numpy(), top.values.exp().cpu().double().numpy())


def read(
    reader: AdaptiveReader,
    ids: Ids,
    length: int,
    should_stop: Callable[[], bool],
    likeliest: bool,
) -> Iterator[Predicted]:
    """Yield what `predict` does, for a text that a reader reads, `length` characters at a time."""
    for first in range(0, len(ids) - 1, length):
        check_stop(should_stop)
        text = ids.read(first, min(length, len(ids) - 1 - first) + 1).astype(np.int64)
        ids_read, targets, top = text[:-1], text[1:], None
        if likeliest:
            all_log_p = reader.go_on(ids_read)
            log_p = all_log_p[torch.arange(len(targets)), torch.from_numpy(targets)]
            top = _likeliest(all_log_p)
        else:
            log_p = reader.log_probability(ids_read, targets)
        yield Predicted(-log_p.double().numpy()[None], targets[None], ids_read[None], top)
