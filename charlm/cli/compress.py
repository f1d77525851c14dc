"""charlm compress and charlm decompress: a file into a smaller one, and back."""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from charlm.cli import output
from charlm.cli.escaping import one_word
from charlm.cli.options import A_RUN, AdaptKeys, Checkpoint, Json, of_adapt, opened
from charlm.cli.signals import StopSignals, load_torch
from charlm.errors import UsageError, number_of

if TYPE_CHECKING:
    from charlm.coding.coder import Tick
    from charlm.coding.methods import Method
    from charlm.coding.whole import Coded

SUFFIX = ".clm"

Out = Annotated[
    str | None,
    typer.Option("--out", "-o", metavar="FILE", help="Where to write; - is standard output."),
]


def compress(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Any file; - is standard input.")],
    out: Out = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Predict with the model of this run. Default: a model that starts empty.",
            **A_RUN,
        ),
    ] = None,
    checkpoint: Checkpoint = "best",
    settings: AdaptKeys = None,
    check: Annotated[
        bool, typer.Option(help="Decode each block as a check, before it is written.")
    ] = True,
    json: Json = False,
) -> None:
    """Compress a file with a model that learns while it reads.

    Without --run, any machine can decompress the result. With --run, decompressing needs the same
    run, and a machine and packages that compute the same bits.

    For example: charlm compress book.txt
    """
    adapt = of_adapt(settings)
    place = _place(out, file + SUFFIX, file, json)
    if adapt and run is None:
        raise UsageError(f"--set {adapt[0]}", "needs the model of a run", "name one with --run")
    if place == "-" and sys.stdout.isatty():
        mend = "name a file with --out, or redirect the output to one"
        raise UsageError("--out -", "a terminal cannot show compressed text", mend)
    load_torch()
    from charlm.coding.methods import without_run
    from charlm.coding.whole import encode

    began = time.monotonic()
    with StopSignals() as stop, stop.at_once(), opened(file) as source:
        size = _size(source)
        if run is None:
            method, read = without_run(source)
        else:
            method, read = _with_run(run, checkpoint, adapt, stop.requested), source.read
        with _written(place) as target, _bar("compressing", size, 2 if check else 1) as tick:
            coded = encode(read, target, method, file, size=size, check=check, tick=tick)
    seconds = time.monotonic() - began
    if json:
        output.result_json(_record(file, place, method, coded, check, seconds))
        return
    tell = output.say if place == "-" else output.result
    tell(_summary(place, coded))
    checked = "checked by decoding" if check else "not checked by decoding"
    how = f"can be restored {_about(method)}, {_where(method)}"
    output.say(f"{checked}; {how}; {seconds:.1f} s")


def decompress(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A compressed file; - is standard input.")
    ],
    out: Out = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="The run that it was compressed with. Default: the run of that name in runs/.",
            **A_RUN,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Restore a file that charlm compress wrote.

    Each block has a checksum and the whole file a SHA-256, so a wrong result never goes unnoticed.

    For example: charlm decompress book.txt.clm
    """
    restored = file.removesuffix(SUFFIX)
    if out is None and file != "-" and restored in (file, ""):
        raise UsageError(file, f"its name does not end with {SUFFIX}", "name the result with --out")
    place = _place(out, restored, file, json)
    load_torch()
    from charlm.coding.container import ContainerReader
    from charlm.coding.methods import method_of
    from charlm.coding.whole import decode

    began = time.monotonic()
    with StopSignals() as stop, stop.at_once(), opened(file) as source:
        container = ContainerReader(source, file)
        prepare = functools.partial(output.prepare, should_stop=stop.requested)
        method = method_of(container.header, file, run, prepare)
        with _written(place) as target, _bar("decompressing", container.text_size) as tick:
            size = decode(container, target, method, tick)
    seconds = time.monotonic() - began
    if json:
        facts = {"file": file, "out": place, "bytes": size, "model": method.header["model"]}
        output.result_json(facts | {"seconds": seconds})
        return
    tell = output.say if place == "-" else output.result
    tell(f"{_shown(place)}: {number_of(size, 'byte')}, SHA-256 verified")
    output.say(f"restored {_about(method)}; {seconds:.1f} s")


def _with_run(
    run: Path, checkpoint: str, adapt: list[str], should_stop: Callable[[], bool]
) -> "Method":
    from charlm.coding.of_run import with_run
    from charlm.config import changed
    from charlm.runs import find_run
    from charlm.runs.load import load_model

    found = find_run(run)
    options = changed(found.config, adapt).adapt
    saved = load_model(found, checkpoint, "cpu")
    if saved.remark:
        output.note(saved.remark)
    output.prepare(saved.model, should_stop)
    return with_run(saved, options)


def _place(out: str | None, default: str, file: str, json: bool) -> str:
    """Return where to write: never over a file that was not named, nor over what is read."""
    place = ("-" if file == "-" else default) if out is None else out
    if place == "":
        raise UsageError("--out", "got an empty name", "name a file, or - for standard output")
    if place == "-":
        if json:
            mend = "name a file with --out"
            raise UsageError("--json", "the data already goes to standard output", mend)
        return place
    if out is None and os.path.lexists(place):
        mend = f"name another with --out, or replace it with --out {place}"
        raise UsageError(place, "exists already", mend)
    if os.path.exists(place) and os.path.exists(file) and os.path.samefile(place, file):
        raise UsageError(f"--out {place}", "it is the input file", "name another")
    return place


@contextmanager
def _written(place: str) -> "Iterator[IO[bytes]]":
    from charlm.storage.atomic import replacing

    if place == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replacing(Path(place), "wb") as out:
        yield out


def _size(source: IO[bytes]) -> int | None:
    """Return how many bytes are left in a file; None for a stream."""
    if not source.seekable():
        return None
    at, end = source.tell(), source.seek(0, os.SEEK_END)
    source.seek(at)
    return end - at


@contextmanager
def _bar(what: str, size: int | None, passes: int = 1) -> "Iterator[Tick]":
    """Draw a bar for bytes, each of which is processed `passes` times."""
    with output.bar(what, "B", size) as bar:
        yield lambda done: bar.update(done / passes)


def _shown(place: str) -> str:
    return "standard output" if place == "-" else one_word(place)


def _summary(place: str, coded: "Coded") -> str:
    line = f"{_shown(place)}: {number_of(coded.size, 'byte')} compressed to {coded.coded_size:,}"
    return f"{line}, {coded.bits_per_byte:.4f} bits per byte" if coded.size else line


def _about(method: "Method") -> str:
    header = method.header
    if header["model"] == "portable":
        return "without a run"
    return f"with the run {one_word(header['run'])}, step {header['step']}"


def _where(method: "Method") -> str:
    header = method.header
    if header["model"] == "portable" or "context mixing" in header["needs"]:
        return "on any machine"
    return "on machines like this one"


def _record(
    file: str, place: str, method: "Method", coded: "Coded", check: bool, seconds: float
) -> dict[str, Any]:
    header = method.header
    return {
        "file": file,
        "out": place,
        "bytes": coded.size,
        "compressed_bytes": coded.coded_size,
        "bits_per_byte": coded.bits_per_byte,
        "symbols": coded.symbols,
        "coded_nats": coded.nats_per_symbol,
        "model": header["model"],
        "run": header.get("run"),
        "step": header.get("step"),
        "checked": check,
        "seconds": seconds,
    }
