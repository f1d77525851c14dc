"""GGUF: a GPT of style `gpt2` as a file for llama.cpp and the programs that are made of it.

What is easily got wrong:

- The vocabulary is of their type `llama`, with one token for each symbol. Their type `gpt2` must have
  merges, and an alphabet has none.
- In that type a space is written as U+2581, so an alphabet with that character has no place there.
- A vocabulary of that type always has an end of text; without a word about it, that is token 2. A
  character that it lacks is written as tokens of bytes, and without those the program is aborted. So
  these are added, with logits that no sampler ever draws: see `widened`.
- Their GELU is the approximation by tanh, and keys and values are of half precision by default.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.errors import MachineError, Phrase, Setting, UsageError
from charlm.exchange.card import Facts, as_json, card
from charlm.exchange.hugging_face import EPSILON, is_turned, logits_of, tensors_of
from charlm.exchange.same import check_same, largest_difference
from charlm.models.gpt2 import GPT2, Gelu
from charlm.runs.load import SavedModel
from charlm.storage import machine_errors
from charlm.storage.atomic import new_folder
from charlm.text import CharTokenizer, Tokenizer
from charlm.text.tokenizer import opening_id

USE_ONNX = Phrase("use {}", Setting("form", "onnx"))
MOST = 1e-4  # difference of logits with our GELU: sums in another order
SPACE = "\u2581"
NEVER = -100.0  # the logit of a token that is no symbol of the alphabet
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

EXACT = (
    "Its logits are the run's to 1e-4, but llama.cpp approximates GELU by tanh, which changes them by up to {:.1e}. "
    "It reads no more than the context, and keeps keys and values in half precision unless it is told to keep them "
    "in float32."
)

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
    """A vocabulary: texts and types; the ids of unknown, begin and end; whether a text begins with it.

    The symbols of the alphabet come first, under their own ids.
    """

    texts: list[str]
    types: list[int]
    unknown: int
    begin: int
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
    tokens = tokens_of(saved.tokenizer, str(saved.run.path))
    n_head: int = config.n_head  # type: ignore[attr-defined]
    with new_folder(folder, {"kind": "export"}) as place, machine_errors(folder):
        _write(place / NAME, saved, model, n_head, tokens)
        (place / "config.json").write_text(as_json(saved), encoding="utf-8")
        read, symbols = read_tensors(place / NAME), model.vocab_size

        def there(idx: Int[Tensor, "B T"], gelu: Gelu) -> Float[Tensor, "B T V"]:
            logits = logits_of(read, n_head, idx, gelu)
            if not (logits[..., symbols:] < NEVER / 2).all():
                logits = logits * torch.nan  # which is never the same
            return logits[..., :symbols]

        check_same(str(folder), model, lambda idx: there(idx, model.gelu), MOST)
        found = largest_difference(model, lambda idx: there(idx, "tanh"))
        loading = LOADING.replace("BLOCK", str(model.block_size)).replace(
            "SYMBOL", json.dumps(saved.tokenizer.decode([opening_id(saved.tokenizer)]))
        )
        facts = Facts("for llama.cpp", loading, "js", EXACT.format(found))
        (place / "README.md").write_text(card(saved, facts), encoding="utf-8")
    return found


def tokens_of(tokenizer: Tokenizer, where: str) -> Tokens:
    """Return the alphabet of a model as a vocabulary of their type `llama`, with what that type needs.

    Raises UsageError if a symbol has no place in it.
    """
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    if isinstance(tokenizer, CharTokenizer):
        if SPACE in tokenizer.alphabet:
            what = "its alphabet has U+2581, which is how that format writes a space"
            raise UsageError(where, what, USE_ONNX)
        # A token's text ends at NUL there, but that is a byte, too.
        texts = [bytes_[0] if symbol == "\0" else symbol for symbol in tokenizer.alphabet]
    else:
        texts = [" " if byte == ord(" ") else bytes_[byte] for byte in range(256)]
    texts = [text.replace(" ", SPACE) for text in texts]
    if (unknown := tokenizer.escape) is None:
        unknown, texts = len(texts), [*texts, "<unk>"]
    if (end := tokenizer.boundary) is None:
        begin, end, texts = len(texts), len(texts) + 1, [*texts, "<s>", "</s>"]
    else:
        begin = end
    special = {unknown: UNKNOWN, begin: CONTROL, end: CONTROL}
    known = {*texts}
    texts += [byte for byte in bytes_ if byte not in known]
    types = [special.get(i, BYTE if text in bytes_ else NORMAL) for i, text in enumerate(texts)]
    return Tokens(texts, types, unknown, begin, end, tokenizer.boundary is not None)


def widened(tensors: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """Return the weights for a larger vocabulary: all logits are as before, those of new tokens `NEVER`.

    LayerNorm returns z = g n with a mean of n of 0, so the unit vector v along 1 / g has v z = 0 whatever
    the text is. A bias B v adds the same to each z. The head W becomes W - c v', where c = B W v / D and
    D = B + v b (b: the bias that was there), which cancels that; the rows of new tokens are v NEVER / D.
    A new token is embedded as the mean of all symbols.
    """
    table, bias = tensors["transformer.wte.weight"], tensors["transformer.ln_f.bias"].double()
    head = tensors.get("lm_head.weight", table).double()
    gain = tensors["transformer.ln_f.weight"].double()
    free = 1 / gain.where(gain != 0, 1e-20)
    free = free / free.norm()
    free = -free if free @ bias < 0 else free
    added = len(free) ** 0.5  # as long as a typical z
    total = added + free @ bias
    new = tokens - len(table)
    rows = head - torch.outer(added * (head @ free) / total, free)
    never = (free * NEVER / total).expand(new, -1)
    return {
        **tensors,
        "transformer.wte.weight": torch.cat([table, table.mean(0).expand(new, -1)]),
        "transformer.ln_f.bias": (bias + added * free).float(),
        "lm_head.weight": torch.cat([rows, never]).float(),
    }


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
    writer.add_bos_token_id(tokens.begin)
    writer.add_eos_token_id(tokens.end)
    writer.add_unk_token_id(tokens.unknown)
    writer.add_add_bos_token(tokens.begins)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    for name, tensor in widened(tensors_of(model), len(tokens.texts)).items():
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
