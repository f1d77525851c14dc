"""What the heads of a model look at in a passage: pictures, and numbers for the page's script."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray

from charlm.models import LanguageModel
from charlm.models.looking import attention_weights, attentive
from charlm.reporting.glyphs import Glyphs
from charlm.reporting.opened import Opened
from charlm.reporting.passage import Passage

LONGEST = 64  # symbols of a window: a matrix has as many rows and columns
INK = (11, 97, 164)  # of a picture; a dark page makes it brighter


@dataclass(frozen=True)
class HeadShown:
    """One head: its whole matrix as a picture, and how far it looks on average."""

    picture: str  # a data URI
    back: float  # the mean distance of what it looks at, in symbols
    itself: float  # the mean share of the symbol itself
    before: float  # and of the one before it, where there is one


@dataclass(frozen=True)
class Looking:
    """What all layers and heads of one model look at while it reads some symbols.

    `shades` are the weights of each head in turn, in base64: a byte for each position and each one
    before it, row by row. The weight is the square of the byte over 255.
    """

    name: str  # of the expert; "" for the model itself
    symbols: list[tuple[str, str, str]]  # each symbol, its glyph and its name
    layers: list[list[HeadShown]]
    shades: str


def lookings(run: Opened, passage: Passage) -> Iterator[Looking]:
    """Yield what the model looks at in a passage, or each expert that has attention."""
    for name, model in attentive(run.model).items():
        yield looking(name, model, passage, Glyphs(run.tokenizer))


def looking(name: str, model: LanguageModel, passage: Passage, glyphs: Glyphs) -> Looking:
    """Return what a model looks at in the first symbols of a passage; of records, in its longest."""
    first, stop = _window(passage, min(model.block_size, LONGEST))
    ids = passage.ids.ids[first:stop]
    weights = attention_weights(model, torch.from_numpy(ids)).numpy()
    shades = shaded(weights)
    rows, columns = np.tril_indices(len(ids))
    layers = [
        [_head(weights[layer, head], shades[layer, head]) for head in range(weights.shape[1])]
        for layer in range(weights.shape[0])
    ]
    packed = base64.b64encode(np.ascontiguousarray(shades[..., rows, columns]).tobytes()).decode()
    return Looking(name, [*passage.symbols(glyphs)][first:stop], layers, packed)


def _window(passage: Passage, longest: int) -> tuple[int, int]:
    """Return where the symbols begin and end that are read together."""
    if passage.ids.boundary is None:
        return 0, min(longest, passage.shown)
    borders = np.flatnonzero(passage.ids.ids == passage.ids.boundary)
    lengths = np.diff(borders)
    first = int(borders[lengths.clip(max=longest).argmax()])
    return first, min(first + longest, int(borders[borders > first][0]), passage.shown)


def shaded(weights: Float[ndarray, "*shape"]) -> UInt8[ndarray, "*shape"]:
    """Return weights as bytes: 255 times the root, so that small ones can be told from none."""
    shades: UInt8[ndarray, "*shape"] = np.rint(255 * np.sqrt(weights)).astype(np.uint8)
    return shades


def _head(weights: Float[ndarray, "T T"], shades: UInt8[ndarray, "T T"]) -> HeadShown:
    size = len(weights)
    back = np.arange(size)[:, None] - np.arange(size)
    far = float((weights * back).sum(axis=1).mean())
    before = float(np.diagonal(weights, -1).mean()) if size > 1 else 0.0
    return HeadShown(_picture(shades), far, float(np.diagonal(weights).mean()), before)


def _picture(shades: UInt8[ndarray, "T T"]) -> str:
    """Return a matrix as a picture in a data URI: one colour, as opaque as the weight is large."""
    from PIL import Image

    image = Image.fromarray(shades).convert("L")
    image.putpalette(bytes(INK) * 256)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(range(256)), optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
