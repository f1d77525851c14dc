"""The models of the course and the n-gram: the keys and the cost of each.

Tests compare every count with the real model's. C is `n_embd`, V the vocabulary, T `block_size`.
"""

from collections.abc import Iterator
from heapq import nsmallest
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from charlm.config.base import ModelConfig, Part
from charlm.config.values import Integer, Number, Share, Size, integer, shown, wrong
from charlm.errors import Problem, number_of

MAX_COUNTED_WINDOW = 16_384  # for counted models, whose memory does not depend on the window
CountedWindow = Annotated[int, Field(ge=1, le=MAX_COUNTED_WINDOW), Integer]

BLOCK_FLOATS = 16  # times C: floats that a block keeps per character for backward, roughly
FUSED_ABOVE = 512  # longer windows use the fused kernel, which keeps no (T, T) weights
NGRAM_ROWS = 8192  # for each n, in the table of `charlm.models.ngram_embedding`

LONGEST_CHOSEN = 10  # the longest n-gram that `order: auto` tries
# Keys that only one style of a GPT has.
OF_STYLE = {"gpt2": ("bias", "gelu", "tied"), "modern": ("n_gram", "token_shift")}

LEAST_CHOSEN = 20  # characters; a tenth of them, which orders are compared on, has one to predict


def _order(value: Any) -> int:
    try:
        return integer(value)
    except ValueError:
        raise wrong(f"expected an integer or auto, got {shown(value)}") from None


Order = Annotated[
    Annotated[int, Field(ge=1, le=32), BeforeValidator(_order), Tag("a number")]
    | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(lambda value: "auto" if value == "auto" else "a number"),
]


def embedding(vocab_size: int, n_embd: int) -> Part:
    """Return the table of a row for each character."""
    return Part("token_embedding", (vocab_size, n_embd), multiplies=False)


def head(vocab_size: int, width: int) -> list[Part]:
    """Return the matrix that makes logits, and its bias."""
    bias = Part("head.bias", (vocab_size,), multiplies=False)
    return [Part("head.weight", (vocab_size, width)), bias]


class BigramConfig(ModelConfig):
    """One table with the logits of the next character for each character."""

    type: Literal["bigram"]
    """Which model this is."""

    def parts(self, vocab_size: int) -> list[Part]:  # noqa: D102
        return [Part("table", (vocab_size, vocab_size), multiplies=False)]


class AveragingConfig(ModelConfig):
    """Each character's embedding beside the mean of the earlier ones (a lower-triangular matrix)."""

    type: Literal["averaging"]
    """Which model this is."""
    n_embd: Size = 64
    """Channels of an embedding (C)."""

    def parts(self, vocab_size: int) -> list[Part]:  # noqa: D102
        return [embedding(vocab_size, self.n_embd), *head(vocab_size, 2 * self.n_embd)]

    def flops_per_char(self, vocab_size: int) -> int:
        """Add 4 T C for the product with the matrix, which is constant and has no gradient."""
        return super().flops_per_char(vocab_size) + 4 * self.block_size * self.n_embd

    def activation_floats(self, vocab_size: int, by_hand: bool = False) -> int:  # noqa: D102
        return BLOCK_FLOATS * self.n_embd + 3 * vocab_size

    def buffer_bytes(self) -> int:
        """Return the memory of the (T, T) matrix while it is built from a matrix of ones."""
        return 8 * self.block_size**2

    def inner_shapes(self, batch_size: int) -> list[tuple[str, tuple[int, ...]]]:  # noqa: D102
        t, c = self.block_size, self.n_embd
        return [
            ("embeddings (B, T, C)", (batch_size, t, c)),
            ("averaging matrix (T, T)", (t, t)),
            ("joined (B, T, 2C)", (batch_size, t, 2 * c)),
        ]


