"""Score a text: every character once, by a protocol."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from charlm.evaluation.predicting import Likeliest, evaluating, predict, predict_records, read
from charlm.evaluation.protocols import Cut, rows_a_pass, training_passes, windows
from charlm.evaluation.records import places_in_windows
from charlm.evaluation.score import Floats, Score, Tally
from charlm.evaluation.unknown import LeftOut, with_escapes
from charlm.models.adaptive import AdaptiveReader
from charlm.models.base import LanguageModel, stopping_between_layers
from charlm.text.borders import Borders
from charlm.text.escapes import count_escapes, escaped, utf8_size
from charlm.text.tokenizer import CharTokenizer, Tokenizer
from charlm.text.tokens import Ids


@dataclass(frozen=True)
class Scored:
    """Consecutive characters of a text and the surprisal of each, (N,)."""

    positions: npt.NDArray[np.int64]  # in the text, counted from 0
    nats: Floats
    symbols: npt.NDArray[np.int64]  # ids in the text's own alphabet
    known: npt.NDArray[np.bool_]  # to the model
    likeliest: Likeliest  # for each known one, by the model's ids
    escaped: tuple[int, ...] = ()  # code points of those symbols that are escapes

    def records(self, symbols: Tokenizer, own: Tokenizer) -> Iterator[dict[str, Any]]:
        """Yield a record for each character; `symbols` has all of them, `own` is the model's.

        It has `position`, `char` (or `byte`, a number), `bits` (None if infinite), and `likeliest`:
        pairs of a character and its probability, empty for an unknown character.
        """

        def name(tokenizer: Tokenizer, idx: int) -> str | int:
            return idx if tokenizer.unit == "bytes" else tokenizer.decode([idx])

        likeliest = zip(self.likeliest.ids.tolist(), self.likeliest.p.tolist(), strict=True)
        columns = (self.positions, self.symbols, self.nats, self.known)
        rare = map(chr, self.escaped)
        for position, symbol, nats, is_known in zip(*(c.tolist() for c in columns), strict=True):
            predicted = zip(*next(likeliest), strict=True) if is_known else ()
            yield {
                "position": position,
                "byte" if symbols.unit == "bytes" else "char": (
                    next(rare) if symbol == symbols.escape else name(symbols, symbol)
                ),
                "bits": round(nats / math.log(2), 6) if math.isfinite(nats) else None,
                "likeliest": [[name(own, i), round(p, 6)] for i, p in predicted],
            }


class Surprisals(NamedTuple):
    """Characters that were predicted, in the order of the text, (N,) each."""

    nats: Floats
    symbols: npt.NDArray[np.int64]  # ids
    before: npt.NDArray[np.int64]  # the id before each
    places: npt.NDArray[np.int64]  # of each in its window, from 0


def surprisals(
    model: LanguageModel,
    ids: Ids,
    block_size: int,
    *,
    max_chars: int | None = None,
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Surprisals]:
    """Yield how surprising each character is by the protocol `windows`, some thousands at a time.

    Args:
        model: What predicts; in evaluation mode meanwhile.
        ids: The text, at least 2 characters.
        block_size: Characters in a window; at most the model's own.
        max_chars: Score only about this many, in windows spread evenly over the text, or at the
            start of a text shorter than one window. None: all.
        progress: Called with the number of characters scored since the last call.
        should_stop: Called before each layer; `Stopped` is raised if it says so.
        share: (k, n) to do pass k and every n-th after it only; the passes are the same for all n.
    """
    first, every = share
    if ids.boundary is None:
        passes = training_passes(
            len(ids) - 1, block_size, max_chars, rows_a_pass(model, block_size)
        )
        predicted = predict(model, ids, islice(passes, first, None, every), should_stop)
    else:
        cut = windows(block_size)
        predicted = predict_records(model, ids, cut, should_stop, max_chars, share=share)
    with evaluating(model), stopping_between_layers(model, should_stop):
        for one in predicted:
            nats = with_escapes(one.nats, one.targets, ids.escape, model.vocab_size)
            places = _places(one.targets, ids.boundary, block_size)
            yield Surprisals(nats.ravel(), one.targets.ravel(), one.before.ravel(), places)
            progress(nats.size)


def score_windows(
    model: LanguageModel,
    ids: Ids,
    block_size: int,
    *,
    max_chars: int | None = None,
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Score:
    """Return the mean loss by the protocol `windows`, which training reports; see `surprisals`."""
    options: dict[str, Any] = {"progress": progress, "should_stop": should_stop}
    return score_of_passes(sums_of_passes(model, ids, block_size, max_chars=max_chars, **options))


def sums_of_passes(
    model: LanguageModel,
    ids: Ids,
    block_size: int,
    *,
    max_chars: int | None = None,
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
    share: tuple[int, int] = (0, 1),
) -> Float[np.ndarray, "P 3"]:
    """Return what each of P passes found: nats, characters, escapes; see `surprisals`."""
    options: dict[str, Any] = {"progress": progress, "should_stop": should_stop, "share": share}
    found = [
        (one.nats.sum(), one.nats.size, count_escapes(one.symbols, ids.escape))
        for one in surprisals(model, ids, block_size, max_chars=max_chars, **options)
    ]
    return np.array(found, np.float64).reshape(-1, 3)


def score_of_passes(sums: Float[np.ndarray, "P 3"]) -> Score:
    """Return the mean loss over passes, which are added in their order."""
    total, chars, escapes = 0.0, 0, 0
    for nats, count, rare in sums.tolist():
        total += nats
        chars += int(count)
        escapes += int(rare)
    return Score(chars, total / chars, escapes=escapes)


def score_text(
    model: LanguageModel,
    ids: Ids,
    cut: Cut,
    *,
    reader: AdaptiveReader | None = None,
    byte_lengths: npt.NDArray[np.int64] | None = None,
    left_out: LeftOut | None = None,
    by_position: bool = False,
    each: Callable[[Scored], None] | None = None,
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Score:
    """Score all characters of a text except the first, with an interval.

    Args:
        model: What predicts; in evaluation mode meanwhile.
        ids: The text without unknown characters, at least 2 characters.
        cut: The protocol.
        reader: For the protocol `adaptive`: reads the text; it has read nothing yet.
        byte_lengths: Bytes in each symbol of the text (see `utf8_lengths`).
        left_out: The unknown characters, scored by the rule of `unknown`.
        by_position: Whether to average by position in the window too; for `windows`.
        each: Called with all scored characters in order, some thousands at a time. Slower: all V
            probabilities are computed for each (`all_logits` of `protocols.choose`).
        progress: Called with the number of known characters scored since the last call.
        should_stop: Called before each layer; `Stopped` is raised if it says so.
    """
    length, unknown = len(ids) - 1, len(left_out.before) if left_out else 0
    records = None if ids.boundary is None else len(Borders(ids)) - 1
    tally = Tally(length + unknown, records)
    positions = np.zeros((2, min(cut.length, length)))  # sums and counts
    known_done, done, size, escapes = 0, 0, 0, 0
    rare = chain.from_iterable(escaped(ids, 1))
    passes = cut.passes(length, rows_a_pass(model, cut.length, bool(each)))
    predicted = predict(model, ids, passes, should_stop, bool(each), cut.carried)
    if ids.boundary is not None:
        predicted = predict_records(model, ids, cut, should_stop, likeliest=bool(each))
    if cut.name == "adaptive":
        assert reader, "the protocol needs it"
        predicted = read(reader, ids, cut.length, should_stop, bool(each))
    # The first known character is not scored; unknown ones may come before it.
    unscored = int(np.searchsorted(left_out.before, 1)) if left_out else 0
    with evaluating(model), stopping_between_layers(model, should_stop):
        for nats, targets, _, top in predicted:
            nats = with_escapes(nats, targets, ids.escape, model.vocab_size)
            among = count_escapes(targets, ids.escape)
            escapes += among
            if by_position:
                at = _places(targets, ids.boundary, cut.length)
                positions[0] += np.bincount(at, nats.ravel(), positions.shape[1])
                positions[1] += np.bincount(at, minlength=positions.shape[1])
            flat, symbols, known = nats.ravel(), targets.ravel(), np.ones(nats.size, bool)
            if left_out:
                last = known_done + nats.size == length
                flat, symbols, known = left_out.weave(known_done + 1, last, flat, symbols)
            tally.add(flat)
            size += 0 if byte_lengths is None else int(byte_lengths[symbols].sum())
            if each and top is not None:
                at = np.arange(done, done + len(flat))
                codes = tuple(map(int, islice(rare, among)))
                each(Scored(at + (at >= unscored), flat, symbols, known, top, codes))
            known_done, done = known_done + nats.size, done + len(flat)
            progress(nats.size)
    size += sum(map(utf8_size, escaped(ids, 1)))
    return Score(
        tally.chars,
        tally.mean(),
        None if byte_lengths is None else size,
        tally.interval(),
        unknown,
        _means(positions) if by_position else None,
        records,
        escapes,
    )


def _places(
    targets: npt.NDArray[np.int64], boundary: int | None, length: int
) -> npt.NDArray[np.int64]:
    """Return the place in its window of each prediction, (R, T) -> (R * T,)."""
    if boundary is not None:
        return places_in_windows(targets[0], boundary, length)
    at: npt.NDArray[np.int64] = np.arange(targets.size) % targets.shape[1]
    return at


def _means(positions: Floats) -> tuple[float, ...]:
    """Return the means of sums and counts, (2, T), up to the last position that occurs."""
    sums, counts = positions[:, positions[1] > 0]
    return tuple((sums / counts).tolist())


def utf8_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Return the length of each id's symbol in UTF-8 bytes, (V,); 0 for an escape: see `utf8_size`."""
    if isinstance(tokenizer, CharTokenizer):
        # Only utf-7 allows half a surrogate pair in a text; it would take 3 bytes.
        found = np.array([len(c.encode("utf-8", "surrogatepass")) for c in tokenizer.alphabet])
        if tokenizer.boundary is not None:
            found[tokenizer.boundary] = 1  # in a file, it is a newline
        if tokenizer.escape is not None:
            found[tokenizer.escape] = 0
        return found
    return np.ones(tokenizer.vocab_size, np.int64)
