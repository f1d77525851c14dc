"""charlm compare: one table over runs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from charlm.cli import output
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import CheckpointError, DataError, Stopped, UsageError

if TYPE_CHECKING:
    from charlm.evaluation.protocols import Cut
    from charlm.evaluation.score import Score
    from charlm.models import LanguageModel
    from charlm.runs import RunFolder
    from charlm.runs.folder import Checkpoint
    from charlm.runs.weights import SavedModel
    from charlm.text.tokens import Split

Protocol = Literal["windows", "sliding", "stream"]
_TextKey = tuple[object, ...]


@dataclass
class _Row:
    """One run, at its best checkpoint.

    Args:
        saved: The model, without its numbers: all of them at once may not fit into memory.
        part: What it is scored on.
        text: What of the text must be equal for losses to compare.
        source: What the text is called.
        seconds: Training time up to the checkpoint.
        scores: By protocol; a protocol that the model cannot do is missing.
    """

    saved: "SavedModel"
    part: "Split"
    text: _TextKey
    source: str
    seconds: float | None
    scores: "dict[Protocol, Score]"

    @property
    def name(self) -> str:
        return str(self.saved.run.path)

    def loss(self, protocol: Protocol) -> float:
        """Return the loss by a protocol, infinite if the model cannot do it."""
        score = self.scores.get(protocol)
        return score.loss_nats if score else float("inf")

    def but_for_the_seed(self) -> str:
        """Return a key that is equal for runs of one text and configuration, seed aside."""
        config = self.saved.config.model_dump()
        config["run"] |= {"seed": None, "out": None}
        return repr((self.text, config))


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", readable=False, help="Run folders. Default: runs/*."),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(metavar="NAME[,...]", help="Some of windows, sliding and stream."),
    ] = "windows",
    block_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Characters in a window, the same for all runs. Default: the longest that all "
            "can be shown.",
        ),
    ] = None,
    split: Annotated[Literal["val", "test"], typer.Option(help="Part of each run's text.")] = "val",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Score the best checkpoint of each run by the same protocols: one table, the best run first.

    Runs that differ in run.seed only stand together, with the mean and the sample standard
    deviation over them. Losses on different texts do not compare: each text has a table of its own.

    For example: charlm compare runs/gpt*
    """
    chosen = _protocols(protocol)
    if chosen == ["stream"] and block_size is not None:
        raise UsageError(f"--block-size {block_size}", "stream has no window")
    windowed = chosen != ["stream"]
    load_torch()
    with StopSignals() as stop:
        try:
            with stop.at_once():
                rows = list(_load(runs, split, device))
                length = block_size or _common_length([row.saved.model for row in rows])
                cuts = _score(rows, chosen, length, device)
        except Stopped:
            return stop.exit_code
    ordered = _ordered(rows, chosen[0])
    if json:
        window = length if windowed else None
        stride = cuts["sliding"].stride if "sliding" in cuts else None
        output.result_json(_as_json(ordered, split, window, stride))
        return 0
    for number, groups in enumerate(ordered):
        output.result(("\n" if number else "") + _heading(groups[0][0], split))
        for line in _aligned(_table(groups, cuts)):
            output.result(line)
    if len(ordered) > 1:
        output.note(f"{len(ordered)} texts: losses compare within a table only")
    if windowed and block_size is None and any(_has_longer_block(row, length) for row in rows):
        output.note(f"windows of {length} are the longest that all runs take; some see more")
    if any(score.interval for row in rows for score in row.scores.values()):
        output.say(
            "[low, high]: 95 % interval for other texts of this kind; the runs share this one, so "
            "what lies between them is surer"
        )
    return 0


def _protocols(names: str) -> list[Protocol]:
    """Read a comma-separated list, each name once."""
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    for name in chosen:
        if name not in get_args(Protocol):
            raise UsageError(f"--protocol {name!r}: use some of {', '.join(get_args(Protocol))}")
    return cast(list[Protocol], chosen)


