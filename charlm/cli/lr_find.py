"""charlm lr-find: a learning rate range test in one short run."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.config import named_config
from charlm.cli.options import ConfigName, Json, Overrides, RunDevice, RunSeed, Source, overridden
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import UsageError, check_stop

if TYPE_CHECKING:
    from charlm.training.gradients import GradientLearner
    from charlm.training.range_test import Tried

WIDTH, HEIGHT = 70, 15  # of the picture, in characters
LEAST, MOST = 1e-12, 1e6  # learning rates; none beyond these is of use


def lr_find(
    overrides: Overrides = None,
    config: ConfigName = None,
    source: Source = None,
    low: Annotated[float, typer.Option("--from", help="First learning rate.")] = 1e-5,
    high: Annotated[float, typer.Option("--to", help="Last learning rate.")] = 1.0,
    steps: Annotated[
        int, typer.Option(min=10, max=100_000, help="Steps from first to last.")
    ] = 100,
    seed: RunSeed = None,
    device: RunDevice = None,
    json: Json = False,
) -> None:
    """Suggest a learning rate from one short run.

    Plots the loss while the learning rate grows with every step, and saves nothing. For example: charlm lr-find --config gpt data.source=my.txt
    """
    if not LEAST <= low < high <= MOST:
        what = f"expected from < to, between {LEAST:g} and {MOST:g}"
        raise UsageError(f"--from {low:g} --to {high:g}", what)
    options = {"data.source": source, "run.seed": seed, "run.device": device}
    changes = overridden(overrides, options)
    load_torch()
    with StopSignals() as stop, stop.scratch() as scratch:
        with stop.at_once():
            learner = _learner(config, changes, scratch, stop)
        from charlm.training.range_test import climb

        updates = climb(learner, low, high, steps, stop.requested)
        with closing(learner):
            tried = list(output.bar("trying", "step", steps, iterable=updates, unit_scale=False))
        check_stop(stop.requested)  # half a curve suggests nothing
    if len(tried) < 2:
        what = f"the loss is not finite after step {len(tried)}"
        raise UsageError(f"--from {low:g}", what, "start lower")
    _show(tried, json)


def _learner(
    name: str | None, changes: list[str], scratch: Path, stop: StopSignals
) -> "GradientLearner":
    """Build the model and its optimizer, with the text in a temporary folder."""
    from charlm.lifecycle.begin import create_run, prepare_text
    from charlm.models import build_model
    from charlm.training import Job
    from charlm.training.gradients import gradient_learner

    config = named_config(name, changes)
    if config.model.trained_by != "gradients":
        mend = "name a model that is trained by gradients, such as gpt"
        raise UsageError("model.type", f"{config.model.type} has no learning rate", mend)
    with output.bytes_bar(False, stop.requested) as progress:
        text = prepare_text(config, progress, output.download_bar(False, stop.requested))
        run = create_run(config, scratch, text, progress)
    output.load_kernels(config, False)
    model = build_model(config.model, run.tokenizer.vocab_size, config.run.seed)
    job = Job(run.config, run.run, run.corpus, run.tokenizer, model, stop.requested)
    return gradient_learner(job)


def _show(tried: "list[Tried]", json: bool) -> None:
    from charlm.training.range_test import as_dict, lowest, suggestion

    if json:
        output.result_json(as_dict(tried))
        return
    from uniplot import plot_to_string

    output.result(
        plot_to_string(
            xs=[one.rate for one in tried],
            ys=[one.smooth_nats for one in tried],
            x_as_log=True,
            lines=True,
            width=WIDTH,
            height=HEIGHT,
            title="loss (nats, smoothed) by learning rate",
        )
    )
    best, rate = lowest(tried), suggestion(tried)
    if best is tried[-1]:
        output.note("the loss was still falling at the end; raise --to or --steps")
    elif rate is None:
        output.note(f"the loss never fell below {tried[0].smooth_nats:.4f} nats; lower --from")
    if rate is None:
        return
    output.result(f"lowest {best.smooth_nats:.4f} nats at {best.rate:.1e}; start at a tenth of it")
    output.result(f"try    train.learning_rate={rate:.0e}")