class _Attentive(ModelConfig):
    n_embd: Size = 64
    """Channels of an embedding (C)."""

    def _layers_and_heads(self) -> tuple[int, int]:
        return getattr(self, "n_layer", 1), getattr(self, "n_head", 1)

    def flops_per_char(self, vocab_size: int) -> int:
        """Add 12 T C for each layer of attention: PaLM, appendix B."""
        layers, _ = self._layers_and_heads()
        return super().flops_per_char(vocab_size) + 12 * layers * self.block_size * self.n_embd

    def activation_floats(self, vocab_size: int, by_hand: bool = False) -> int:
        """Add H T for each copy of attention's (T, T) weights.

        Dropout keeps three: weights, mask and their product. Plain products and gradients by hand
        keep one, the fused kernel none.
        """
        layers, heads = self._layers_and_heads()
        plain = by_hand or self.block_size <= FUSED_ABOVE
        copies = 3 if getattr(self, "dropout", 0) else int(plain)
        a_layer = BLOCK_FLOATS * self.n_embd + copies * heads * self.block_size
        return layers * a_layer + 3 * vocab_size

    def inner_shapes(self, batch_size: int) -> list[tuple[str, tuple[int, ...]]]:
        b, t, c, (_, h) = batch_size, self.block_size, self.n_embd, self._layers_and_heads()
        return [
            ("embeddings (B, T, C)", (b, t, c)),
            ("query, key, value (B, H, T, D)", (b, h, t, c // h)),
            ("attention weights (B, H, T, T)", (b, h, t, t)),
        ]

    def parts(self, vocab_size: int) -> list[Part]:
        c = self.n_embd
        return [
            embedding(vocab_size, c),
            Part("position_embedding", (self.block_size, c), multiplies=False),
            Part("query, key, value", (3 * c, c), hidden=True),
            *head(vocab_size, c),
        ]


class AttentionConfig(_Attentive):
    """One head of self-attention."""

    type: Literal["attention"]
    """Which model this is."""


class _WithHeads(_Attentive):
    n_head: Size = 4
    """Heads of attention (H); each has n_embd / n_head channels."""

    def conflicts(self) -> Iterator[Problem]:
        if self.n_embd % self.n_head:
            divisors = [d for d in range(1, min(self.n_embd, 64) + 1) if self.n_embd % d == 0]
            near = " or ".join(
                map(str, sorted(nsmallest(2, divisors, lambda d: abs(d - self.n_head))))
            )
            what = f"{self.n_head} does not divide n_embd {self.n_embd}"
            yield Problem("n_head", what, f"choose a divisor such as {near}")


class MultiHeadConfig(_WithHeads):
    """Many heads of self-attention in one projection."""

    type: Literal["multihead"]
    """Which model this is."""

    def parts(self, vocab_size: int) -> list[Part]:  # noqa: D102
        *before, weight, bias = super().parts(vocab_size)
        projection = Part("projection", (self.n_embd, self.n_embd), hidden=True)
        return [*before, projection, weight, bias]


class GPTConfig(_WithHeads):
    """A stack of attention and MLP blocks, in one of two styles."""

    has_blocks: ClassVar = True
    type: Literal["gpt"]
    """Which model this is."""
    style: Literal["gpt2", "modern"] = "modern"
    """`gpt2`: learned positions, LayerNorm, GELU, tied embeddings, as in nanoGPT. `modern`: rotary
    positions, RMSNorm, normalised queries and keys, token shift, squared ReLU, zero-initialised
    projections."""
    n_layer: Size = 4
    """Blocks in the stack."""
    dropout: Share = 0.0
    """Probability of dropping an activation in training."""
    n_gram: Annotated[int, Field(ge=1, le=16), Integer] = 1
    """Of `modern`: the longest n-gram that has an embedding beside the character's own, in 8,192 rows
    for each length, half of them dropped in training. 1: none. 5 learns faster."""
    token_shift: bool = True
    """Of `modern`: let half of what attention and MLP read come from the character before. False: a
    model that other programs have too; it learns more slowly."""
    bias: bool = False
    """Of `gpt2`: add a learned vector after each matrix and each norm, as in minGPT and makemore."""
    gelu: Literal["exact", "tanh"] = "exact"
    """Of `gpt2`: how GELU is computed. `tanh`: by an approximation, as in GPT-2, minGPT and makemore."""
    tied: bool = True
    """Of `gpt2`: use the embedding as the head, too. False: the head is a matrix of its own."""

    @property
    def kind(self) -> str:  # noqa: D102
        return f"gpt ({self.style})"

    @property
    def brief(self) -> str:  # noqa: D102
        return f"gpt {self.style}"

    @property
    def has_dropout(self) -> bool:  # noqa: D102
        return self.dropout > 0 or self.n_gram > 1  # n-grams have a dropout of their own

    @property
    def deep(self) -> bool:  # noqa: D102
        return True

    @property
    def can_be_planned(self) -> bool:  # noqa: D102
        return self.style == "modern"  # the sizes were tried with it

    def sizes(self) -> dict[str, Any]:  # noqa: D102
        others = OF_STYLE["modern" if self.style == "gpt2" else "gpt2"]
        left_out = ("style", *others)
        return {key: size for key, size in super().sizes().items() if key not in left_out}

    def conflicts(self) -> Iterator[Problem]:  # noqa: D102
        yield from super().conflicts()
        if self.style == "gpt2" and self.n_gram > 1:
            yield Problem("n_gram", f"{self.n_gram} needs style: modern", "leave it 1")
        for key in OF_STYLE["gpt2"] if self.style == "modern" else ():
            value, usual = getattr(self, key), type(self).model_fields[key].default
            if value != usual:
                given, default = (str(x).lower() for x in (value, usual))
                yield Problem(key, f"{given} needs style: gpt2", f"leave it {default}")
        size, left = divmod(self.n_embd, self.n_head)
        if self.style == "modern" and not left and size % 2:
            what = f"n_embd {self.n_embd} over n_head {self.n_head} gives heads of {size} channels"
            yield Problem("", what, "rotary positions turn pairs, so it must be even")

    def parts(self, vocab_size: int) -> list[Part]:  # noqa: D102
        v, c, n = vocab_size, self.n_embd, self.n_layer
        blocks = [
            Part("blocks.attention.qkv", (3 * c, c), n, hidden=True),
            Part("blocks.attention.projection", (c, c), n, hidden=True),
            Part("blocks.mlp.expand", (4 * c, c), n, hidden=True),
            Part("blocks.mlp.contract", (c, 4 * c), n, hidden=True),
        ]
        if self.style == "modern":
            rows = (self.n_gram - 1) * NGRAM_ROWS
            table = Part("ngram_embedding", (rows, c), multiplies=False, looked_up=self.n_gram - 1)
            grams = [table] if rows else []
            return [embedding(v, c), *grams, *blocks, Part("head", (v, c))]
        # Of a block: 3 C for queries, keys and values, C, 4 C and C for the others, and 2 C for the norms.
        biases = [Part("blocks.biases", (11, c), n, multiplies=False)] if self.bias else []
        return [
            Part("token_embedding = head", (v, c)) if self.tied else embedding(v, c),
            Part("position_embedding", (self.block_size, c), multiplies=False),
            Part("blocks.norms", (2, c), n, multiplies=False),
            *blocks,
            *biases,
            Part("final_norm", (1 + self.bias, c) if self.bias else (c,), multiplies=False),
            *([] if self.tied else [Part("head", (v, c))]),
        ]

    def buffer_bytes(self) -> int:
        """Return the memory of the (2, T, D/2) tables of rotary positions, one for each block.

        Two more are held while the last one is built.
        """
        tables = self.n_layer + 2 if self.style == "modern" else 0
        return 4 * tables * self.block_size * (self.n_embd // self.n_head)

    def inner_shapes(self, batch_size: int) -> list[tuple[str, tuple[int, ...]]]:  # noqa: D102
        expanded = batch_size, self.block_size, 4 * self.n_embd
        return [*super().inner_shapes(batch_size), ("expanded in the MLP (B, T, 4C)", expanded)]


class NGramConfig(ModelConfig):
    """Counted, not trained: how often each character followed each context of up to order - 1."""

    trained_by: ClassVar = "counting"

    type: Literal["ngram"]
    """Which model this is."""
    block_size: CountedWindow = 256
    """Characters in a window when scored in windows; the model looks back at most order - 1."""
    order: Order = 7
    """Characters of the longest n-gram: the context and the next character. `auto`: the order, up to
    10, that is best on the end of the training part; a run records the number."""
    smoothing: Literal["kneser-ney", "witten-bell", "add-k"] = "kneser-ney"
    """How rare and unseen contexts are handled: `kneser-ney` (modified, interpolated) and
    `witten-bell` back off to shorter ones; `add-k` adds `add_k` to each count of the full context."""
    add_k: Annotated[float, Field(ge=1e-6, le=1e6), Number] = 1.0
    """The constant that `add-k` adds to every count."""
    min_count: Size = 1
    """Leave out n-grams of two or more characters that occur less often than this."""
    last_chars: Size | None = None
    """Count only this many characters, from the end of the training part; null counts all."""

    @property
    def brief(self) -> str:  # noqa: D102
        return f"ngram {self.smoothing} {self.order}"

    def described(self, vocab_size: int) -> str:  # noqa: D102
        return f"ngram ({self.smoothing}): order {self.order}"

    @property
    def longest(self) -> int:
        """The order; the longest that may be chosen, if it is to be chosen."""
        return LONGEST_CHOSEN if self.order == "auto" else self.order

    def undecided(self) -> list[str]:  # noqa: D102
        return ["order"] if self.order == "auto" else []

    def sizes(self) -> dict[str, Any]:
        """Return the arguments of the model's constructor; ValueError before the order is chosen."""
        if self.order == "auto":
            raise ValueError("order auto is chosen when a run begins; a model needs a number")
        backs_off = self.smoothing != "add-k"
        return {"block_size": self.block_size, "order": self.order, "backs_off": backs_off}

    def conflicts(self) -> Iterator[Problem]:  # noqa: D102
        (least,) = self.least_text().values()
        if self.last_chars is not None and self.last_chars < least:
            what = f"last_chars {self.last_chars} is less than order {self.order}"
            if self.order == "auto":
                needed = f"the {least} that the choice of an order needs"
                what = f"last_chars {self.last_chars} is fewer than {needed}"
            yield Problem("", what, "raise it")

    def facts(self, chars: int) -> tuple[str, list[tuple[str, str]]]:  # noqa: D102
        before = f"and at most {self.longest - 1} before it" if self.longest > 1 else "alone"
        order = f"{self.order}: the next character {before}"
        if self.order == "auto":
            order = f"auto: the best of 1 to {self.longest} on the end of the training part"
        add_k = f", {self.add_k:g} to every count" if self.smoothing == "add-k" else ""
        counted = "the training part"
        if chars:
            counted += f", {number_of(chars, 'character')}"
        if self.last_chars:
            last = min(self.last_chars, chars or self.last_chars)
            counted = f"the last {number_of(last, 'character')} of the training part"
        rare = ("left out", f"n-grams that occur fewer than {number_of(self.min_count, 'time')}")
        return "n-grams", [
            ("order", order),
            ("smoothing", self.smoothing + add_k),
            ("counted", counted),
            *([rare] if self.min_count > 1 else []),
            # Of every order but the first: the context, and the character after it.
            ("to score a character", f"{max(0, 2 * self.longest - 3)} binary searches at most"),
        ]

    def least_text(self) -> dict[str, int]:  # noqa: D102
        return {"order": LEAST_CHOSEN if self.order == "auto" else self.order}

    def parts(self, vocab_size: int) -> list[Part]:
        """Return an empty list: it has no weights, only tables (`table_bytes`)."""
        return []

    def table_bytes(self, vocab_size: int, chars: int) -> int:
        """Return the most bytes that the tables can take: 12 to 24 for each distinct n-gram.

        There are at most V^k n-grams of k characters, and at most one for each position in the text.
        0 if the length of the counted text is unknown.
        """
        counted = min(chars or self.last_chars or 0, self.last_chars or chars)
        size, contexts = 0, min(1, counted)
        for k in range(1, self.longest + 1):
            grams = min(int(vocab_size**k), counted)
            # Kneser-Ney has other shares at the beginning of a text, but not in the highest order.
            rows = 2 if self.smoothing == "kneser-ney" and k < self.longest else 1
            size += 8 * grams + 4 * rows * (grams + contexts)  # keys, shares and left-overs
            contexts = grams
        return size

    def likely_table_bytes(self, vocab_size: int, chars: int) -> int:
        """Return a fourth of the most: order 7 takes a sixth for Tiny Shakespeare.

        About a fourth of the possible n-grams occur, because texts repeat themselves.
        """
        return self.table_bytes(vocab_size, chars) // 4
