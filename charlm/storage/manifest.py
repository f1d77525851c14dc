"""MANIFEST.json: what a folder holds, and proof that it still does.

`{"format": 1, "files": {name: {"size": bytes, "sha256": hex}}, ...facts}`. A folder without a
manifest was never finished.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from charlm.errors import CheckpointError

NAME = "MANIFEST.json"
FORMAT = 1
_MAX_BYTES = 1 << 20
_CHUNK = 1 << 20


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Record `facts` and the size and SHA-256 of every file now in `folder`."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    content = {"format": FORMAT, **facts, "files": files}
    with (folder / NAME).open("wb") as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest without checking its files.

    Raises:
        CheckpointError: There is none, or it is not one that this version reads.
    """
    path = folder / NAME
    try:
        if not path.is_file():
            raise CheckpointError(f"{folder}: no {NAME}, so it was never finished; name another")
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); name another") from None
    if not isinstance(content, dict) or not _is_listing(content.get("files")):
        raise CheckpointError(f"{path}: not a manifest; name another")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {content.get('format')!r}, this charlm reads {FORMAT}; upgrade charlm"
        )
    return content


def verify_folder(folder: Path) -> dict[str, Any]:
    """Check every file of a folder against its manifest, and return the manifest.

    Raises:
        CheckpointError: A file is missing, unexpected, changed, or named outside the folder.
    """
    content = read_manifest(folder)
    files = content["files"]
    try:
        present = {path.name for path in folder.iterdir()} - {NAME}
        for name in sorted(present | set(files)):
            path = folder / name
            if Path(name).name != name or path.is_symlink():
                raise CheckpointError(f"{folder}: unsafe path {name!r}; name another")
            if name not in files:
                raise CheckpointError(f"{folder}: {name!r} is not in its manifest; name another")
            if not path.is_file():
                raise CheckpointError(
                    f"{folder}: {name!r} is missing or no regular file; name another"
                )
            size, expected = path.stat().st_size, files[name].get("size")
            if size != expected:
                raise CheckpointError(
                    f"{path}: {size} bytes, its manifest says {expected}; name another"
                )
            if sha256_of(path) != files[name].get("sha256"):
                raise CheckpointError(f"{path}: SHA-256 differs from its manifest; name another")
    except OSError as error:  # a disk that fails, a folder that was pruned just now
        raise CheckpointError(f"{folder}: cannot be read ({error}); name another") from None
    return content


def _is_listing(files: Any) -> bool:
    return isinstance(files, dict) and all(isinstance(entry, dict) for entry in files.values())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
