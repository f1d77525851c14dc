"""nanoGPT's checkpoints: `ckpt.pt` with its `meta.pkl`, as a run of a GPT in the style `gpt2`."""

import pickle  # nosec B403
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from charlm.config import Config, read_config
from charlm.errors import CheckpointError, DataError
from charlm.exchange.pickled import read_plain_pickle
from charlm.lifecycle.begin import config_file, new_folder_for_run
from charlm.models import LanguageModel, build_model
from charlm.runs import RunFolder
from charlm.runs.provenance import provenance_json
from charlm.runs.state import TrainingState, save_checkpoint
from charlm.storage import machine_errors, write_file
from charlm.storage.atomic import make_folder
from charlm.text import CharTokenizer

MOST_BYTES = 8 << 30
COMPILED = "_orig_mod."  # before each name, if the model was compiled
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
ANOTHER = "name another checkpoint"
# What torch raises for a damaged file, or for one that asks for more than tensors.
REFUSALS = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
)

# Ours and theirs; both are `nn.Linear`, so nothing is transposed.
PARTS = (
    ("blocks.{}.attention_norm.weight", "transformer.h.{}.ln_1.weight"),
    ("blocks.{}.attention.qkv.weight", "transformer.h.{}.attn.c_attn.weight"),
    ("blocks.{}.attention.projection.weight", "transformer.h.{}.attn.c_proj.weight"),
    ("blocks.{}.mlp_norm.weight", "transformer.h.{}.ln_2.weight"),
    ("blocks.{}.mlp.expand.weight", "transformer.h.{}.mlp.c_fc.weight"),
    ("blocks.{}.mlp.contract.weight", "transformer.h.{}.mlp.c_proj.weight"),
)
WHOLE = (
    ("token_embedding.weight", "transformer.wte.weight"),
    ("position_embedding.weight", "transformer.wpe.weight"),
    ("final_norm.weight", "transformer.ln_f.weight"),
)


def import_nanogpt(
    checkpoint: Path, out: Path, *, meta: Path | None = None, text: Path | None = None
) -> RunFolder:
    """Make a run of a nanoGPT checkpoint; nothing in its files is run.

    Args:
        checkpoint: `ckpt.pt`.
        out: The folder of the new run.
        meta: `meta.pkl`, which has the alphabet. None: `text` has it.
        text: The text that it was trained on; its alphabet is the sorted set of its characters.

    Raises:
        UsageError: The folder is not empty.
        CheckpointError: A file is damaged or something else, or the model has parts that charlm's
            lacks, such as biases.
        DataError: The alphabet has another number of characters than the model.
        MachineError: A file cannot be read or written.
    """
    sizes, weights, step = read_nanogpt(checkpoint)
    tokenizer = CharTokenizer(_alphabet(meta, text))
    if tokenizer.vocab_size != sizes["vocab_size"]:
        what = f"has {tokenizer.vocab_size} characters, the model has {sizes['vocab_size']}"
        raise DataError(str(meta or text), what, "name the text that the model was trained on")
    config = _config(sizes, text)
    model = build_model(config.model, tokenizer.vocab_size)
    _fill(model, weights, checkpoint)
    run, alphabet = RunFolder(out), tokenizer.to_json()
    with new_folder_for_run(out):
        with machine_errors(out):
            make_folder(run.checkpoints.folder)
        write_file(run.tokenizer_path, alphabet.encode())
        save_checkpoint(run, TrainingState(step=step), model, {}, provenance_json(config, alphabet))
        write_file(run.config_path, config_file(config, str(run.config_path)))
    return run


