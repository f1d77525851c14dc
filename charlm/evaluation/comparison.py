"""Runs side by side: the best checkpoint of each, scored by the same protocols.

Only one model is in memory at a time, so any number of runs can be compared.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev

import numpy as np
import numpy.typing as npt

from charlm.errors import Setting, UsageError, number_of
from charlm.evaluation import protocols
from charlm.evaluation.given import adaptive_reader, open_part
from charlm.evaluation.protocols import WINDOWED, Cut, Name
from charlm.evaluation.score import Score
from charlm.evaluation.scoring import score_text, utf8_lengths
from charlm.models import LanguageModel
from charlm.runs import RunFolder
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.load import SavedModel, load_model
from charlm.runs.state import read_state
from charlm.text.escapes import NONE, escaped, utf8_sizes
from charlm.text.tokenizer import seen_symbols
from charlm.text.tokens import Split

BOTH = "both units"
CHUNK = 1 << 20


@dataclass
class ComparedRun:
    """One run, at its best checkpoint.

    `text` must be equal for losses to be comparable: the text's SHA-256, its unit, its number of
    distinct symbols, and where the part begins and ends. `join_units` makes it equal for characters and bytes.
    """

    saved: SavedModel  # has weights only while it is being scored
    part: Split  # the text to score
    text: tuple[object, ...]
    source: str  # the text's name
    seconds: float  # of training, up to the checkpoint
    learned: tuple[str, ...] = ()  # what it learned under the protocol `adaptive`
    cuts: dict[Name, Cut] = field(default_factory=dict)
    scores: dict[Name, Score] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path of the run."""
        return str(self.saved.run.path)

    @property
    def unit(self) -> str:
        """What its model predicts: `chars` or `bytes`."""
        return self.saved.tokenizer.unit

    @property
    def among_both(self) -> bool:
        """Whether it is compared with runs of the other unit, so by bits per byte."""
        return BOTH in self.text

    @property
    def read_as(self) -> tuple[str, ...]:
        """How its text was read and cut, each fact by itself: runs of one text may differ in it."""
        data, symbols = self.saved.config.data, seen_symbols(self.saved.tokenizer)
        of_list = data.records != "none"
        kind = f"read as {data.records}" if of_list else "read as one text"
        order = f"shuffled by seed {data.shuffle_seed}" if data.shuffle else "in its own order"
        return (
            kind if data.column is None else f"column {data.column}",
            f"of {number_of(symbols, 'symbol')}" if self.unit == "chars" else "of bytes",
            order if of_list else "",
            ("without repeats" if data.unique else "with repeats") if of_list else "",
            f"symbols {self.part.start:,} to {self.part.stop:,}",
        )

    def loss(self, protocol: Name) -> float:
        """Return the loss by a protocol, infinite if the model does not support it.

        It is in nats, or for a run among runs of both units in bits per byte.
        """
        score = self.scores.get(protocol)
        return float("inf") if score is None else score.loss_nats * self.scale(score)

    def scale(self, score: Score) -> float:
        """Return what turns a loss in nats into the measure of its table."""
        if not self.among_both or not score.bytes:
            return 1.0
        return score.chars / score.bytes / math.log(2)

    def key_without_seed(self) -> str:
        """Return a key that is equal for runs that differ only in their seed."""
        config = self.saved.config.model_dump()
        config["run"] |= {"seed": None, "out": None}
        return repr((self.text, config))


def open_run(run: RunFolder, split: str, device: str) -> ComparedRun:
    """Load a run to compare and drop its weights, keeping their shapes.

    Raises CheckpointError if it has no sound checkpoint, and DataError if it has no such part.
    """
    saved, seconds = _load_best(run, device)
    part, facts = open_part(saved.run, split)
    symbols = facts.get("distinct", facts["vocab_size"])  # with those that share an escape
    order = tuple(facts.get(key) for key in ("records", "shuffled", "repeats"))
    text = (facts["source_sha256"], facts["unit"], symbols, part.start, part.stop, *order)
    saved.model.to("meta")
    return ComparedRun(saved, part, text, str(facts["source"]), seconds)


def _load_best(run: RunFolder, device: str) -> tuple[SavedModel, float]:
    """Return the best model and its training time, even if training prunes it meanwhile."""

    def load(best: Checkpoint) -> tuple[SavedModel, float]:
        return load_model(run, str(best.step), device), read_state(best.path, best.step).seconds

    return run.checkpoints.use("best", load)


def common_length(models: Sequence[LanguageModel]) -> int:
    """Return the longest window that all models support."""
    limited = [model.block_size for model in models if not model.any_length]
    return min(limited or [max(model.block_size for model in models)])


def cut(runs: Sequence[ComparedRun], chosen: Sequence[Name], length: int) -> dict[Name, Cut]:
    """Choose the protocols of each run, with windows of the same length; return one of each.

    Cuts without a window may differ between runs. Raises UsageError if the
    windows are too long for a run, or no run supports a protocol.
    """
    for run in runs:
        model = run.saved.model
        try:
            run.cuts = {
                name: protocols.choose(model, name, length if name in WINDOWED else None)
                for name in chosen
                if name != "stream" or model.any_length
            }
        except UsageError as error:
            raise error.within(run.name) from None
    shared = {name: run.cuts[name] for run in reversed(runs) for name in run.cuts}
    for name in chosen:
        if name not in shared:
            mend = "use windows, or sliding for more context"
            raise UsageError(Setting("protocol", name), "none of these runs supports it", mend)
    return {name: shared[name] for name in chosen}


