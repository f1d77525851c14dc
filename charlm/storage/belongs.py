"""What weights mean nothing without: the model of their configuration, and their alphabet."""

import hashlib
from typing import Any

from charlm.config import Config
from charlm.config.keys import leaves
from charlm.errors import CheckpointError
from charlm.storage.run_folder import Checkpoint

BELONGS = "belongs"  # among the facts of a checkpoint
# Keys of a model that what it computes does not rest on.
IDLE = ("train", "dropout", "run", "tune_fraction")


def belongs(config: Config, alphabet: str) -> dict[str, Any]:
    """Return what the weights of a run mean nothing without, to be kept beside them.

    Sizes show in the shapes of tensors; the number of heads or the order of the alphabet does not.
    The whole configuration is kept too, for a run that goes on: see `changed`.

    Args:
        config: Of the run.
        alphabet: Its tokenizer.json.
    """
    digest = hashlib.sha256(alphabet.encode()).hexdigest()
    return {
        "model": dict(leaves(config.model.model_dump(), IDLE)),
        "alphabet_sha256": digest,
        "config": config.model_dump(mode="json"),
    }


def check_belongs(checkpoint: Checkpoint, config: Config, alphabet: str) -> None:
    """Refuse a checkpoint beside a configuration or an alphabet that it was not trained with.

    Raises:
        CheckpointError: With the first difference. Checkpoints of before have nothing to compare.
    """
    then = checkpoint.facts.get(BELONGS)
    if not isinstance(then, dict):
        return
    now, run = belongs(config, alphabet), checkpoint.path.parent.parent
    model = then.get("model")
    for key, value in now["model"].items():
        if isinstance(model, dict) and key in model and model[key] != value:
            raise CheckpointError(
                f"{run / 'config.yaml'}: model.{key} is {value!r}, {checkpoint.path.name} was saved "
                f"with {model[key]!r}; restore it"
            )
    if then.get("alphabet_sha256", now["alphabet_sha256"]) != now["alphabet_sha256"]:
        raise CheckpointError(
            f"{run / 'tokenizer.json'}: not the alphabet that {checkpoint.path.name} was saved with; "
            "restore it"
        )


def changed(checkpoint: Checkpoint, before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Return what differs between the configuration that a checkpoint was saved with and `now`.

    Args:
        checkpoint: What is gone on from.
        before: What its run says, for checkpoints that keep no configuration.
        now: What is asked for.

    Returns:
        By the whole key, the value then and now; keys that one of the two does not know are left out.
    """
    kept = checkpoint.facts.get(BELONGS)
    config = kept.get("config") if isinstance(kept, dict) else None
    then = dict(leaves(config if isinstance(config, dict) else before.model_dump(mode="json")))
    return {
        key: (then[key], value)
        for key, value in leaves(now.model_dump(mode="json"))
        if key in then and then[key] != value
    }
