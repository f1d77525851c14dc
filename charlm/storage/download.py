"""Fetch a pinned file over HTTPS: resumed where it broke off, checked before it counts."""

import contextlib
import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from charlm.errors import DataError, MachineError
from charlm.storage.atomic import flush_file, flush_folder, machine_errors
from charlm.storage.manifest import sha256_of

_CHUNK = 1 << 16
_TIMEOUT_SECONDS = 30.0
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def download(
    url: str,
    target: Path,
    *,
    size: int,
    sha256: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
    attempts: int = 3,
) -> None:
    """Fetch `url` into `target`, which appears only with the right size and SHA-256.

    What a broken transfer brought stays beside the target as `.part` and is continued from, by
    this call (up to `attempts` times) or by a later one.

    Args:
        url: An https address; plain http is taken from this very machine only.
        target: The file to make.
        size: Its size in bytes; never more than this is read.
        sha256: Of its content, as 64 hexadecimal digits.
        progress: Called with the bytes present and the bytes expected.
        attempts: Connections to try before giving up.

    Raises:
        MachineError: The network or the disk failed; what came so far is kept for the next try.
        DataError: The content is not the pinned one; nothing is kept.
    """
    address = urllib.parse.urlsplit(url)
    if address.scheme != "https" and address.hostname not in _LOOPBACK:
        raise DataError(f"{url}: only https addresses are fetched")
    part = target.with_name(target.name + ".part")
    with machine_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        reason = ""
        for _ in range(attempts):
            done = part.stat().st_size if part.exists() else 0
            if done > size:
                part.unlink()
            elif done == size:
                break
            reason = _transfer(url, part, size, progress)
        done = part.stat().st_size if part.exists() else 0
        if done < size:
            raise MachineError(f"{url}: {done:,} of {size:,} bytes came ({reason}); try again")
        found = sha256_of(part)
        if found != sha256:
            part.unlink()
            raise DataError(
                f"{url}: SHA-256 is {found[:16]}..., expected {sha256[:16]}...; the file there is "
                "not the pinned one and was discarded"
            )
        flush_file(part)
        part.replace(target)
        flush_folder(target.parent)


def _transfer(url: str, part: Path, size: int, progress: Callable[[int, int], None]) -> str:
    """Append what the server still has to send to `part`; return why it ended early, or ''."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "charlm"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            if start and response.status != http.client.PARTIAL_CONTENT:
                start = 0  # the server sends the whole file again
            with part.open("ab" if start else "wb") as file:
                done = start
                while chunk := response.read(_CHUNK):
                    done += len(chunk)
                    if done > size:
                        file.write(chunk[: size - done])  # enough to fail the checksum below
                        return f"the file there is larger than {size:,} bytes"
                    file.write(chunk)
                    progress(done, size)
        return "the connection closed early" if done < size else ""
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
        return f"HTTP {error.code} {error.reason}"
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def matches(path: Path, size: int, sha256: str) -> bool:
    """Tell whether a file is the pinned one."""
    return path.stat().st_size == size and sha256_of(path) == sha256


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
