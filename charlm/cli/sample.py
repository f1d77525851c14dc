"""charlm sample: text from a trained model, printed as it is generated."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
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

    from charlm.cli.sample_output import Show
    from charlm.config import Config
    from charlm.errors import Words
    from charlm.runs import RunFolder
    from charlm.runs.load import SavedModel
    from charlm.sampling import Context, Task, Wanted
    from charlm.sampling.reader import Weights
    from charlm.text.tokenizer import Unknown

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
            help="A line between samples. Default: none if each is one line; --- if one can have "
            "empty lines; else an empty one.",
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
    from charlm.cli.sample_output import Show, Style
    from charlm.config import changed
    from charlm.runs import find_run

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
    config = changed(found.config, overridden(learning, options))
    first = sampling.choose_seed(seed)
    order = _Order(found, config, number, best_of, novel, unique, unknown, weights, adapt, quiet)
    text, where = read_prompt(prompt, prompt_file, config.sample.prompt, order.unit)
    ids = order.encode(text, where)  # a prompt is refused before weights are read
    task = order.task(stop or [], allow, likely=json and show_alternatives)
    order.check(task)
    _note_escapes({"--prompt": [prompt or ""], "--stop": stop or []})
    saved = order.load(checkpoint, device)
    colour = show_alternatives and not json and output.legend(quiet)
    style = Style(json, echo, colour, quiet, separator, order.holds_empty_lines)
    if seed is None and not (json or quiet):
        output.say(f"seed {first}")
    with StopSignals() as signals:
        wanted = order.wanted(signals)
        output.prepare(saved.model, signals.requested, quiet)
        prompts: Iterable[Prompt] = [(text, ids)]
        if interactive:
            prompts = typed_prompts(text, order.unit, order.encode, signals)
        order.write(saved, task, prompts, first, Show(style, order.unit), wanted, signals)


@dataclass(frozen=True)
class _Order:
    """What the command line asks for."""

    run: "RunFolder"
    config: "Config"
    number: int  # of samples
    best_of: int
    novel: bool
    unique: bool
    unknown: "Unknown"
    weights: "Weights"
    adapt: bool
    quiet: bool

    @property
    def unit(self) -> str:
        """The unit of the run's text."""
        return self.run.tokenizer.unit

    @property
    def holds_empty_lines(self) -> bool:
        """Whether a record may have an empty line inside."""
        data = self.config.data
        return data.records == "files" or (data.records != "none" and data.column is not None)

    def encode(self, prompt: str, where: "Words") -> "npt.NDArray[np.int64]":
        """Return the ids of a prompt, or raise DataError."""
        from charlm import sampling

        return sampling.encode_prompt(self.run.tokenizer, prompt, self.unknown, where)

    def task(self, stops: list[str], allow: str | None, likely: bool) -> "Task":
        """Return how to continue a prompt."""
        from charlm import sampling
        from charlm.text.raw import as_bytes, decoded

        ends = [decoded(as_bytes(text), self.unit, Setting("stop")) for text in stops]
        tokenizer, config = self.run.tokenizer, self.config.sample
        return sampling.task_of(tokenizer, config, ends, allow, self.weights, likely)

    def check(self, task: "Task") -> None:
        """Raise UsageError for texts that cannot be found."""
        if self.novel and self.run.tokenizer.boundary is None:
            what = "this run's text has no records, so no sample is whole"
            mend = "use a run that was trained with data.records=lines"
            raise UsageError("--novel", what, mend)
        if not task.settings.greedy:
            return
        what = "greedy decoding (--temperature 0 or --top-k 1) gives the same text each time"
        if self.number > 1 and (self.novel or self.unique):
            mend = "raise the temperature or --top-k, or leave out -n"
            raise UsageError(f"-n {self.number}", what, mend)
        for flag, many in (("-n", self.number), ("--best-of", self.best_of)):
            if many > 1:
                output.note(f"{flag} {many}: {what}")

    def load(self, checkpoint: str, device: str) -> "SavedModel":
        """Load the model; note what is odd about it."""
        from charlm import sampling
        from charlm.runs.load import load_model

        saved = replace(load_model(self.run, checkpoint, device), config=self.config)
        if saved.remark:
            output.note(saved.remark)
        if self.weights == "int8" and saved.model.any_length:
            output.note("--weights int8 has no effect: this model has no matrices")
        sampling.check_weights(self.weights, saved.model, self.adapt)
        return saved

    def wanted(self, signals: StopSignals) -> "Wanted | None":
        """Return which texts are wanted; None: all."""
        if not (self.novel or self.unique):
            return None
        from charlm import sampling
        from charlm.evaluation.given import open_part
        from charlm.evaluation.known import Known

        if not self.novel:
            return sampling.Wanted(unique=self.unique)
        with output.steps(self.quiet, signals.requested) as progress:
            train = open_part(self.run, "train")[0]
            known = Known.of_part(train, self.run.tokenizer, progress)
        return sampling.Wanted(known, self.unique)

    def write(
        self,
        saved: "SavedModel",
        task: "Task",
        prompts: Iterable[Prompt],
        seed: int,
        show: "Show",
        wanted: "Wanted | None",
        signals: StopSignals,
    ) -> None:
        """Write the texts after each prompt, from this seed on."""
        from charlm import sampling
        from charlm.cli.sample_output import write

        stop, together = signals.requested, self.best_of if self.best_of > 1 else self.number
        for text, ids in prompts:
            reader = _learned(saved, ids, self.quiet, signals) if self.adapt else None
            drawing = sampling.Drawing(
                saved.model, saved.tokenizer, ids, task, stop, together, reader
            )
            seeds = range(seed, seed + self.number * self.best_of, self.best_of)
            seed = write(drawing, text, seeds, self.best_of, show, wanted)
        check_stop(stop)


def _note_escapes(given: dict[str, list[str]]) -> None:
    """Note what was typed as an escape, in values of options, that no shell has read."""
    from charlm import sampling

    for option, values in given.items():
        for escape in filter(None, map(sampling.escape_in, values)):
            mend = f"for {sampling.meant_by(escape)}, write $'{escape}'"
            output.note(f"{option}: {escape} is a backslash and a letter here; {mend}")


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
