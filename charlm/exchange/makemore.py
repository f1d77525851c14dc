"""makemore's models: `model.pt`, whose symbol 0 begins and ends each line of its text.

A file holds tensors only; their names tell which of its models it is. The length of a block is that of
the longest line, with its end, where no tensor tells it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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
    for name, read in READERS.items():
        if name in weights:
            try:
                model, ours = read(weights, path, n_head)
            except (RuntimeError, IndexError, ValueError) as error:  # of tensors that do not fit
                raise CheckpointError(path, " ".join(str(error).split())[:100], ANOTHER) from None
            if "head.weight" in ours:
                vocab_size = shape_of(ours, "head.weight", 2, path)[0]
            else:
                vocab_size = len(weights["logits"])
            model = {"block_size": longest + 1} | model
            return Foreign("makemore", model, ours, vocab_size, records=True)
    raise CheckpointError(path, "has none of the weights of minGPT's or makemore's", ANOTHER)


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


def _mlp(weights: dict[str, Tensor], path: Path, n_head: int | None) -> Found:
    table = _Rest(weights, path)
    n_embd = table.shape("wte.weight")[1]
    n_hidden, inputs = table.shape("mlp.0.weight")
    context, left = divmod(inputs, n_embd)
    if left:
        raise CheckpointError(path, f"mlp.0.weight does not read {n_embd} channels", ANOTHER)
    embeddings = table.take("wte.weight")
    # The newest character comes first there, the oldest here.
    newest_first = torch.unflatten(table.take("mlp.0.weight"), 1, (context, n_embd))
    ours = {
        "token_embedding.weight": embeddings[:-1],
        "before": embeddings[-1],
        "hidden.weight": newest_first.flip(1).flatten(1),
        "hidden.bias": table.take("mlp.0.bias"),
        "head.weight": table.take("mlp.2.weight"),
        "head.bias": table.take("mlp.2.bias"),
    }
    table.check_empty()
    return {"type": "mlp", "context": context, "n_embd": n_embd, "n_hidden": n_hidden}, ours


def _recurrent(weights: dict[str, Tensor], path: Path, n_head: int | None) -> Found:
    table = _Rest(weights, path)
    n_embd, n_hidden = table.shape("wte.weight")[1], table.shape("start")[1]
    is_gru = "cell.xh_to_z.weight" in weights
    # Of a GRU: what updates, what resets, and the candidate, in the order of ours.
    parts = [f"cell.xh_to_{gate}" for gate in (("z", "r", "hbar") if is_gru else ("h",))]
    # Each reads the character and the state side by side.
    read = [table.take(f"{part}.weight") for part in parts]
    if any(one.ndim != 2 or one.shape[1] != n_embd + n_hidden for one in read):
        what = f"{parts[0]}.weight does not read {n_embd} and {n_hidden} channels"
        raise CheckpointError(path, what, ANOTHER)
    of_state = [one[:, n_embd:] for one in read]
    ours = {
        "token_embedding.weight": table.take("wte.weight"),
        "layers.0.start": table.take("start").flatten(),
        "layers.0.input.weight": torch.cat([one[:, :n_embd] for one in read]),
        "layers.0.input.bias": torch.cat([table.take(f"{part}.bias") for part in parts]),
        "layers.0.state.weight": torch.cat(of_state[:2]),
        "head.weight": table.take("lm_head.weight"),
        "head.bias": table.take("lm_head.bias"),
    }
    if is_gru:
        ours["layers.0.candidate.weight"] = of_state[2]
    table.check_empty()
    return {"type": "gru" if is_gru else "rnn", "n_embd": n_embd, "n_hidden": n_hidden}, ours


def _bow(weights: dict[str, Tensor], path: Path, n_head: int | None) -> Found:
    table = _Rest(weights, path)
    table.weights.pop("context_block.cbow.bias", None)  # which position sees which
    block_size, n_embd = table.shape("wpe.weight")
    n_hidden, _ = table.shape("context_block.mlp.c_fc.weight")
    theirs = {"expand": "context_block.mlp.c_fc", "contract": "context_block.mlp.c_proj"}
    theirs |= {"head": "lm_head", "token_embedding": "wte", "position_embedding": "wpe"}  # nosec B105
    ours = {f"{name}.weight": table.take(f"{one}.weight") for name, one in theirs.items()}
    for name in ("expand", "contract", "head"):
        ours[f"{name}.bias"] = table.take(f"{theirs[name]}.bias")
    table.check_empty()
    sizes = {"block_size": block_size, "n_embd": n_embd, "n_hidden": n_hidden}
    return {"type": "bow", **sizes}, ours


class _Rest:
    """Tensors by their names, each of which is taken once."""

    def __init__(self, weights: dict[str, Tensor], path: Path) -> None:
        self.weights, self.path = dict(weights), path

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a matrix."""
        return shape_of(self.weights, name, 2, self.path)

    def take(self, name: str) -> Tensor:
        """Return a tensor, which then is not left."""
        if name not in self.weights:
            raise CheckpointError(self.path, f"lacks {name}", ANOTHER)
        return self.weights.pop(name)

    def check_empty(self) -> None:
        """Refuse tensors that were not taken."""
        for name in sorted(self.weights):
            raise CheckpointError(self.path, f"has {name[:60]}", "it is not a model of makemore's")


# How each of its models is read, by a tensor that only it has.
READERS: dict[str, Callable[[dict[str, Tensor], Path, int | None], Found]] = {
    "transformer.wte.weight": _transformer,
    "logits": _bigram,
    "mlp.0.weight": _mlp,
    "start": _recurrent,
    "wpe.weight": _bow,
}
