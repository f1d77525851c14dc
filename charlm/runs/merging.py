"""An ordinary checkpoint from one in parts."""

import shutil

from charlm.errors import CheckpointError
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.folder import RunFolder
from charlm.runs.parts import ABOUT, in_parts, part_files
from charlm.runs.state import OPTIMIZER
from charlm.runs.weights import WEIGHTS, load_whole, save_tensors
from charlm.storage import folder_lock, machine_errors, new_folder, verify_folder
from charlm.storage.atomic import remove_leftovers


def merge_run(run: RunFolder) -> list[int]:
    """Merge all checkpoints of a run that are in parts; return their steps.

    Raises:
        CheckpointError: One is damaged; it stays as it is, and all others are merged.
        MachineError: The run is being trained, or the disk or its permissions refuse.
    """
    merged: list[int] = []
    damage: CheckpointError | None = None
    with folder_lock(run.path):
        remove_leftovers(run.checkpoints.folder)
        for checkpoint in run.checkpoints.all():
            if in_parts(checkpoint.path):
                try:
                    _merge(checkpoint)
                    merged.append(checkpoint.step)
                except CheckpointError as error:
                    damage = damage or error
    if damage:
        raise damage
    return merged


def _merge(checkpoint: Checkpoint) -> None:
    """Replace a checkpoint in parts by an ordinary one with the same bits."""
    path = checkpoint.path
    verify_folder(path, "remove it")
    parts = part_files(path)
    if any((path / name).exists() for name in (WEIGHTS, OPTIMIZER)):
        raise CheckpointError(path, "is in parts and whole", "remove it")
    facts = {key: x for key, x in checkpoint.facts.items() if key not in ("format", "files")}
    with machine_errors(path), new_folder(path, facts) as folder:
        for name in (WEIGHTS, OPTIMIZER):
            tensors, about = load_whole(path / name)
            save_tensors(tensors, folder / name, about)
        for other in path.iterdir():
            if (
                other.name in checkpoint.facts["files"]
                and other.name != ABOUT
                and other not in parts
            ):
                shutil.copyfile(other, folder / other.name)
