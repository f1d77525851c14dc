"""What the heads of a trained model look at while it reads a text."""

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from charlm.errors import DataError, UsageError
from charlm.models import LanguageModel
from charlm.models.looking import attention_weights, attentive
from charlm.runs.load import SavedModel

TEXT = "text"


def attention_of(saved: SavedModel, text: str, expert: str | None) -> Float[ndarray, "L H T T"]:
    """Return the weights of each head of each layer; see `Model.attention`."""
    name, model = _attentive(saved, expert)
    tokenizer = saved.tokenizer
    try:
        ids = tokenizer.encode(text).astype(np.int64)
    except DataError as error:
        raise error.replace(where=TEXT, mend="use characters of its own text") from None
    if tokenizer.boundary is not None:
        ids = np.append(tokenizer.boundary, ids)
    if not 1 <= len(ids) <= model.block_size:
        whose = f"expert {name}" if name else "this model"
        what = f"{len(ids)} symbols, and {whose} reads 1 to {model.block_size} at once"
        raise UsageError(TEXT, what)
    return attention_weights(model, torch.from_numpy(ids)).numpy()


def _attentive(saved: SavedModel, expert: str | None) -> tuple[str, LanguageModel]:
    """Return the model whose attention is meant, and its name in a mixture."""
    found, own = attentive(saved.model), saved.config.model
    if expert is not None:
        if expert in found and own.members():
            return expert, found[expert]
        mend = f"those with attention: {', '.join(filter(None, found)) or 'none'}"
        raise UsageError(f"expert={expert!r}", "no such expert with attention", mend)
    if len(found) == 1:
        return next(iter(found.items()))
    if not found:
        what = f"a model of type {own.type!r} has no attention"
        raise UsageError(saved.run.path, what, "use a gpt, attention or multihead run")
    names = ", ".join(found)
    raise UsageError("expert", f"several have attention: {names}", "name one of them")
