"""A checkpoint in parts: each process of a run has written its rows of weights and moments.

PyTorch's distributed checkpoints (DCP) write these as safetensors, and say in the header of each file
where its rows belong. Every reader puts them together; `merging` makes an ordinary checkpoint of them.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charlm.errors import CheckpointError, MachineError
from charlm.storage.json_file import parse_object, read_object

ABOUT = "parts.json"  # beside the parts: what their headers cannot say
PARTS, SHAPES = "parts", "shapes"  # in it: how many there are, and the shapes of whole tensors
OFFSETS = "DCP_SHARDING_INFO"  # in a header: where the tensors of the file begin in the whole ones

Loaded = tuple[dict[str, Tensor], dict[str, str]]  # tensors by name, and facts about them


@dataclass(frozen=True)
class Parts:
    """What the processes of a run have written.

    Attributes:
        folder: Where they are.
        count: How many there must be: one of each process.
        shapes: Of all tensors when whole, by file and name.
    """

    folder: Path
    count: int
    shapes: Mapping[str, Sequence[int]]

    def move(self, folder: Path, facts: Mapping[str, Mapping[str, str]]) -> None:
        """Move them to another folder; `facts`: see `write_about`.

        Raises MachineError if one is not there.
        """
        files = part_files(self.folder)
        if len(files) != self.count:
            what = f"has {len(files)} parts, and {self.count} processes have written one each"
            raise MachineError(self.folder, what, "let every machine see the folder of the run")
        for file in files:
            file.rename(folder / file.name)
        write_about(folder, facts, self.count, self.shapes)


def in_parts(folder: Path) -> bool:
    """Tell whether the checkpoint in a folder is in parts."""
    return (folder / ABOUT).exists()


def part_files(folder: Path) -> list[Path]:
    """Return the files of parts in a folder."""
    return sorted(folder.glob("shard-*.safetensors"))


def join_parts(path: Path, load: Callable[[Path, str], Loaded]) -> Loaded:
    """Return what a file of an ordinary checkpoint would hold, on the CPU.

    Args:
        path: The file, which is not there.
        load: Reads those tensors of a part whose names begin so, and facts.

    Raises:
        CheckpointError: A part is missing or damaged, or some rows are missing or there twice.
    """
    folder, file, group = path.parent, path.name, f"{path.name}/"
    facts, count, shapes = _about(folder, file)
    found = len(part_files(folder))
    if count not in (None, found):
        what = f"has {found} parts of {count}"
        raise CheckpointError(folder, what, "use an earlier checkpoint")
    pieces: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for part in part_files(folder):
        tensors, header = load(part, group)
        try:
            offsets = parse_object(header[OFFSETS].encode())
            for name, x in tensors.items():
                at = offsets[name]["saved_offsets"]
                if any(at[1:]) or not all(isinstance(first, int) for first in at):
                    raise ValueError("columns are split")
                pieces[name.removeprefix(group)].append((at[0] if at else 0, x))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            what = f"does not say where its rows belong ({str(error)[:60]})"
            raise CheckpointError(part, what, "use an earlier checkpoint") from None
    whole = {name: _together(folder, name, some) for name, some in pieces.items()}
    for name, shape in shapes.items():
        if name not in whole or list(whole[name].shape) != shape:
            raise _rows_are_missing(folder, name)
    return whole, facts


def _about(folder: Path, file: str) -> tuple[dict[str, str], Any, dict[str, Any]]:
    """Return what is known of a file that is in parts: facts, how many parts, shapes by name.

    Earlier versions did not write the last two.
    """
    try:
        content = read_object(folder / ABOUT)
        facts = {key: str(x) for key, x in content[file].items()}
        shapes, group = content.get(SHAPES, {}).items(), f"{file}/"
        own = {name.removeprefix(group): x for name, x in shapes if name.startswith(group)}
        return facts, content.get(PARTS), own
    except (OSError, ValueError, KeyError, AttributeError):
        raise CheckpointError(folder / ABOUT, "damaged", "use an earlier checkpoint") from None


def _together(folder: Path, name: str, pieces: list[tuple[int, Tensor]]) -> Tensor:
    """Return a tensor of which there are pieces, with their first rows."""
    found = [(at, x) for at, x in sorted(pieces, key=lambda one: one[0]) if x.numel()]
    if len(found) == 1 and found[0][0] == 0:
        return found[0][1]
    rows = 0
    for at, x in found:
        if not x.ndim or at != rows or x.shape[1:] != found[0][1].shape[1:]:
            raise _rows_are_missing(folder, name)
        rows += len(x)
    return torch.cat([x for _, x in found])


def _rows_are_missing(folder: Path, name: str) -> CheckpointError:
    what = f"rows of {name[:60]} are missing or do not fit together"
    return CheckpointError(folder, what, "use an earlier checkpoint")


def write_about(
    folder: Path,
    facts: Mapping[str, Mapping[str, str]],
    count: int,
    shapes: Mapping[str, Sequence[int]],
) -> None:
    """Write what is known of the parts in a folder.

    Args:
        folder: Where they are.
        facts: About the tensors of each file that an ordinary checkpoint would have.
        count: How many parts there are.
        shapes: See `Parts`.
    """
    about = {**facts, PARTS: count, SHAPES: {name: list(shape) for name, shape in shapes.items()}}
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
