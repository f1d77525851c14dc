"""Scores of many texts, each by itself: to rank candidates, or to find what does not fit a list.

A text is scored as a record is: from its first character, which is predicted from the boundary, to
its end, which counts as a character. A run of one text knows no boundary. Then a text is read after
a newline (or what sampling starts an empty prompt with), and its end is not scored. A text that is
longer than the model's block is continued in windows, as by the protocol `windows`.

The model reads a text without its unknown characters. They are charged by the rule of `unknown`,
for this text alone: of its N characters (the end is one), u unknown ones cost

    ln((N + 1) C(N, u)) + u ln(1,114,112 - V)

nats together, and a text without any costs no more than the model says. An alphabet with an escape
needs no such rule: the model reads an escape in place of each, and predicts it; see `unknown`, too.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from charlm.config import DataConfig
from charlm.errors import DataError, UsageError, check_stop
from charlm.evaluation.given import read_as
from charlm.evaluation.predicting import evaluating
from charlm.evaluation.protocols import chars_a_pass, rows_a_pass, windows
from charlm.evaluation.records import Stretch, rows_to_score
from charlm.evaluation.score import Floats
from charlm.evaluation.unknown import CODE_POINTS, charge_nats, escape_nats
from charlm.models.base import LanguageModel, stopping_between_layers
from charlm.models.loss import surprisal
from charlm.models.onednn import by_onednn
from charlm.text.columns import as_table_or_text
from charlm.text.reading import gathered, read_symbols
from charlm.text.records import Cutter, Kind, Records
from charlm.text.sources import Source
from charlm.text.tokenizer import (
    BOUNDARY,
    CharTokenizer,
    Tokenizer,
    code_points,
    of_code_points,
    opening_id,
)

LOOKED_UP = 1 << 16  # characters that are scored together by a model that looks up probabilities
PASSES = 4  # of any other model, over texts that are scored together and sorted by length

Numbers = npt.NDArray[np.int64]
Kept = TypeVar("Kept")


class TextScore(NamedTuple):
    """How well a text was predicted.

    For a run of bytes, `chars` and `unknown` count bytes.
    """

    text: str
    nats: float  # of the whole text: the sum over its characters
    chars: int  # scored: all, and the end if the run has records
    unknown: int  # how many of them are not in the model's alphabet

    @property
    def bits_per_char(self) -> float:
        """The mean of a character in bits; 0 if none was scored."""
        return self.nats / math.log(2) / self.chars if self.chars else 0.0


def score_records(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    *,
    ahead: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[TextScore]:
    """Yield the score of each text, in order.

    Memory does not grow with the number of texts.

    Args:
        model: What predicts; in evaluation mode while it does.
        tokenizer: The alphabet of its run.
        texts: Any number of texts; they are read as they are needed.
        ahead: How many characters of texts to read before the first of them is scored. 1: each text
            is scored before the next is read. None: as many as make it fast, some thousands.
        should_stop: Called before each layer; `Stopped` is raised if it says so.

    Raises:
        UsageError: `texts` is a single string, or `ahead` is below 1.
        DataError: A text holds U+10FFFF, and the run has records, whose borders it marks.
    """
    if isinstance(texts, str | bytes):
        raise UsageError("texts", "a single text", "put it into a list")
    if ahead is not None and ahead < 1:
        raise UsageError(f"ahead={ahead}", "expected at least 1")
    scorer = TextScorer(model, tokenizer, should_stop)
    return _in_batches(scorer, texts, scorer.at_once if ahead is None else ahead)


def _in_batches(scorer: "TextScorer", texts: Iterable[str], most: int) -> Iterator[TextScore]:
    batch: list[str] = []
    waiting = 0
    for text in texts:
        batch.append(text)
        waiting += len(text) + 1
        if waiting >= most:
            yield from scorer.score(batch)
            batch, waiting = [], 0
    yield from scorer.score(batch)


class TextScorer:
    """Scores texts some at a time.

    Attributes:
        at_once: How many characters to score together: enough to be fast, and answered soon.

    For the arguments see `score_records`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self.tokenizer, self.should_stop = model, tokenizer, should_stop
        with evaluating(model):
            self._fast = by_onednn(model)
        self._most = rows_a_pass(model, 1)
        self._cut = windows(min(model.block_size, chars_a_pass(model)))
        self._ends = int(tokenizer.boundary is not None)
        self._opening = opening_id(tokenizer)
        self._ids = _ids_of_symbols(tokenizer)
        self.at_once = min(PASSES * self._most, LOOKED_UP)

    def score(self, texts: list[str]) -> Iterator[TextScore]:
        """Yield the scores of texts; raise DataError for U+10FFFF in a record."""
        columns = self.nats(self._records(texts))
        return map(TextScore, texts, *(column.tolist() for column in columns))

    def each(self, texts: list[str]) -> Iterator[tuple[Floats, int]]:
        """Yield the nats of each character of each text, (N,), and how many of them are unknown.

        An end that is scored is the last. Raises DataError for U+10FFFF in a record.
        """
        records = self._records(texts)
        odd, unknown = self._unknown(records)
        read = self._surprisals(records, odd)
        ends = np.cumsum(records.lengths)
        for i, (begin, end) in enumerate(zip(ends - records.lengths, ends, strict=True)):
            nats, strange = read.of(i), odd[begin:end]
            often, size = int(unknown[i]), int(records.lengths[i]) + self._ends
            if often and self.tokenizer.escape is None:
                charge = charge_nats(often, size, self.model.vocab_size)
                nats = np.insert(nats, np.flatnonzero(strange) - np.arange(often), charge)
            elif often:
                nats[: len(strange)][strange] += escape_nats(self.model.vocab_size)
            yield nats, often

    def _records(self, texts: list[str]) -> Records:
        """Return texts as records, or raise DataError for U+10FFFF where it marks borders."""
        if self.tokenizer.unit == "bytes":
            encoded = [self.tokenizer.encode(text, "skip") for text in texts]
            symbols, lengths = np.concatenate([np.empty(0, np.uint8), *encoded]), map(len, encoded)
        else:
            symbols, lengths = code_points("".join(texts)), map(len, texts)
        if self._ends and (symbols == ord(BOUNDARY)).any():
            what = "a text holds U+10FFFF, which marks the borders of records"
            raise DataError("texts", what, "remove it")
        return Records(symbols, np.fromiter(lengths, np.int64, len(texts)))

    def score_read(self, records: Records) -> Iterator[list[TextScore]]:
        """Yield the scores of records that were read from a file, some at a time."""
        for part in _parts(records, self.at_once):
            texts = _texts_of(part, self.tokenizer)
            yield list(map(TextScore, texts, *(column.tolist() for column in self.nats(part))))

    def nats(self, records: Records) -> tuple[Floats, Numbers, Numbers]:
        """Return the nats, the scored characters and the unknown ones of each record, (R,) each."""
        odd, unknown = self._unknown(records)
        nats, chars = self._surprisals(records, odd).totals(), records.lengths + self._ends
        if self.tokenizer.escape is not None:
            return nats + unknown * escape_nats(self.model.vocab_size), chars, unknown
        for i in np.flatnonzero(unknown).tolist():
            often = int(unknown[i])
            nats[i] += often * charge_nats(often, int(chars[i]), self.model.vocab_size)
        return nats, chars, unknown

    def _unknown(self, records: Records) -> tuple[npt.NDArray[np.bool_], Numbers]:
        """Return which symbols the model does not know, and how many of each record, (R,)."""
        ids, escape = self._ids[records.symbols], self.tokenizer.escape
        odd = ids < 0 if escape is None else ids == escape
        of_record = np.repeat(np.arange(len(records.lengths)), records.lengths)
        return odd, np.bincount(of_record[odd], minlength=len(records.lengths))

    def _surprisals(self, records: Records, odd: npt.NDArray[np.bool_]) -> "_Surprisals":
        """Return the nats of all that the model reads of some records."""
        lengths, ids = records.lengths, self._ids[records.symbols]
        known = ids >= 0  # an escape is read, too
        of_record = np.repeat(np.arange(len(lengths)), lengths)
        left = np.bincount(of_record[known], minlength=len(lengths))
        # What the model reads of each, after a symbol to begin with; the last one's end follows.
        starts = np.cumsum(left + 1) - (left + 1)
        text = np.full(int(left.sum()) + len(left) + 1, self._opening)
        inside = np.ones(len(text), bool)
        inside[starts] = inside[-1] = False
        text[inside] = ids[known]
        stops = starts + left + self._ends
        return _Surprisals(self._read(text, starts, stops), starts, stops)

    def _read(self, text: Numbers, starts: Numbers, stops: Numbers) -> Floats:
        """Return the nats of each place of a text; 0 where nothing is scored.

        Of a record, those after its start are scored, up to its stop; some may have none.
        """
        some = stops > starts
        nats = np.zeros(len(text))
        stretch = Stretch(text, starts[some], stops[some])
        with (
            evaluating(self.model),
            stopping_between_layers(self._fast, self.should_stop),
            torch.no_grad(),
        ):
            for rows in rows_to_score(stretch, self._cut, self._opening, self._most):
                check_stop(self.should_stop)
                idx, targets = (
                    torch.from_numpy(one).to(self.model.device)
                    for one in (rows.x, rows.y.clip(min=0))
                )
                found = surprisal(self._fast, idx, targets).cpu().double().numpy()
                places = rows.at[:, None] + np.arange(1, rows.x.shape[1] + 1)
                nats[places[rows.y >= 0]] = found[rows.y >= 0]
        return nats


