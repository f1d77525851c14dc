"""nanoGPT's checkpoints: `ckpt.pt` with its `meta.pkl`, as a GPT of style `gpt2`."""

from pathlib import Path
from typing import Any

import torch

from charlm.errors import CheckpointError, Phrase, Setting
from charlm.exchange.foreign import Foreign, gpt2_of
from charlm.exchange.pickled import read_plain_pickle
from charlm.exchange.torch_file import ANOTHER, shape_of, weights_of

USE_TEXT = Phrase("use {}", Setting("text"))
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


def is_nanogpt(content: Any) -> bool:
    """Tell whether the content of a file seems to be such a checkpoint."""
    return isinstance(content, dict) and ("model_args" in content or "iter_num" in content)


def nanogpt_of(content: Any, path: Path) -> Foreign:
    """Return the model in the content of a checkpoint.

    Raises CheckpointError if it is damaged, or not a model of nanoGPT's.
    """
    try:
        arguments, step = content["model_args"], content.get("iter_num", 0)
        sizes = {name: arguments[name] for name in SIZES}
        dropout, state = arguments.get("dropout", 0.0), content["model"]
    except (KeyError, TypeError, AttributeError):
        what = "has no model_args and model, as nanoGPT's have"
        raise CheckpointError(path, what, ANOTHER) from None
    plain = all(type(size) is int and size > 0 for size in sizes.values())
    if not plain or type(step) is not int or not 0 <= step < 2**63:
        raise CheckpointError(path, "its model_args are no sizes", ANOTHER)
    weights = weights_of(path, state)
    head, table = weights.get("lm_head.weight"), weights.get("transformer.wte.weight")
    if head is not None and (table is None or not torch.equal(head, table)):
        raise CheckpointError(path, "its head is not its embedding", "it is not nanoGPT's")
    found, ours = gpt2_of(weights, path, tied=True)
    found["vocab_size"], _ = shape_of(weights, "transformer.wte.weight", 2, path)
    for name in ("n_layer", "n_embd", "block_size", "vocab_size"):
        if found[name] != sizes[name]:
            what = f"its weights have {name} {found[name]}, its sizes say {sizes[name]}"
            raise CheckpointError(path, what, ANOTHER)
    del found["vocab_size"]
    model = {"type": "gpt", "style": "gpt2", **found, "n_head": sizes["n_head"]}
    model["dropout"] = dropout if type(dropout) is float and 0 <= dropout < 1 else 0.0
    return Foreign("nanogpt", model, ours, sizes["vocab_size"], step)


def alphabet_in(meta: Path) -> str:
    """Return the characters in a `meta.pkl`, in the order of their ids; CheckpointError if it has none."""
    content = read_plain_pickle(meta)
    try:
        symbols = [content["itos"][i] for i in range(len(content["itos"]))]
    except (KeyError, TypeError):
        raise CheckpointError(meta, "has no itos, as nanoGPT's has", USE_TEXT) from None
    if not all(isinstance(one, str) and len(one) == 1 for one in symbols):
        raise CheckpointError(meta, "its symbols are not single characters", USE_TEXT)
    if symbols != sorted(set(symbols)):
        raise CheckpointError(meta, "its characters are not in the order of Unicode", USE_TEXT)
    return "".join(symbols)
