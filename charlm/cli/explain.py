"""charlm explain: what a configuration means in shapes, parameters, FLOPs and memory."""

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.errors import CharlmError

if TYPE_CHECKING:
    from charlm.config import Config, ExpertConfig, MixtureConfig, ModelConfig, NGramConfig

ASSUMED_VOCAB = 65  # of Tiny Shakespeare, when the text is not here to be counted
A_TABLE = "16 bytes at most for each n-gram that occurs"


def explain(
    config: Annotated[
        str,
        typer.Option(
            "--config", "-c", metavar="FILE|PRESET", help="A YAML file or a preset's name."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Override keys.")
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=1, max=2**21, help="Symbols. Default: counted in the text."),
    ] = None,
) -> None:
    """Show shapes, parameters, FLOPs a step and memory of a configuration, without training it.

    Of a counted model: its orders, look-ups and tables. Of a mixture: each of its experts.
    """
    from charlm.config import load_config
    from charlm.config import size as cost

    checked = load_config(config, overrides or [])
    vocab, chars = (vocab_size, 0) if vocab_size else _measure(checked)
    output.result(f"{checked.model.type}: V = {vocab} symbols, T = {checked.model.block_size}\n")
    if checked.model.type == "mixture":
        _explain_mixture(checked, vocab, chars)
    elif checked.model.type == "ngram":
        _explain_counted(checked.model, vocab, chars)
    else:
        _explain_trained(checked, vocab, _clock(checked, checked.train.minutes))
    disk = cost.human_bytes(cost.checkpoint_bytes(checked, vocab, chars))
    if checked.model.type == "mixture":
        tables = "" if chars or not _has_counts(checked.model) else f", and tables: {A_TABLE}"
        unread = any(expert.model is None for expert in checked.model.experts.values())
        others = ", without those of runs" if unread else ""
        count = cost.parameter_count(checked.model, vocab)
        output.result(f"\nin all: {count:,} parameters{others}")
        output.result(f"checkpoints on disk, the experts' own included: {disk}{tables}")
    elif checked.model.type != "ngram":
        output.result(f"checkpoint on disk: {disk}")


def _explain_mixture(config: "Config", vocab: int, chars: int) -> None:
    from charlm.config import size as cost

    assert config.model.type == "mixture"
    model, minutes, trained = config.model, config.train.minutes, cost.trained(config)
    output.result(f"experts, joined {model.combine}")
    for name, expert in model.experts.items():
        _row(name, _described(expert))
    _row("weights", _weights(model, chars))
    for name, expert in model.experts.items():
        if name in trained:
            output.result(f"\n{name}: {expert.model and expert.model.type}\n")
            clock = _clock(trained[name], minutes, "its share of ")
            _explain_trained(trained[name], vocab, clock)
        elif expert.model is not None and expert.model.type == "ngram" and not expert.run:
            output.result(f"\n{name}: ngram\n")
            _explain_counted(expert.model, vocab, chars)


def _clock(config: "Config", minutes: float | None, share: str = "") -> str:
    """Say how long it trains by the clock, if it does, and what is not known before it starts."""
    if minutes is None:
        return ""
    planned = "; train.plan: the size is then chosen for the time" if config.train.plan else ""
    return f"{share}{minutes:g} minutes by the clock{planned}"


def _described(expert: "ExpertConfig") -> str:
    if expert.run:
        return f"from {expert.run}: charlm explain -c {expert.run}/config.yaml"
    assert expert.model is not None
    return f"{expert.model.type}, {'counted' if expert.model.type == 'ngram' else 'trained'} here"


def _weights(model: "MixtureConfig", chars: int) -> str:
    fitted = f", {int(chars * model.tune_fraction):,} characters" if chars else ""
    return (
        f"{len(model.experts)} and a temperature, fitted on the last "
        f"{100 * model.tune_fraction:.3g} % of the training part{fitted}"
    )


def _explain_counted(model: "NGramConfig", vocab: int, chars: int) -> None:
    from charlm.config import size as cost

    known = f", {chars:,} characters" if chars else ""
    counted = min(model.last_chars or chars, chars or model.last_chars or 0)
    output.result("n-grams")
    before = f"and at most {model.order - 1} before it" if model.order > 1 else "alone"
    _row("order", f"{model.order}: the next character {before}")
    add_k = f", {model.add_k:g} to every count" if model.smoothing == "add-k" else ""
    _row("smoothing", model.smoothing + add_k)
    last = f"the last {counted:,} characters of the training part"
    _row("counted", last if model.last_chars else f"the training part{known}")
    if model.min_count > 1:
        _row("left out", f"n-grams that occur less than {model.min_count} times")
    # The context of every order but the first, and the character after it.
    _row("to score a character", f"{max(0, 2 * model.order - 3)} binary searches at most")
    output.result("\ntraining: counted in one step, no gradients")
    size = cost.human_bytes(cost.table_bytes(model, vocab, counted))
    output.result(f"tables on disk: {f'at most {size}' if counted else A_TABLE}")


