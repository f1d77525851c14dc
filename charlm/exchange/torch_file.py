"""A file that `torch.save` wrote, as far as weights need it: nothing in it is run.

Such a file is a zip archive of tensors and of a pickle that says what they are. torch reads it with
`weights_only`, which calls nothing but its own functions; among these are some that take gigabytes when a
file of a few bytes asks for it. So the pickle is first read operation by operation, and refused if it asks
for anything besides tensors, numbers, texts and containers.
"""

import io
import pickle  # nosec B403
import pickletools  # nosec B403
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charlm.errors import CheckpointError
from charlm.storage import machine_errors

MOST_BYTES = 8 << 30
# Of the pickle: a GPT-2 XL with its optimizer takes less than half of each.
MOST_PICKLED, MOST_OPERATIONS = 4 << 20, 200_000
ANOTHER = "name another checkpoint"
COMPILED = "_orig_mod."  # before each name, if the model was compiled

_CONTAINERS = {
    "EMPTY_DICT",
    "EMPTY_LIST",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
}
_ITEMS = {"MARK", "SETITEM", "SETITEMS", "APPEND", "APPENDS"}
_VALUES = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CALLS = {"GLOBAL", "REDUCE", "BUILD", "BINPERSID"}
_MEMORY = {"BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
_OPERATIONS = {"PROTO", "STOP", "BINUNICODE"} | _CONTAINERS | _ITEMS | _VALUES | _CALLS | _MEMORY
_NUMBERS = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in _NUMBERS),
}
# What Python and torch raise for a damaged file, or for one that asks for more than tensors.
_REFUSALS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
)


def read_torch(path: Path) -> Any:
    """Return what a file holds: tensors, numbers, texts, and containers of them.

    Raises:
        CheckpointError: It is no such file, is damaged, or asks for anything else.
        MachineError: It cannot be read.
    """
    with machine_errors(path):
        if path.stat().st_size > MOST_BYTES:
            raise CheckpointError(path, "larger than 8 GiB", ANOTHER)
        if not zipfile.is_zipfile(path):
            raise CheckpointError(path, "not a checkpoint of torch", ANOTHER)
        try:
            _check_pickle(_pickle_in(path))
            # Tensors stay in the file until they are used.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except _REFUSALS as error:
            said = " ".join(str(error).split())[:100] or type(error).__name__
            raise CheckpointError(path, f"refused unread ({said})", ANOTHER) from None


def _pickle_in(path: Path) -> bytes:
    """Return the pickle of an archive, or raise ValueError."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(one.compress_type or one.compress_size != one.file_size for one in entries):
            raise ValueError("it is compressed, and torch never does that")
        # torch and Python must find the same parts: with bytes before the first, or names that differ in
        # case only, each could read another pickle.
        if archive.comment or min((one.header_offset for one in entries), default=0) != 0:
            raise ValueError("it does not begin or end where an archive of torch does")
        if len({one.filename.lower() for one in entries}) != len(entries):
            raise ValueError("it has two parts of one name")
        if sum(one.file_size for one in entries) > path.stat().st_size:
            raise ValueError("its parts claim more bytes than it has")
        found = [one for one in entries if one.filename.split("/")[-1] == "data.pkl"]
        if len(found) != 1 or found[0].file_size > MOST_PICKLED:
            raise ValueError("it has no pickle of weights")
        return archive.read(found[0])


def _check_pickle(data: bytes) -> None:
    """Raise ValueError for a pickle that asks for anything that weights do not need."""
    for count, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
        if operation.name not in _OPERATIONS:
            raise ValueError(f"it asks for {operation.name}")
        if operation.name == "GLOBAL" and argument not in _GLOBALS:
            raise ValueError(f"it asks for {argument}")
        if count > MOST_OPERATIONS:
            raise ValueError("it has more operations than weights need")


def weights_of(path: Path, state: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict by their names, without the prefix of compiled models.

    Raises CheckpointError if something else is in it, or if the tensors are larger than the file: several
    may share their memory, and a model of their sizes would not.
    """
    try:
        found = {name.removeprefix(COMPILED): tensor for name, tensor in dict(state).items()}
    except (TypeError, AttributeError, ValueError):
        raise CheckpointError(path, "holds no weights by name", ANOTHER) from None
    for name, tensor in found.items():
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point()):
            raise CheckpointError(path, f"{name[:60]} is no tensor of numbers", ANOTHER)
    head, table = found.get("lm_head.weight"), found.get("transformer.wte.weight")
    size = sum(one.nbytes for one in found.values())
    if head is not None and table is not None and head.data_ptr() == table.data_ptr():
        size -= min(head.nbytes, table.nbytes)  # the head is the embedding: in the file once
    if size > path.stat().st_size:
        raise CheckpointError(path, "its tensors claim more bytes than it has", ANOTHER)
    return found


def shape_of(weights: dict[str, Tensor], name: str, dimensions: int, path: Path) -> tuple[int, ...]:
    """Return the shape of a tensor, all sizes at least 1; CheckpointError if it has none such."""
    if name not in weights:
        raise CheckpointError(path, f"lacks {name}", ANOTHER)
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions or not all(shape):
        what = f"{name} has {len(shape)} dimensions of {str(shape)[:40]}, expected {dimensions}"
        raise CheckpointError(path, what, ANOTHER)
    return shape
