"""Fetch a pinned file over HTTPS: interrupted downloads resume, and the content is checked."""

import contextlib
import http.client
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError

from charlm.errors import DataError, MachineError
from charlm.storage.atomic import put_in_place
from charlm.storage.machine import is_gone, machine_errors
from charlm.storage.manifest import sha256_of
from charlm.storage.regular import has_other_names, is_regular

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

    After a broken transfer, the received part stays beside the target as `.part`; this call (up to
    `attempts` times) or a later one continues from there. The address must be https; plain http is
    accepted from this machine only. At most `size` bytes are kept, whatever the server sends.
    `progress` is called with the bytes received and the bytes expected.

    Raises:
        MachineError: The network or the disk failed; the received part is kept for the next try.
        DataError: The content is not the pinned one; nothing is kept.
    """
    address = urllib.parse.urlsplit(url)
    local = address.scheme == "http" and address.hostname in _LOOPBACK
    if address.scheme != "https" and not local:
        raise DataError(url, "only https addresses are fetched")
    part = target.with_name(target.name + ".part")
    with machine_errors(target), _folder_for(target):
        # Begun for another version of the file, or what is written to it appears elsewhere too.
        if not is_gone(part) and (
            _size(part) > size or not is_regular(part) or has_other_names(part)
        ):
            part.unlink()
        reason = ""
        for _ in range(attempts):
            if _size(part) == size:
                break
            reason = _transfer(url, part, size, progress)
        done = _size(part)
        if done < size:
            raise MachineError(url, f"got {done:,} of {size:,} bytes ({reason})", "try again")
        found = sha256_of(part)
        if found != sha256:
            part.unlink()
            what = f"SHA-256 is {found[:16]}..., expected {sha256[:16]}..."
            raise DataError(url, what, "the file there is not the pinned one and was discarded")
        put_in_place(part, target)


@contextlib.contextmanager
def _folder_for(target: Path) -> Iterator[None]:
    """Make the target's folder; delete it again if nothing was received."""
    made = not target.parent.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: something was received
                target.parent.rmdir()


def _transfer(url: str, part: Path, size: int, progress: Callable[[int, int], None]) -> str:
    """Append the rest of the file to `part`; return why the transfer ended early, or ''."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "charlm"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        # Any scheme would be opened here, but `download` has refused all but https.
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # nosec B310
            if start and response.status != http.client.PARTIAL_CONTENT:
                start = 0  # the server sends the whole file again
            with part.open("ab" if start else "wb") as file:
                done = start
                while chunk := response.read(min(_CHUNK, size - done)):
                    file.write(chunk)
                    done += len(chunk)
                    progress(done, size)
        return "the connection closed early" if done < size else ""
    except HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
        return f"HTTP {error.code} {error.reason}"
    except (URLError, http.client.HTTPException, SSLError, ConnectionError, TimeoutError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def matches(path: Path, size: int, sha256: str) -> bool:
    """Tell whether a file is the pinned one, or raise OSError if it cannot be read."""
    path = path.resolve()  # a text may be a link
    return path.stat().st_size == size and sha256_of(path) == sha256


def _size(path: Path) -> int:
    """Return the size of a file in bytes, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0
