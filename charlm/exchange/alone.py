"""charlm's own form: a run without its text, its log and its optimizer, which every reader takes."""

import shutil
from pathlib import Path

from charlm.config import changed, dump_yaml
from charlm.exchange.card import Facts, card, without_places
from charlm.exchange.same import check_same
from charlm.lifecycle.begin import new_folder_for_run
from charlm.runs import RunFolder
from charlm.runs.checkpoints import read_checkpoint
from charlm.runs.load import SavedModel, load_model
from charlm.runs.provenance import PROVENANCE, provenance_json
from charlm.runs.state import STATE
from charlm.runs.weights import WEIGHTS, save_weights
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder, new_folder

LOADING = """import charlm

model = charlm.load("FOLDER")
print(model.generate(seed=1))"""


def write_alone(saved: SavedModel, folder: Path) -> float:
    """Write a model to a new folder; return the largest difference of its logits, which is 0.

    Raises UsageError if the folder is not empty, MachineError if the disk refuses.
    """
    run, source = RunFolder(folder), saved.run.checkpoints.path(saved.step)
    facts = dict(read_checkpoint(saved.step, source).facts)
    facts.pop("files", None)
    config = changed(saved.config).model_validate(without_places(saved.config.model_dump()))
    with new_folder_for_run(folder):
        with machine_errors(folder):
            make_folder(run.checkpoints.folder)
        write_file(run.tokenizer_path, saved.tokenizer.to_json().encode())
        with new_folder(run.checkpoints.path(saved.step), facts) as place, machine_errors(place):
            save_weights(saved.model, place / WEIGHTS)
            shutil.copyfile(source / STATE, place / STATE)
            # Not the run's own, which names the folders of its maker.
            alphabet = saved.tokenizer.to_json()
            (place / PROVENANCE).write_bytes(provenance_json(config, alphabet))
        exact = Facts("in its own form", LOADING, "python", "Its logits are those of the run.")
        write_file(folder / "README.md", card(saved, exact).encode())
        write_file(run.config_path, dump_yaml(config.model_dump()).encode())
        return check_same(str(folder), saved.model, load_model(run, device="cpu").model, 0.0)
