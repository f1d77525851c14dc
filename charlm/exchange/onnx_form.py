"""ONNX: a model as graphs of operations, which run without charlm and without torch, also in browsers.

    model.onnx   ids (B, T) -> logits (B, T, V), for T up to the block
    step.onnx    ids (B, n) and a state -> logits (B, n, V) and the next state (see `steps`); it goes on
                 past the block

Each file holds all weights, so that it can be used alone. torch writes them; onnx's own interpreter reads
them again, and both are compared with the model.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.errors import MachineError, Phrase, Setting, UsageError
from charlm.exchange.card import Facts, as_json, card
from charlm.exchange.hugging_face import tokenizer_of, write_json
from charlm.exchange.same import check_going_on, check_same
from charlm.exchange.steps import Step, step_of
from charlm.models import LanguageModel
from charlm.models.modern import ModernGPT, rotary_table
from charlm.runs.load import SavedModel
from charlm.storage import machine_errors
from charlm.storage.atomic import new_folder
from charlm.text.tokenizer import opening_id

OPSET = 20
MOST = 1e-4  # difference of logits: sums in another order
MOST_BYTES = 2_000_000_000  # of one file: the format counts its bytes in 31 bits
NEEDED = ("onnx", "onnxscript")
WHOLE, STEP = "model.onnx", "step.onnx"

LOADING = """import json
from pathlib import Path
import numpy as np
import onnxruntime

step = onnxruntime.InferenceSession("FOLDER/step.onnx")
vocabulary = json.loads(Path("FOLDER/tokenizer.json").read_text("utf-8"))["model"]["vocab"]
symbols = {number: symbol for symbol, number in vocabulary.items()}
kinds = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
state = {  # zeros; every size that is a name is the number of texts
    one.name: np.zeros([1 if isinstance(n, str) else n for n in one.shape], kinds[one.type])
    for one in step.get_inputs()[1:]
}
boundary = "\\U0010ffff"  # before and after each record, in models of records
draw, temperature = np.random.default_rng(), 0.8  # 0 takes the likeliest each time
text = SYMBOL
for _ in range(100):
    ids = np.array([[vocabulary[text[-1]]]])
    logits, *later = step.run(None, {"ids": ids, **state})
    state = dict(zip(state, later))
    noise = draw.gumbel(size=logits.shape[-1])  # the largest is a fair draw
    text += symbols[int(np.argmax(logits[0, -1] + noise * temperature))]
    if text[-1] == boundary:
        break
print(text.strip(boundary))"""


def write_onnx(saved: SavedModel, folder: Path) -> float:
    """Write a model as graphs to a folder; return the largest difference of its logits.

    Raises:
        UsageError: It is no graph of tensor operations, or too large.
        MachineError: A package is missing.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        what = f"needs {', '.join(missing)}"
        raise MachineError("an export to onnx", what, "pip install 'charlm[onnx]'")
    model = saved.model
    step = step_of(model)
    if step is None:
        what = f"{saved.config.model.brief} counts, so it is no graph of tensor operations"
        raise UsageError(str(saved.run.path), what, Phrase("use {}", Setting("form", "charlm")))
    size = sum(one.numel() * one.element_size() for one in model.state_dict().values())
    if size > MOST_BYTES:
        what = f"{size:,} bytes of weights, more than a file of this form can hold"
        raise UsageError(str(saved.run.path), what, Phrase("use {}", Setting("form", "npz")))
    with new_folder(folder, {"kind": "export"}) as place, machine_errors(folder):
        (place / STEP).write_bytes(graph_of_step(step))
        found = check_going_on(str(folder), model, Going(step, place / STEP), MOST)
        if (
            model.memory is not None
        ):  # else its pass over many characters is a loop, which a graph lacks
            (place / WHOLE).write_bytes(graph_of_whole(model))
            whole = Read(place / WHOLE)
            found = max(found, check_same(str(folder), model, lambda ids: whole(ids)[0], MOST))
        (place / "config.json").write_text(as_json(saved), encoding="utf-8")
        alphabet = tokenizer_of(saved.tokenizer)
        write_json(place / "tokenizer.json", alphabet)
        symbols = {number: symbol for symbol, number in alphabet["model"]["vocab"].items()}
        loading = LOADING.replace("SYMBOL", repr(symbols[opening_id(saved.tokenizer)]))
        exact = f"Its logits differ from the run's by less than {MOST:g}."
        facts = Facts("as ONNX graphs", loading, "python", exact)
        (place / "README.md").write_text(card(saved, facts), encoding="utf-8")
    return found


