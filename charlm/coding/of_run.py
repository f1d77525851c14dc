"""Coding with a run: record which run and checkpoint it was and what else its bits depend on; check it."""

import copy
import functools
import hashlib
import platform
import reprlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from threadpoolctl import threadpool_info

from charlm import __version__
from charlm.coding.bits import ENGINE, Bits
from charlm.coding.container import GET_ANOTHER
from charlm.coding.methods import Method
from charlm.coding.modelled import ModelCoder
from charlm.coding.symbols import Symbols, one_thread
from charlm.config import AdaptConfig
from charlm.errors import CheckpointError, DataError, MachineError, Phrase, Setting, UsageError
from charlm.evaluation.given import open_part
from charlm.models import LanguageModel
from charlm.models.context_mixing import LearningMixer
from charlm.runs import find_run
from charlm.runs.folder import RUNS
from charlm.runs.load import SavedModel, load_model
from charlm.runs.weights import recorded_sha256
from charlm.storage.json_file import Count

SHOWN = 16  # hexadecimal digits of a checksum in a header
ENGINE_KEY = "context mixing"
PACKAGES = ("torch", "numpy", "numba", "constriction")


class Dependence(BaseModel, frozen=True):
    """What decoding depends on, in the header of a file.

    Args:
        run: The name of the run's folder.
        step: The step of the checkpoint.
        sha256: The first digits of a checksum of its weights, its alphabet and its text.
        adapt: What the model learned while it read.
        needs: See `needs`.
        processor: Of the machine that wrote the file; only for people.
        fingerprint: A checksum of predictions on that machine.
    """

    model: Literal["run"] = "run"
    run: str
    step: Count
    sha256: str
    adapt: AdaptConfig
    needs: dict[str, str]
    processor: str
    fingerprint: str


def with_run(saved: SavedModel, adapt: AdaptConfig) -> Method:
    """Return the method that codes with the model of a run, on the CPU.

    Raises:
        CheckpointError: The run's text is missing.
        DataError: The text is cut off, or too short.
        UsageError: The run learned records.
    """
    if saved.tokenizer.boundary is not None:
        what = f"learned {saved.config.data.records}, and a file is compressed as one text"
        raise UsageError(saved.run.path, what, "use a run without data.records")
    make = functools.partial(_symbol_coder, saved, adapt)
    with one_thread():
        first = make()
        in_integers = isinstance(first, Bits)
        # To read for a fingerprint changes a coder, so a copy does it.
        found = (first if in_integers else copy.deepcopy(first)).fingerprint()
    made = [first]  # to be used, too: making one may take many seconds
    header = Dependence(
        run=saved.run.path.resolve().name,
        step=saved.step,
        sha256=_identity(saved),
        adapt=adapt,
        needs=needs(in_integers),
        processor=processor(),
        fingerprint=found,
    )

    def coder() -> ModelCoder:
        try:
            symbol_coder = made.pop()
        except IndexError:
            symbol_coder = make()
        return ModelCoder(symbol_coder, saved.tokenizer, saved.config.data.encoding)

    return Method(header.model_dump(mode="json"), coder, one_thread)


def method_of_run(
    header: Mapping[str, Any],
    name: str,
    place: Path | None,
    prepare: Callable[[LanguageModel], None],
) -> Method:
    """Return the method that a file was written with; see `charlm.coding.methods.method_of`."""
    try:
        then = Dependence.model_validate(header)
    except ValidationError:
        raise DataError(name, "is damaged in its header", GET_ANOTHER) from None
    _check_needs(then.needs, name)
    saved = _load(then, name, place)
    if _identity(saved) != then.sha256:
        what = f"is not the run {then.run!r}, step {then.step}, that {name} was compressed with"
        raise CheckpointError(saved.run.path, what, _NAME_IT)
    prepare(saved.model)
    method = with_run(saved, then.adapt)
    if method.header["fingerprint"] != then.fingerprint:
        there = reprlib.repr(then.processor)
        what = f"its run computes other bits here ({processor()!r}) than where it was compressed"
        mend = "decompress it there, or on a machine like that one"
        raise MachineError(name, f"{what} ({there})", mend)
    return method


def needs(in_integers: bool) -> dict[str, str]:
    """Return what the bits of a model depend on besides the run, by name."""
    if in_integers:
        return {ENGINE_KEY: ENGINE}
    found = {"charlm": __version__} | {package: version(package) for package in PACKAGES}
    blas = {
        f"{one['version']} {one.get('architecture', '')}"
        for one in threadpool_info()
        if one["user_api"] == "blas"
    }
    found["blas"] = " ".join(sorted(blas))
    found["cpu"] = torch.backends.cpu.get_cpu_capability()
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def processor() -> str:
    """Return the name of the processor, for people; empty if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


_NAME_IT = Phrase("name that run with {}", Setting("run"))


def _check_needs(then: Mapping[str, str], name: str) -> None:
    for what, now in needs(ENGINE_KEY in then).items():
        if (was := then.get(what)) == now:
            continue
        mend = "decompress it on a machine like that one"
        if what in (ENGINE_KEY, "charlm"):
            mend = "use the version of charlm that wrote it"
        elif what in PACKAGES:
            mend = f"install {what}=={was}"
        said = f"was compressed with {what} {reprlib.repr(was)}, but here it is {now!r}, whose bits differ"
        raise MachineError(name, said, mend)


def _load(then: Dependence, name: str, place: Path | None) -> SavedModel:
    """Load the checkpoint that a file was compressed with."""
    try:
        run = find_run(RUNS / Path(then.run).name if place is None else place)
    except CheckpointError as error:
        if place is not None:
            raise
        what = f"was compressed with the run {reprlib.repr(then.run)}, which is not in {RUNS}/"
        raise CheckpointError(name, what, _NAME_IT) from error
    return load_model(run, str(then.step), "cpu")


def _identity(saved: SavedModel) -> str:
    """Return a checksum of a run's weights, its alphabet, and the text that it was trained on.

    Its configuration was compared with that of the weights when they were loaded.
    """
    checkpoint = saved.run.checkpoints.choose(str(saved.step))
    parts = (
        recorded_sha256(checkpoint),
        saved.tokenizer.to_json(),
        open_part(saved.run, "train")[1]["source_sha256"],
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:SHOWN]


def _symbol_coder(saved: SavedModel, adapt: AdaptConfig) -> Bits | Symbols:
    reader = saved.model.adaptive(adapt, open_part(saved.run, "train")[0])
    # Not of a bitwise mixture, which is a kind of it: its experts offer what they compute in floats.
    return Bits(reader.mixer) if type(reader) is LearningMixer else Symbols(reader)
