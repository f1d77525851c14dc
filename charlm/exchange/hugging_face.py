"""Hugging Face's form: a GPT as one of theirs, with its alphabet as a tokenizer.

One of style `gpt2` is a `GPT2LMHeadModel`; for `modern` see `nanochat`. Plain safetensors and JSON, written
without their libraries. What is easily got wrong:

- `activation_function` is `gelu`; their default, `gelu_new`, is the form by tanh, 7e-4 off.
- Their linear layers are `Conv1D`, whose weights are transposed; biases that ours lacks are zeros.
- `bos_token_id` and `eos_token_id` are null: the defaults lie beyond the alphabet.
- The tokenizer is BPE without merges, over single code points. Without the decoder `Fuse`, spaces would
  appear between characters. `tokenizer_class` must be named, or `AutoTokenizer` builds GPT-2's own.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from charlm.errors import Phrase, Setting, UsageError
from charlm.exchange.card import Facts, card
from charlm.exchange.gpt2_names import name_in_gpt2
from charlm.exchange.nanochat import (
    nanochat_config,
    nanochat_logits,
    nanochat_tensors,
    without_place,
)
from charlm.exchange.same import check_same
from charlm.models import GPT2, ModernGPT
from charlm.models.gpt2 import GELUS, Gelu
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


def write_hugging_face(saved: SavedModel, folder: Path) -> float:
    """Write a GPT to a folder; return the largest difference of its logits.

    Raises UsageError for a model that has no counterpart there.
    """
    model, config = saved.model, saved.config.model
    _check_has_place(saved)
    n_head: int = config.n_head  # type: ignore[attr-defined]
    exact = f"Its logits differ from the run's by less than {MOST:g}."
    with new_folder(folder, {"kind": "export"}) as place, machine_errors(folder):
        dropout: float = config.dropout  # type: ignore[attr-defined]
        if isinstance(model, GPT2):
            tensors, described = tensors_of(model), _config(model, n_head, dropout)
        else:
            modern = cast(ModernGPT, model)
            tensors = nanochat_tensors(modern)
            described = nanochat_config(modern, n_head, dropout)
        save_tensors(tensors, place / "model.safetensors", {"format": "pt"})
        write_json(place / "config.json", described | NO_ENDS | {"dtype": "float32"})
        write_json(place / "tokenizer.json", tokenizer_of(saved.tokenizer))
        write_json(place / "tokenizer_config.json", _tokenizer_config(model.block_size))
        write_json(place / "generation_config.json", NO_ENDS)
        facts = Facts("for Hugging Face's transformers", LOADING, "python", exact)
        (place / "README.md").write_text(card(saved, facts), encoding="utf-8")
        written = load_file(place / "model.safetensors")

        def theirs(idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
            if isinstance(model, GPT2):
                return logits_of(written, n_head, idx, model.gelu)
            return nanochat_logits(written, n_head, idx)

        return check_same(str(folder), model, theirs, MOST)


def _check_has_place(saved: SavedModel) -> None:
    """Raise UsageError for a model that no class there computes."""
    model, mend = saved.model, Phrase("use {}", Setting("form", "onnx"))
    if isinstance(model, GPT2):
        return
    what = f"{saved.config.model.brief} has no counterpart there"
    if isinstance(model, ModernGPT):
        parts = without_place(model)
        if not parts:
            return
        verb = "has" if list(parts) == ["token shift"] else "have"
        what = f"its {' and '.join(parts)} {verb} no place there"
        mend = Phrase("{}, or train it with {}", mend, " ".join(parts.values()))
    raise UsageError(str(saved.run.path), what, mend)


def tensors_of(model: GPT2) -> dict[str, Tensor]:
    """Return the weights under their names there; biases that the model lacks are 0."""
    found = {}
    for ours, tensor in model.state_dict().items():
        name = name_in_gpt2(ours)
        found[name] = tensor.T if is_turned(name) else tensor
        if not model.bias and (".ln_" in name or is_turned(name)):
            found[name.replace("weight", "bias")] = torch.zeros(found[name].shape[-1])
    return found


def is_turned(name: str) -> bool:
    """Tell whether a tensor there is ours, transposed: the weights of their `Conv1D`."""
    return ".c_" in name and name.endswith(".weight")


def _config(model: GPT2, n_head: int, dropout: float) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu" if model.gelu == "exact" else "gelu_new",
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
        "tie_word_embeddings": model.head is None,
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
    weights: dict[str, Tensor], n_head: int, idx: Int[Tensor, "B T"], gelu: Gelu = "exact"
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
        hidden = GELUS[gelu](conv(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
        x = x + conv(hidden, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ weights.get("lm_head.weight", table).T


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON in UTF-8."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
