"""A copy of a run, whole or without its text."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from charlm.lifecycle.begin import LOCKS, new_folder_for_run
from charlm.runs import RunFolder
from charlm.storage import folder_lock, machine_errors
from charlm.storage.atomic import flush_file, flush_folder, is_leftover, make_folder

TEXT = "tokens"


def copy_run(run: RunFolder, out: Path, *, with_text: bool = True) -> int:
    """Copy a run to a new folder, which is a run only once all is there; return its size in bytes.

    Without its text, it can write, be scored on other texts, and be taken for experts or first
    weights; it cannot be resumed, unless its text is still where the configuration says.

    Raises:
        UsageError: The new folder is not empty.
        MachineError: The run is being trained, or the disk refuses.
    """
    size = 0
    with folder_lock(run.path), new_folder_for_run(out), machine_errors(out):
        files = sorted(_files(run.path, with_text), key=lambda path: path == run.config_path)
        for path in files:  # the configuration last: without it, the folder is no run
            target = out / path.relative_to(run.path)
            make_folder(target.parent)
            if path.name == TEXT and path.is_symlink():  # an expert's, to the text of its mixture
                target.symlink_to(os.readlink(path))
                continue
            shutil.copyfile(path, target)
            flush_file(target)
            flush_folder(target.parent)
            size += target.stat().st_size
    return size


def _files(folder: Path, with_text: bool) -> Iterator[Path]:
    """Yield the files of a run, and the links of its experts to its text."""
    for path in folder.iterdir():
        if path.name in LOCKS or is_leftover(path.name):
            continue
        if path.name == TEXT and not with_text:
            continue
        if path.is_dir() and not (path.name == TEXT and path.is_symlink()):
            yield from _files(path, with_text)
        else:
            yield path
