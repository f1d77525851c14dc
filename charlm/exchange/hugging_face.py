"""Hugging Face's form: a GPT of style `gpt2` as a `GPT2LMHeadModel`, with its alphabet as a tokenizer.

Plain safetensors and JSON, written without their libraries. What is easily got wrong:

- `activation_function` is `gelu`; their default, `gelu_new`, is the form by tanh, 7e-4 off.
- Their linear layers are `Conv1D`, whose weights are transposed; biases are written as zeros.
- `bos_token_id` and `eos_token_id` are null: the defaults lie beyond the alphabet.
- The tokenizer is BPE without merges, over single code points. Without the decoder `Fuse`, spaces would
  appear between characters. `tokenizer_class` must be named, or `AutoTokenizer` builds GPT-2's own.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from charlm.errors import UsageError
from charlm.exchange.card import Facts, card
from charlm.exchange.same import check_same
from charlm.models.gpt2 import GPT2
from charlm.runs.load import SavedModel
from charlm.runs.weights import save_tensors
from charlm.storage import machine_errors
from charlm.storage.atomic import new_folder
from charlm.text import CharTokenizer, Tokenizer

MOST = 1e-4  # difference of logits: sums in another order
EPSILON = 1e-5  # of LayerNorm
NO_ENDS = dict.fromkeys(("bos_token_id", "eos_token_id"))

LOADING = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
ids = tokenizer("The ", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=100, do_sample=True)[0]))"""

# Ours, theirs, and whether theirs is transposed. {} is the number of a block.
PARTS = (
    ("blocks.{}.attention_norm.weight", "transformer.h.{}.ln_1.weight", False),
    ("blocks.{}.attention.qkv.weight", "transformer.h.{}.attn.c_attn.weight", True),
    ("blocks.{}.attention.projection.weight", "transformer.h.{}.attn.c_proj.weight", True),
    ("blocks.{}.mlp_norm.weight", "transformer.h.{}.ln_2.weight", False),
    ("blocks.{}.mlp.expand.weight", "transformer.h.{}.mlp.c_fc.weight", True),
    ("blocks.{}.mlp.contract.weight", "transformer.h.{}.mlp.c_proj.weight", True),
)
WHOLE = (
    ("token_embedding.weight", "transformer.wte.weight"),
    ("position_embedding.weight", "transformer.wpe.weight"),
    ("final_norm.weight", "transformer.ln_f.weight"),
)


def write_hugging_face(saved: SavedModel, folder: Path) -> float:
    """Write a GPT of style `gpt2` to a folder; return the largest difference of its logits.

    Raises UsageError for any other model.
    """
    model, config = saved.model, saved.config.model
    if type(model) is not GPT2:
        what = f"{config.brief} has no counterpart there"
        mend = "export a gpt of style gpt2, or use --to npz"
        raise UsageError(str(saved.run.path), what, mend)
    exact = f"Its logits differ from the run's by less than {MOST:g}."
    with new_folder(folder, {"kind": "export"}) as place, machine_errors(folder):
        save_tensors(_tensors(model), place / "model.safetensors", {"format": "pt"})
        _write_json(place / "config.json", _config(model, config.n_head, config.dropout))  # type: ignore[attr-defined]
        _write_json(place / "tokenizer.json", tokenizer_of(saved.tokenizer))
        _write_json(place / "tokenizer_config.json", _tokenizer_config(model.block_size))
        _write_json(place / "generation_config.json", NO_ENDS)
        facts = Facts("for Hugging Face's transformers", LOADING, "python", exact)
        (place / "README.md").write_text(card(saved, facts), encoding="utf-8")
        written = load_file(place / "model.safetensors")
        n_head: int = config.n_head  # type: ignore[attr-defined]
        return check_same(str(folder), model, lambda idx: logits_of(written, n_head, idx), MOST)


def _tensors(model: GPT2) -> dict[str, Tensor]:
    """Return the weights under their names there, with biases of 0."""
    ours, found = model.state_dict(), {}
    for name, theirs in WHOLE:
        found[theirs] = ours[name]
    for i in range(model.depth):
        for name, theirs, turned in PARTS:
            weight = ours[name.format(i)]
            found[theirs.format(i)] = weight.T if turned else weight
    biases = [
        name
        for name in found
        if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) or ".c_" in name
    ]
    for name in biases:
        found[name.replace("weight", "bias")] = torch.zeros(found[name].shape[-1])
    return found


def _config(model: GPT2, n_head: int, dropout: float) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu",
        "vocab_size": model.vocab_size,
        "n_positions": model.block_size,
        "n_embd": model.token_embedding.embedding_dim,
        "n_layer": model.depth,
        "n_head": n_head,
        "n_inner": None,
        "layer_norm_epsilon": EPSILON,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": dropout,
        **NO_ENDS,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _tokenizer_config(length: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }


def tokenizer_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return an alphabet as the `tokenizer.json` of the library tokenizers.

    A rare character of an alphabet with an escape becomes that; any other unknown character is left out, as that
    library does.
    """
    before: dict[str, Any] | None = None
    decoder: dict[str, Any] = {"type": "Fuse"}
    unknown = None
    if isinstance(tokenizer, CharTokenizer):
        vocab = {symbol: i for i, symbol in enumerate(tokenizer.alphabet)}
        if tokenizer.escape is not None:
            unknown = tokenizer.alphabet[tokenizer.escape]
    else:
        vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        before = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }
        decoder = before
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": before,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def byte_symbols() -> list[str]:
    """Return the character that stands for each byte in a byte-level tokenizer, as in GPT-2's code.

    Printable characters of Latin-1 stand for themselves, the others for code points from 256 on.
    """
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in own else chr(next(others)) for byte in range(256)]


def logits_of(
    weights: dict[str, Tensor], n_head: int, idx: Int[Tensor, "B T"]
) -> Float[Tensor, "B T V"]:
    """Return the logits of a `GPT2LMHeadModel` with these weights, computed as it does."""

    def norm(x: Tensor, name: str) -> Tensor:
        shape = (x.shape[-1],)
        return F.layer_norm(x, shape, weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)

    def conv(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    table = weights["transformer.wte.weight"]
    x = table[idx] + weights["transformer.wpe.weight"][: idx.shape[1]]
    depth = sum(name.endswith("ln_1.weight") for name in weights)
    for block in (f"transformer.h.{i}" for i in range(depth)):
        qkv = conv(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        qkv = qkv.view(*qkv.shape[:2], 3, n_head, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + conv(gathered.transpose(1, 2).flatten(-2), f"{block}.attn.c_proj")
        hidden = F.gelu(conv(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
        x = x + conv(hidden, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ table.T


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
