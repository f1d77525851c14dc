"""charlm compare: one table over runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from charlm.cli import output
from charlm.cli.baselines import worse_than_uniform
from charlm.cli.escaping import one_word
from charlm.cli.evaluate import learned
from charlm.cli.loss_output import as_json
from charlm.cli.options import A_RUN, Device, Json
from charlm.cli.signals import StopSignals, load_torch
from charlm.cli.spelling import one_line
from charlm.errors import CharlmError, CheckpointError, DataError, UsageError, number_of

if TYPE_CHECKING:
    from charlm.evaluation.comparison import ComparedRun
    from charlm.evaluation.protocols import Cut
    from charlm.evaluation.score import Score
    from charlm.runs.load import SavedModel

Protocol = Literal["windows", "sliding", "stream", "adaptive"]


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Run folders. Default: runs/*.", **A_RUN),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            metavar="NAME[,...]", help="One or more of windows, sliding, stream and adaptive."
        ),
    ] = "windows",
    block_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Characters in a window, the same for all runs. Default: the most that all "
            "support.",
        ),
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="Part of each run's text.")] = "val",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score runs by the same protocol and show them in one table.

    Each run is scored at its best checkpoint, and the best run comes first. Runs that differ only
    in run.seed are grouped, with the mean and the sample standard deviation of their losses. Losses
    on different texts are not comparable: each text has its own table. Runs of characters and of
    bytes of one text are compared by bits per byte.

    For example: charlm compare runs/gpt*
    """
    chosen = _protocols(protocol)
    windowed = any(name in ("windows", "sliding") for name in chosen)
    if block_size is not None and not windowed:
        verb = "has" if len(chosen) == 1 else "have"
        raise UsageError(f"--block-size {block_size}", f"{' and '.join(chosen)} {verb} no window")
    load_torch()
    with StopSignals() as stop, stop.at_once():
        rows = list(_load(runs, split, device))
        table = _scored(rows, chosen, block_size, device)
    if json:
        window = table.length if windowed else None
        stride = table.cuts["sliding"].stride if "sliding" in table.cuts else None
        facts = {"split": split, "block_size": window, "stride": stride}
        output.result_json(facts | _as_json(table.texts))
        return
    output.result("\n\n".join(map("\n".join, _tables(table, split))))
    _remarks(rows)
    if len(table.texts) > 1:
        output.note(f"{len(table.texts)} tables: losses are comparable only within one")
    if windowed and block_size is None and table.longer:
        longest = f"windows of {table.length} are the longest that all runs support"
        output.note(f"{longest}; some support more")
    if any(score.interval for row in rows for score in row.scores.values()):
        output.say(
            "[low, high]: 95 % interval for other texts of this kind; on this one text, "
            "differences between runs are more certain than these intervals"
        )


@dataclass(frozen=True)
class _Table:
    """What was scored, and how."""

    texts: "Sequence[Sequence[Sequence[ComparedRun]]]"  # groups of runs for each
    cuts: "Mapping[Protocol, Cut]"
    length: int  # of a window
    longer: bool  # whether some run supports a longer one


def _scored(
    rows: "list[ComparedRun]", chosen: list[Protocol], block_size: int | None, device: str
) -> "_Table":
    """Score the runs by each protocol."""
    from charlm.evaluation import comparison

    comparison.join_units(rows)
    models = [row.saved.model for row in rows]
    length = block_size or comparison.common_length(models)
    longer = any(m.block_size > length for m in models if not m.any_length)
    cuts = comparison.cut(rows, chosen, length)
    scored = sum(len(row.cuts) * (len(row.part) - 1) for row in rows)
    total = scored + sum(model.uncounted for model in models)
    with output.bar("scoring", "symbol", total) as bar:
        comparison.score(rows, device, bar.update)
    return _Table(comparison.ordered(rows, chosen[0]), cuts, length, longer)


def _tables(table: _Table, split: str) -> Iterator[list[str]]:
    """Yield the lines of a table for each text."""
    first = [groups[0][0] for groups in table.texts]
    for groups in table.texts:
        row = groups[0][0]
        alike = [other for other in first if other.text[0] == row.text[0] and other is not row]
        cells = [*_cells(groups, table.cuts)]
        lines = output.aligned(cells, right=range(2, 5), shorten=(1, 0))
        yield [_heading(row, split, alike), *lines]


def _remarks(rows: "Sequence[ComparedRun]") -> None:
    from charlm.evaluation.unknown import uniform_nats

    if any(row.among_both for row in rows):
        output.note(
            "runs of characters and of bytes are compared by bits per byte, on the same bytes; the "
            "length of a window is in each run's own unit"
        )
    for row in rows:
        if "adaptive" in row.scores:
            output.say(f"{row.name}, adaptive: {learned(row.learned)}")
        for name, score in row.scores.items():
            symbols = row.saved.tokenizer.vocab_size
            uniform = uniform_nats(symbols, score.escapes, score.chars)
            if worse := worse_than_uniform(score.loss_nats, uniform):
                output.note(f"{row.name}, {name}: {score.loss_nats:.4f} nats, {worse}")


def _protocols(names: str) -> list[Protocol]:
    """Read a comma-separated list, each name once."""
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in get_args(Protocol):
            allowed = ", ".join(get_args(Protocol))
            raise UsageError(f"--protocol {name!r}", "unknown", f"use one or more of {allowed}")
    return cast(list[Protocol], chosen)


