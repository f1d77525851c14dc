"""charlm sample: text from a trained model, printed as it is generated."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from charlm.cli import output
from charlm.cli.options import (
    AdaptKeys,
    Checkpoint,
    Device,
    Run,
    RunPlace,
    either,
    of_adapt,
    overridden,
)
from charlm.cli.prompts import Prompt, read_prompt, typed_prompts
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import Setting, UsageError, check_stop

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from charlm.errors import Words
    from charlm.runs import RunFolder
    from charlm.runs.load import SavedModel
    from charlm.sampling import Context, Wanted

MOST = 1_000_000  # texts that one command draws


def sample(
    place: RunPlace = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Text to continue. Default: the run's own.")
    ] = None,
    run: Run = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="Read the prompt from a file; - is standard input.", readable=False),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Ask for one prompt after another.")
    ] = False,
    number: Annotated[int, typer.Option("-n", min=1, max=MOST, help="Number of samples.")] = 1,
    max_new_chars: Annotated[int | None, typer.Option(help="Most characters to generate.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="Generation ends before the first match; repeatable. A newline is $'\\n'."
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            help="A line between samples. Default: an empty one, or none if no sample can have "
            "more than one line.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1: safer. Above 1: more varied. 0 = greedy.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the K most likely characters.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Sample from the most likely characters, up to this total probability."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Leave out characters less than P times as likely as the best."),
    ] = None,
    typical_p: Annotated[
        float | None, typer.Option(help="Locally typical sampling, up to this total probability.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: fewer repeats of the last 64 characters.")
    ] = None,
    allow: Annotated[
        str | None, typer.Option(help="Sample only these characters, or a class such as [a-z ].")
    ] = None,
    best_of: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST,
            help="Draw this many for each sample; show the best by mean log-probability.",
        ),
    ] = 1,
    novel: Annotated[
        bool,
        typer.Option(
            "--novel",
            help="Draw on until -n texts are whole records that the training part does not hold.",
        ),
    ] = False,
    unique: Annotated[
        bool, typer.Option("--unique", help="Draw on until -n texts differ from each other.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the first text; each further text takes the next seed."),
    ] = None,
    unknown: Annotated[
        Literal["error", "skip", "nearest"],
        typer.Option(
            help="Characters of the prompt that the model does not know: refuse them, skip them, "
            "or replace them by similar ones."
        ),
    ] = "error",
    weights: Annotated[
        Literal["float32", "int8"],
        typer.Option(help="int8: a GPT's matrices in 8 bits, faster for large ones. CPU only."),
    ] = "float32",
    adapt: Annotated[
        bool,
        typer.Option("--adapt", help="Learn from the prompt first; use a long --prompt-file."),
    ] = False,
    settings: AdaptKeys = None,
    checkpoint: Checkpoint = "best",
    device: Device = "auto",
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Print the prompt first.")] = True,
    show_alternatives: Annotated[
        bool,
        typer.Option(
            "--show-alternatives",
            help="Colour characters by probability; with --json, list the most likely.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per sample.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No seeds, titles or progress on stderr.")
    ] = False,
) -> None:
    """Generate text with a trained model.

    For example: charlm sample --prompt "ROMEO:" --temperature 0.7
    """
    load_torch()
    from charlm import sampling
    from charlm.cli.sample_output import Show, Style, write
    from charlm.config import changed
    from charlm.runs import find_run
    from charlm.runs.load import load_model
    from charlm.text.raw import as_bytes, decoded

    if interactive and (prompt is not None or prompt_file is not None or json):
        mend = "leave out --prompt, --prompt-file and --json"
        raise UsageError("--interactive", "asks for prompts and prints text", mend)
    learning = of_adapt(settings)
    if learning and not adapt:
        raise UsageError(f"--set {learning[0]}", "nothing is learned", "add --adapt")
    found = find_run(either(place, run, "--run"))
    asked = {"max_new_chars": max_new_chars, "temperature": temperature, "top_k": top_k}
    asked |= {"top_p": top_p, "min_p": min_p, "typical_p": typical_p}
    asked |= {"repetition_penalty": repetition_penalty}
    options = {"run.device": device} | {f"sample.{key}": value for key, value in asked.items()}
    changes = changed(found.config, overridden(learning, options))
    config = changes.sample
    unit = found.tokenizer.unit
    text, where = read_prompt(prompt, prompt_file, config.prompt, unit)
    if novel and found.tokenizer.boundary is None:
        what = "this run's text has no records, so no sample is whole"
        raise UsageError("--novel", what, "use a run that was trained with data.records=lines")
    first = sampling.choose_seed(seed)

    def encode(prompt: str, where: "Words") -> "npt.NDArray[np.int64]":
        return sampling.encode_prompt(found.tokenizer, prompt, unknown, where)

    prompts: Iterable[Prompt] = [(text, encode(text, where))]  # refused before weights are read
    ends = [decoded(as_bytes(text), unit, Setting("stop")) for text in stop or []]
    likely = json and show_alternatives
    task = sampling.task_of(found.tokenizer, config, ends, allow, weights, likely)
    _note_escapes({"--prompt": [prompt or ""], "--stop": stop or []})
    saved = replace(load_model(found, checkpoint, device), config=changes)
    if saved.remark:
        output.note(saved.remark)
    model = saved.model
    if weights == "int8" and model.any_length:
        output.note("--weights int8 has no effect: this model has no matrices")
    sampling.check_weights(weights, model, adapt)
    colour = show_alternatives and not json and output.legend(quiet)
    show = Show(Style(json, echo, colour, quiet, separator), unit)
    if seed is None and not (json or quiet):
        output.say(f"seed {first}")
    seeds = range(first, first + number * best_of, best_of)
    many = best_of if best_of > 1 else number
    with StopSignals() as signals:
        wanted = _wanted(found, novel, unique, quiet, signals)
        output.prepare(model, signals.requested, quiet)
        prompts = typed_prompts(text, unit, encode, signals) if interactive else prompts
        for text, ids in prompts:
            reader = _learned(saved, ids, quiet, signals) if adapt else None
            drawing = sampling.Drawing(
                model, found.tokenizer, ids, task, signals.requested, many, reader
            )
            free = write(drawing, text, seeds, best_of, show, wanted)
            seeds = range(free, free + number * best_of, best_of)
        check_stop(signals.requested)


def _note_escapes(given: dict[str, list[str]]) -> None:
    """Note what was typed as an escape, in values of options, that no shell has read."""
    from charlm import sampling

    for option, values in given.items():
        for escape in filter(None, map(sampling.escape_in, values)):
            mend = f"for {sampling.meant_by(escape)}, write $'{escape}'"
            output.note(f"{option}: {escape} is a backslash and a letter here; {mend}")


def _wanted(
    run: "RunFolder", novel: bool, unique: bool, quiet: bool, signals: StopSignals
) -> "Wanted | None":
    """Return which texts are wanted; None: all."""
    if not (novel or unique):
        return None
    from charlm import sampling
    from charlm.evaluation.given import open_part
    from charlm.evaluation.known import Known

    if not novel:
        return sampling.Wanted(unique=unique)
    with output.steps(quiet, signals.requested) as progress:
        known = Known.of_part(open_part(run, "train")[0], run.tokenizer, progress)
    return sampling.Wanted(known, unique)


def _learned(
    saved: "SavedModel", ids: "npt.NDArray[np.int64]", quiet: bool, signals: StopSignals
) -> "Context":
    """Return the prompt, after the model has read it and learned from it."""
    from charlm import sampling
    from charlm.evaluation.given import adaptive_reader

    reader = adaptive_reader(saved)
    unit = saved.tokenizer.unit.removesuffix("s")
    with output.bar("reading", unit, len(ids), disable=quiet or None) as bar:
        adapted = sampling.AdaptedReader(reader, bar.update, signals.requested)
        context = sampling.Context(saved.model, ids, reader=adapted)
    if not reader.learned:
        output.note("--adapt: the model learned nothing; try --set adapt.weights=true")
    return context