def _explain_trained(config: "Config", vocab: int, clock: str) -> None:
    """Explain a model with weights; `clock` says how long it is trained, if not by steps."""
    from charlm.config import size as cost

    output.result("shapes of one batch")
    for name, shape in _shapes(config, vocab):
        _row(name, shape)
    output.result("\nparameters")
    parts = cost.parts(config.model, vocab)
    for part in parts:
        shape = " x ".join(f"{n:,}" for n in part.shape)
        times = f"{part.copies} x " if part.copies > 1 else ""
        _row(part.name, f"{times + '(' + shape + ')':<22} {part.parameters:>14,}")
    _row("total", f"{'':<22} {sum(part.parameters for part in parts):>14,}")
    flops = cost.flops_per_step(config, vocab)
    chars = config.train.batch_size * config.model.block_size
    output.result(f"\ntraining step: {chars:,} characters, {_flops(flops)}FLOP")
    steps = config.train.max_steps
    length = f"{steps:,} steps, {_flops(flops * steps)}FLOP"
    output.result(f"whole run: {clock or length}")
    output.result("\nmemory in training (float32; activations are an estimate)")
    memory = cost.training_bytes(config, vocab)
    for name, count in {**memory, "total": sum(memory.values())}.items():
        _row(name, f"{cost.human_bytes(count):>14}")


def _row(name: str, value: str) -> None:
    output.result(f"  {name:<31} {value}")


def _measure(config: "Config") -> tuple[int, int]:
    """Return the number of symbols and of characters to train on, 0 where those are unknown."""
    from charlm.text import DATASETS, open_source, scan_text
    from charlm.text.corpus import split_bounds

    source = config.data.source
    as_bytes = config.data.unit == "bytes"
    if as_bytes and not _has_counts(config.model):
        return 256, 0  # whatever the text is: no need to read it
    assumed = 256 if as_bytes else ASSUMED_VOCAB
    if source == "-" or (source in DATASETS and not DATASETS[source].path().is_file()):
        output.note(f"{source} is not here to be counted; assuming {assumed} symbols")
        return assumed, 0
    try:
        scan = scan_text(open_source(source), config.data)
        first, last = split_bounds(scan.size, config.data)["train"]
        return scan.tokenizer(config.data).vocab_size, last - first
    except CharlmError as error:
        output.note(f"{error}; assuming {assumed} symbols")
        return assumed, 0


def _has_counts(model: "ModelConfig") -> bool:
    experts = model.experts.values() if model.type == "mixture" else ()
    return model.type == "ngram" or any(e.model and e.model.type == "ngram" for e in experts)


def _shapes(config: "Config", vocab: int) -> list[tuple[str, str]]:
    model = config.model
    b, t, c = (
        config.train.micro_batch_size or config.train.batch_size,
        model.block_size,
        getattr(model, "n_embd", 0),
    )
    rows: list[tuple[str, tuple[int, ...]]] = [("idx (B, T)", (b, t))]
    if model.type != "bigram":
        rows.append(("embeddings (B, T, C)", (b, t, c)))
    if model.type == "averaging":
        rows += [("averaging matrix (T, T)", (t, t)), ("joined (B, T, 2C)", (b, t, 2 * c))]
    if model.type in ("attention", "multihead", "gpt"):
        heads = getattr(model, "n_head", 1)
        rows += [
            ("query, key, value (B, H, T, D)", (b, heads, t, c // heads)),
            ("attention weights (B, H, T, T)", (b, heads, t, t)),
        ]
    if model.type == "gpt":
        rows.append(("expanded in the MLP (B, T, 4C)", (b, t, 4 * c)))
    rows += [("logits (B, T, V)", (b, t, vocab)), ("for the loss (B*T, V)", (b * t, vocab))]
    return [(name, "(" + ", ".join(f"{n:,}" for n in shape) + ")") for name, shape in rows]


def _flops(count: int) -> str:
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if count >= 10**power:
            return f"{Decimal(count) / 10**power:.3g} {prefix}"
    return f"{count} "
