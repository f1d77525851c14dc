"""All forms of an exported model in one call."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from charlm.errors import UsageError
from charlm.exchange.alone import write_alone
from charlm.exchange.gguf_form import write_gguf
from charlm.exchange.hugging_face import write_hugging_face
from charlm.exchange.npz import write_npz
from charlm.exchange.onnx_form import write_onnx
from charlm.runs.load import SavedModel
from charlm.storage.atomic import make_folder
from charlm.storage.machine import is_gone, machine_errors

Form = Literal["charlm", "hf", "onnx", "gguf", "npz"]
FORMS: tuple[Form, ...] = get_args(Form)
WRITERS = {
    "charlm": write_alone,
    "hf": write_hugging_face,
    "onnx": write_onnx,
    "gguf": write_gguf,
    "npz": write_npz,
}


@dataclass(frozen=True)
class Exported:
    """A folder that was written, its size in bytes, and how far its logits are from the run's.

    `holds_text`: whether the model's own state holds the text that it counted.
    """

    folder: Path
    form: Form
    bytes: int
    difference: float
    holds_text: bool


def export(saved: SavedModel, folder: Path, form: Form = "charlm") -> Exported:
    """Write a model to a new folder, whole or not at all: weights, alphabet, configuration, model card.

    The text that it learned from, and the state of its optimizer, are left out. What was written is
    read again and its logits are compared, before the folder is put in place.

    Raises:
        UsageError: The folder exists, or the form has no place for this model.
        MachineError: The disk refuses, or the form needs a package that is missing.
    """
    if form not in FORMS:
        raise UsageError(f"form {form!r}", "unknown", f"use one of {', '.join(FORMS)}")
    if not is_gone(folder):
        raise UsageError(folder, "exists", "name a new folder")
    with machine_errors(folder):
        make_folder(folder.parent)
    holds_text = saved.model.uncounted > 0  # it counts it when it is loaded
    difference = WRITERS[form](saved, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Exported(folder, form, size, difference, holds_text)
