"""MANIFEST.json: the files of a folder, with checksums.

`{"format": 1, "files": {name: {"size": bytes, "sha256": hex}}, ...facts}`. A folder without a
manifest was never finished. The manifest lists itself too: its SHA-256 is that of its bytes with
zeros in place of that SHA-256. Manifests of the first version lack this entry.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import reprlib
import stat
from collections.abc import Collection, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

from charlm.errors import CheckpointError
from charlm.storage.json_file import MAX_BYTES, parse_object, read_bytes, reason
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.regular import open_regular

NAME = "MANIFEST.json"
FORMAT = 1
_UNKNOWN = b"0" * 64  # stands for a manifest's own SHA-256 while that is computed
# The bytes right before it. No value can contain them: quotes in values are escaped.
_OWN = f'"{NAME}": {{\n   "sha256": "'.encode()
# Files that file managers leave in folders, and network file systems for files still open.
_LITTER = re.compile(r"\.DS_Store$|\._|\.nfs[0-9a-f]+$|(?i:thumbs\.db|desktop\.ini)$")
# Errors that mean a damaged folder or manifest; all other errors are the machine's.
_OF_WHAT_IS_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
_OF_WHAT_IS_THERE |= {errno.ENAMETOOLONG, errno.EINVAL}
_PICKLES = {".metadata", ".distcp", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


class OtherFormatError(CheckpointError):
    """A folder is of a format that this version does not read; it need not be damaged."""


def write_manifest(
    folder: Path,
    facts: Mapping[str, Any],
    hashes: Mapping[str, str] | None = None,
    apart: Collection[str] = (),
) -> None:
    """Record `facts` and the size and SHA-256 of every file now in `folder`, except those `apart`.

    `hashes` are SHA-256 of files that are known already. Raise CheckpointError if the facts are too
    long to be read again.
    """
    known, apart = hashes or {}, {NAME, *apart}
    files = {
        path.name: {"size": path.stat().st_size, "sha256": known.get(path.name) or sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.name not in apart
    }
    files = {NAME: {"sha256": _UNKNOWN.decode()}, **files}
    content = {"format": FORMAT, **facts, "files": files}
    data = (json.dumps(content, indent=1) + "\n").encode()
    if len(data) > MAX_BYTES:
        what = f"would have {len(data):,} bytes and may have {MAX_BYTES:,}"
        raise CheckpointError(folder / NAME, what, "give shorter names")
    own = hashlib.sha256(data).hexdigest().encode()
    with (folder / NAME).open("wb") as file:
        file.write(data.replace(_OWN + _UNKNOWN, _OWN + own))
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path, mend: str = "name another") -> dict[str, Any]:
    """Read a folder's manifest, without its own entry and without checking the files.

    `mend` is the advice in the message if it cannot be read.

    Raises:
        OtherFormatError: It is of a format that this version does not read.
        CheckpointError: It is missing, not a manifest, changed, or a symbolic link.
        MachineError: The disk or its permissions refuse; it may be sound.
    """
    path = folder / NAME
    with _reading(path, mend):
        if path.is_symlink():
            raise CheckpointError(path, "unsafe path, a symbolic link", mend)
        if is_gone(path) or not stat.S_ISREG(path.stat().st_mode):
            state = "not found" if is_gone(folder) else f"no {NAME}, so it was never finished"
            raise CheckpointError(folder, state, mend)
        data = read_bytes(path)
        content = parse_object(data)
    if content.get("format", FORMAT) != FORMAT:
        what = f"format {reprlib.repr(content['format'])}, this charlm reads {FORMAT}"
        raise OtherFormatError(path, what, "upgrade charlm")
    files = content.get("files")
    if "format" not in content or not isinstance(files, dict):
        raise CheckpointError(path, "not a manifest", mend)
    if not all(isinstance(entry, dict) for entry in files.values()):
        raise CheckpointError(path, "not a manifest", mend)
    own = files.pop(NAME, None)
    if own is not None and not _is_own(data):
        raise CheckpointError(path, "SHA-256 differs from its manifest", mend)
    return content


def verify_folder(folder: Path, mend: str = "name another") -> dict[str, Any]:
    """Check every file of a folder against its manifest, and return the manifest.

    Names are checked before any file is opened. `mend` is the advice in the message for a damaged
    folder.

    Raises:
        OtherFormatError: It is of a format that this version does not read.
        CheckpointError: A file is missing, unexpected, changed, outside the folder, or named like a
            pickle, which can run code.
        MachineError: The disk or its permissions refuse; it may be sound.
    """
    content = read_manifest(folder, mend)
    files = content["files"]
    with _reading(folder, mend):
        found = {path.name for path in folder.iterdir() if not _LITTER.match(path.name)}
        names = sorted(found - {NAME} | set(files))
        for name in names:
            _check_name(folder, name, files, mend)
        for name in names:
            path = folder / name
            size, expected = path.stat().st_size, files[name].get("size")
            if size != expected:
                what = f"{size} bytes, its manifest says {reprlib.repr(expected)}"
                raise CheckpointError(path, what, mend)
            if sha256_of(path) != files[name].get("sha256"):
                raise CheckpointError(path, "SHA-256 differs from its manifest", mend)
    return content


@contextlib.contextmanager
def _reading(path: Path, mend: str) -> Iterator[None]:
    """Turn errors into a CheckpointError (damaged or just pruned) or a MachineError (the disk)."""
    with machine_errors(path):
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in _OF_WHAT_IS_THERE:
                raise
            raise CheckpointError(path, f"cannot be read ({reason(error)})", mend) from None


def _check_name(folder: Path, name: str, files: Mapping[str, Any], mend: str) -> None:
    """Refuse a file by its name and kind, without reading it."""
    path, shown = folder / name, reprlib.repr(name)
    if Path(name).name != name or name == ".." or path.is_symlink():
        raise CheckpointError(folder, f"unsafe path {shown}", mend)
    if name in _PICKLES or path.suffix in _PICKLES:
        what = f"{shown} is named as a pickle, which can run code, and was not read"
        raise CheckpointError(folder, what, f"remove it or {mend}")
    if name not in files:
        raise CheckpointError(folder, f"{shown} is not in its manifest", mend)
    if not path.is_file():
        raise CheckpointError(folder, f"{shown} is missing or no regular file", mend)


def _is_own(data: bytes) -> bool:
    """Tell whether a manifest's bytes have the SHA-256 that they state."""
    before, mark, rest = data.partition(_OWN)
    sha256, after = rest[: len(_UNKNOWN)], rest[len(_UNKNOWN) :]
    return hashlib.sha256(before + mark + _UNKNOWN + after).hexdigest().encode() == sha256


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits; see `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