class _Surprisals(NamedTuple):
    """The nats of each place of some texts, one behind the other, and where each text is."""

    nats: Floats
    starts: Numbers
    stops: Numbers

    def of(self, i: int) -> Floats:
        """Return the nats of the places of one text."""
        return self.nats[self.starts[i] + 1 : self.stops[i] + 1].copy()

    def totals(self) -> Floats:
        """Return the sum for each text, (R,)."""
        # A place belongs to the last text that starts before it.
        owner = np.searchsorted(self.starts, np.arange(1, len(self.nats))) - 1
        totals: Floats = np.bincount(owner, self.nats[1:], minlength=len(self.starts)).astype(float)
        return totals


class TextReading:
    """Reads texts to score from a file, a pipe or several files, as a run reads its own records.

    For a run of one text, each line is a text. A run that takes a column of tables reads files that are
    none as if it took no column.

    Args:
        source: Where they are.
        data: How the run read its text.
    """

    def __init__(self, source: Source, data: DataConfig) -> None:
        self.source = source
        self._kind: Kind = "lines" if data.records == "none" else data.records
        data = as_table_or_text(data.model_copy(update={"records": self._kind}), source)
        if data.newlines == "none" and data.column is None and self._kind != "files":
            data = data.model_copy(update={"newlines": "lf"})  # they end the texts
        self._data = data
        self._cutter = Cutter.of(self._data, source.name)
        self._notes: list[str] = []

    def records(self) -> Iterator[Records]:
        """Yield the texts as they come, in order.

        Raises:
            DataError: A file is no text in the encoding of the run, changes while it is read, or has
                U+10FFFF in it, or a text that is too long to hold in memory.
            MachineError: It cannot be read.
        """
        chunks = read_symbols(
            self.source, self._data, lambda data: None, self._notes, lambda size: None
        )
        # Of many small files, work on each would be slow; what comes from a pipe must not wait.
        pieces = gathered(chunks) if len(self.source.parts) > 1 else chunks
        with read_as(self._data):
            yield from self._cutter.cut(pieces)

    def notes(self) -> list[str]:
        """Return remarks about what was read, after the last text."""
        return [*self.source.notes, *self._notes, *self._cutter.tally.notes(self._kind)]