def _load(runs: list[Path] | None, split: str, device: str) -> Iterator[_Row]:
    """Load the runs; those that were not named and cannot be scored are left out with a note.

    Raises:
        CheckpointError: There is none, or a named one is no run or has no sound checkpoint.
        DataError: A named one has no such part, or none of the others has.
        UsageError: There is no such device, or a configuration is wrong.
    """
    from charlm.config import read_config
    from charlm.runs import RunFolder, find_run

    # Refused here, where it is nobody's reason to be left out.
    read_config(b"model: {type: bigram}", "charlm compare", [f"run.device={device}"])
    found: Iterable[RunFolder] = (find_run(path) for path in dict.fromkeys(runs or []))
    if not runs:
        found = [RunFolder(path.parent) for path in sorted(Path("runs").glob("*/config.yaml"))]
    some, refused = False, list[CheckpointError | DataError | UsageError]()
    for run in list(found):
        try:
            yield _row(run, split, device)
            some = True
        except (CheckpointError, DataError, UsageError) as error:
            if runs:
                raise
            output.note(f"left out: {error}")
            refused.append(error)
    if refused and not some:
        raise type(refused[0])(
            f"runs/: no run there can be compared, {len(refused)} left out; the first: {refused[0]}"
        )
    if not some:
        raise CheckpointError(
            "runs/: no run there to compare; train one first (charlm train --config quickstart) "
            "or name some"
        )


def _best(run: "RunFolder", device: str) -> tuple["SavedModel", float]:
    """Load the best checkpoint of a run that may go on and prune it; return the time it took too."""
    from charlm.runs.state import read_state
    from charlm.runs.weights import load_model

    def load(best: "Checkpoint") -> tuple["SavedModel", float]:
        return load_model(run, str(best.step), device), read_state(best.path, best.step).seconds

    return run.read("best", load)


def _row(run: "RunFolder", split: str, device: str) -> _Row:
    from charlm.text import open_corpus

    saved, seconds = _best(run, device)
    corpus = open_corpus(saved.run.tokens)
    part = corpus.splits[split]
    if len(part) < 2:
        raise DataError(
            f"{saved.run.path}: its {split} part has {len(part)} characters; it was made with "
            f"data.{split}_fraction {getattr(saved.config.data, f'{split}_fraction')}"
        )
    facts = corpus.facts
    text = (facts["source_sha256"], facts["unit"], facts["vocab_size"], part.start, part.stop)
    saved.model.to("meta")  # keeps shapes alone
    return _Row(saved, part, text, str(facts["source"]), seconds, {})


def _common_length(models: "Sequence[LanguageModel]") -> int:
    """Return the longest window that all models can be shown."""
    limited = [model.block_size for model in models if not model.any_length]
    return min(limited) if limited else max(model.block_size for model in models)


def _has_longer_block(row: _Row, length: int) -> bool:
    return not row.saved.model.any_length and row.saved.model.block_size > length


def _score(
    rows: Sequence[_Row], chosen: Sequence[Protocol], length: int, device: str
) -> "dict[Protocol, Cut]":
    """Score each run by each protocol that it can do, one model in memory at a time.

    Returns:
        A cut by each protocol: but for `stream`, which has no window, it is that of all runs.

    Raises:
        UsageError: The windows are too long for a run, or none can do a protocol.
    """
    from charlm.evaluation.scoring import score_text, utf8_lengths

    cuts = [(row, _cuts(row, chosen, length)) for row in rows]
    shared: dict[Protocol, Cut] = {}
    for name in chosen:
        able = [own[name] for _, own in cuts if name in own]
        if able:
            shared[name] = able[0]
        else:
            raise UsageError(
                f"--protocol {name}: none of these runs can; use windows, or sliding for more "
                "context"
            )

    def advance(chars: int) -> None:
        bar.update(chars)

    total = sum(len(own) * (len(row.part) - 1) for row, own in cuts)
    with output.scoring_bar(total) as bar:
        for row, own in cuts:
            if not own:
                continue
            row.saved, row.seconds = _best(row.saved.run, device)  # which may be another by now
            sizes = utf8_lengths(row.saved.tokenizer)
            for name, cut in own.items():
                row.scores[name] = score_text(
                    row.saved.model, row.part, cut, byte_lengths=sizes, progress=advance
                )
            row.saved.model.to("meta")  # before the next is loaded
    return shared


def _cuts(row: _Row, chosen: Sequence[Protocol], length: int) -> "dict[Protocol, Cut]":
    from charlm.evaluation import protocols

    model = row.saved.model
    try:
        return {
            name: protocols.choose(model, name, None if name == "stream" else length)
            for name in chosen
            if name != "stream" or model.any_length
        }
    except UsageError as error:
        raise error.within(row.name) from None


def _ordered(rows: Sequence[_Row], by: Protocol) -> list[list[list[_Row]]]:
    """Return the texts, in each the groups of runs that differ in their seed only, best first."""
    texts: dict[_TextKey, dict[str, list[_Row]]] = {}
    for row in sorted(rows, key=lambda row: (row.loss(by), row.name)):
        texts.setdefault(row.text, {}).setdefault(row.but_for_the_seed(), []).append(row)
    return [
        sorted(groups.values(), key=lambda group: mean(row.loss(by) for row in group))
        for groups in texts.values()
    ]


