"""charlm sample: text from a trained model, as it is made."""

import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from charlm.cli import output
from charlm.cli.signals import StopSignals
from charlm.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from charlm.config import SampleConfig
    from charlm.models.saved import SavedModel


def sample(
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What to continue. Default: the run's own.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder. Default: the newest in runs/.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Read the prompt from a file; - is standard input.")
    ] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="Samples to draw.")] = 1,
    max_new_chars: Annotated[int | None, typer.Option(help="Characters to draw.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1 is safer, above 1 wilder, 0 the likeliest.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the K likeliest characters.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest with this much probability.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same text. Sample i of -n uses seed + i.")
    ] = None,
    unknown: Annotated[
        Literal["error", "skip"],
        typer.Option(help="Characters of the prompt that the model lacks."),
    ] = "error",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Print the prompt first.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a sample.")] = False,
) -> int:
    """Write text with a trained model; it streams as it is made.

    For example: charlm sample --prompt "ROMEO:" --temperature 0.7
    """
    from charlm.storage import find_run

    found = find_run(run)
    given = {
        "max_new_chars": max_new_chars,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    overrides = [f"sample.{key}={value}" for key, value in given.items() if value is not None]
    settings = found.read_config([*overrides, f"run.device={device}"]).sample
    text = _read_prompt(prompt, prompt_file, settings.prompt)
    first_seed = secrets.randbelow(2**31) if seed is None else seed
    if not 0 <= first_seed < 2**62:
        raise UsageError(f"--seed {first_seed}: use a number from 0 to 2^62")

    from charlm.models.saved import load_model
    from charlm.sampling import encode_prompt
    from charlm.text.tokenizer import load_tokenizer

    # A prompt that cannot be used is answered before the weights are read.
    ids = encode_prompt(load_tokenizer(found.tokenizer), text, unknown)
    saved = load_model(found, checkpoint, device)
    if len(ids) > saved.model.memory > 1:
        output.note(
            f"the prompt has {len(ids)} characters; the model looks at the last "
            f"{saved.model.memory}"
        )
    with StopSignals() as stop:
        for i in range(number):
            if number > 1 and not json:
                output.say(f"--- sample {i + 1} of {number}, seed {first_seed + i}")
            _write(saved, settings, text, ids, first_seed + i, echo, json, stop)
            if stop.requested():
                return stop.exit_code
    return 0


def _write(
    saved: "SavedModel",
    settings: "SampleConfig",
    prompt: str,
    ids: "npt.NDArray[np.int64]",
    seed: int,
    echo: bool,
    json: bool,
    stop: StopSignals,
) -> None:
    import torch

    from charlm.sampling import Settings, generate

    model = saved.model
    chosen = Settings(settings.temperature, settings.top_k, settings.top_p)
    start = torch.from_numpy(ids)[None].to(model.device)
    began = time.perf_counter()
    decoder = saved.tokenizer.stream_decoder()
    pieces, logprobs = [prompt if echo else ""], []
    show = _ignore if json else _show
    show(pieces[0])
    for drawn in generate(model, start, settings.max_new_chars, chosen, [seed]):
        pieces.append(decoder.push(int(drawn.idx)))
        logprobs.append(drawn.logprob.item())
        show(pieces[-1])
        if stop.requested():
            break
    pieces.append(decoder.finish())
    show(pieces[-1])
    seconds = time.perf_counter() - began
    text = "".join(pieces)
    if not json:
        show("" if text.endswith("\n") else "\n")
        return
    output.result_json(
        {
            "text": text,
            "prompt": prompt,
            "chars": len(logprobs),
            "seconds": round(seconds, 4),
            "chars_per_second": round(len(logprobs) / seconds, 1),
            "seed": seed,
            "mean_logprob_nats": sum(logprobs) / len(logprobs) if logprobs else None,
        }
    )


def _show(text: str) -> None:
    if text:
        sys.stdout.write(output.printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def _ignore(text: str) -> None:
    pass


def _read_prompt(prompt: str | None, file: Path | None, default: str) -> str:
    """Return the prompt from the option, the file, or the run's configuration."""
    if prompt is not None and file is not None:
        raise UsageError("--prompt and --prompt-file: choose one")
    if file is None:
        text = default if prompt is None else prompt
        data = text.encode("utf-8", "surrogateescape")  # as the shell passed it
        where = "--prompt"
    elif str(file) == "-":
        data, where = sys.stdin.buffer.read(), "standard input"
    else:
        where = str(file)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DataError(
                f"{where}: cannot be read: {error.strerror}; name a text file, or - for standard "
                "input"
            ) from None
    try:
        decoded = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start} (0x{data[error.start]:02x}); "
            "save the prompt as UTF-8"
        ) from None
    return decoded.removeprefix("\ufeff") if file else decoded  # editors begin files with it
