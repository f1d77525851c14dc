"""Loops compiled by numba: over single characters, and over the rows of large arrays.

Each compiled function also carries `@no_type_check`: otherwise, the run-time type checks of the tests
would wrap it before numba compiles it.
"""

import ctypes
import errno
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.core.caching import IndexDataCacheFile
from numba.core.event import Listener, install_listener

Compiled = Callable[..., Any]

OPTIONS: dict[str, Any] = {"nogil": True, "_nrt": False}  # without the lock and reference counts

# Sums may be taken in any order, so that they use vector instructions; NaN and infinity stay.
PARALLEL: dict[str, Any] = {
    "parallel": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "nsz", "contract"},
}


def kernel(function: Compiled) -> Compiled:
    """Compile a function that makes no arrays; it runs without Python's lock, and rounds as written.

    References are not counted: where a function passes on a tuple of many arrays, to count those to
    each would take as long as the work itself.

    The machine code is cached beside the source, or in the user's cache. Where neither can be written,
    each process compiles again, and so does one that finds it damaged.
    """
    return _compiled(function, OPTIONS)


def parallel_kernel(function: Compiled) -> Compiled:
    """Compile a function whose `prange` loops run on torch's threads; see `share_threads`.

    Where each turn of the loop writes what no other turn does, the result does not depend on the
    number of threads.
    """
    return _compiled(function, PARALLEL)


def inner(function: Compiled) -> Compiled:
    """Compile a function into the parallel kernels that call it."""
    options = {**PARALLEL, "parallel": False, "forceinline": True}
    return stamped(numba.njit(**options)(function), function)


def is_stored(kernel: Compiled) -> bool:
    """Tell whether the code of kernels can be stored, as `kernel` says."""
    return hasattr(kernel, "charlm_stamp")


class NotCompiled(Exception):
    """A kernel must be compiled first."""


class _Refuser(Listener):
    def on_start(self, event: Any) -> None:
        raise NotCompiled(event.data["dispatcher"].__name__)

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def only_compiled() -> Iterator[None]:
    """Raise NotCompiled, instead of compiling a kernel that is not in the cache."""
    with install_listener("numba:compile", _Refuser()):
        yield


def share_threads() -> None:
    """Before parallel kernels run: let them use the number of threads that torch uses now.

    numba would load the system's OpenMP beside torch's: waking a second set of threads takes 30 to
    50 microseconds for each loop instead of 1. So torch's library is made visible to it first.
    """
    if not _shared:
        _shared.append(True)
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]  # type: ignore[attr-defined]
        for library in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        threads = torch.get_num_threads()
        numba.get_num_threads()  # starts its threads, and so changes torch's number
        torch.set_num_threads(threads)
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(torch.get_num_threads(), most))


_shared: list[bool] = []  # not empty: done
_CacheFile: Any = IndexDataCacheFile  # it has no types


def _compiled(function: Compiled, options: dict[str, Any]) -> Compiled:
    """Compile a function; its machine code is cached under a stamp of all that it depends on."""
    try:
        compiled: Compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # "no locator available"
        alone: Compiled = numba.njit(**options)(function)
        return alone
    stamped(compiled, function)
    cache: Any = compiled._cache  # type: ignore[attr-defined]
    cache._cache_file = _Stored(cache.cache_path, cache._impl.filename_base, compiled.charlm_stamp)  # type: ignore[attr-defined]
    return compiled


class _Stored(_CacheFile):  # type: ignore[misc]
    """numba's files of machine code, each with its SHA-256 at the end, which numba does not read.

    What is damaged counts as not stored, so it is compiled again: numba itself would fail, or run it.
    """

    def _load_index(self) -> Any:
        """Return the names of the files that hold the code for each signature."""
        return super()._load_index() if _is_sound(self._index_path) else {}

    def _load_data(self, name: str) -> Any:
        """Return what is stored under a name; raise OSError if it is not there, or damaged."""
        path = self._data_path(name)
        if not _is_sound(path):
            raise OSError(errno.EIO, "damaged", path)
        return super()._load_data(name)

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[io.BytesIO]:
        """Yield what takes the content of a file, and write it when it is complete."""
        content = io.BytesIO()
        yield content
        data = content.getvalue()
        with super()._open_for_write(filepath) as file:
            file.write(data + hashlib.sha256(data).digest())


def _is_sound(path: str) -> bool:
    """Tell whether a file ends with the SHA-256 of what is before."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return False
    content = data[: -hashlib.sha256().digest_size]
    return data == content + hashlib.sha256(content).digest()


def stamped(compiled: Compiled, function: Callable[..., Any]) -> Compiled:
    """Give a compiled function the stamp by which its callers notice that it has changed.

    numba compiles again when the file of the function has changed, but not when the file of a function
    that it calls has. So its stamp of the file is replaced by one of all these files.
    """
    compiled.charlm_stamp = _stamp(function)  # type: ignore[attr-defined]
    return compiled


def _stamp(function: Callable[..., Any]) -> str:
    """Return a hash of what the machine code depends on: its file, all that it has imported, and this file.

    This is more than what the function itself names: it may call functions that are defined below it.
    """
    # By their content: two versions of a file can have the same time, and the same size.
    sources = function.__code__.co_filename, __file__
    found: list[Any] = [hashlib.sha256(Path(name).read_bytes()).digest() for name in sources]
    for name, value in function.__globals__.items():
        if isinstance(value, np.ndarray):  # its numbers become part of the code
            found.append((name, value.dtype, value.tobytes()))
        elif isinstance(value, int | float | tuple | np.generic):
            found.append((name, value))
        elif stamp := getattr(value, "charlm_stamp", None):
            found.append((name, stamp))
    return hashlib.sha256(repr(found).encode()).hexdigest()
