"""The parts of a page in the form that its template and its script take them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, pairwise
from statistics import median
from typing import Any

from charlm.reporting.attention import Looking
from charlm.reporting.comparing import Compared
from charlm.reporting.facts import parameters_of
from charlm.reporting.glyphs import Glyphs, harmless
from charlm.reporting.opened import Opened
from charlm.reporting.passage import GIVEN_TEXT, Passage, Predicted, window_of
from charlm.reporting.writing import Writing, Written
from charlm.text.tokenizer import BOUNDARY

STEPS = (0.5, 1, 2, 3, 4, 5, 6, 8, 10)  # bits from which on a symbol has the next colour
SCALE = 10_000  # probabilities are sent as whole numbers of this part
ENDS = f"\n{BOUNDARY}"
Symbol = tuple[str, str, str]  # itself, its glyph and its name


@dataclass(frozen=True)
class Cell:
    """One symbol of a passage: its classes, what is shown, and a note where no script runs."""

    look: str
    text: str
    title: str = ""


class Table:
    """Symbols that are sent once, and then named by their number."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, glyph: str, name: str) -> int:
        """Return the number of a symbol with this glyph and name."""
        row = harmless(glyph), harmless(name)
        if row not in self._numbers:
            self._numbers[row] = len(self.rows)
            self.rows.append(row)
        return self._numbers[row]


def level(bits: float) -> int:
    """Return the colour of a surprise."""
    return sum(bits >= least for least in STEPS)


def in_text(symbol: Symbol) -> tuple[str, bool]:
    """Return how a symbol appears within a text, and whether that is a sign for it."""
    itself, sign, _ = symbol
    if itself == " " or (sign.startswith("\u25cc") and len(sign) > 1):  # an accent has its letter
        return itself, False
    return sign, itself != sign


def lines_of(cells: Iterable[Cell], symbols: Sequence[Symbol]) -> list[list[Cell]]:
    """Cut cells into lines, after each newline and each end of a record."""
    lines: list[list[Cell]] = [[]]
    for cell, (itself, _, _) in zip(cells, symbols, strict=True):
        lines[-1].append(cell)
        if itself in ENDS:
            lines.append([])
    return [line for line in lines if line]


