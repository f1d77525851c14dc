"""charlm sample: text from a trained model, as it is made."""

import contextlib
import io
import math
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from charlm.cli import output
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import DataError, Stopped, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from charlm.runs.weights import SavedModel
    from charlm.sampling import Piece, Task

AT_ONCE = 64  # texts side by side, at most
MAX_PROMPT = 64 << 20  # bytes of a prompt from a file: a device or a pipe may never end
MOST = 1_000_000  # texts that one command draws
WORTH = 5  # texts from which on that is faster than one after the other


def sample(
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="What to continue. Default: the run's own.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder. Default: the newest in runs/.", readable=False)
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="Read the prompt from a file; - is standard input.", readable=False),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Ask for one prompt after the other.")
    ] = False,
    number: Annotated[int, typer.Option("-n", min=1, max=MOST, help="Samples to draw.")] = 1,
    max_new_chars: Annotated[int | None, typer.Option(help="Characters to draw.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be given again.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1 is safer, above 1 wilder, 0 the likeliest.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the K likeliest characters.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest with this much probability.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Leave out what is less than P times as likely as the best."),
    ] = None,
    typical_p: Annotated[
        float | None, typer.Option(help="Draw from the least unexpected with this probability.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: fewer of the last 64 characters again.")
    ] = None,
    allow: Annotated[
        str | None, typer.Option(help="Draw only these characters, or this class: [a-z ].")
    ] = None,
    best_of: Annotated[
        int,
        typer.Option(
            min=1, max=MOST, help="Draw so many, show the one with the best mean log-probability."
        ),
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option(help="Same seed, same text. Samples of -n and --best-of count up from it."),
    ] = None,
    unknown: Annotated[
        Literal["error", "skip", "nearest"],
        typer.Option(help="Characters of the prompt that the model lacks."),
    ] = "error",
    weights: Annotated[
        Literal["float32", "int8"],
        typer.Option(
            help="int8 reads a GPT's matrices in 8 bits: faster if it is large. CPU only."
        ),
    ] = "float32",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a step.")] = "best",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    echo: Annotated[bool, typer.Option("--echo/--no-echo", help="Print the prompt first.")] = True,
    show_alternatives: Annotated[
        bool,
        typer.Option(help="Colour characters by surprise; with --json, list what was likely."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a sample.")] = False,
) -> int:
    """Write text with a trained model; it streams as it is made.

    For example: charlm sample --prompt "ROMEO:" --temperature 0.7
    """
    from charlm.runs import find_run

    load_torch()
    if interactive and (prompt is not None or prompt_file is not None or json):
        raise UsageError(
            "--interactive asks for prompts and shows texts; leave out --prompt, --prompt-file, --json"
        )
    found = find_run(run)
    given = {
        "max_new_chars": max_new_chars,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical_p,
        "repetition_penalty": repetition_penalty,
    }
    overrides = [f"sample.{key}={value}" for key, value in given.items() if value is not None]
    config = found.read_config([*overrides, f"run.device={device}"]).sample
    text = config.prompt if interactive else _read_prompt(prompt, prompt_file, config.prompt)
    first_seed = secrets.randbelow(2**31) if seed is None else seed
    if not 0 <= first_seed < 2**62:
        raise UsageError(f"--seed {first_seed}: use a number from 0 to 2^62 - 1")

    from charlm.runs.weights import load_model
    from charlm.sampling import Task, allowed_ids, encode_prompt, settings_of
    from charlm.text.tokenizer import load_tokenizer

    # A prompt that cannot be used is answered before the weights are read.
    tokenizer = load_tokenizer(found.tokenizer)
    ids = encode_prompt(tokenizer, text, unknown)
    allowed = None if allow is None else allowed_ids(tokenizer, allow)
    likely = json and show_alternatives
    task = Task(settings_of(config, allowed), config.max_new_chars, stop or [], weights, likely)
    saved = load_model(found, checkpoint, device)
    if weights == "int8" and saved.model.any_length:
        output.note("--weights int8: this model has no matrices, so nothing changes")
    if weights == "int8" and saved.model.device.type != "cpu":
        raise UsageError("--weights int8: is for a CPU; leave it out, or pass --device cpu")
    show = _Show(json, echo, show_alternatives and not json and output.colours())
    if show.colour:
        output.legend()
    elif show_alternatives and not json:
        output.note("--show-alternatives: colours are for a terminal; for files there is --json")
    with StopSignals() as signals:
        writing = _Writing(saved, task, show, best_of, signals)
        if interactive:
            return _converse(writing, text, unknown, first_seed, number)
        writing.write(text, ids, range(first_seed, first_seed + number * best_of, best_of))
        return signals.exit_code if signals.requested() else 0


@dataclass
class _Text:
    """A text as it grows: the seed it is drawn with, and its characters."""

    seed: int
    pieces: "list[Piece]" = field(default_factory=list)
    seconds: float = 0.0

    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def mean_logprob(self) -> float | None:
        if not self.pieces:
            return None
        return sum(piece.nats for piece in self.pieces) / len(self.pieces)


@dataclass(frozen=True)
class _Show:
    """How texts are shown.

    Args:
        json: As objects, when they are complete.
        echo: Behind their prompts.
        colour: By surprise.
    """

    json: bool
    echo: bool
    colour: bool

    def begin(self, prompt: str, title: str) -> None:
        if self.json:
            return
        if title:
            output.say(title)
        if self.echo:
            output.stream(prompt)

    def pieces(self, pieces: "Sequence[Piece]") -> None:
        if self.json:
            return
        for piece in pieces:
            output.stream(piece.text, piece.nats if self.colour else None)

    def end(self, prompt: str, text: _Text) -> None:
        """End a line that the text has not ended, or print the object."""
        whole = (prompt if self.echo else "") + text.text()
        if not self.json:
            output.stream("" if whole.endswith("\n") else "\n")
            return
        values: dict[str, Any] = {
            "text": whole,
            "prompt": prompt,
            "chars": len(text.pieces),
            "seconds": round(text.seconds, 4),
            "chars_per_second": round(len(text.pieces) / max(text.seconds, 1e-9), 1),
            "seed": text.seed,
            "mean_logprob_nats": text.mean_logprob(),
            "logprobs_nats": [round(piece.nats, 4) for piece in text.pieces],
        }
        if any(piece.likely for piece in text.pieces):
            values["alternatives"] = [piece.likely for piece in text.pieces]
        output.result_json(values)


@dataclass(frozen=True)
class _Writing:
    """A loaded model and what to do with it.

    Args:
        saved: The model.
        task: What to write.
        show: How to show it.
        best_of: Texts of which one is shown.
        signals: Polled at every character.
    """

    saved: "SavedModel"
    task: "Task"
    show: _Show
    best_of: int
    signals: StopSignals

    def write(self, prompt: str, ids: "npt.NDArray[np.int64]", seeds: Sequence[int]) -> None:
        """Write a text for each seed; the first of those side by side streams."""
        model = self.saved.model
        if not model.any_length and len(ids) > model.block_size:
            output.note(
                f"the prompt has {len(ids)} characters; the model looks at the last "
                f"{model.block_size}"
            )
        many = len(seeds)
        coming = (
            f"--- sample {i} of {many}, seed {s}" if many > 1 else ""
            for i, s in enumerate(seeds, 1)
        )
        for group in self._groups(seeds) if self.best_of == 1 else ([s] for s in seeds):
            self.show.begin(prompt, next(coming))
            if self.best_of > 1:
                texts = [self._best(ids, group[0])]
                self.show.pieces(texts[0].pieces)
            else:
                texts = self._draw(ids, group, None if self.show.json else self.show.pieces)
            self.show.end(prompt, texts[0])
            for text in [] if self.signals.requested() else texts[1:]:
                self.show.begin(prompt, next(coming))
                self.show.pieces(text.pieces)
                self.show.end(prompt, text)
            if self.signals.requested():
                return

    def _groups(self, seeds: Sequence[int]) -> Iterator[Sequence[int]]:
        """Cut seeds into those whose texts are written side by side, where that is faster."""
        many = AT_ONCE if len(seeds) >= WORTH and self.task.weights == "float32" else 1
        return (seeds[first : first + many] for first in range(0, len(seeds), many))

    def _best(self, ids: "npt.NDArray[np.int64]", seed: int) -> _Text:
        """Return the likeliest of `best_of` texts, by the mean of its characters."""

        def likelihood(text: _Text) -> float:
            mean = text.mean_logprob()
            return -math.inf if mean is None else mean

        best = _Text(seed)
        for group in self._groups(range(seed, seed + self.best_of)):
            best = max([best, *self._draw(ids, group)], key=likelihood)
            if self.signals.requested():
                break
        return best

    def _draw(
        self,
        ids: "npt.NDArray[np.int64]",
        seeds: Sequence[int],
        show: "Callable[[list[Piece]], None] | None" = None,
    ) -> list[_Text]:
        """Draw a text for each seed, side by side, and show the first as it grows.

        Of one that is shown only the end is kept, or a long text would fill the memory.
        """
        from charlm.sampling import write

        texts, began = [_Text(seed) for seed in seeds], time.perf_counter()
        if self.signals.requested():
            return texts
        for pieces in write(self.saved.model, self.saved.tokenizer, ids, self.task, seeds):
            for text, more in zip(texts, pieces, strict=True):
                text.pieces += more
            if show and pieces[0]:
                show(pieces[0])
                del texts[0].pieces[:-1]
            if self.signals.requested():
                break
        for text in texts:
            text.seconds = time.perf_counter() - began
        return texts


def _ask() -> str:
    """Read a line; what asks for it goes to the terminal, never into a file of results."""
    mark = "> " if sys.stdin.isatty() else ""
    if not sys.stdout.isatty():
        print(mark, end="", file=sys.stderr, flush=True)
        mark = ""
    if sys.stdin.isatty():
        return input(mark)
    line = sys.stdin.readline(MAX_PROMPT + 1)  # it may never end
    if len(line) > MAX_PROMPT:
        raise DataError(f"standard input: a line longer than {MAX_PROMPT >> 20} MiB; give its end")
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _converse(
    writing: _Writing,
    default: str,
    unknown: Literal["error", "skip", "nearest"],
    seed: int,
    number: int,
) -> int:
    """Ask for prompts and continue each; Ctrl-C stops a text, the end of input all."""
    from charlm.sampling import encode_prompt

    with contextlib.suppress(ImportError):  # gives input() a history and keys to edit with
        import readline  # noqa: F401
    output.say("type a prompt, or nothing for the run's own; Ctrl-C stops a text, Ctrl-D leaves")
    if isinstance(sys.stdin, io.TextIOWrapper):  # a line that is not UTF-8 is answered like others
        sys.stdin.reconfigure(errors="surrogateescape")
    signals = writing.signals
    signals.patient = True
    while True:
        try:
            with signals.at_once():
                prompt = _ask() or default
        except EOFError:
            return 0
        except Stopped:
            if signals.received != signal.SIGINT:
                return signals.exit_code
            signals.forget(signal.SIGINT)
            output.say("")
            continue
        try:
            prompt = _decoded(prompt.encode("utf-8", "surrogateescape"), "what was typed")
            ids = encode_prompt(writing.saved.tokenizer, prompt, unknown)
        except DataError as error:
            output.note(str(error))
            continue
        seeds = range(seed, seed + number * writing.best_of, writing.best_of)
        writing.write(prompt, ids, seeds)
        seed = seeds.stop
        signals.forget(signal.SIGINT)
        if signals.requested():
            return signals.exit_code


def _read_prompt(prompt: str | None, file: Path | None, default: str) -> str:
    """Return the prompt from the option, the file, or the run's configuration."""
    if prompt is not None and file is not None:
        raise UsageError("--prompt and --prompt-file: choose one")
    if file is None:
        text = default if prompt is None else prompt
        data = text.encode("utf-8", "surrogateescape")  # as the shell passed it
        where = "--prompt"
    elif str(file) == "-":
        data, where = sys.stdin.buffer.read(MAX_PROMPT + 1), "standard input"
    else:
        where = str(file)
        data = _read_start(file)
    if len(data) > MAX_PROMPT:
        raise DataError(
            f"{where}: longer than {MAX_PROMPT >> 20} MiB; give its end, which is all a model reads"
        )
    decoded = _decoded(data, where)
    return decoded.removeprefix("\ufeff") if file else decoded  # editors begin files with it


def _read_start(file: Path) -> bytes:
    """Return what a file begins with: one byte more than a prompt may have, at most."""
    from charlm.storage.machine import machine_errors

    with machine_errors(file):
        try:
            with file.open("rb") as stream:
                return stream.read(MAX_PROMPT + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise DataError(
                f"{file}: cannot be read: {error.strerror}; name a text file, or - for standard "
                "input"
            ) from None


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 at byte {error.start} (0x{data[error.start]:02x}); "
            "save the prompt as UTF-8"
        ) from None
