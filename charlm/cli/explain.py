"""charlm explain: the shapes, parameters, FLOPs and memory of a configuration."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.config import named_config
from charlm.cli.costs import check_shared, chosen_gpu, explain_costs
from charlm.cli.escaping import one_word
from charlm.cli.options import ConfigName, Overrides, Source, overridden
from charlm.cli.spelling import one_line
from charlm.errors import CharlmError, Setting, UsageError, number_of

if TYPE_CHECKING:
    from charlm.config import Config, ExpertConfig, ModelConfig

FACTS = 22  # characters of a name beside a sentence
ASSUMED_VOCAB = 65  # of Tiny Shakespeare, for a text that is not on this machine
A_TABLE = "at most 24 bytes for each n-gram that occurs"


def explain(
    overrides: Overrides = None,
    config: ConfigName = None,
    source: Source = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=1, max=2**21, help="Vocabulary size. Default: that of the text."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Estimate a step in so many processes, by each strategy."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Of one such GPU each, by published numbers: h100."),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="Of a GPU's peak that is reached. Default: 0.4."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the estimate as one JSON object.")
    ] = False,
) -> None:
    """Show a configuration's shapes, parameters, FLOPs and memory.

    For a counted model: its order, look-ups and tables. For a mixture: each of its experts.

    With --processes or --gpus: what a step takes in several processes. See docs/scale.md.
    """
    from charlm.config.memory import human_bytes
    from charlm.config.size import checkpoint_bytes

    gpu = chosen_gpu(gpus, share)
    if json and processes is None and gpu is None:
        what = "prints an estimate for several processes, and no number is given"
        raise UsageError(Setting("json", True), what, "add --processes N")
    checked = named_config(config, overridden(overrides, {"data.source": source}))
    if processes is not None or gpu:
        several = processes or 1
        check_shared(checked, several)
        vocab = vocab_size or _measure(checked)[0]
        explain_costs(checked, vocab, several, gpu, json)
        return
    model, members = checked.model, checked.model.members()
    vocab, chars = (vocab_size, 0) if vocab_size else _measure(checked)
    disk = human_bytes(checkpoint_bytes(checked, vocab, chars))
    symbols = number_of(vocab, "symbol")
    if checked.data.records != "none" and not vocab_size:  # elsewhere that is not counted
        symbols += " with the end of a record"
    output.result(f"{model.type}: V = {symbols}, T = {model.block_size}\n")
    if members:
        _explain_mixture(checked, vocab, chars)
        others = ", without those of runs" if any(e.model is None for e in members.values()) else ""
        output.result(f"\nin all: {model.parameter_count(vocab):,} parameters{others}")
        tables = f", and tables: {A_TABLE}" if _has_tables(model) and not chars else ""
        output.result(f"checkpoints on disk, including the experts': {disk}{tables}")
    elif checked.training_runs():
        _explain_trained(checked, vocab)
        output.result(f"checkpoint on disk: {disk}")
    else:
        _explain_counted(model, vocab, chars, checked.data.unit)


def _explain_mixture(config: "Config", vocab: int, chars: int) -> None:
    """List the experts, then explain each that is trained or counted for the mixture."""
    experts, trained = config.model.members(), config.training_runs()
    title, rows = _facts(config.model, chars, config.data.unit)
    described = ((name, _described(expert)) for name, expert in experts.items())
    _rows(title, [*described, *rows], FACTS)
    for name, expert in experts.items():
        if expert.run or expert.model is None:
            continue
        output.result(f"\n{one_word(name)}: {expert.model.type}\n")
        if name in trained:
            _explain_trained(trained[name], vocab, config.train.minutes)
        else:
            _explain_counted(expert.model, vocab, chars, config.data.unit)


def _described(expert: "ExpertConfig") -> str:
    if expert.run:
        return f"from {expert.run}: charlm explain -c {expert.run}/config.yaml"
    assert expert.model is not None
    how = "trained" if expert.model.trained_by == "gradients" else "counted"
    return f"{expert.model.type}, {how} here"


def _facts(model: "ModelConfig", chars: int, unit: str) -> tuple[str, list[tuple[str, str]]]:
    title, rows = model.facts(chars)
    return title, [(output.in_unit(n, unit), output.in_unit(v, unit)) for n, v in rows]


def _explain_counted(model: "ModelConfig", vocab: int, chars: int, unit: str) -> None:
    from charlm.config.memory import human_bytes

    _rows(*_facts(model, chars, unit), FACTS)
    output.result("\ntraining: counted in one step, no gradients")
    if size := model.table_bytes(vocab, chars):
        output.result(f"tables on disk: at most {human_bytes(size)}")
    elif model.type == "ngram":
        output.result(f"tables on disk: {A_TABLE}")


def _explain_trained(config: "Config", vocab: int, shared: float | None = None) -> None:
    """Explain a model with weights; `shared` minutes of wall time are those of its mixture."""
    from charlm.config.memory import human_bytes
    from charlm.config.size import flops_per_step, training_bytes

    model, train = config.model, config.train
    shapes = model.shapes(train.micro_batch_size or train.batch_size, vocab)
    _rows("shapes of one batch", [(name, f"({', '.join(_thousands(s))})") for name, s in shapes])
    weights = []
    for part in model.parts(vocab):
        times = f"{part.copies} x " if part.copies > 1 else ""
        shape = f"{times}({' x '.join(_thousands(part.shape))})"
        weights.append((part.name, f"{shape:<22} {part.parameters:>14,}"))
    total = ("total", f"{'':<22} {model.parameter_count(vocab):>14,}")
    _rows("\nparameters", [*weights, total])
    flops, chars = flops_per_step(config, vocab), train.batch_size * model.block_size
    unit = output.one(config.data.unit)
    output.result(f"\ntraining step: {number_of(chars, unit)}, {_flops(flops)}FLOP")
    length = f"{number_of(train.max_steps, 'step')}, {_flops(flops * train.max_steps)}FLOP"
    if minutes := shared or train.minutes:
        planned = "; train.plan chooses the size for the budget" if train.plan else ""
        length = f"{'its share of ' if shared else ''}{number_of(minutes, 'minute')} of wall time{planned}"
    output.result(f"whole run: {length}")
    memory = training_bytes(config, vocab)
    memory["total"] = sum(memory.values())
    title = "\nmemory in training (float32; activations are an estimate)"
    _rows(title, [(name, f"{human_bytes(count):>14}") for name, count in memory.items()])


def _rows(title: str, rows: Iterable[tuple[str, str]], width: int = 31) -> None:
    output.result(title)
    for name, value in rows:
        output.result(f"  {one_word(name):<{width}} {one_word(value)}")


def _thousands(numbers: Iterable[int]) -> Iterator[str]:
    return (f"{number:,}" for number in numbers)


def _measure(config: "Config") -> tuple[int, int]:
    """Return the number of symbols, and of characters to train on (0: not known)."""
    from charlm.text import DATASETS, open_source, scan_text

    source = config.data.source
    as_bytes = config.data.unit == "bytes"
    if as_bytes and not _has_tables(config.model):
        return 256, 0  # the same for any text: no need to read it
    assumed = 256 if as_bytes else ASSUMED_VOCAB
    if source == "-" or (source in DATASETS and not DATASETS[source].path().is_file()):
        output.note(f"{source}: not on this machine; assuming {assumed} symbols")
        return assumed, 0
    try:
        scan = scan_text(open_source(source), config.data)
        first, last = scan.bounds(config.data)["train"]
        return scan.tokenizer(config.data).vocab_size, last - first
    except CharlmError as error:
        output.note(f"{one_line(error)}; assuming {assumed} symbols")
        return assumed, 0


def _has_tables(model: "ModelConfig") -> bool:
    return model.table_bytes(vocab_size=1, chars=1) > 0


def _flops(count: int) -> str:
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if count >= 10**power:
            return f"{Decimal(count) / 10**power:.3g} {prefix}"
    return f"{count} "
