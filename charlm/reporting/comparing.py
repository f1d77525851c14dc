"""Several runs side by side: a row for each, and how much better each is than the first.

Two models meet the same hard passages, so their losses on one text go up and down together. The
interval of a difference is that of the mean of the differences, character by character: it is far
narrower than those of the two losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from charlm.evaluation.comparison import common_length
from charlm.evaluation.score import Interval, Tally
from charlm.reporting.breakdown import Scored, score
from charlm.reporting.opened import Opened


@dataclass(frozen=True)
class Difference:
    """How far the loss of a run is above that of the first, in nats; below 0: it is better."""

    nats: float
    interval: Interval | None  # of 95 %; None for a text that is too short


@dataclass(frozen=True)
class Compared:
    """A row of the table of runs."""

    run: Opened
    scored: Scored | None  # None: it has no validation part
    difference: Difference | None  # None: of the first run, and of one on another text

    @property
    def loss_nats(self) -> float | None:
        """Its loss on the validation part, in windows of the same length for all runs."""
        return self.scored.loss_nats if self.scored else None


def compare(
    runs: Sequence[Opened],
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Compared]:
    """Score each run in windows of one length, and compare each with the first.

    `progress` is called with the number of characters since the last call. Raises Stopped if
    `should_stop` says so.
    """
    length = common_length([run.model for run in runs])
    found: list[Compared] = []
    for run in runs:
        scored = score(run, length, progress, should_stop) if run.val else None
        difference = None
        if found and scored and (first := found[0]).scored and same_text(run, first.run):
            difference = difference_of(scored, first.scored, run)
        found.append(Compared(run, scored, difference))
    return found


def same_text(one: Opened, other: Opened) -> bool:
    """Tell whether two runs are scored on the same characters, so that their losses are comparable."""
    return _text_of(one) == _text_of(other)


def _text_of(run: Opened) -> tuple[object, ...]:
    facts, val = run.corpus.facts, run.corpus.splits["val"]
    names = ("source_sha256", "unit", "vocab_size", "distinct", "records", "shuffled", "repeats")
    return (*(facts.get(name) for name in names), val.start, val.stop)


def difference_of(scored: Scored, first: Scored, run: Opened) -> Difference:
    """Return the difference of two scores of the same characters, with its interval.

    The block bootstrap of `charlm.evaluation.score`, of the differences of single characters.
    """
    apart = scored.predicted.nats - first.predicted.nats
    ends = scored.predicted.symbols == run.tokenizer.boundary
    tally = Tally(len(apart), int(ends.sum()) if run.of_records else None)
    tally.add(apart)
    return Difference(tally.mean(), tally.interval())
