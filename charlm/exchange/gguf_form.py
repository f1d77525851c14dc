"""GGUF: a GPT of style `gpt2` as a file for llama.cpp and the programs that are made of it.

What is easily got wrong:

- The vocabulary is of their type `llama`, with one token for each symbol. Their type `gpt2` must have
  merges, and an alphabet has none.
- In that type a space is written as U+2581, so an alphabet with that character has no place there.
- A vocabulary of that type always has an end of text; without a word about it, that is token 2. An
  alphabet without records has none, so the end is the symbol that the model finds least likely.
- Their GELU is the approximation by tanh, and keys and values are of half precision by default.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from charlm.errors import MachineError, Phrase, Setting, UsageError
from charlm.evaluation.predicting import evaluating
from charlm.exchange.card import Facts, as_json, card
from charlm.exchange.hugging_face import EPSILON, is_turned, logits_of, tensors_of
from charlm.exchange.same import check_same, largest_difference, random_ids
from charlm.models.gpt2 import GPT2
from charlm.runs.load import SavedModel
from charlm.storage import machine_errors
from charlm.storage.atomic import new_folder
from charlm.text import CharTokenizer, Tokenizer
from charlm.text.tokenizer import opening_id

USE_ONNX = Phrase("use {}", Setting("form", "onnx"))
MOST = 1e-4  # difference of logits with our GELU: sums in another order
SPACE = "\u2581"
# Symbols that a token there cannot hold, and why.
REFUSED = {SPACE: "which is how that format writes a space", "\0": "which ends a text there"}
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of a token
NAME = "model.gguf"

LOADING = """// npm install node-llama-cpp
import {getLlama} from "node-llama-cpp";

