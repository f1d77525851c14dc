"""makemore's models: `model.pt`, whose symbol 0 begins and ends each line of its text.

A file holds tensors only; their names tell which of its models it is. The length of a block is that of
the longest line, with its end, where no tensor tells it.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from charlm.errors import CheckpointError, Phrase, Setting, UsageError
from charlm.exchange.foreign import Foreign, gpt2_of
from charlm.exchange.torch_file import ANOTHER, shape_of, weights_of

HEADS = Setting("n_head")
Found = tuple[dict[str, Any], dict[str, Tensor]]  # keys of `model`, and weights by charlm's names


def makemore_of(content: Any, path: Path, longest: int, n_head: int | None) -> Foreign:
    """Return the model in the content of a file.

    Args:
        content: The content.
        path: The file, for messages.
        longest: Characters of the longest line of its text.
        n_head: Heads of a transformer, which the file does not tell.

    Raises:
        CheckpointError: It is damaged, or none of makemore's models.
        UsageError: The number of heads is missing, or does not divide the channels.
    """
    weights = weights_of(path, content)
    for name, read in (
        ("transformer.wte.weight", _transformer),
        ("logits", _bigram),
    ):
        if name in weights:
            model, ours = read(weights, path, n_head)
            model = {"block_size": longest + 1} | model
            return Foreign("makemore", model, ours, _vocab_size(weights, path), records=True)
    raise CheckpointError(path, "has none of the weights of minGPT's or makemore's", ANOTHER)


def _vocab_size(weights: dict[str, Tensor], path: Path) -> int:
    table = "logits" if "logits" in weights else "lm_head.weight"
    return shape_of(weights, table, 2, path)[0]


def _transformer(weights: dict[str, Tensor], path: Path, n_head: int | None) -> Found:
    found, ours = gpt2_of(weights, path, tied=False)
    if n_head is None:
        mend = Phrase("give it; or, if it is of minGPT, {}", Setting("meta", "config.json"))
        raise UsageError(HEADS, f"{path} does not say how many heads it has", mend)
    if found["n_embd"] % n_head:
        what = f"{n_head} does not divide the {found['n_embd']} channels of {path}"
        raise UsageError(HEADS, what, "give the number that it was trained with")
    return {"type": "gpt", "style": "gpt2", **found, "n_head": n_head, "gelu": "tanh"}, ours


def _bigram(weights: dict[str, Tensor], path: Path, n_head: int | None) -> Found:
    rows, columns = shape_of(weights, "logits", 2, path)
    if rows != columns or len(weights) > 1:
        raise CheckpointError(path, "is not a bigram model of makemore's", ANOTHER)
    return {"type": "bigram"}, {"table.weight": weights["logits"]}