def _heading(row: _Row, split: str) -> str:
    sha256, unit = row.text[:2]
    return f"{row.source} ({str(sha256)[:8]}): {split}, {len(row.part) - 1:,} {unit} scored"


def _table(groups: Sequence[Sequence[_Row]], cuts: "Mapping[Protocol, Cut]") -> Iterator[list[str]]:
    """Yield the cells of the table, a row at a time."""
    chosen, titles = list(cuts), list(map(_title, cuts.values()))
    yield ["run", "model", "parameters", "step", "time", *(f"{title}, nats" for title in titles)]
    for group in groups:
        for row in group:
            saved = row.saved
            time = "" if row.seconds is None else f"{row.seconds:,.1f} s"
            cells = [row.name, saved.config.model.brief, _size(saved.model), f"{saved.step:,}"]
            yield [*cells, time, *(_shown(row.scores.get(name)) for name in chosen)]
        seeds = _one_a_seed(group)
        if len(seeds) > 1:
            spreads = [_spread(seeds, name) for name in chosen]
            shown = [f"{s['mean']:.4f}, sd {s['sd']:.4f}" if s else "-" for s in spreads]
            yield [f"  mean of {len(seeds)} seeds", "", "", "", "", *shown]


def _title(cut: "Cut") -> str:
    if cut.name == "stream":
        return "stream"
    by = f" by {cut.stride}" if cut.name == "sliding" else ""
    return f"{cut.name} of {cut.length}{by}"


def _counts(model: "LanguageModel") -> tuple[int, int]:
    """Return the trained parameters of a model and the n-grams that it stores."""
    from charlm.models import NGramModel

    parameters = sum(parameter.numel() for parameter in model.parameters())
    counted = [module for module in model.modules() if isinstance(module, NGramModel)]
    ngrams = sum(
        len(tensor)
        for module in counted
        for name, tensor in module.state_dict().items()
        if name.startswith("share")
    )
    return parameters, ngrams


def _size(model: "LanguageModel") -> str:
    parameters, ngrams = _counts(model)
    counted = f"{ngrams:,} n-grams" if ngrams else ""
    return " + ".join(filter(None, [f"{parameters:,}" if parameters else "", counted]))


def _shown(score: "Score | None") -> str:
    if score is None:
        return "-"
    interval = score.interval
    ends = f" [{interval.low:.4f}, {interval.high:.4f}]" if interval else ""
    return f"{score.loss_nats:.4f}{ends}"


def _one_a_seed(group: Sequence[_Row]) -> list[_Row]:
    """Leave out repeats: a run made twice would make the spread look smaller than it is."""
    return list({row.saved.config.run.seed: row for row in reversed(group)}.values())


def _spread(group: Sequence[_Row], name: Protocol) -> dict[str, float] | None:
    """Return the mean and the sample standard deviation of a protocol's losses, in nats."""
    losses = [row.scores[name].loss_nats for row in group if name in row.scores]
    return {"mean": mean(losses), "sd": stdev(losses)} if losses else None


def _aligned(table: Iterable[list[str]]) -> Iterator[str]:
    """Pad the cells of a table: the first two columns to the left, numbers to the right."""
    rows = list(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if number < 2 or number > 4 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _as_json(
    texts: Sequence[Sequence[Sequence[_Row]]], split: str, length: int | None, stride: int | None
) -> dict[str, Any]:
    groups = [group for text in texts for group in text]
    return {
        "split": split,
        "block_size": length,
        "stride": stride,
        "runs": [_run_as_json(row) for group in groups for row in group],
        "seeds": [
            {
                "runs": [row.name for row in seeds],
                "nats": {name: _spread(seeds, name) for name in seeds[0].scores},
            }
            for seeds in map(_one_a_seed, groups)
            if len(seeds) > 1
        ],
    }


def _run_as_json(row: _Row) -> dict[str, Any]:
    parameters, ngrams = _counts(row.saved.model)
    return {
        "run": row.name,
        "model": row.saved.config.model.type,
        "text": {"source": row.source, "sha256": row.text[0], "unit": row.text[1]},
        "chars": len(row.part) - 1,
        "parameters": parameters,
        "ngrams": ngrams,
        "step": row.saved.step,
        "seconds": row.seconds,
        "seed": row.saved.config.run.seed,
        "scores": {
            name: {
                "loss_nats": score.loss_nats,
                "bits_per_char": score.bits_per_char,
                "bits_per_byte": score.bits_per_byte,
                "perplexity": score.perplexity,
                "interval": score.interval
                and {"low": score.interval.low, "high": score.interval.high},
            }
            for name, score in row.scores.items()
        },
    }
