"""The charts of a report: what applies to the runs, in the order of the page."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from charlm.evaluation.ladder import Rung
from charlm.models.looking import gates_of, reach_of, stateful
from charlm.reporting import breakdown, palette, state_charts
from charlm.reporting.breakdown import Scored
from charlm.reporting.comparing import Compared, compare, same_text
from charlm.reporting.curve_charts import Line, Losses, loss_chart
from charlm.reporting.curves import Curves, chars_a_step, curves_of, read_curves
from charlm.reporting.difference_chart import difference_chart
from charlm.reporting.drawing import Chart, Label, Row
from charlm.reporting.glyphs import Glyphs, harmless
from charlm.reporting.loss_charts import (
    PlaceCurve,
    kind_chart,
    place_chart,
    symbol_chart,
)
from charlm.reporting.opened import Opened
from charlm.reporting.passage import Passage, passage_of, predictions
from charlm.reporting.symbol_charts import SHOWN, bigram_chart, embedding_chart, surprise_chart
from charlm.reporting.training_chart import training_chart

__all__ = ["Chart", "charts_of", "surprise_of"]

# Symbols in a chart; the rest is left out, and its caption says so.
FEWEST = 5  # predictions of a symbol, to show its mean loss
MOST_SYMBOLS, MOST_EMBEDDED, MOST_PAIRED = 90, 120, 28
FARTHEST, WINDOWS = 64, 16  # of gradients: symbols back, and windows that they are the mean of


def charts_of(
    runs: Sequence[Opened],
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
    compared: Sequence[Compared] = (),
) -> Iterator[Chart]:
    """Yield the charts of some runs, the main one first; those that do not apply are left out.

    Args:
        runs: What `charlm.reporting.opened.open_runs` returned.
        progress: Called with the number of characters predicted since the last call.
        should_stop: Called often.
        compared: What `compare` returned for these runs, if it was called already.

    Raises:
        CheckpointError: A log is damaged.
        Stopped: `should_stop` said so.
    """
    main = runs[0]
    if len(runs) > 1:
        compared = compared or compare(runs, progress, should_stop)
        yield from _of_several(runs, compared)
        scored = compared[0].scored
        if scored and scored.block_size != main.model.block_size:
            scored = breakdown.score(main, None, progress, should_stop)
    else:
        scored = breakdown.score(main, None, progress, should_stop) if main.val else None
        yield from _of_log(main)
    if scored:
        yield from _of_loss(main, scored, len(runs) == 1)
    yield from _of_state(main)
    yield from _of_symbols(main)


def _rungs(run: Opened) -> list[Rung]:
    """Return the baselines that are scored as the run's evaluations are."""
    return run.ladder.scored_alike(adaptive=False) if run.ladder else []


def _of_log(run: Opened) -> Iterator[Chart]:
    """Yield the charts of a run's log, and of its experts'."""
    found = curves_of(run)
    rungs, symbols = _rungs(run), run.symbols
    if curves := found.get(""):
        each = chars_a_step(run)
        lines = [
            Line("training", palette.TRAIN.light, curves.train, True, each),
            Line("validation", palette.VAL.light, curves.val, False, each),
        ]
        losses = Losses([line for line in lines if len(line.series)], rungs, symbols)
        yield from _two_losses(losses, _told(curves, rungs, run))
        if drawn := training_chart(curves, symbols, run.config.train.grad_clip):
            yield drawn
    if experts := {name: curves for name, curves in found.items() if name}:
        yield from _of_experts(run, experts)


def _told(curves: Curves, rungs: Sequence[Rung], run: Opened) -> str:
    """Say what a chart of loss shows."""
    told = (
        "The loss of training batches (a band spans the lowest and the highest of the steps that a "
        "point stands for) and of the validation part."
    )
    if best := curves.best:
        step, nats = best
        told += f" The lowest validation loss is {nats:.4f} nats ({nats / math.log(2):.4f} bits), at step {step:,}."
    if rungs:
        told += " Dashed lines are baselines that need no training, scored on the same text."
    if curves.setbacks:
        count = len(curves.setbacks)
        told += f" {count:,} update{'s were' if count != 1 else ' was'} skipped or undone."
    if run.train.boundary is not None:
        told += " How many characters a step reads differs; the axis shows the mean."
    return told


def _two_losses(losses: Losses, told: str) -> Iterator[Chart]:
    yield loss_chart(losses, "steps", "loss", "Loss while training", told)
    if any((line.series.seconds > 0).sum() > 1 for line in losses.lines):
        again = "The same by wall time, which includes evaluations, and baselines that were scored first."
        yield loss_chart(losses, "seconds", "loss-time", "Loss by wall time", again)


def _of_experts(run: Opened, experts: dict[str, Curves]) -> Iterator[Chart]:
    """Yield the losses of a mixture's experts, beside the loss of the mixture."""
    lines = [
        Line(harmless(name), palette.of_series(i), curves.train, True, chars_a_step(run, name))
        for i, (name, curves) in enumerate(experts.items())
    ]
    joined = read_curves(run.metrics_path).best
    finals = [Label("the mixture", joined[1], palette.INK.light)] if joined else []
    told = (
        "The training loss of each expert that is trained by steps, and at the right the validation "
        "loss of the mixture, which joins them with those that are counted."
    )
    losses = Losses(lines, _rungs(run), run.symbols, finals)
    yield loss_chart(losses, "steps", "experts", "Loss of the experts", told)