def map_of(
    run: Opened, passage: Passage, models: Sequence[Predicted], glyphs: Glyphs
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a surprise map for the template, and for the script; the first model is the run's own."""
    symbols = [*passage.symbols(glyphs)]
    window = window_of(run.model).length
    marked = run.model.memory != 1 and not run.of_records and len(models[0].bits) > window
    cells = map(partial(_cell, models[0], glyphs, window if marked else 0), count(), symbols)
    shown = {
        "about": _about(run, passage, window, marked),
        "models": [{"name": m.name, "mean": f"{m.mean_bits:.3f}"} for m in models],
        "legend": [f"{a:g} to {b:g}" for a, b in pairwise([0, *STEPS])]
        + [f"{STEPS[-1]:g} or more"],
        "lines": lines_of(cells, symbols),
    }
    return shown, _map_data(models, symbols, glyphs, run.symbols.removesuffix("s"))


def _cell(model: Predicted, glyphs: Glyphs, window: int, place: int, symbol: Symbol) -> Cell:
    """Return a symbol in the colour of its surprise; the first of a window has a mark."""
    text, is_sign = in_text(symbol)
    looks = ["c"] + ["sign"] * is_sign
    if place == 0:
        return Cell(" ".join(looks), text, "not predicted: nothing comes before it")
    bits = model.bits[place - 1]
    looks += [f"b{level(bits)}"] + ["w"] * (window > 0 and (place - 1) % window == 0)
    likely = zip(model.ids[place - 1], model.p[place - 1], strict=True)
    some = ", ".join(f"{glyphs.glyph(idx)} {share:.0%}" for idx, share in likely)
    return Cell(" ".join(looks), text, f"{in_bits(bits)}; likeliest: {some}")


def _about(run: Opened, passage: Passage, window: int, marked: bool) -> str:
    """Say what a map shows."""
    given = passage.whence == GIVEN_TEXT
    whence = "The given text" if given else f"The beginning of {passage.whence}"
    about = (
        f"{whence}: {passage.shown - 1:,} {run.symbols} after the first, each coloured by its surprise, the "
        f"bits that an ideal code would spend on it. The model reads them in windows of {window}, as in "
        "charlm eval."
    )
    if marked:
        one = run.symbols.removesuffix("s")
        about += f" A line before a {one} marks where a window begins, and the model starts afresh."
    return about


def in_bits(bits: float) -> str:
    """Return a surprise in words."""
    return f"{bits:.2f} bits" if math.isfinite(bits) else "infinitely many bits"


def _map_data(
    models: Sequence[Predicted], symbols: Sequence[Symbol], glyphs: Glyphs, one: str
) -> dict[str, Any]:
    table = Table()
    at = [table.number(glyph, name) for _, glyph, name in symbols]

    def number(idx: int) -> int:
        return table.number(glyphs.glyph(idx), glyphs.name(idx))

    found = [
        {
            "name": harmless(model.name),
            "bits": [round(bits, 4) if math.isfinite(bits) else None for bits in model.bits],
            "likeliest": [[number(idx) for idx in row] for row in model.ids],
            "p": [[round(SCALE * p) for p in row] for row in model.p],
        }
        for model in models
    ]
    hint = f"Point at a {one}, or choose one with the arrow keys."
    return {
        "at": at,
        "models": found,
        "symbols": table.rows,
        "scale": SCALE,
        "steps": STEPS,
        "hint": hint,
    }


def looking_of(looking: Looking) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what heads look at for the template, and for the script."""
    cells = []
    for symbol in looking.symbols:
        text, is_sign = in_text(symbol)
        cells.append(Cell("c sign" if is_sign else "c", text))
    layers = [
        [
            {
                "picture": head.picture,
                "far": f"mean {head.back:.1f} back",
                "alt": (
                    f"Each position's weights. Of a position's weight, {head.itself:.0%} is on itself and "
                    f"{head.before:.0%} on the one before; the mean distance is {head.back:.1f}."
                ),
            }
            for head in layer
        ]
        for layer in looking.layers
    ]
    table = Table()
    at = [table.number(glyph, name) for _, glyph, name in looking.symbols]
    texts = {k: harmless(in_text(s)[0]) for k, s in zip(at, looking.symbols, strict=True)}
    shown = {
        "name": looking.name,
        "lines": lines_of(cells, looking.symbols),
        "layers": layers,
    }
    return shown, {
        "at": at,
        "symbols": table.rows,
        "texts": [texts[k] for k in range(len(table.rows))],
        "heads": len(looking.layers[0]),
        "shades": looking.shades,
    }


def comparison_of(compared: Sequence[Compared]) -> dict[str, Any]:
    """Return the table of several runs for the template."""
    columns = [
        "run",
        "parameters",
        "step",
        "loss, nats",
        "bits",
        "above the first, nats",
        "95 % interval",
    ]
    rows = []
    for one in compared:
        nats, apart = one.loss_nats, one.difference
        ends = apart.interval if apart else None
        rows.append(
            [
                one.run.name,
                f"{parameters_of(one.run):,}",
                f"{one.run.saved.step:,}",
                "-" if nats is None else f"{nats:.4f}",
                "-" if nats is None else f"{nats / math.log(2):.3f}",
                f"{apart.nats:+.4f}" if apart else "-",
                f"{ends.low:+.4f} to {ends.high:+.4f}" if ends else "-",
            ]
        )
    lengths = {one.scored.block_size for one in compared if one.scored}
    windows = f" in windows of {', '.join(map(str, sorted(lengths)))}" if lengths else ""
    about = (
        f"Each run predicts its validation part{windows}. The last two columns compare a run with the "
        "first, symbol by symbol: below 0, it is better. A run on another text is not compared."
    )
    return {"about": about, "columns": columns, "rows": rows}


def writing_of(run: Opened, writing: Writing) -> dict[str, Any]:
    """Return samples for the template."""
    one = run.symbols.removesuffix("s")
    lower = "The lower the temperature, the more it keeps to what is likely."
    about = f"Drawn with seed {writing.seed}. {lower}"
    if run.of_records:
        about += " Marked records stand in the training part as a whole."
        held = f"Of {writing.held} held-out records, {writing.held_known} stand there too."
    else:
        about += (
            f" The longest span that also stands in the training part, {one} by {one}, is marked."
        )
        held = (
            f"For comparison: of {writing.held} stretches of held-out text of the same length, the longest such "
            f"span is {median(writing.held_spans or [0]):g} {run.symbols} long in the median, and "
            f"{max(writing.held_spans, default=0):,} at most."
        )
    if writing.prompt:
        about += f" They continue {writing.prompt!r}."
    rows = [
        {
            "temperature": f"{one_row.temperature:g}",
            "records": run.of_records,
            "samples": [
                {
                    "before": s.before,
                    "copied": s.copied,
                    "after": s.after,
                    "known": s.known,
                    "text": s.before + s.copied + s.after,
                }
                for s in one_row.samples
            ],
            "remark": _remark(run, one_row),
        }
        for one_row in writing.written
    ]
    return {"about": about, "rows": rows, "held": held if writing.held else ""}


def _remark(run: Opened, written: Written) -> str:
    if not run.of_records:
        return f"Longest span that was copied: {written.longest:,} {run.symbols}."
    if not written.samples:
        return "No sample ended in time."
    return f"{written.known} of {len(written.samples)} stand in the training part."