class Ranking(Generic[Kept]):
    """Keeps the `top` lowest of any number of values and the `bottom` highest, with their ranks.

    Of equal values, the first has the lower rank. Memory grows with `top` and `bottom` only.
    """

    def __init__(self, top: int, bottom: int) -> None:
        self._ends = [(top, -1), (bottom, 1)]
        self._heaps: list[list[tuple[float, int, Kept]]] = [[], []]
        self.count = 0

    def add(self, value: float, what: Kept) -> None:
        """Take the next one."""
        self.count += 1
        value = math.inf if math.isnan(value) else value
        for heap, (most, sign) in zip(self._heaps, self._ends, strict=True):
            entry = (sign * value, sign * self.count, what)
            if len(heap) < most:
                heapq.heappush(heap, entry)
            elif most and entry[:2] > heap[0][:2]:
                heapq.heapreplace(heap, entry)

    def top(self) -> Iterator[tuple[int, Kept]]:
        """Yield the lowest and their ranks, from 1 on."""
        for place, (_, _, what) in enumerate(sorted(self._heaps[0], reverse=True)):
            yield place + 1, what

    def bottom(self) -> Iterator[tuple[int, Kept]]:
        """Yield the highest that are not among the lowest, the last rank first."""
        for place, (_, _, what) in enumerate(sorted(self._heaps[1], reverse=True)):
            if self.count - place > len(self._heaps[0]):
                yield self.count - place, what


def _ids_of_symbols(tokenizer: Tokenizer) -> Numbers:
    """Return the id of each code point or byte; unknown ones have the escape, or -1."""
    if not isinstance(tokenizer, CharTokenizer):
        return np.arange(tokenizer.vocab_size)
    ids = np.full(CODE_POINTS, -1 if tokenizer.escape is None else tokenizer.escape)
    ids[code_points(tokenizer.alphabet)] = np.arange(tokenizer.vocab_size)
    return ids


def _parts(records: Records, most: int) -> Iterator[Records]:
    """Split records into parts of at most `most` characters, or of one record."""
    ends = np.cumsum(records.lengths)
    read = ends + np.arange(1, len(ends) + 1)  # with what each begins after
    first = 0
    while first < len(ends):
        begin = int(ends[first] - records.lengths[first])
        stop = int(np.searchsorted(read, begin + first + most, side="right"))
        stop = max(stop, first + 1)
        yield Records(records.symbols[begin : ends[stop - 1]], records.lengths[first:stop])
        first = stop


def _texts_of(records: Records, tokenizer: Tokenizer) -> list[str]:
    """Return the text of each record."""
    whole: Any
    ends = np.cumsum(records.lengths)
    places = zip((ends - records.lengths).tolist(), ends.tolist(), strict=True)
    if tokenizer.unit == "bytes":
        whole = records.symbols.astype(np.uint8).tobytes()
        return [whole[a:b].decode("utf-8", "surrogateescape") for a, b in places]
    whole = of_code_points(records.symbols)
    return [whole[a:b] for a, b in places]
