"""A large text: its stretches are counted and encoded by several processes, and finished ones are kept.

While a text is encoded, the folder of its ids also holds `scan.json`, which says what was counted, and
`finished`, which has a line for each stretch whose ids are on the disk. After a kill, they say what need
not be done again: the count, if the files have the same names, sizes and times; and stretches whose
ids still have their SHA-256. These files go when the folder is at its place. A run that fails before its
first step puts its folder back, with `scan.json` and a manifest that covers all ids. The ids are the same bytes in one file, however many processes wrote them
and however often they were killed: from the count, each stretch's place in that file is known.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from charlm.config import DataConfig
from charlm.errors import CharlmError
from charlm.storage import machine_errors, read_manifest, write_file
from charlm.storage.atomic import shared_place
from charlm.storage.json_file import Count, read_bytes, read_object
from charlm.storage.machine import is_gone
from charlm.storage.manifest import sha256_of
from charlm.storage.regular import is_folder
from charlm.text.sources import Source, changed_meanwhile
from charlm.text.stretch_jobs import escapes_of, hash_ids
from charlm.text.stretches import Plan, Stretch, in_stretches, read_stretch
from charlm.text.tokenizer import CODE_POINTS, Tokenizer
from charlm.text.tokens import ESCAPES, id_dtype
from charlm.text.workers import in_order

IDS, RARE = "ids.bin", "escapes.bin"
SCAN, FINISHED, TOKENIZER = "scan.json", "finished", "tokenizer.json"
FORMAT = 1
_MOST = 1 << 27  # bytes of these files, of which a text of a TiB fills a twentieth

_LINE = re.compile(rb"^([0-9]{1,15}) ([0-9a-f]{64})$", re.MULTILINE)  # of `finished`

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Facts(BaseModel, strict=True):
    """What `scan.json` says."""

    format: int
    plan: str  # its key
    sha256: _Hash
    sizes: list[Count]
    hashes: list[_Hash]
    codes: list[Annotated[int, Field(ge=0, lt=CODE_POINTS)]]
    counts: list[Count]


@dataclass(frozen=True)
class Counted:
    """A text in stretches, and what is known after counting its symbols."""

    plan: Plan
    sha256: str  # of its content, as `read_symbols` passes it on
    sizes: list[int]  # symbols of each stretch
    hashes: list[str]  # of each stretch's content
    codes: list[int]  # the symbols that it has, in order
    counts: list[int]  # how often it has each

    def table(self, length: int) -> npt.NDArray[np.int64]:
        """Return how often it has each symbol below `length`, (length,)."""
        table = np.zeros(length, np.int64)
        table[self.codes] = self.counts
        return table

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is written down."""
        names = ("sha256", "sizes", "hashes", "codes", "counts")
        return {"format": FORMAT, "plan": self.plan.key} | {n: getattr(self, n) for n in names}


def count_symbols(
    source: Source,
    data: DataConfig,
    progress: Callable[[int], None],
    kept: Path | None = None,
) -> Counted | None:
    """Count the symbols of a text in stretches; None if it is not to be read so, see `in_stretches`.

    Args:
        source: The text.
        data: How it is read.
        progress: Gets the bytes read since the last call.
        kept: The folder in which an encoding of it may have been begun; it may not exist.

    Raises:
        DataError: It is not decodable or binary, or changes meanwhile.
        MachineError: It cannot be read.
    """
    plan = in_stretches(source, data)
    if not plan:
        return None
    if kept and (known := _read_count(kept / SCAN, plan)):
        return known
    digest, as_bytes = hashlib.sha256(), data.model_copy(update={"unit": "bytes"})
    counts = np.zeros(CODE_POINTS, np.int64)
    sizes, hashes = [], []
    tasks = [{"stretch": stretch} for stretch in plan.stretches]
    with closing(in_order("count", _setup(plan, data), tasks)) as results:
        for stretch, found in zip(plan.stretches, results, strict=True):
            counts[found["codes"]] += np.array(found["counts"], np.int64)
            sizes.append(found["size"])
            hashes.append(found["sha256"])
            for _ in read_stretch(stretch, as_bytes, plan.several, digest.update):
                pass
            progress(_bytes(stretch))
    after = in_stretches(source, data)
    if not after or after.key != plan.key:
        raise changed_meanwhile(source.name)
    codes = np.flatnonzero(counts)
    how_often = counts[codes].tolist()
    return Counted(plan, digest.hexdigest(), sizes, hashes, codes.tolist(), how_often)


def first_symbols(counted: Counted, data: DataConfig) -> Any:
    """Yield the symbols of a text from its start, in chunks."""
    for stretch in counted.plan.stretches:
        yield from read_stretch(stretch, data, counted.plan.several, lambda content: None)


