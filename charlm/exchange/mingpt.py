"""minGPT's character model: `model.pt` with the `config.json` beside it, as a GPT of style `gpt2`.

It has biases, GELU by tanh, and a head of its own. `config.json` was written before the sizes were known:
there, the block and the vocabulary are null, and the number of heads is that of the named model.
"""

from pathlib import Path
from typing import Any

from charlm.errors import CheckpointError, Phrase, Setting
from charlm.exchange.foreign import Foreign, gpt2_of
from charlm.exchange.torch_file import ANOTHER, shape_of, weights_of
from charlm.storage.json_file import read_object

CONFIG = "config.json"
BY_META = Phrase("name its own by {}", Setting("meta"))
# Heads of the models that minGPT has names for.
HEADS = {
    "openai-gpt": 12,
    "gpt2": 12,
    "gpt2-medium": 16,
    "gpt2-large": 20,
    "gpt2-xl": 25,
    "gopher-44m": 16,
    "gpt-mini": 6,
    "gpt-micro": 4,
    "gpt-nano": 3,
}


def mingpt_of(content: Any, path: Path, config: Path) -> Foreign:
    """Return the model in the content of a file, whose configuration is another file.

    Raises CheckpointError if one of them is damaged, or not of a model of minGPT's.
    """
    weights = weights_of(path, content)
    found, ours = gpt2_of(weights, path, tied=False)
    if not found["bias"]:
        raise CheckpointError(path, "lacks transformer.ln_f.bias", ANOTHER)
    n_head, dropout = _heads_and_dropout(config)
    vocab_size, n_embd = shape_of(weights, "transformer.wte.weight", 2, path)
    if n_embd % n_head:
        what = f"{n_head} heads do not divide the {n_embd} channels of {path.name}"
        raise CheckpointError(config, what, "name the config.json of this model")
    model = {"type": "gpt", "style": "gpt2", **found, "n_head": n_head}
    model |= {"gelu": "tanh", "dropout": dropout}
    return Foreign("mingpt", model, ours, vocab_size)


def _heads_and_dropout(path: Path) -> tuple[int, float]:
    try:
        section = read_object(path)["model"]
        named, given = section.get("model_type"), section.get("n_head")
        n_head = given if given is not None else HEADS[named]
        dropout = section.get("resid_pdrop", 0.0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(path, "not a config.json of minGPT's", BY_META) from None
    if type(n_head) is not int or n_head < 1:
        raise CheckpointError(path, "names no number of heads", BY_META)
    return n_head, dropout if type(dropout) is float and 0 <= dropout < 1 else 0.0