def _load(runs: list[Path] | None, split: str, device: str) -> "Iterator[ComparedRun]":
    """Load the runs; those that were not named and cannot be scored are left out with a note.

    Raise CharlmError if a named one cannot be scored, or none of the others.
    """
    from charlm.config import BigramConfig, Config, changed
    from charlm.evaluation.comparison import open_run
    from charlm.runs import RunFolder, find_run

    # A wrong device is refused here, before it becomes a reason to leave each run out.
    changed(Config(model=BigramConfig(type="bigram")), [f"run.device={device}"])
    if runs:
        for run in [find_run(path) for path in dict.fromkeys(runs)]:
            yield open_run(run, split, device)
        return
    found = sorted(Path("runs").glob("*/config.yaml"))
    refused: list[CharlmError] = []
    for path in found:
        try:
            yield open_run(RunFolder(path.parent), split, device)
        except (CheckpointError, DataError, UsageError) as error:
            output.note(f"left out: {one_line(error)}")
            refused.append(error)
    if not found:
        mend = "train one first (charlm train --config quickstart)"
        raise CheckpointError("runs/", "no run to compare", mend)
    if len(refused) == len(found):
        what = f"no run can be compared, {len(refused)} left out"
        raise type(refused[0])("runs/", what, f"the first: {one_line(refused[0])}")


def _heading(row: "ComparedRun", split: str, alike: "Sequence[ComparedRun]") -> str:
    """Name a text, and what sets it apart from others of the same bytes."""
    scored = f"{number_of(len(row.part) - 1, output.one(row.unit))} scored"
    if row.among_both:  # the bytes of a run of characters are counted while it is scored
        sizes = {score.bytes for score in row.scores.values()}
        scored = f"{max(size or 0 for size in sizes):,} bytes scored"
    facts = [(own, [other.read_as[i] for other in alike]) for i, own in enumerate(row.read_as)]
    alone = [own for own, others in facts if own and own not in others]
    apart = alone[:1] or [own for own, others in facts if own and {own} != {*others}]
    said = ", ".join([split, *(apart if alike else []), scored])
    return f"{one_word(row.source)} ({str(row.text[0])[:8]}): {said}"


def _cells(
    groups: "Sequence[Sequence[ComparedRun]]", cuts: "Mapping[Protocol, Cut]"
) -> Iterator[list[str]]:
    """Yield the cells of each row of a table."""
    from charlm.evaluation.comparison import one_per_seed, spread

    both = groups[0][0].among_both
    losses = [f"{_title(cut)}, {'bits/byte' if both else 'nats'}" for cut in cuts.values()]
    unit = ["unit"] if both else []
    yield ["run", "model", "parameters", "step", "time", *unit, *losses]
    for group in groups:
        for row in group:
            saved = row.saved
            time = "" if row.seconds is None else f"{row.seconds:,.1f} s"
            cells = [
                one_word(row.name),
                one_word(saved.config.model.brief),
                _size(saved),
                f"{saved.step:,}",
            ]
            unit = [row.unit] if both else []
            yield [*cells, time, *unit, *(_shown(row, row.scores.get(name)) for name in cuts)]
        seeds = one_per_seed(group)
        if len(seeds) > 1:
            spreads = [spread(seeds, name, scaled=True) for name in cuts]
            shown = [f"{s['mean']:.4f}, sd {s['sd']:.4f}" if s else "-" for s in spreads]
            yield [f"  mean of {len(seeds)} seeds", *[""] * (4 + both), *shown]


def _title(cut: "Cut") -> str:
    if cut.block_size is None:
        return cut.name
    by = f" by {cut.stride}" if cut.name == "sliding" else ""
    return f"{cut.name} of {cut.length}{by}"


def _parameters(saved: "SavedModel") -> int:
    # Not counted in the model: on the meta device, tied weights are two parameters.
    return saved.config.model.parameter_count(saved.tokenizer.vocab_size)


def _size(saved: "SavedModel") -> str:
    counts = {"": _parameters(saved), " n-grams": saved.model.ngrams}
    return " + ".join(f"{count:,}{what}" for what, count in counts.items() if count)


def _shown(row: "ComparedRun", score: "Score | None") -> str:
    if score is None:
        return "-"
    interval, scale = score.interval, row.scale(score)
    ends = f" [{interval.low * scale:.4f}, {interval.high * scale:.4f}]" if interval else ""
    return f"{score.loss_nats * scale:.4f}{ends}"


def _as_json(texts: "Sequence[Sequence[Sequence[ComparedRun]]]") -> dict[str, Any]:
    from charlm.evaluation.comparison import one_per_seed, spread

    groups = [group for text in texts for group in text]
    return {
        "runs": [_run_as_json(row) for group in groups for row in group],
        "seeds": [
            {
                "runs": [row.name for row in seeds],
                "nats": {name: spread(seeds, name) for name in seeds[0].scores},
            }
            for seeds in map(one_per_seed, groups)
            if len(seeds) > 1
        ],
    }


def _run_as_json(row: "ComparedRun") -> dict[str, Any]:
    return {
        "run": row.name,
        "model": row.saved.config.model.type,
        "text": {"source": row.source, "sha256": row.text[0], "unit": row.unit},
        "chars": len(row.part) - 1,
        "parameters": _parameters(row.saved),
        "ngrams": row.saved.model.ngrams,
        "step": row.saved.step,
        "seconds": row.seconds,
        "seed": row.saved.config.run.seed,
        **({"learned": row.learned} if "adaptive" in row.scores else {}),
        "scores": {name: as_json(score, row.unit) for name, score in row.scores.items()},
    }
