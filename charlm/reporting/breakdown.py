"""What the loss of a run is made of: by place in the window, by kind of character, by symbol.

And what the model has learned about single symbols: their embeddings, and what follows each.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int

from charlm.evaluation.scoring import Surprisals, surprisals
from charlm.models import LanguageModel, MixtureModel
from charlm.reporting.glyphs import Glyphs
from charlm.reporting.opened import Opened
from charlm.text.symbol_notes import counted
from charlm.text.tokenizer import BOUNDARY, ESCAPE
from charlm.text.tokens import Ids

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MOST_SCORED = 200_000  # characters, in windows spread evenly over the validation part
MOST_COUNTED = 4_000_000  # characters at the end of the training part, whose pairs are counted
CHUNK = 1 << 20
PLACES_APART = 8  # the first places in a window, each of which is shown
AN_OCTAVE = 6  # groups of places between one place and the double, after those

FIRST, LATER, DIGIT, SPACE, END = (
    "first letters of words",
    "later letters",
    "digits",
    "spaces",
    "line ends",
)
PUNCTUATION, SIGN, CONTROL = "punctuation", "other signs", "control characters"
RECORD, RARE, BYTES = "ends of records", "rare characters", "bytes beyond ASCII"


class Group(NamedTuple):
    """Characters that belong together, and how surprising they are."""

    name: str
    nats: float  # their mean
    chars: int  # how many there are
    share: float  # of the whole loss


class Places(NamedTuple):
    """Places in the window, counted from 1, in groups, (M,) each."""

    first: Integers
    last: Integers
    nats: Floats  # the mean of a group
    low: Floats  # of its 95 % interval, by the normal distribution
    high: Floats
    chars: Integers  # predicted in a group


@dataclass(frozen=True)
class Scored:
    """The predictions of a model on a part of a text."""

    block_size: int
    predicted: Surprisals

    @property
    def loss_nats(self) -> float:
        """The mean loss of a character, in nats."""
        return float(self.predicted.nats.mean())


def score(
    opened: Opened,
    block_size: int | None = None,
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Scored:
    """Predict the validation part of a run, or windows spread evenly over it.

    By the protocol `windows`, in windows of `block_size`; None: the model's own. `progress` is called
    with the number of characters since the last call. Raises Stopped if `should_stop` says so.
    """
    assert opened.val is not None, "the caller asks"
    length = block_size or opened.model.block_size
    parts = surprisals(
        opened.model,
        opened.val,
        length,
        max_chars=MOST_SCORED,
        progress=progress,
        should_stop=should_stop,
    )
    return Scored(length, Surprisals(*map(np.concatenate, zip(*parts, strict=True))))


def by_place(scored: Scored) -> Places:
    """Return the loss by place in the window; far places are in groups of about equal ratio."""
    nats, places = scored.predicted.nats, scored.predicted.places
    size = int(places.max()) + 1
    edges = _edges(size)
    group = np.searchsorted(edges, np.arange(size), side="right") - 1
    at = group[places]
    count = np.bincount(at)
    mean = np.bincount(at, nats) / count
    spread = np.bincount(at, (nats - mean[at]) ** 2) / np.maximum(1, count - 1)
    around = 1.96 * np.sqrt(spread / count)
    last = np.append(edges[1:], size)
    return Places(edges + 1, last, mean, mean - around, mean + around, count)


def _edges(size: int) -> Integers:
    """Return where each group of `size` places begins, counted from 0."""
    octaves = max(0.0, np.log2(size / PLACES_APART))
    far = PLACES_APART * 2 ** np.linspace(0, octaves, max(1, round(AN_OCTAVE * octaves) + 1))[:-1]
    edges = np.concatenate([np.arange(min(size, PLACES_APART)), far.round().astype(np.int64)])
    return np.unique(edges[edges < size])


def by_kind(scored: Scored, glyphs: Glyphs, vocab_size: int) -> list[Group]:
    """Return the loss of each kind of character, the kind with most characters first."""
    kinds = [kind_of(glyphs.symbol(idx)) for idx in range(vocab_size)]
    names = list(dict.fromkeys([*kinds, FIRST]))
    number = np.array([names.index(kind) for kind in kinds])
    symbols, before = scored.predicted.symbols, scored.predicted.before
    later = names.index(LATER) if LATER in names else -1
    begins = (number[symbols] == later) & (number[before] != later)
    found = np.where(begins, names.index(FIRST), number[symbols])
    groups = _groups(found, scored.predicted.nats, names)
    return sorted(groups, key=lambda group: -group.chars)


def by_symbol(scored: Scored, glyphs: Glyphs, vocab_size: int) -> list[tuple[int, Group]]:
    """Return the loss of each symbol that occurs, with its id, the most frequent first."""
    symbols = scored.predicted.symbols
    names = [str(idx) for idx in range(vocab_size)]
    groups = [(int(one.name), one) for one in _groups(symbols, scored.predicted.nats, names)]
    found = [(idx, one._replace(name=glyphs.glyph(idx))) for idx, one in groups]
    return sorted(found, key=lambda one: (-one[1].chars, one[0]))


def _groups(group: Integers, nats: Floats, names: Sequence[str]) -> list[Group]:
    count = np.bincount(group, minlength=len(names))
    total = np.bincount(group, nats, len(names))
    whole = total.sum() or 1.0
    return [
        Group(name, float(total[i] / count[i]), int(count[i]), float(total[i] / whole))
        for i, name in enumerate(names)
        if count[i]
    ]


def kind_of(symbol: str) -> str:
    """Return the kind of a symbol; letters are LATER, whatever is before them."""
    if symbol in (BOUNDARY, ESCAPE):
        return RECORD if symbol == BOUNDARY else RARE
    if "\udc80" <= symbol <= "\udcff":  # see `charlm.text.raw`
        return BYTES
    if symbol in "\n\r\v\f\x85\u2028\u2029":
        return END
    category = unicodedata.category(symbol)
    if symbol == "\t" or category == "Zs":
        return SPACE
    of_letter = {"L": LATER, "M": LATER, "N": DIGIT, "P": PUNCTUATION, "S": SIGN}
    return of_letter.get(category[0], CONTROL)


def class_of(symbol: str) -> str:
    """Return the class of a symbol, which has a colour in charts."""
    if symbol in (BOUNDARY, ESCAPE) or "\udc80" <= symbol <= "\udcff":
        return "spaces and others"
    category = unicodedata.category(symbol)
    whole = {"Ll": "small letters", "Lu": "capitals", "Lt": "capitals"}
    signs = "punctuation and signs"
    of_first = {"L": "other letters", "M": "other letters", "N": "digits", "P": signs, "S": signs}
    return whole.get(category) or of_first.get(category[0], "spaces and others")


def most_frequent(opened: Opened, most: int) -> tuple[Integers, Integers]:
    """Return the ids that are most frequent in the training part, and how often each occurs.

    Only those that occur at all.
    """
    train = opened.train
    size = min(len(train), MOST_COUNTED)
    count = counted(train.part(len(train) - size, len(train)), opened.tokenizer.vocab_size)
    order = np.argsort(-count, kind="stable")[:most]
    ids = order[count[order] > 0]
    return ids, count[ids]


class Embeddings(NamedTuple):
    """Embeddings in two dimensions."""

    places: Float[np.ndarray, "N 2"]
    shares: tuple[float, float]  # of the variance that each dimension holds
    expert: str  # whose they are, in a mixture; "" if it is none
    of_rows: bool  # they are the rows of a table of what follows, as in a bigram model


def embeddings(model: LanguageModel, ids: Int[np.ndarray, "N"]) -> Embeddings | None:
    """Return the embeddings of some symbols in the two dimensions of their largest variance.

    Principal components; their signs are such that the number of largest size in each is positive. None
    for a model without embeddings, or for fewer than three symbols.
    """
    found = _table_of(model)
    if found is None or len(ids) < 3:
        return None
    expert, table, of_rows = found
    vectors = table[torch.from_numpy(ids)].double().numpy()
    if vectors.shape[1] < 2 or not np.ptp(vectors, axis=0).any():
        return None
    # Singular vectors are all that this takes, and scikit-learn takes a second to import.
    centred = vectors - vectors.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(axis=1)])
    one, two = (sizes[:2] ** 2 / (sizes**2).sum()).tolist()
    return Embeddings(centred @ axes[:2].T * signs, (one, two), expert, of_rows)


def _table_of(model: LanguageModel) -> tuple[str, torch.Tensor, bool] | None:
    """Return the embeddings of a model, or of the first expert that has some, (V, C)."""
    if isinstance(model, MixtureModel):
        for name, expert in model.experts.items():
            if found := _table_of(expert):
                return name, *found[1:]
        return None
    for name in ("token_embedding", "table"):
        table = getattr(model, name, None)
        if isinstance(table, torch.nn.Embedding):
            weight = table.weight.detach().float().cpu()
            of_rows = name == "table"
            return "", weight.log_softmax(dim=-1) if of_rows else weight, of_rows
    return None


class Bigrams(NamedTuple):
    """What follows each of n symbols: probabilities, (n, n); rows of all symbols would sum to 1."""

    learned: Floats  # by the model, after this symbol alone
    counted: Floats  # in the training part
    chars: int  # how many of its characters were counted


def bigrams(opened: Opened, ids: Int[np.ndarray, "n"]) -> Bigrams:
    """Return what the model expects after each of some symbols alone, and what followed in its text."""
    idx = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        logits = opened.model(idx[:, None].to(opened.model.device))[:, 0]
        learned = logits.float().softmax(dim=-1).cpu().double().numpy()[:, ids]
    size = min(len(opened.train), MOST_COUNTED)
    last = opened.train.part(len(opened.train) - size, len(opened.train))
    pairs = count_pairs(last, ids, opened.tokenizer.vocab_size)
    total = np.maximum(1, pairs.sum(axis=1, keepdims=True))
    return Bigrams(learned, (pairs / total)[:, :-1], size)


def count_pairs(ids: Ids, chosen: Int[np.ndarray, "n"], vocab_size: int) -> Integers:
    """Count what follows each of the chosen ids, (n, n + 1); the last column counts all other ids."""
    n = len(chosen)
    number = np.full(vocab_size, n)
    number[chosen] = np.arange(n)
    found = np.zeros((n + 1) ** 2, np.int64)
    for first in range(0, len(ids) - 1, CHUNK):
        text = number[ids.read(first, min(CHUNK, len(ids) - 1 - first) + 1)]
        found += np.bincount(text[:-1] * (n + 1) + text[1:], minlength=(n + 1) ** 2)
    return found.reshape(n + 1, n + 1)[:n]
