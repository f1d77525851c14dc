"""Where prompts come from: an option, a file, standard input, or a person who types them."""

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from charlm.cli import output
from charlm.cli.signals import StopSignals
from charlm.cli.spelling import one_line
from charlm.errors import DataError, Stopped, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Prompt = tuple[str, "npt.NDArray[np.int64]"]  # with its ids
MAX_PROMPT = 64 << 20  # bytes of a prompt: a device or a pipe may never end


def read_prompt(prompt: str | None, file: Path | None, default: str) -> str:
    """Return the prompt from the option, the file, or the run's configuration."""
    if prompt is not None and file is not None:
        raise UsageError("--prompt and --prompt-file", "given both", "choose one")
    if file is None:
        text = default if prompt is None else prompt
        return _decoded(text.encode("utf-8", "surrogateescape"), "--prompt")  # as the shell gave it
    if str(file) == "-":
        text = _decoded(sys.stdin.buffer.read(MAX_PROMPT + 1), "standard input")
    else:
        text = _decoded(_read_start(file), str(file))
    return text.removeprefix("\ufeff")  # some editors begin files with it


def typed_prompts(
    default: str, encode: "Callable[[str], npt.NDArray[np.int64]]", signals: StopSignals
) -> "Iterator[Prompt]":
    """Yield the prompts that a person types and their ids, until the end of the input.

    An empty line stands for `default`; a DataError of `encode` becomes a note. Ctrl-C while a prompt
    is typed asks for another, later it stops the text; any other signal raises Stopped. Raise
    DataError if the input is a line that does not end.
    """
    with contextlib.suppress(ImportError):  # gives input() a history and editing keys
        import readline  # noqa: F401
    output.say("type a prompt, or Enter for the run's own; Ctrl-C stops a text, Ctrl-D quits")
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not UTF-8 become a note
        sys.stdin.reconfigure(errors="surrogateescape")
    signals.patient = True
    while True:
        try:
            with signals.at_once():
                prompt = _ask() or default
        except EOFError:
            return
        except Stopped:
            if signals.received != signal.SIGINT:
                raise
            signals.forget(signal.SIGINT)
            output.say("")
            continue
        try:
            prompt = _decoded(prompt.encode("utf-8", "surrogateescape"), "the prompt")
            ids = encode(prompt)
        except DataError as error:
            output.note(one_line(error.replace(where="the prompt")))
            continue
        yield prompt, ids
        signals.forget(signal.SIGINT)


def _ask() -> str:
    """Read a line. The prompt mark is never written into a file of results."""
    if sys.stdin.isatty():
        if sys.stdout.isatty():
            return input("> ")
        print("> ", end="", file=sys.stderr, flush=True)
        return input()
    line = sys.stdin.readline(MAX_PROMPT + 1)
    _check_length(line, "standard input")
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _read_start(file: Path) -> bytes:
    """Read a file, at most one byte more than a prompt may have."""
    from charlm.storage.machine import machine_errors

    with machine_errors(file):
        try:
            with file.open("rb") as stream:
                return stream.read(MAX_PROMPT + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            mend = "name a text file, or - for standard input"
            raise DataError(file, f"cannot be read: {error.strerror}", mend) from None


def _decoded(data: bytes, where: str) -> str:
    _check_length(data, where)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 at byte {error.start} (0x{data[error.start]:02x})"
        raise DataError(where, what, "save the prompt as UTF-8") from None


def _check_length(data: str | bytes, where: str) -> None:
    if len(data) > MAX_PROMPT:
        what = f"longer than {MAX_PROMPT >> 20} MiB"
        raise DataError(where, what, "pass only its end, since a model sees no more")