def write_ids(
    counted: Counted,
    data: DataConfig,
    tokenizer: Tokenizer,
    strange: Sequence[str],
    folder: Path,
    progress: Callable[[int], None],
) -> tuple[str, int]:
    """Write the ids of a text, and its escapes, to `folder`; keep what was finished there before.

    The folder then also holds `working_files`.

    Args:
        counted: The text.
        data: How it is read.
        tokenizer: Of its ids.
        strange: The characters of the text that it lacks, in Unicode order.
        folder: Holds nothing else.
        progress: Gets the bytes read since the last call.

    Returns:
        The SHA-256 of the ids, and the number of escapes.

    Raises:
        DataError: The text changed since it was counted.
        MachineError: The disk or its permissions refuse, or a process was killed.
    """
    ids, width = folder / IDS, id_dtype(tokenizer.vocab_size).itemsize
    kept = _begin(folder, counted, tokenizer, sum(counted.sizes) * width)
    places = [0, *np.cumsum(counted.sizes).tolist()]
    facts = zip(counted.plan.stretches, places, counted.sizes, counted.hashes, strict=False)
    tasks = [
        {"stretch": stretch, "number": i, "start": start, "size": size, "sha256": sha256}
        | {"kept": kept.get(i)}
        for i, (stretch, start, size, sha256) in enumerate(facts)
    ]
    if whole := _whole(folder, tokenizer, tasks, width, progress):
        return whole
    setup = _setup(counted.plan, data) | {
        "tokenizer": str(folder / TOKENIZER),
        "strange": "".join(strange),
        "ids": str(ids),
    }
    digest = hashlib.sha256()
    with (
        machine_errors(folder),
        (folder / FINISHED).open("ab") as finished,
        closing(in_order("encode", setup, tasks)) as results,
    ):
        for task, result in zip(tasks, results, strict=True):
            if kept.get(task["number"]) != result["sha256"]:
                finished.write(f"{task['number']} {result['sha256']}\n".encode())
                finished.flush()
                os.fsync(finished.fileno())
            hash_ids(ids, task["start"] * width, task["size"] * width, digest.update)
            progress(_bytes(task["stretch"]))
        escapes = _joined_escapes(folder, len(tasks)) if tokenizer.escape is not None else 0
    return digest.hexdigest(), escapes


def working_files(counted: Counted) -> list[str]:
    """Return the names of files that are of use only until all ids of a text are written."""
    parts = (escapes_of(Path(IDS), i).name for i in range(len(counted.sizes)))
    return [SCAN, FINISHED, TOKENIZER, *parts]


def put_back(folder: Path, counted: Counted, tokenizer: Tokenizer) -> None:
    """Make a folder that `write_ids` filled for this text one that the next start goes on with.

    Raises MachineError if the disk or its permissions refuse.
    """
    place = shared_place(folder)
    with machine_errors(folder):
        write_file(folder / TOKENIZER, tokenizer.to_json().encode())
        write_file(folder / SCAN, json.dumps(counted.facts).encode())
        if is_folder(place):
            shutil.rmtree(place)
        folder.rename(place)


def _whole(
    folder: Path,
    tokenizer: Tokenizer,
    tasks: Sequence[Mapping[str, Any]],
    width: int,
    progress: Callable[[int], None],
) -> tuple[str, int] | None:
    """Return what `write_ids` returns if a manifest says that all ids are written, and they are."""
    try:
        files, escapes = read_manifest(folder)["files"], 0
        if tokenizer.escape is not None:
            if sha256_of(folder / RARE) != files[RARE]["sha256"]:
                return None
            escapes = (folder / RARE).stat().st_size // ESCAPES.itemsize
        digest = hashlib.sha256()
        for task in tasks:
            hash_ids(folder / IDS, task["start"] * width, task["size"] * width, digest.update)
            progress(_bytes(task["stretch"]))
        found = digest.hexdigest()
        return (found, escapes) if found == files[IDS]["sha256"] else None
    except (CharlmError, OSError, LookupError):
        return None


def _begin(folder: Path, counted: Counted, tokenizer: Tokenizer, size: int) -> dict[int, str]:
    """Return the SHA-256 of the finished stretches in a folder, after making it one for this text."""
    as_json = tokenizer.to_json().encode()
    with machine_errors(folder):
        try:
            same = (
                _read_count(folder / SCAN, counted.plan) == counted
                and read_bytes(folder / TOKENIZER, _MOST) == as_json
                and (folder / IDS).stat().st_size == size
            )
            return _finished(folder) if same else _new(folder, counted, as_json, size)
        except (CharlmError, OSError, ValueError):
            return _new(folder, counted, as_json, size)


def _finished(folder: Path) -> dict[int, str]:
    """Return what the lines of `finished` say, after cutting off a last one that a kill left torn."""
    path = folder / FINISHED
    if is_gone(path):
        return {}
    content = read_bytes(path, _MOST)
    end = content.rfind(b"\n") + 1
    os.truncate(path, end)
    return {int(number): sha256.decode() for number, sha256 in _LINE.findall(content[:end])}


def _new(folder: Path, counted: Counted, tokenizer: bytes, size: int) -> dict[int, str]:
    """Begin in a folder, whatever is there."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_file(folder / TOKENIZER, tokenizer)
    with (folder / IDS).open("wb") as file:
        file.truncate(size)
    write_file(folder / SCAN, json.dumps(counted.facts).encode())
    return {}


def _read_count(path: Path, plan: Plan) -> Counted | None:
    """Return what was counted of a text if a file says so, and it is the same text."""
    try:
        facts = _Facts.model_validate(read_object(path, _MOST))
    except (CharlmError, OSError, ValueError):
        return None
    right = (FORMAT, plan.key) == (facts.format, facts.plan)
    right &= len(facts.sizes) == len(facts.hashes) == len(plan.stretches)
    if not right or len(facts.codes) != len(facts.counts) or sum(facts.counts) != sum(facts.sizes):
        return None
    return Counted(plan, facts.sha256, facts.sizes, facts.hashes, facts.codes, facts.counts)


def _joined_escapes(folder: Path, stretches: int) -> int:
    """Join the files of escapes of all stretches, and return how many escapes there are."""
    with (folder / RARE).open("wb") as rare:
        for number in range(stretches):
            rare.write(escapes_of(folder / IDS, number).read_bytes())
        return rare.tell() // ESCAPES.itemsize


def _setup(plan: Plan, data: DataConfig) -> dict[str, Any]:
    return {"data": data.model_dump(), "several": plan.several}


def _bytes(stretch: Stretch) -> int:
    return sum(span.stop - span.start for span in stretch)
