"""A checkpoint in parts: each process of a run has written its rows of weights and moments.

PyTorch's distributed checkpoints (DCP) write these as safetensors, and say in the header of each file
where its rows belong. Every reader puts them together; `merging` makes an ordinary checkpoint of them.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from charlm.errors import CheckpointError
from charlm.storage.json_file import parse_object, read_object

ABOUT = "parts.json"  # beside the parts: what their headers cannot say
OFFSETS = "DCP_SHARDING_INFO"  # in a header: where the tensors of the file begin in the whole ones

Loaded = tuple[dict[str, Tensor], dict[str, str]]  # tensors by name, and facts about them


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
        CheckpointError: A part is damaged, or some rows are missing or there twice.
    """
    folder, file, group = path.parent, path.name, f"{path.name}/"
    pieces: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for part in part_files(folder):
        tensors, facts = load(part, group)
        try:
            offsets = parse_object(facts[OFFSETS].encode())
            for name, x in tensors.items():
                at = offsets[name]["saved_offsets"]
                if any(at[1:]) or not all(isinstance(first, int) for first in at):
                    raise ValueError("columns are split")
                pieces[name.removeprefix(group)].append((at[0] if at else 0, x))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            what = f"does not say where its rows belong ({str(error)[:60]})"
            raise CheckpointError(part, what, "use an earlier checkpoint") from None
    try:
        facts = {key: str(x) for key, x in read_object(folder / ABOUT)[file].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        raise CheckpointError(folder / ABOUT, "damaged", "use an earlier checkpoint") from None
    return {name: _together(folder, name, some) for name, some in pieces.items()}, facts


def _together(folder: Path, name: str, pieces: list[tuple[int, Tensor]]) -> Tensor:
    """Return a tensor of which there are pieces, with their first rows."""
    found = [(at, x) for at, x in sorted(pieces, key=lambda one: one[0]) if x.numel()]
    if len(found) == 1 and found[0][0] == 0:
        return found[0][1]
    rows = 0
    for at, x in found:
        if not x.ndim or at != rows or x.shape[1:] != found[0][1].shape[1:]:
            what = f"rows of {name[:60]} are missing or do not fit together"
            raise CheckpointError(folder, what, "use an earlier checkpoint")
        rows += len(x)
    return torch.cat([x for _, x in found])


def write_about(folder: Path, facts: Mapping[str, Mapping[str, str]]) -> None:
    """Write, for each file that an ordinary checkpoint would have, the facts about its tensors."""
    (folder / ABOUT).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
