"""A model in a folder of its own, without the text and the log of its run."""

import shutil
from pathlib import Path

from charlm.config import dump_yaml
from charlm.library.run import Run
from charlm.lifecycle.begin import new_folder_for_run
from charlm.runs import RunFolder
from charlm.runs.checkpoints import read_checkpoint
from charlm.runs.load import SavedModel
from charlm.runs.provenance import PROVENANCE
from charlm.runs.state import STATE
from charlm.runs.weights import WEIGHTS, save_weights
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder, new_folder


def save(saved: SavedModel, folder: Path) -> Run:
    """Write a model with its configuration and alphabet; see `Model.save`."""
    run, source = RunFolder(folder), saved.run.checkpoints.path(saved.step)
    facts = dict(read_checkpoint(saved.step, source).facts)
    with new_folder_for_run(folder):
        with machine_errors(folder):
            make_folder(run.checkpoints.folder)
        write_file(run.tokenizer_path, saved.tokenizer.to_json().encode())
        with new_folder(run.checkpoints.path(saved.step), facts) as place, machine_errors(place):
            save_weights(saved.model, place / WEIGHTS)
            for name in (STATE, PROVENANCE):
                shutil.copyfile(source / name, place / name)
        write_file(run.config_path, dump_yaml(saved.config.model_dump()).encode())
    return Run(run)
