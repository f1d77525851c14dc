"""What a run is: in a sentence, in a table of facts, and in all its settings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from charlm.config import Config
from charlm.config.schema import leaves
from charlm.evaluation.ladder import DIGITS
from charlm.models import MixtureModel
from charlm.reporting.opened import Opened
from charlm.runs.state import read_state

SPOKEN_WITH_A_VOWEL = ("attention", "averaging", "lstm", "mlp", "ngram", "rnn")


@dataclass(frozen=True)
class Setting:
    """One key of a configuration."""

    key: str
    value: str
    usual: bool  # whether it has its default


@dataclass(frozen=True)
class Facts:
    """What a page says about a run at its top."""

    sentence: str
    rows: list[tuple[str, str]]  # name and value
    settings: list[Setting]


def facts_of(run: Opened) -> Facts:
    """Return the facts of a run."""
    return Facts(" ".join(_sentences(run)), [*_rows(run)], [*settings_of(run.config)])


def _sentences(run: Opened) -> Iterator[str]:
    config = run.config
    kind = kind_of(run)
    what = f"{run.name} is {'an' if kind.startswith(SPOKEN_WITH_A_VOWEL) else 'a'} {kind}"
    how = {
        "gradients": f"trained for {_many(run.saved.step, 'step')} on",
        "counting": "counted in",
        "joining": f"joined from {_many(len(config.model.members()), 'expert')} on",
    }[config.model.trained_by]
    yield f"{what}, {how} {_amount(run)} of {config.data.source}."
    if (nats := loss_of(run)) is None:
        yield "It was not scored on a validation part."
        return
    bits = nats / math.log(2)
    one = run.symbols.removesuffix("s")
    yield (
        f"It predicts the validation part with {nats:.4f} nats a {one}: {bits:.3f} bits, as if it had "
        f"to choose between {math.exp(nats):.1f} equally likely {run.symbols}."
    )
    ladder = run.ladder
    if ladder:
        passed, missed = ladder.place(nats)
        better = f"better than {passed.name} ({passed.score.loss_nats:.4f})" if passed else ""
        worse = f"not as good as {missed.name} ({missed.score.loss_nats:.4f})" if missed else ""
        yield f"That is {' and '.join(filter(None, (better, worse)))}."


def kind_of(run: Opened) -> str:
    """Return the kind of the model and its size in words."""
    config, parameters = run.config.model, parameters_of(run)
    size = [f"{parameters:,} parameters"] if parameters else []
    size += [f"{run.model.ngrams:,} counted n-grams"] if run.model.ngrams else []
    return " with ".join([f"{config.kind} model", *filter(None, [" and ".join(size)])])


def parameters_of(run: Opened) -> int:
    """Return the number of trained scalars in a run's model."""
    return run.config.model.parameter_count(run.tokenizer.vocab_size)


def loss_of(run: Opened) -> float | None:
    """Return the validation loss in nats at the checkpoint, as training measured it; None: none."""
    saved = [one for one in run.run.checkpoints.all() if one.step == run.saved.step]
    return saved[0].loss if saved else None


def _amount(run: Opened) -> str:
    """Say how long the training part is: its symbols, and its records if it has any."""
    count = f"{len(run.train):,} {run.symbols}"
    return f"{run.train.records:,} records ({count})" if run.of_records else count


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _rows(run: Opened) -> Iterator[tuple[str, str]]:
    config, model, splits = run.config, run.config.model, run.corpus.splits
    yield "run", str(run.run.path)
    yield "text", config.data.source
    unit = config.data.records if run.of_records else run.symbols
    sizes = {name: part.records if run.of_records else len(part) for name, part in splits.items()}
    others = "".join(f", {size:,} in {n}" for n, size in sizes.items() if size and n != "train")
    yield "parts", f"{sizes['train']:,} {unit} in train{others}"
    yield "alphabet", f"{run.tokenizer.vocab_size - run.of_records:,} symbols"
    yield "model", model.described(run.tokenizer.vocab_size)
    if isinstance(run.model, MixtureModel):
        yield "experts", ", ".join(_experts(run))
    if model.trained_by == "gradients":
        train = config.train
        yield (
            "trained",
            f"{train.optimizer}, batches of {train.batch_size} windows of {model.block_size}",
        )
    best = ", the best on the validation part" if loss_of(run) is not None else ""
    yield "checkpoint", f"step {run.saved.step:,}{best}"
    saved = [one for one in run.run.checkpoints.all() if one.step == run.saved.step]
    if saved:
        yield "wall time", f"{read_state(saved[0].path, saved[0].step).seconds:,.1f} s until then"
    if (nats := loss_of(run)) is not None:
        yield "validation loss", f"{nats:.{DIGITS}f} nats, {nats / math.log(2):.3f} bits"
    yield "seed", str(config.run.seed)


def _experts(run: Opened) -> Iterator[str]:
    """Yield each expert with its weight, if the weights are fixed."""
    fixed = run.config.model.kind != "mixture (bitwise)"
    assert isinstance(run.model, MixtureModel)
    weights = run.model.weights.tolist()
    for (name, expert), weight in zip(run.config.model.members().items(), weights, strict=True):
        kind = expert.model.brief if expert.model else "a run"
        yield f"{name} ({kind}{f', weight {weight:.3f}' if fixed else ''})"


def settings_of(config: Config) -> Iterator[Setting]:
    """Yield every key of a configuration in order."""
    for section, values in config:
        fields = type(values).model_fields
        for key, value in leaves(values.model_dump()).items():
            usual = key in fields and fields[key].default == value
            yield Setting(f"{section}.{key}", shown(value), usual)


def shown(value: object) -> str:
    """Return a value as YAML would have it, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return (
        repr(value)
        if isinstance(value, str) and (not value or value != value.strip())
        else str(value)
    )