def score(
    runs: Sequence[ComparedRun],
    device: str,
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Score each run by each of its protocols, which `cut` chose; see `score_text`."""
    for run in filter(lambda run: run.cuts, runs):
        run.saved, run.seconds = _load_best(run.saved.run, device)  # there may be a newer best
        sizes = utf8_lengths(run.saved.tokenizer)
        run.saved.model.prepare(progress, should_stop)
        for name, its_cut in run.cuts.items():
            reader = adaptive_reader(run.saved) if name == "adaptive" else None
            run.learned = reader.learned if reader else run.learned
            run.scores[name] = score_text(
                run.saved.model,
                run.part,
                its_cut,
                reader=reader,
                byte_lengths=sizes,
                progress=progress,
                should_stop=should_stop,
            )
        run.saved.model.to("meta")  # before the next is loaded


def join_units(runs: Sequence[ComparedRun]) -> None:
    """Let runs of characters and of bytes of the same part of a text score the same bytes of it.

    Parts are cut at a share of the characters or of the bytes, so they may begin and end at other
    places: what both have is scored. Runs of texts that are not UTF-8 stay apart.
    """
    found: dict[tuple[object, ...], list[ComparedRun]] = {}
    for run in runs:
        data = run.saved.config.data
        found.setdefault((run.text[0], data.val_fraction, data.test_fraction), []).append(run)
    for same in found.values():
        chars, in_bytes = ([run for run in same if run.unit == u] for u in ("chars", "bytes"))
        places = {(run.part.start, run.part.stop, run.part.tokens.size) for run in chars}
        if len(places) == 1 and in_bytes:
            _share_bytes(chars, in_bytes)


def _share_bytes(chars: Sequence[ComparedRun], in_bytes: Sequence[ComparedRun]) -> None:
    part, lengths = chars[0].part, utf8_lengths(chars[0].saved.tokenizer)
    whole = replace(part, start=0, stop=part.tokens.size, borders=None)
    starts = range(0, len(whole), CHUNK)
    sums = [int(_sizes(whole, i, min(CHUNK, len(whole) - i), lengths).sum()) for i in starts]
    head = part.start // CHUNK * CHUNK, part.start % CHUNK
    before = sum(sums[: part.start // CHUNK]) + int(_sizes(whole, *head, lengths).sum())
    sizes = _sizes(part, 0, len(part), lengths)
    ends = before + np.cumsum(sizes)  # where each character ends in the bytes of the text
    for run in in_bytes:
        if run.part.tokens.size != sum(sums):
            return
    low = max(run.part.start for run in in_bytes)
    high = min(run.part.stop for run in in_bytes)
    first = int(np.searchsorted(ends - sizes, low))
    stop = int(np.searchsorted(ends, high, side="right"))
    if stop - first < 2:
        return
    # The first symbol is not scored: here the last byte of the first character.
    narrowed = int(ends[first]) - 1, int(ends[stop - 1])
    for run in chars:
        run.part = run.part.part(first, stop)
    for run in in_bytes:
        run.part = Split(run.part.tokens, *narrowed)
    for run in (*chars, *in_bytes):
        run.text = (run.text[0], BOTH, *narrowed)


def _sizes(
    text: Split, first: int, count: int, lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the bytes in each of `count` characters from position `first`."""
    ids = text.read(first, count)
    sizes: npt.NDArray[np.int64] = lengths[ids]
    sizes[ids == text.escape] = utf8_sizes(np.concatenate([NONE, *escaped(text, first, count)]))
    return sizes


def ordered(runs: Sequence[ComparedRun], by: Name) -> list[list[list[ComparedRun]]]:
    """Return, for each text, the groups of runs that differ only in their seed, best first."""
    texts: dict[tuple[object, ...], dict[str, list[ComparedRun]]] = {}
    for run in sorted(runs, key=lambda run: (run.loss(by), run.name)):
        texts.setdefault(run.text, {}).setdefault(run.key_without_seed(), []).append(run)
    return [
        sorted(groups.values(), key=lambda group: mean(run.loss(by) for run in group))
        for groups in texts.values()
    ]


def one_per_seed(group: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Leave out repeated runs, which would make the standard deviation too small."""
    return list({run.saved.config.run.seed: run for run in reversed(group)}.values())


def spread(
    group: Sequence[ComparedRun], name: Name, *, scaled: bool = False
) -> dict[str, float] | None:
    """Return mean and sample standard deviation of a protocol's losses, in nats.

    `scaled`: in the measure of their table, see `ComparedRun.loss`.
    """
    scored = [run for run in group if name in run.scores]
    losses = [run.loss(name) if scaled else run.scores[name].loss_nats for run in scored]
    return {"mean": mean(losses), "sd": stdev(losses)} if losses else None