class Whole(nn.Module):
    """A model as a function of ids alone, from the start of a text on."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits at every position."""
        model = self.model
        if not isinstance(model, ModernGPT):
            return model(ids)  # type: ignore[no-any-return]
        # Left to itself, its token shift pads by -1, which few runtimes know.
        width, size = model.token_embedding.embedding_dim, model.block_size
        last, table = torch.zeros(ids.shape[0], 1, width), rotary_table(size, model.head_size)
        layers = [Nothing(table, last, last) for _ in range(model.depth)]
        return model(ids, SimpleNamespace(ids=None, layers=layers))  # type: ignore[no-any-return]


@dataclass
class Nothing:
    """The cache of a layer before a text, which will not be asked again."""

    table: Tensor
    attention_input: Tensor
    mlp_input: Tensor
    used = 0

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, str]:
        """Return what came in, and the mask of a text from its start on."""
        return key, value, "causal"


def graph_of_whole(model: LanguageModel) -> bytes:
    """Return the file of a model's graph from ids to logits."""
    ids = torch.zeros(2, min(3, model.block_size), dtype=torch.int64)
    return _file(Whole(model), (ids,), ["ids"], ["logits"], (_sizes(ids),))


def graph_of_step(step: Step) -> bytes:
    """Return the file of a step's graph from ids and state to logits and the next state.

    What goes in has names with a dot, since the exporter does not see when a name is one of its own.
    """
    ids, state = torch.zeros(2, min(3, step.most), dtype=torch.int64), step.start(2)
    sizes = (_sizes(ids), ({}, *({0: "texts"} for _ in state[1:])))
    past, later = ([f"{when}.{name}" for name in step.names] for when in ("past", "next"))
    return _file(step, (ids, *state), ["ids", *past], ["logits", *later], sizes)


def _sizes(ids: Tensor) -> dict[int, str]:
    """Return which sizes of ids are free, by their names in the graph."""
    return {0: "texts", 1: "characters"} if ids.shape[1] > 1 else {0: "texts"}


def _file(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    sizes: Any,
) -> bytes:
    """Return a graph without the places of the code that it came from."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=sizes,
            verbose=False,
        )
    assert program is not None, "only the older exporter returns nothing"
    graph = program.model_proto
    _forget_places(graph)
    return bytes(graph.SerializeToString())


def _forget_places(part: Any) -> None:
    """Remove what the exporter wrote down of files and lines: those are folders of the maker."""
    for field, value in part.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            part.ClearField(field.name)
        elif field.message_type is not None and field.name != "initializer":
            for inner in value if field.is_repeated else (value,):
                _forget_places(inner)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter says about its own code from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class Read:
    """A graph as onnx's own interpreter computes it: from tensors to tensors."""

    def __init__(self, path: Path) -> None:
        from onnx.reference import ReferenceEvaluator

        self.run = ReferenceEvaluator(str(path))

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return its outputs."""
        named = {
            name: given.numpy() for name, given in zip(self.run.input_names, inputs, strict=True)
        }
        return [torch.from_numpy(np.array(found)) for found in self.run.run(None, named)]


class Going:
    """A graph of a step that reads texts from the start, in pieces."""

    def __init__(self, step: Step, path: Path) -> None:
        self.step = step
        self.graph = Read(path)

    def __call__(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits at every position; T may be larger than the block."""
        state, logits = list(self.step.start(ids.shape[0])), []
        for piece in torch.split(ids, list(self.step.pieces(ids.shape[1])), dim=1):
            found, *state = self.graph(piece, *state)
            logits.append(found)
        return torch.cat(logits, dim=1)