def _of_several(runs: Sequence[Opened], compared: Sequence[Compared]) -> Iterator[Chart]:
    """Yield the curves of several runs in one chart, and how far each is from the first."""
    lines: list[Line] = []
    for i, run in enumerate(runs):
        curves = curves_of(run).get("")
        if curves and len(curves.val) > 1:
            each, colour = chars_a_step(run), palette.of_series(i)
            lines.append(Line(harmless(run.name), colour, curves.val, False, each))
    alike = all(same_text(run, runs[0]) for run in runs)
    if lines:
        losses = Losses(lines, _rungs(runs[0]) if alike else [], runs[0].symbols)
        told = "The validation loss of each run. " + (
            "Dashed lines are baselines that need no training."
            if alike
            else "Not all are on the same text; losses on different texts are not comparable."
        )
        yield loss_chart(losses, "steps", "loss", "Loss while training", told)
        if all(line.chars_a_step for line in lines):
            again = "The same by how many symbols of text were read, whatever the size of a batch."
            yield loss_chart(losses, "characters", "loss-characters", "Loss by text read", again)
        again = "The same by wall time; runs on different machines are not comparable."
        yield loss_chart(losses, "seconds", "loss-time", "Loss by wall time", again)
    if drawn := difference_chart(compared):
        yield drawn
    curves_by_place = [
        PlaceCurve(harmless(row.run.name), breakdown.by_place(row.scored), palette.of_series(i))
        for i, row in enumerate(compared)
        if row.scored and same_text(row.run, runs[0])
    ]
    if curves_by_place and len(curves_by_place[0].places.nats) > 1:
        yield place_chart(curves_by_place, runs[0].symbols)


def _of_loss(run: Opened, scored: Scored, alone: bool) -> Iterator[Chart]:
    """Yield what the loss of a run is made of."""
    glyphs, size = Glyphs(run.tokenizer), run.tokenizer.vocab_size
    places = breakdown.by_place(scored)
    if alone and len(places.nats) > 1:
        yield place_chart([PlaceCurve(harmless(run.name), places, palette.VAL.light)], run.symbols)
    kinds = breakdown.by_kind(scored, glyphs, size)
    if len(kinds) > 1:
        yield kind_chart(kinds, run.symbols)
    found = breakdown.by_symbol(scored, glyphs, size)
    total = sum(group.chars for _, group in found)
    rows: list[Row] = [
        {
            **_symbol(glyphs, idx),
            "nats": group.nats,
            "bits": group.nats / math.log(2),
            "count": group.chars,
            "loss": 100 * group.share,
            "alone": -math.log(group.chars / total),
        }
        for idx, group in found[:MOST_SYMBOLS]
        if group.chars >= FEWEST
    ]
    if len(rows) > 1:
        yield symbol_chart(rows, len(found) - len(rows))


def _of_state(run: Opened) -> Iterator[Chart]:
    """Yield what a recurrent model, or the first in a mixture, does with its state."""
    for model in list(stateful(run.model).values())[:1]:
        passage = passage_of(run, state_charts.SYMBOLS)
        ids = torch.from_numpy(passage.ids.ids[: state_charts.SYMBOLS].astype("int64"))
        symbols = list(passage.symbols(Glyphs(run.tokenizer)))[: len(ids)]
        if gates := gates_of(model, ids):
            glyphs, names = ([symbol[i] for symbol in symbols] for i in (1, 2))
            yield state_charts.gate_chart(gates, glyphs, names)
        length = min(run.model.block_size, FARTHEST)
        if run.val is None or run.val.boundary is not None:
            continue
        if windows := min(WINDOWS, (len(run.val) - 1) // length):
            read = run.val.read(0, windows * length + 1).astype("int64")
            rows = [read[i * length : (i + 1) * length + 1] for i in range(windows)]
            lengths = reach_of(model, torch.tensor(np.stack(rows)))
            yield state_charts.reach_chart(lengths, windows, run.symbols.removesuffix("s"))


def _symbol(glyphs: Glyphs, idx: int) -> Row:
    symbol = glyphs.symbol(idx)
    return {
        "glyph": glyphs.glyph(idx),
        "name": glyphs.name(idx),
        "class": breakdown.class_of(symbol),
    }


def _of_symbols(run: Opened) -> Iterator[Chart]:
    """Yield what a model has learned about single symbols."""
    glyphs, size = Glyphs(run.tokenizer), run.tokenizer.vocab_size
    ids, counts = breakdown.most_frequent(run, size)
    some = ids[:MOST_EMBEDDED]
    if placed := breakdown.embeddings(run.model, some):
        rows = [
            {**_symbol(glyphs, int(idx)), "count": int(count)}
            for idx, count in zip(some, counts, strict=False)
        ]
        yield embedding_chart(placed, rows, len(ids) - len(some))
    paired = ids[:MOST_PAIRED]
    if len(paired) > 1:
        name, glyph = (partial(map, one) for one in (glyphs.name, glyphs.glyph))
        order = sorted(paired.tolist())
        found = breakdown.bigrams(run, paired[paired.argsort()])
        symbol = run.symbols.removesuffix("s")
        yield bigram_chart(found, [*glyph(order)], [*name(order)], len(ids) - len(order), symbol)


def surprise_of(run: Opened, passage: Passage | None = None) -> Chart:
    """Return a picture of how surprising each symbol of a passage is.

    None: of the beginning of the validation part.
    """
    shown = passage or passage_of(run, SHOWN)
    whole = next(predictions(run.model, shown, run.name))
    symbols = list(shown.symbols(Glyphs(run.tokenizer)))
    return surprise_chart(symbols, whole.bits, shown.whence, whole.mean_bits)
