"""charlm sample: text from a trained model, printed as it is generated."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from charlm.cli import output
from charlm.cli.options import Checkpoint, Device, Run, RunPlace, either, overridden
from charlm.cli.prompts import Prompt, read_prompt, typed_prompts
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import UsageError, check_stop

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from charlm.sampling import Drawing, Piece, Text

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
        typer.Option(help="Generation ends before the first match; repeatable."),
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
) -> None:
    """Generate text with a trained model.

    For example: charlm sample --prompt "ROMEO:" --temperature 0.7
    """
    load_torch()
    from charlm import sampling
    from charlm.config import changed
    from charlm.runs import find_run
    from charlm.runs.load import load_model

    if interactive and (prompt is not None or prompt_file is not None or json):
        mend = "leave out --prompt, --prompt-file and --json"
        raise UsageError("--interactive", "asks for prompts and prints text", mend)
    found = find_run(either(place, run, "--run"))
    asked = {"max_new_chars": max_new_chars, "temperature": temperature, "top_k": top_k}
    asked |= {"top_p": top_p, "min_p": min_p, "typical_p": typical_p}
    asked |= {"repetition_penalty": repetition_penalty}
    options = {"run.device": device} | {f"sample.{key}": value for key, value in asked.items()}
    config = changed(found.config, overridden([], options)).sample
    text = config.prompt if interactive else read_prompt(prompt, prompt_file, config.prompt)
    first = sampling.choose_seed(seed)

    def encode(prompt: str) -> "npt.NDArray[np.int64]":
        return sampling.encode_prompt(found.tokenizer, prompt, unknown)

    prompts: Iterable[Prompt] = [(text, encode(text))]  # refused before the weights are read
    allowed = None if allow is None else sampling.allowed_ids(found.tokenizer, allow)
    settings, likely = sampling.settings_of(config, allowed), json and show_alternatives
    task = sampling.Task(settings, config.max_new_chars, stop or [], weights, likely)
    model = load_model(found, checkpoint, device).model
    if weights == "int8" and model.any_length:
        output.note("--weights int8 has no effect: this model has no matrices")
    sampling.check_weights(weights, model)
    show = _Show(json, echo, show_alternatives and not json and output.legend())
    seeds = range(first, first + number * best_of, best_of)
    many = best_of if best_of > 1 else number
    with StopSignals() as signals:
        prompts = typed_prompts(text, encode, signals) if interactive else prompts
        for text, ids in prompts:
            drawing = sampling.Drawing(model, found.tokenizer, ids, task, signals.requested, many)
            _write(drawing, text, seeds, best_of, show)
            seeds = range(seeds.stop, seeds.stop + number * best_of, best_of)
        check_stop(signals.requested)


@dataclass(frozen=True)
class _Show:
    """How texts are shown."""

    json: bool  # as JSON objects, each when its text is complete
    echo: bool  # after their prompts
    colour: bool  # by probability

    def begin(self, prompt: str, title: str) -> None:
        if title and not self.json:
            output.say(title)
        if self.echo and not self.json:
            output.stream(prompt)

    def pieces(self, pieces: "Sequence[Piece]") -> None:
        for piece in () if self.json else pieces:
            output.stream(piece.text, piece.nats if self.colour else None)

    def end(self, prompt: str, text: "Text") -> None:
        """End the line if the text has not, or print the object."""
        whole = (prompt if self.echo else "") + text.text()
        if self.json:
            output.result_json({"text": whole, "prompt": prompt, **_as_json(text)})
        elif not whole.endswith("\n"):
            output.stream("\n")


def _as_json(text: "Text") -> dict[str, Any]:
    pieces, likely = text.pieces, [piece.likely for piece in text.pieces]
    record = {
        "chars": len(pieces),
        "seconds": round(text.seconds, 4),
        "chars_per_second": round(len(pieces) / max(text.seconds, 1e-9), 1),
        "seed": text.seed,
        "mean_logprob_nats": text.mean_logprob(),
        "logprobs_nats": [round(piece.nats, 4) for piece in pieces],
    }
    return record | ({"alternatives": likely} if any(likely) else {})


def _write(
    drawing: "Drawing", prompt: str, seeds: Sequence[int], best_of: int, show: _Show
) -> None:
    """Write a text for each seed; of those drawn in parallel, the first is printed as it grows."""
    model, length, many = drawing.model, len(drawing.prompt), len(seeds)
    if not model.any_length and length > model.block_size:
        seen = f"the model sees only the last {model.block_size}"
        output.note(f"the prompt has {length} characters; {seen}")
    titles = (f"--- sample {i} of {many}, seed {s}" * (many > 1) for i, s in enumerate(seeds, 1))
    for group in drawing.groups(seeds) if best_of == 1 else ([s] for s in seeds):
        show.begin(prompt, next(titles))
        if best_of > 1:
            texts = [drawing.best(range(group[0], group[0] + best_of))]
            show.pieces(texts[0].pieces)
        else:
            texts = drawing.draw(group, None if show.json else show.pieces)
        show.end(prompt, texts[0])
        for text in texts[1:]:
            if drawing.should_stop():
                return
            show.begin(prompt, next(titles))
            show.pieces(text.pieces)
            show.end(prompt, text)
        if drawing.should_stop():
            return