def read_nanogpt(path: Path) -> tuple[dict[str, int], dict[str, Tensor], int]:
    """Return the sizes, the weights and the steps of a checkpoint; see `import_nanogpt`."""
    with machine_errors(path):
        if path.stat().st_size > MOST_BYTES:
            raise CheckpointError(path, "larger than 8 GiB", ANOTHER)
        if not zipfile.is_zipfile(path):
            raise CheckpointError(path, "not a checkpoint of torch", ANOTHER)
        try:
            # `weights_only` builds tensors, numbers, texts and containers, and calls nothing else.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except REFUSALS as error:
            said = " ".join(str(error).split())[:100] or type(error).__name__
            raise CheckpointError(path, f"refused unread ({said})", ANOTHER) from None
    try:
        arguments, state = content["model_args"], content["model"]
        sizes = {name: arguments[name] for name in SIZES}
        step = content.get("iter_num", 0)
        weights = {name.removeprefix(COMPILED): tensor for name, tensor in state.items()}
    except (KeyError, TypeError, AttributeError):
        what = "has no model_args and model, as nanoGPT's have"
        raise CheckpointError(path, what, ANOTHER) from None
    plain = all(type(size) is int and size > 0 for size in sizes.values())
    if not plain or type(step) is not int or not 0 <= step < 2**63:
        raise CheckpointError(path, "its model_args are no sizes", ANOTHER)
    blocks = {name.split(".")[2] for name in weights if name.startswith("transformer.h.")}
    shapes = {
        "transformer.wte.weight": (sizes["vocab_size"], sizes["n_embd"]),
        "transformer.wpe.weight": (sizes["block_size"], sizes["n_embd"]),
    }
    for name, shape in shapes.items():  # before a model of these sizes is built
        found = tuple(getattr(weights.get(name), "shape", ()))
        if found != shape:
            raise CheckpointError(path, f"{name} is {found}, its sizes say {shape}", ANOTHER)
    if len(blocks) != sizes["n_layer"]:
        what = f"has {len(blocks)} blocks, its sizes say {sizes['n_layer']}"
        raise CheckpointError(path, what, ANOTHER)
    if arguments.get("bias"):
        what = "has biases, which charlm's gpt2 style lacks"
        raise CheckpointError(path, what, "train it with bias=False")
    return sizes, weights, step


def _alphabet(meta: Path | None, text: Path | None) -> str:
    """Return the characters of an alphabet in the order of their ids."""
    if meta is None:
        assert text is not None, "the caller has one of them"
        with machine_errors(text):
            try:
                return "".join(sorted(set(text.read_text(encoding="utf-8"))))
            except UnicodeDecodeError as error:
                raise DataError(text, f"not UTF-8 at byte {error.start}", "convert it") from None
    content = read_plain_pickle(meta)
    try:
        symbols = [content["itos"][i] for i in range(len(content["itos"]))]
    except (KeyError, TypeError):
        raise CheckpointError(meta, "has no itos, as nanoGPT's has", "use --text") from None
    if not all(isinstance(one, str) and len(one) == 1 for one in symbols):
        raise CheckpointError(meta, "its symbols are not single characters", "use --text")
    if symbols != sorted(set(symbols)):
        raise CheckpointError(meta, "its characters are not in the order of Unicode", "use --text")
    return "".join(symbols)


def _config(sizes: dict[str, int], text: Path | None) -> Config:
    """Return a configuration with the model's sizes, and nanoGPT's recipe for what is trained on."""
    source = "data: {source: shakespeare}\n" if text is None else ""
    model = ", ".join(f"{name}: {sizes[name]}" for name in SIZES if name != "vocab_size")
    written = f"{source}model: {{type: gpt, style: gpt2, {model}}}\ntrain: {{optimizer: adamw}}\n"
    overrides = [] if text is None else [f"data.source={text}"]
    return read_config(written.encode(), "the checkpoint", overrides)


def _fill(model: LanguageModel, weights: dict[str, Tensor], path: Path) -> None:
    """Put weights where ours have their place, or raise CheckpointError."""
    names = dict(WHOLE)
    for i in range(model.depth):  # type: ignore[arg-type]
        names |= {ours.format(i): theirs.format(i) for ours, theirs in PARTS}
    missing = [theirs for theirs in names.values() if theirs not in weights]
    masks = {name for name in weights if name.endswith(".attn.bias")}  # of older versions
    known = {*names.values(), "lm_head.weight", *masks}
    if odd := missing or sorted(set(weights) - known):
        what = f"{'lacks' if missing else 'has'} {odd[0]}"
        raise CheckpointError(path, what, "it is not a model of nanoGPT's")
    head = weights.get("lm_head.weight")
    if head is not None and not torch.equal(head, weights["transformer.wte.weight"]):
        raise CheckpointError(path, "its head is not its embedding", "it is not nanoGPT's")
    try:
        model.load_state_dict({ours: weights[theirs].float() for ours, theirs in names.items()})
    except (ValueError, AttributeError) as error:
        raise CheckpointError(path, " ".join(str(error).split()), ANOTHER) from None
