"""charlm gradcheck: hand-derived gradients against autograd and finite differences."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.config import named_config
from charlm.cli.options import ConfigName, Json, Overrides, overridden
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import UsageError, check_stop

if TYPE_CHECKING:
    from charlm.backprop.check import Difference
    from charlm.models import LanguageModel

ASSUMED_VOCAB = 65  # of Tiny Shakespeare; ids are drawn at random, so no text is needed
SMALL_VOCAB = 11
WINDOWS = 2  # that a model is checked on
FAILED = 1  # exit code

Row = tuple[str, str, "Difference"]  # `rules` or a model, the rule or the weight, what was found


def gradcheck(
    overrides: Overrides = None,
    config: ConfigName = None,
    vocab_size: Annotated[
        int, typer.Option(min=1, max=2**21, help="Vocabulary size of that model.")
    ] = ASSUMED_VOCAB,
    json: Json = False,
) -> int:
    """Check the hand-derived gradients.

    Each is compared with autograd and finite differences, in float64: one row for each rule of
    charlm.backprop, and one for each weight of the model that --config names, of each expert that a
    mixture trains, or, without --config, of a small model of each kind. Exit code 1 if any fails.
    """
    load_torch()
    with StopSignals() as stop, stop.at_once():
        from charlm.backprop import check
        from charlm.backprop.cases import CASES

        models = _models(config, overridden(overrides, {}), vocab_size)
        names = list(CASES)
        for model in models.values():
            names += [name for name, _ in model.named_parameters()]
        checked = (
            output.bar("checking", "row", len(names), iterable=_rows(models))
            if json
            else _printed(models, max(map(len, names)))
        )
        rows = []
        for row in checked:
            check_stop(stop.requested)
            rows.append(row)
    failed = [f"{group} {name}" for group, name, found in rows if not found.passed]
    if json:
        output.result_json(
            {
                "passed": not failed,
                "autograd_tolerance": check.AUTOGRAD_TOLERANCE,
                "finite_tolerance": check.FINITE_TOLERANCE,
                "rows": [
                    {"group": group, "name": name, "autograd": found.autograd}
                    | {"finite": found.finite, "passed": found.passed}
                    | {"reason": found.reason or None}
                    for group, name, found in rows
                ],
            }
        )
    else:
        output.result(f"\n{len(rows)} checked, {len(failed)} failed")
    if failed:
        output.error(f"wrong gradients: {', '.join(failed)}; see charlm/backprop/rules.py")
    return FAILED if failed else 0


def _models(name: str | None, overrides: list[str], vocab: int) -> "dict[str, LanguageModel]":
    """Build the models to check, by the heading of their rows."""
    from charlm.backprop.by_hand import check_derived
    from charlm.config.size import check_memory
    from charlm.models.registry import build_model, kind_for

    if name is None:
        from charlm.backprop.check import SMALL_MODELS

        if overrides:
            raise UsageError(overrides[0], "there is nothing to override", "name a --config too")
        return {title: build_model(c, SMALL_VOCAB) for title, c in SMALL_MODELS.items()}
    checked = named_config(name, overrides)
    models = {}
    for expert, alone in checked.training_runs().items():
        try:
            check_derived(kind_for(alone.model), alone.model.kind)
        except UsageError as error:
            raise error.replace(where=name, mend="name another model, such as gpt") from None
        few = alone.train.model_copy(update={"batch_size": 2 * WINDOWS, "micro_batch_size": None})
        check_memory(alone.model_copy(update={"train": few}), vocab)  # 2: numbers twice as wide
        title = f"{expert}: {alone.model.kind}" if expert else alone.model.kind
        models[title] = build_model(alone.model, vocab)
    if not models:
        kind = checked.model.type
        reason = "trains no expert" if checked.model.members() else "is counted, not trained"
        what = f"this {kind} {reason}: it has no gradients to check"
        raise UsageError(name, what, "name a model that is trained by gradients, such as gpt")
    return models


def _rows(models: "dict[str, LanguageModel]") -> Iterator[Row]:
    from charlm.backprop.check import check_model, check_rules

    yield from (("rules", name, found) for name, found in check_rules())
    for title, model in models.items():
        yield from ((title, *row) for row in check_model(model, windows=WINDOWS))


def _printed(models: "dict[str, LanguageModel]", width: int) -> Iterator[Row]:
    """Print each row as soon as it is checked."""
    from charlm.backprop.check import AUTOGRAD_TOLERANCE, FINITE_TOLERANCE

    output.result("largest difference in float64, relative to the largest gradient\n")
    output.result(f"  {'':<{width}}  {'autograd':>10}  {'finite differences':>18}")
    limits = f"<= {AUTOGRAD_TOLERANCE:.0e}", f"<= {FINITE_TOLERANCE:.0e}"
    output.result(f"  {'tolerance':<{width}}  {limits[0]:>10}  {limits[1]:>18}")
    for group, rows in itertools.groupby(_rows(models), key=lambda row: row[0]):
        output.result(group)
        for _, name, found in rows:
            reason = found.reason.partition("\n")[0]
            verdict = "pass" if found.passed else f"FAIL  {reason}".rstrip()
            numbers = f"{found.autograd:>10.1e}  {found.finite:>18.1e}"
            output.result(f"  {name:<{width}}  {numbers}  {verdict}")
            yield group, name, found
