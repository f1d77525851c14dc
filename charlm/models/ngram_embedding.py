"""An embedding for each pair, triple, ... of characters, beside the character's own.

The first layers of a character GPT learn which characters occur together. A table that is looked up
by the last n characters provides that directly. There are too many n-grams for one row each, so
they share rows by a hash (Weinberger et al. 2009, "Feature hashing for large scale multitask
learning"): two that share a row are rarely both frequent, and later layers can tell them apart.

Such tables memorise the text. So training drops each n-gram's embedding half of the time, as Iyyer
et al. 2015, "Deep unordered composition rivals syntactic methods for text classification", section
3.1, drop words; the rest of the model then does not rely on any single n-gram.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from charlm.config.models import NGRAM_ROWS
from charlm.models.base import check_tensor

ROWS = NGRAM_ROWS  # for each n; four times as many gained 0.006 nats (docs/experiments.md)

DROPOUT = 0.5  # without it the validation loss rises after a few passes over the text

PRIME = 2**31 - 1  # keys stay below it, so that products of two fit into 64 bits
GOLDEN = 2_654_435_769  # 2^32 over the golden ratio: Knuth, TAOCP 3, section 6.4
ROW_BITS = ROWS.bit_length() - 1


def ngram_rows(
    idx: Int[Tensor, "B T"],
    longest: int,
    vocab_size: int,
    numbering: Int[Tensor, "V_and_1"] | None = None,
) -> Int[Tensor, "B T n"]:
    """Return the row of the n characters that end at each position, for n from 2 to `longest`.

    `numbering` is that of `NGramEmbedding`. The places before the text count as one extra character, and so
    does an id of -1. Rows are those of one table: below `ROWS` for n = 2, below 2 `ROWS` for n = 3, and so
    on.
    """
    length = idx.shape[1]
    base: int | Tensor = vocab_size + 1
    numbers = idx + 1  # 0 stands for the places before the text
    if numbering is not None:
        base, numbers = numbering[0], numbering[numbers].masked_fill(idx < 0, 0)
    key, rows = numbers, []
    for n in range(2, longest + 1):
        before = F.pad(numbers, (n - 1, 0))[:, :length]
        # A number in base V + 1: exact while it is below the prime, a hash from there on.
        key = (key * base + before) % PRIME
        hashed = (key * GOLDEN) % 2**32 >> 32 - ROW_BITS
        rows.append((n - 2) * ROWS + hashed)
    return torch.stack(rows, dim=-1)


class NGramEmbedding(nn.Module):
    """The sum of the embeddings of the n-grams that end at each position, some dropped in training.

    The longest n-gram has `longest` characters, at least 2.

    Rows depend on the ids of characters. So a table that was taken over from a model of another
    alphabet has a `numbering`: the base of its keys, then the number of each character in them.
    """

    numbering: Tensor | None  # (V + 1,); None: V + 1, then 1 to V

    def __init__(self, vocab_size: int, longest: int, n_embd: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.longest = longest
        self.table = nn.Embedding((longest - 1) * ROWS, n_embd)
        self.sparse = False  # whether the table's gradient holds only the rows that were looked up
        self.register_buffer("numbering", None)

    def forward(
        self, idx: Int[Tensor, "B T"], before: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B T C"]:
        """Look up and add.

        `before` are the characters before `idx`: at least as many as n-grams look back, or all.
        """
        text = idx if before is None else torch.cat([before, idx], dim=1)
        rows = ngram_rows(text, self.longest, self.vocab_size, self.numbering)
        rows = rows[:, -idx.shape[1] :]
        rows = rows.flatten(0, 1)  # (B*T, n)
        table = self.table.weight
        kept = dropped(rows, table.dtype) if self.training else None
        bags: Tensor
        if self.sparse:
            bags = sum_of_rows(table, rows, kept)
        else:
            bags = F.embedding_bag(rows, table, mode="sum", per_sample_weights=kept)
        return bags.view(*idx.shape, table.shape[1])  # B may be 0

    def take_numbering(self, other: "NGramEmbedding", known: Int[Tensor, "V"]) -> None:
        """Number characters as another table does, which was taken over; see `take_over`.

        Characters that it lacks get numbers above those of all its pairs, so their pairs have keys
        that no pair had before.
        """
        theirs = other.numbering
        if theirs is None:
            theirs = torch.arange(other.vocab_size + 1)
            theirs[0] = other.vocab_size + 1
        base = int(theirs[0])
        numbers = theirs.cpu()[known + 1]
        new = known < 0
        first = max(base**2, int(theirs.max()))
        numbers[new] = (first + (base + 1) * torch.arange(1, int(new.sum()) + 1)) % PRIME
        self.numbering = torch.cat([theirs[:1].cpu(), numbers]).to(self.table.weight.device)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *options: Any
    ) -> None:
        """Take a table with its numbering, if it has one."""
        numbering = state_dict.get(f"{prefix}numbering")
        self.numbering = None if numbering is None else numbering.to(self.table.weight.device)
        super()._load_from_state_dict(state_dict, prefix, *options)


def check_numbering(name: str, numbering: Tensor, vocab_size: int) -> None:
    """Check the numbering of a saved table, or raise ValueError."""
    check_tensor(name, numbering, (vocab_size + 1,), torch.int64)
    if numbering.min() < 1 or numbering.max() >= PRIME:
        raise ValueError(f"{name} holds numbers outside [1, {PRIME})")


class SumOfRows(torch.autograd.Function):
    """Sums of a table's rows, and a gradient that holds only the rows that were looked up.

    Autograd's own sparse gradient repeats a row for each time that it was looked up.
    """

    @staticmethod
    def forward(
        ctx: Any, table: Float[Tensor, "R C"], rows: Int[Tensor, "N n"], kept: Tensor | None
    ) -> Float[Tensor, "N C"]:
        """Look up and add; `kept` are weights."""
        ctx.save_for_backward(rows, kept)
        ctx.count = len(table)
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=kept)

    @staticmethod
    def backward(ctx: Any, dout: Float[Tensor, "N C"]) -> tuple[Tensor, None, None]:
        """Add the gradients of all places where a row was looked up."""
        rows, kept = ctx.saved_tensors
        return gradient_of_rows(dout, rows, kept, ctx.count), None, None


def sum_of_rows(
    table: Float[Tensor, "R C"], rows: Int[Tensor, "N n"], kept: Float[Tensor, "N n"] | None
) -> Float[Tensor, "N C"]:
    """Look up and add, for a gradient of only these rows."""
    return SumOfRows.apply(table, rows, kept)  # type: ignore[no-any-return, no-untyped-call]


def leave_out_of_compiled_code() -> None:
    """Let torch.compile not look into `sum_of_rows`: compiled code has no sparse gradients.

    As a decorator this would load the compiler in each process, which takes a second.
    """
    global sum_of_rows
    sum_of_rows = torch.compiler.disable(sum_of_rows)  # type: ignore[no-untyped-call]


def gradient_of_rows(
    dout: Float[Tensor, "N C"],
    rows: Int[Tensor, "N n"],
    kept: Float[Tensor, "N n"] | None,
    count: int,
) -> Float[Tensor, "R C"]:
    """Return the gradient of a table of `count` rows from that of weighted sums of its rows.

    It is sparse, with each row once: again a sum of rows, those of `dout` where it was looked up.
    """
    found, places = rows.flatten().sort(stable=True)
    found, times = found.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
    weights = None if kept is None else kept.flatten()[places].to(dout.dtype)
    values = F.embedding_bag(
        places // rows.shape[1],
        dout,
        times.cumsum(0) - times,
        mode="sum",
        per_sample_weights=weights,
    )
    size = (count, dout.shape[1])
    return torch.sparse_coo_tensor(
        found[None], values, size, is_coalesced=True, check_invariants=False
    )


def dropped(rows: Int[Tensor, "N n"], dtype: torch.dtype) -> Float[Tensor, "N n"]:
    """Draw the weight of each n-gram: 0, or 1 / (1 - `DROPOUT`), which keeps the mean."""
    return F.dropout(torch.ones(rows.shape, dtype=dtype, device=rows.device), DROPOUT)
