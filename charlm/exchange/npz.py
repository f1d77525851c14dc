"""NumPy's form: every tensor as an array, beside the configuration and the alphabet as JSON."""

from pathlib import Path

import numpy as np
import torch

from charlm.exchange.card import Facts, as_json, card
from charlm.exchange.same import check_same
from charlm.models.registry import build_model
from charlm.runs.load import SavedModel
from charlm.storage import machine_errors
from charlm.storage.atomic import new_folder

LOADING = """import json
import numpy as np

arrays = np.load("weights.npz")
alphabet = json.load(open("tokenizer.json"))
config = json.load(open("config.json"))["model"]
print(config, {name: arrays[name].shape for name in arrays})"""


def write_npz(saved: SavedModel, folder: Path) -> float:
    """Write a model to a folder; return the largest difference of its logits, which is 0."""
    arrays = {name: value.cpu().numpy() for name, value in saved.model.state_dict().items()}
    with new_folder(folder, {"kind": "export"}) as place, machine_errors(folder):
        np.savez(place / "weights.npz", **arrays)
        (place / "config.json").write_text(as_json(saved), encoding="utf-8")
        (place / "tokenizer.json").write_text(saved.tokenizer.to_json(), encoding="utf-8")
        exact = Facts(
            "as NumPy arrays", LOADING, "python", "The arrays have every bit of the run's."
        )
        (place / "README.md").write_text(card(saved, exact), encoding="utf-8")
        with np.load(place / "weights.npz") as read:
            again = build_model(saved.config.model, saved.tokenizer.vocab_size)
            again.load_state_dict({name: torch.from_numpy(read[name]) for name in read.files})
        return check_same(str(folder), saved.model, again.eval(), 0.0)