const llama = await getLlama();
const model = await llama.loadModel({modelPath: "FOLDER/model.gguf"});
const context = await model.createContext({contextSize: BLOCK});
const text = [];
for await (const token of context.getSequence().evaluate(model.tokenize(SYMBOL), {temperature: 1})) {
    text.push(token);
    if (text.length > BLOCK - 2) break;
}
console.log(model.detokenize(text));"""

# Names of Hugging Face's form, and here; {} is the number of a block.
THEIRS = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.h.{}.ln_1": "blk.{}.attn_norm",
    "transformer.h.{}.attn.c_attn": "blk.{}.attn_qkv",
    "transformer.h.{}.attn.c_proj": "blk.{}.attn_output",
    "transformer.h.{}.ln_2": "blk.{}.ffn_norm",
    "transformer.h.{}.mlp.c_fc": "blk.{}.ffn_up",
    "transformer.h.{}.mlp.c_proj": "blk.{}.ffn_down",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}


@dataclass(frozen=True)
class Tokens:
    """A vocabulary: texts, their types, the end of a text, and whether a text begins with it."""

    texts: list[str]
    types: list[int]
    end: int
    begins: bool


def write_gguf(saved: SavedModel, folder: Path) -> float:
    """Write a GPT of style `gpt2` to a folder; return how far its logits are there, with GELU by tanh.

    Raises:
        UsageError: It is another model, or its alphabet has a symbol that has no place there.
        MachineError: A package is missing.
    """
    if find_spec("gguf") is None:
        raise MachineError("an export to gguf", "needs gguf", "pip install 'charlm[gguf]'")
    model, config = saved.model, saved.config.model
    if type(model) is not GPT2:
        what = f"{config.brief} has no counterpart there"
        raise UsageError(str(saved.run.path), what, USE_ONNX)
    tokens = tokens_of(saved.tokenizer, model, str(saved.run.path))
    n_head: int = config.n_head  # type: ignore[attr-defined]
    with new_folder(folder, {"kind": "export"}) as place, machine_errors(folder):
        _write(place / NAME, saved, model, n_head, tokens)
        (place / "config.json").write_text(as_json(saved), encoding="utf-8")
        read = read_tensors(place / NAME)
        check_same(str(folder), model, lambda idx: logits_of(read, n_head, idx, model.gelu), MOST)
        found = largest_difference(model, lambda idx: logits_of(read, n_head, idx, "tanh"))
        loading = LOADING.replace("BLOCK", str(model.block_size)).replace(
            "SYMBOL", json.dumps(saved.tokenizer.decode([opening_id(saved.tokenizer)]))
        )
        facts = Facts("for llama.cpp", loading, "js", _exact(tokens, found))
        (place / "README.md").write_text(card(saved, facts), encoding="utf-8")
    return found


def _exact(tokens: Tokens, found: float) -> str:
    end = json.dumps(tokens.texts[tokens.end])
    return (
        f"Its weights have every bit of the run's. llama.cpp approximates GELU by tanh, so its logits differ by up "
        f"to {found:.1e}. It reads no more than the context, and keeps keys and values in half precision unless "
        f"it is told to keep them in float32. Programs that end at an end of text stop at the symbol {end}."
    )


def tokens_of(tokenizer: Tokenizer, model: GPT2, where: str) -> Tokens:
    """Return the alphabet of a model as a vocabulary of their type `llama`.

    Raises UsageError if a symbol has no place in it.
    """
    if isinstance(tokenizer, CharTokenizer):
        for symbol, why in REFUSED.items():
            if symbol in tokenizer.alphabet:
                what = f"its alphabet has U+{ord(symbol):04X}, {why}"
                raise UsageError(where, what, USE_ONNX)
        texts, types = list(tokenizer.alphabet), [NORMAL] * tokenizer.vocab_size
    else:
        texts, types = [f"<0x{byte:02X}>" for byte in range(256)], [BYTE] * 256
        texts[ord(" ")], types[ord(" ")] = " ", NORMAL
    if tokenizer.escape is not None:
        types[tokenizer.escape] = UNKNOWN
    texts, end = [text.replace(" ", SPACE) for text in texts], tokenizer.boundary
    if end is None:
        return Tokens(texts, types, least_likely(model), False)
    types[end] = CONTROL
    return Tokens(texts, types, end, True)


def least_likely(model: GPT2) -> int:
    """Return the symbol to which a model gives the least probability on average, in random texts."""
    with evaluating(model), torch.no_grad():
        return int(model(random_ids(model, model.block_size)).softmax(-1).mean((0, 1)).argmin())


def _write(path: Path, saved: SavedModel, model: GPT2, n_head: int, tokens: Tokens) -> None:
    from gguf import GGUFWriter

    width = model.token_embedding.embedding_dim
    writer = GGUFWriter(path, "gpt2")
    writer.add_name(f"charlm, {saved.config.model.described(model.vocab_size)}")
    writer.add_context_length(model.block_size)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(4 * width)
    writer.add_block_count(model.depth)
    writer.add_head_count(n_head)
    writer.add_layer_norm_eps(EPSILON)
    writer.add_file_type(0)  # all of it in float32
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens.texts)
    writer.add_token_scores([0.0] * len(tokens.texts))
    writer.add_token_types(tokens.types)
    writer.add_bos_token_id(tokens.end)
    writer.add_eos_token_id(tokens.end)
    escape = saved.tokenizer.escape
    writer.add_unk_token_id(tokens.end if escape is None else escape)
    writer.add_add_bos_token(tokens.begins)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    for name, tensor in tensors_of(model).items():
        value = tensor.T if is_turned(name) else tensor
        writer.add_tensor(renamed(name, THEIRS), value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file under their names in Hugging Face's form."""
    from gguf import GGUFReader

    ours = {there: here for here, there in THEIRS.items()}
    found = {}
    for tensor in GGUFReader(path).tensors:
        name = renamed(tensor.name, ours)
        value = torch.from_numpy(tensor.data.copy())
        found[name] = value.T if is_turned(name) else value
    return found


def renamed(tensor: str, names: Mapping[str, str]) -> str:
    """Return another name of a tensor, by a table of names without numbers and kinds."""
    whole, _, kind = tensor.rpartition(".")
    numbers = r"(?<=\.)\d+(?=\.)"
    pattern = names[re.sub(numbers, "{}", whole)]
    return f"{pattern.format(*re.findall(numbers, whole))}.{kind}"
