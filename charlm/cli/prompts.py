"""Where prompts come from: an option, a file, standard input, or a person who types them."""

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from charlm.cli import output
from charlm.cli.options import opened
from charlm.cli.signals import StopSignals
from charlm.cli.spelling import one_line
from charlm.errors import DataError, Phrase, Setting, Stopped, UsageError, Words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Encode = Callable[[str, Words], "npt.NDArray[np.int64]"]  # takes a prompt and where it is from
Prompt = tuple[str, "npt.NDArray[np.int64]"]  # with its ids
UNKNOWN = "unknown"  # the setting for characters that a model does not know
MAX_PROMPT = 64 << 20  # bytes of a prompt: a device or a pipe may never end


def read_prompt(
    prompt: str | None, file: Path | None, default: str, unit: str
) -> tuple[str, Words]:
    """Return the prompt from the option, the file, or the run's configuration, and its place.

    For a model of bytes, `unit` is `bytes`, and the prompt may hold any.
    """
    from charlm.storage.machine import machine_errors
    from charlm.text.raw import as_bytes, decoded

    if prompt is not None and file is not None:
        raise UsageError("--prompt and --prompt-file", "given both", "choose one")
    if prompt is not None:
        data, where = as_bytes(prompt), Setting("prompt")  # as the shell gave it
        _check_length(data, where)
        return decoded(data, unit, where), where
    if file is None:
        return default, Setting("sample.prompt")
    place = "standard input" if str(file) == "-" else str(file)
    with machine_errors(place), opened(str(file)) as stream:
        data = stream.read(MAX_PROMPT + 1)
    _check_length(data, place)
    text = decoded(data, unit, place)
    # Some editors begin files with it; to a model of bytes, these are bytes like others.
    return text if unit == "bytes" else text.removeprefix("\ufeff"), place


def typed_prompts(
    default: str, unit: str, encode: "Encode", signals: StopSignals
) -> "Iterator[Prompt]":
    """Yield the prompts that a person types and their ids, until the end of the input.

    An empty line stands for `default`; a DataError of `encode` becomes a note. Ctrl-C while a prompt
    is typed asks for another, later it stops the text; any other signal raises Stopped. Raise
    DataError if the input is a line that does not end.
    """
    from charlm.text.raw import as_bytes, decoded

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
            prompt = decoded(as_bytes(prompt), unit, "the prompt")
            ids = encode(prompt, Setting("prompt"))
        except DataError as error:
            output.note(one_line(_for_a_typist(error)))
            continue
        yield prompt, ids
        signals.forget(signal.SIGINT)


def _for_a_typist(error: DataError) -> DataError:
    """Return an error with what can be done where options are not typed any more."""
    mend = error.mend
    options = mend.parts if isinstance(mend, Phrase) else ()
    if UNKNOWN in [part.name for part in options if isinstance(part, Setting)]:
        words = "type others; or start again with {}, which takes similar ones, or {}"
        mend = Phrase(words, Setting(UNKNOWN, "nearest"), Setting(UNKNOWN, "skip"))
    return error.replace(where="the prompt", mend=mend)


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


def _check_length(data: str | bytes, where: Words) -> None:
    if len(data) > MAX_PROMPT:
        what = f"longer than {MAX_PROMPT >> 20} MiB"
        raise DataError(where, what, "pass only its end, since a model sees no more")
