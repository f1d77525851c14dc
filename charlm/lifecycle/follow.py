"""A run that another process of the same launch has prepared: opened again, with nothing written."""

from pathlib import Path
from typing import Any

from charlm.config import dump_yaml, read_config
from charlm.errors import CheckpointError
from charlm.lifecycle.begin import PreparedRun
from charlm.runs import RunFolder
from charlm.runs.state import sound_checkpoint
from charlm.text import open_corpus


def orders_for(prepared: PreparedRun) -> dict[str, Any]:
    """Return what the other processes need to know of a run; all of them can read its folder."""
    checkpoint = prepared.checkpoint
    return {
        "run": str(prepared.run.path.absolute()),
        "config": dump_yaml(prepared.config.model_dump()),
        "checkpoint": checkpoint.step if checkpoint else None,
    }


def followed(orders: dict[str, Any]) -> PreparedRun:
    """Open the run that `orders_for` describes.

    Raises:
        CheckpointError: Its folder is not there, or damaged: each process must see the same folder.
        DataError: Its text is truncated.
        MachineError: The disk or its permissions refuse.
    """
    run, step = RunFolder(Path(orders["run"])), orders["checkpoint"]
    if not run.exists():
        mend = "let every machine see the folder of the run at this path"
        raise CheckpointError(run.path, "not found by a process of this run", mend)
    config = read_config(orders["config"].encode(), str(run.config_path))
    checkpoint = None if step is None else sound_checkpoint(step, run.checkpoints.path(step))
    corpus = open_corpus(run.text_path, checked=True)  # by the process that gave the orders
    return PreparedRun(config, run, corpus, run.tokenizer, checkpoint)
