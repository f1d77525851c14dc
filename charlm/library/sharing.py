"""A model for others, from Python."""

from pathlib import Path

from charlm.exchange import Exported, Form
from charlm.exchange import export as write
from charlm.library.run import Run, open_run
from charlm.runs.load import load_model


def export(
    run: str | Path | Run,
    folder: str | Path,
    form: Form = "charlm",
    *,
    checkpoint: str | int = "best",
) -> Exported:
    """Write the model of a run to a new folder to share, without the text and the optimizer.

    >>> charlm.export("runs/gpt", "shared")

    Args:
        run: The run, or its folder.
        folder: Where to write; it must not exist.
        form: `charlm` (which `charlm.load` reads), `hf` (Hugging Face's transformers; a gpt of style
            `gpt2`), `onnx` (graphs for ONNX Runtime, also in browsers), `gguf` (llama.cpp; a gpt of style
            `gpt2`), or `npz` (NumPy arrays).
        checkpoint: `best`, `last`, or a step.

    Raises:
        UsageError: The folder exists, or the form has no place for this model.
        CheckpointError: The run or checkpoint is missing or damaged.
        MachineError: The disk refuses, or the form needs a package that is missing.
    """
    return write(load_model(open_run(run).folder, str(checkpoint), "cpu"), Path(folder), form)
