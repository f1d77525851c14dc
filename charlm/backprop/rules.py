"""The backward pass, rule by rule: each a forward, a backward, and the derivation of the backward.

A gradient has the shape of its value. `dout` stands for d loss / d out, which later steps have
computed. A rule returns d loss / d input for each of its inputs, and None for inputs without a
gradient (ids). Forward returns what backward needs.

The derivations are for one element. A remaining sum over an index is a matrix product, a `sum` or a
scatter; the shapes determine which. Gradients may share memory with one another and with dout: add
them, never write into them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from charlm.models.modern import rotate, token_shift
from charlm.models.ngram_embedding import dropped, gradient_of_rows, ngram_rows

Saved = tuple[Any, ...]
Gradients = tuple[Any, ...]  # of tensors, and None


@runtime_checkable
class Rule(Protocol):
    """A forward and its backward.

    `forward(*inputs)` returns the output (a tuple if there are several) and what backward needs;
    `backward(dout, *saved)` returns a tuple of gradients, one for each input.
    """

    @property
    def forward(self) -> Callable[..., tuple[Any, Saved]]:
        """Compute the output."""

    @property
    def backward(self) -> Callable[..., Gradients]:
        """Compute the gradients of the inputs from that of the output."""


def _at_least_single(x: Tensor) -> torch.dtype:
    """Return the precision of sums: half precision is only for products."""
    return torch.promote_types(x.dtype, torch.float32)


# --- Element by element ---------------------------------------------------------------------------


def unbroadcast(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Sum a gradient over the axes along which broadcasting repeated an input of this shape.

    A value that was used many times gets the sum of the gradients of all its uses.
    """
    return gradient if gradient.shape == shape else gradient.sum_to_size(shape)


class Add:
    """out = a + b. Both have slope 1: each gets dout, summed where it was broadcast.

    So a residual sum x + f(x) passes the whole gradient around f, however deep the stack.
    """

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Saved]:
        """Add, with broadcasting."""
        return a + b, (a.shape, b.shape)

    def backward(self, dout: Tensor, a: torch.Size, b: torch.Size) -> Gradients:
        """Pass dout to both."""
        return unbroadcast(dout, a), unbroadcast(dout, b)


class Multiply:
    """out = a b, element by element. d out / da = b, d out / db = a."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Saved]:
        """Multiply, with broadcasting."""
        return a * b, (a, b)

    def backward(self, dout: Tensor, a: Tensor, b: Tensor) -> Gradients:
        """Scale dout by the other factor."""
        return unbroadcast(dout * b, a.shape), unbroadcast(dout * a, b.shape)


@dataclass(frozen=True)
class Scale:
    """out = factor x. d out / dx = factor."""

    factor: float

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Multiply by a constant."""
        return x * self.factor, ()

    def backward(self, dout: Tensor) -> Gradients:
        """Multiply by the same constant."""
        return (dout * self.factor,)


@dataclass(frozen=True)
class Power:
    """out = x^n for a constant n. d out / dx = n x^(n-1)."""

    exponent: float

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Raise to the power."""
        return x**self.exponent, (x,)

    def backward(self, dout: Tensor, x: Tensor) -> Gradients:
        """Scale dout by the slope."""
        if self.exponent == 0:
            return (torch.zeros_like(dout),)  # not 0 / 0 at x = 0
        return (dout * self.exponent * x ** (self.exponent - 1),)


class Exp:
    """out = e^x. d out / dx = out."""

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Exponentiate."""
        out = x.exp()
        return out, (out,)

    def backward(self, dout: Tensor, out: Tensor) -> Gradients:
        """Scale dout by the output."""
        return (dout * out,)


class Log:
    """out = ln x. d out / dx = 1/x."""

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Take the natural logarithm."""
        return x.log(), (x,)

    def backward(self, dout: Tensor, x: Tensor) -> Gradients:
        """Divide dout by the input."""
        return (dout / x,)


class ReLU:
    """out = max(x, 0). The slope is 1 where x > 0 and 0 elsewhere."""

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Keep the positive part."""
        return x.clamp(min=0), (x > 0,)

    def backward(self, dout: Tensor, positive: Tensor) -> Gradients:
        """Pass dout where x was positive."""
        return (dout * positive,)


class SquaredReLU:
    """out = max(x, 0)^2. The slope is 2 max(x, 0): no corner at 0."""

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Square the positive part."""
        positive = x.clamp(min=0)
        return positive * positive, (positive,)

    def backward(self, dout: Tensor, positive: Tensor) -> Gradients:
        """Scale dout by twice the positive part."""
        return ((dout * positive).mul_(2),)


class GELU:
    """out = x P(x), where P is the normal distribution function, P(x) = (1 + erf(x / sqrt 2)) / 2.

    The product rule: d out / dx = P(x) + x p(x), with the density p(x) = e^(-x^2/2) / sqrt(2 pi).
    Hendrycks and Gimpel 2016, "Gaussian error linear units", section 2.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Weight each x by the probability that a normal variable is smaller."""
        return F.gelu(x), (x,)

    def backward(self, dout: Tensor, x: Tensor) -> Gradients:
        """Scale dout by P(x) + x p(x)."""
        below = (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
        density = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        return (below.addcmul_(x, density).mul_(dout),)


class TanhGELU:
    """out = x s(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), where s is the logistic function.

    This is nearly `GELU`, and often written x (1 + tanh u) / 2: both factors are the same. As
    d s(2 u) / du = 2 s (1 - s), the product rule gives d out / dx = s + 2 x s (1 - s) du / dx, with
    du / dx = sqrt(2 / pi) (1 + 0.134145 x^2). Hendrycks and Gimpel 2016, section 2.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Weight each x."""
        return F.gelu(x, approximate="tanh"), (x,)

    def backward(self, dout: Tensor, x: Tensor) -> Gradients:
        """Scale dout by the slope."""
        square = x * x
        share = (2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * square)).sigmoid_()
        inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * square)
        return ((share + 2 * x * share * (1 - share) * inner).mul_(dout),)


@dataclass(frozen=True)
class Dropout:
    """out = mask x, each element of the mask 0 with probability p, else 1 / (1 - p).

    The mask is drawn once (from torch's global generator, as `nn.Dropout` does) and is a constant
    from then on: d out / dx = mask.
    """

    p: float

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Draw a mask and apply it."""
        mask = F.dropout(torch.ones_like(x), self.p)
        return x * mask, (mask,)

    def backward(self, dout: Tensor, mask: Tensor) -> Gradients:
        """Apply the same mask: dropped elements had no effect."""
        return (dout * mask,)


# --- Sums -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sum:
    """out = the sum of x, over all of it or over one axis. Each element has slope 1."""

    dim: int | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Sum; an axis that is summed over stays, with size 1."""
        return x.sum() if self.dim is None else x.sum(self.dim, keepdim=True), (x.shape,)

    def backward(self, dout: Tensor, shape: torch.Size) -> Gradients:
        """Give every element the gradient of its sum."""
        return (dout.expand(shape),)


@dataclass(frozen=True)
class Mean:
    """out = (x_1 + ... + x_N) / N. Each of the N elements has slope 1/N."""

    dim: int | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Average; an axis that is averaged over stays, with size 1."""
        return x.mean() if self.dim is None else x.mean(self.dim, keepdim=True), (x.shape,)

    def backward(self, dout: Tensor, shape: torch.Size) -> Gradients:
        """Give every element 1/N of the gradient of its mean."""
        count = shape.numel() if self.dim is None else shape[self.dim]
        return ((dout / count).expand(shape),)


class Concatenate:
    """out = a and b joined along the last axis. Each gets its own part of dout."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Saved]:
        """Join."""
        return torch.cat([a, b], dim=-1), (a.shape[-1], b.shape[-1])

    def backward(self, dout: Tensor, a: int, b: int) -> Gradients:
        """Cut where it was joined."""
        return torch.split(dout, [a, b], dim=-1)


# --- Matrices -------------------------------------------------------------------------------------


class Matmul:
    """C = A B, that is C_ij = sum_k A_ik B_kj.

    A_ik appears in row i of C only, each time times B_kj: dA_ik = sum_j dC_ij B_kj, so dA = dC B^T.
    B_kj appears in column j only, times A_ik: dB_kj = sum_i A_ik dC_ij, so dB = A^T dC.
    """

    def forward(
        self, a: Float[Tensor, "*#batch n m"], b: Float[Tensor, "*#batch m p"]
    ) -> tuple[Tensor, Saved]:
        """Multiply the last two axes; those before them broadcast."""
        return a @ b, (a, b)

    def backward(self, dout: Tensor, a: Tensor, b: Tensor) -> Gradients:
        """Multiply by the transpose of the other factor, on that factor's side."""
        return unbroadcast(dout @ b.mT, a.shape), unbroadcast(a.mT @ dout, b.shape)


class Linear:
    """out = x W + b, for each row of x.

    It is `Matmul`, then `Add` of a row to every row: dx = dout W^T, dW = x^T dout, and db = dout
    summed over the batch. PyTorch keeps W transposed, `weight` = W^T (outputs, inputs), so here
    out = x weight^T + b, dx = dout weight, dweight = dout^T x, and db as before.
    """

    def forward(
        self,
        x: Float[Tensor, "*batch inputs"],
        weight: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, "outputs"] | None = None,
    ) -> tuple[Float[Tensor, "*batch outputs"], Saved]:
        """Map each row."""
        return F.linear(x, weight, bias), (x, weight, bias is not None)

    def backward(self, dout: Tensor, x: Tensor, weight: Tensor, has_bias: bool) -> Gradients:
        """Sum over every row that shared the weights."""
        rows = x.reshape(-1, x.shape[-1])  # (N, inputs)
        drows = dout.reshape(-1, dout.shape[-1])  # (N, outputs)
        dx, dweight = dout @ weight, drows.mT @ rows
        return (dx, dweight, drows.sum(0)) if has_bias else (dx, dweight)


class Embedding:
    """out_n = table[idx_n]: the product of a one-hot row with the table, without the product.

    Each row of the table gets the sum of dout over the places where it was looked up (a
    scatter-add); a row that was not looked up gets zero.
    """

    def forward(
        self, table: Float[Tensor, "V C"], idx: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch C"], Saved]:
        """Look up."""
        return F.embedding(idx, table), (idx, len(table))

    def backward(self, dout: Tensor, idx: Tensor, rows: int) -> Gradients:
        """Add each gradient to the row that it came from."""
        drows = dout.reshape(-1, dout.shape[-1]).to(_at_least_single(dout))
        dtable = drows.new_zeros(rows, dout.shape[-1])
        return dtable.index_add_(0, idx.flatten(), drows), None


@dataclass(frozen=True)
class NGramEmbedding:
    """out_t = the sum of the rows that belong to the 2, 3, ... characters that end at t.

    Each of those rows has slope 1, so each gets all of dout; with dropout, dout times its weight.
    """

    longest: int
    vocab_size: int
    numbering: Callable[[], Tensor | None] = lambda: None  # weights taken over later bring one
    dropout: bool = True
    sparse: bool = False  # whether the table's gradient holds only the rows that were looked up

    def forward(
        self, table: Float[Tensor, "R C"], idx: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T C"], Saved]:
        """Look up and add."""
        rows = ngram_rows(idx, self.longest, self.vocab_size, self.numbering()).flatten(0, 1)
        kept = dropped(rows, table.dtype) if self.dropout else table.new_ones(rows.shape)
        out = (F.embedding(rows, table) * kept[..., None]).sum(-2)
        return out.view(*idx.shape, -1), (rows, kept, len(table))

    def backward(self, dout: Tensor, rows: Tensor, kept: Tensor, count: int) -> Gradients:
        """Add each gradient to all rows that it came from."""
        flat = dout.to(_at_least_single(dout)).reshape(-1, dout.shape[-1])
        dtable = gradient_of_rows(flat, rows, kept, count)
        return dtable if self.sparse else dtable.to_dense(), None


# --- From logits to a loss ------------------------------------------------------------------------


class Softmax:
    """p_i = e^(x_i) / sum_k e^(x_k), over the last axis.

    Raising x_j raises p_j and lowers the others: d p_i / d x_j = p_i ([i = j] - p_j). Hence
    dx_j = sum_i dp_i p_i ([i = j] - p_j) = p_j (dp_j - sum_i dp_i p_i).
    """

    def forward(self, x: Float[Tensor, "*batch V"]) -> tuple[Float[Tensor, "*batch V"], Saved]:
        """Turn scores into probabilities."""
        p = x.softmax(-1)
        return p, (p,)

    def backward(self, dout: Tensor, p: Tensor) -> Gradients:
        """Compare each dp with their weighted mean."""
        return (p * (dout - (dout * p).sum(-1, keepdim=True)),)


class LogSoftmax:
    """out_i = x_i - ln sum_k e^(x_k), over the last axis.

    d out_i / d x_j = [i = j] - p_j, with p the softmax: dx_j = dout_j - p_j sum_i dout_i.
    """

    def forward(self, x: Float[Tensor, "*batch V"]) -> tuple[Float[Tensor, "*batch V"], Saved]:
        """Turn scores into log-probabilities, in nats."""
        out = x.log_softmax(-1)
        return out, (out,)

    def backward(self, dout: Tensor, out: Tensor) -> Gradients:
        """Subtract from each its probability times the sum."""
        return (dout - out.exp() * dout.sum(-1, keepdim=True),)


class Pick:
    """out_n = x[n, idx_n]: one element of each row. It alone gets the row's gradient."""

    def forward(
        self, x: Float[Tensor, "*batch V"], idx: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch"], Saved]:
        """Pick."""
        return x.gather(-1, idx[..., None]).squeeze(-1), (x.shape, idx)

    def backward(self, dout: Tensor, shape: torch.Size, idx: Tensor) -> Gradients:
        """Put each gradient where its element stood, zero elsewhere."""
        return dout.new_zeros(shape).scatter_(-1, idx[..., None], dout[..., None]), None


class CrossEntropy:
    """loss = -(1/N) sum_n ln softmax(x_n)[target_n], the mean over all N = B*T predictions.

    In its parts: `LogSoftmax`, `Pick`, `Mean`, `Scale(-1)`. Going back through them, -1/N reaches
    the picked element of each row, zero the others; through the log-softmax that is

        dx = (p - onehot(target)) / N

    Prediction minus truth, with no logarithm left.
    """

    def forward(
        self, logits: Float[Tensor, "*batch V"], targets: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, ""], Saved]:
        """Score every prediction by the log-probability of its target, in nats."""
        rows = logits.reshape(-1, logits.shape[-1])  # (B*T, V)
        log_probs = rows.log_softmax(-1, dtype=_at_least_single(logits))
        column = targets.reshape(-1, 1)  # (B*T, 1)
        loss = -log_probs.gather(1, column).mean()
        wrong = log_probs.exp_()  # backward needs p minus 1 at the target
        wrong.scatter_add_(1, column, wrong.new_full((1, 1), -1).expand_as(column))
        return loss, (wrong, logits.shape)

    def backward(self, dout: Tensor, wrong: Tensor, shape: torch.Size) -> Gradients:
        """Subtract the truth from the prediction."""
        return (wrong * (dout / len(wrong))).view(shape), None


class TableCrossEntropy:
    """`Embedding` in a table of logits, then `CrossEntropy`: a whole bigram model as one rule.

    Each time character i is read, the same row x_i is scored; only the target differs. Let n_ij
    count how often j comes after i, and n_i = sum_j n_ij. Summing softmax minus one-hot over all
    positions,

        loss = -(1/N) sum_ij n_ij ln softmax(x_i)_j        dx_i = (n_i softmax(x_i) - n_i.) / N

    with n_i. the row of counts. So one softmax per distinct character is enough. The gradient is
    zero where softmax(x_i)_j = n_ij / n_i: training a bigram table is a slow way to count.
    """

    def forward(
        self,
        table: Float[Tensor, "V V"],
        idx: Int[Tensor, "*batch"],
        targets: Int[Tensor, "*batch"],
    ) -> tuple[Float[Tensor, ""], Saved]:
        """Score every prediction by the log-probability of its target, in nats."""
        seen, row = torch.unique(idx.flatten(), return_inverse=True)  # n distinct characters
        counts = table.new_zeros(len(seen), table.shape[1])  # (n, V)
        counts.index_put_((row, targets.flatten()), counts.new_ones(()), accumulate=True)
        log_probs = table[seen].log_softmax(-1)
        loss = -(counts * log_probs).sum() / idx.numel()
        return loss, (table.shape, seen, counts, log_probs, idx.numel())

    def backward(
        self,
        dout: Tensor,
        shape: torch.Size,
        seen: Tensor,
        counts: Tensor,
        log_probs: Tensor,
        total: int,
    ) -> Gradients:
        """Subtract the counts from their expectation."""
        expected = counts.sum(1, keepdim=True) * log_probs.exp()
        dx = (expected - counts) * (dout / total)
        return dx.new_zeros(shape).index_copy_(0, seen, dx), None, None


# --- Using the past -------------------------------------------------------------------------------


class CausalAverage:
    """out = A x, where row t of the constant A averages positions 0 to t. So dx = A^T dout."""

    def forward(
        self, x: Float[Tensor, "*batch T C"], average: Float[Tensor, "block block"]
    ) -> tuple[Float[Tensor, "*batch T C"], Saved]:
        """Average each position with its past."""
        average = average[: x.shape[-2], : x.shape[-2]]
        return average @ x, (average,)

    def backward(self, dout: Tensor, average: Tensor) -> Gradients:
        """Give each position its share in all averages that contain it."""
        return average.mT @ dout, None


class CausalMask:
    """out = x on and below the diagonal, minus infinity above: no query sees a later key.

    Replaced elements of x have no effect: their gradient is zero.
    """

    def forward(self, x: Float[Tensor, "*batch T S"]) -> tuple[Tensor, Saved]:
        """Hide the future, by a lower triangle of ones."""
        seen = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).tril()
        return x.masked_fill(~seen, -math.inf), (seen,)

    def backward(self, dout: Tensor, seen: Tensor) -> Gradients:
        """Hide the future again."""
        return (dout * seen,)


@dataclass(frozen=True)
class Attention:
    """out = W V with W = softmax(mask(Q K^T / sqrt D)): causal scaled dot-product attention.

    Back through its parts: `Matmul` gives dV = W^T dout and dW = dout V^T; `Softmax` gives
    dS = W (dW - rowsum(dW W)); the mask needs nothing, as W is zero there; the scale and the first
    product give dQ = dS K / sqrt D and dK = dS^T Q / sqrt D.

    The row sum needs smaller tensors only: sum_s dW_ts W_ts = sum_s sum_d dout_td V_sd W_ts =
    sum_d dout_td out_td (Dao et al. 2022, FlashAttention, appendix B.2). Dropout acts between W
    and V: with its mask M, V is averaged by M W, dW gains the factor M, and the row sum holds.
    """

    dropout: float = 0.0

    def forward(
        self,
        query: Float[Tensor, "*batch T D"],
        key: Float[Tensor, "*batch T D"],
        value: Float[Tensor, "*batch T E"],
    ) -> tuple[Float[Tensor, "*batch T E"], Saved]:
        """Average the values, weighted by how well each query matches each key."""
        key, value = key.contiguous(), value.contiguous()  # once instead of in each product
        scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.mT
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        weights = scores.masked_fill_(~seen, -math.inf).softmax(-1)
        mask = F.dropout(torch.ones_like(weights), self.dropout) if self.dropout else None
        used = weights if mask is None else weights * mask
        out = used @ value
        return out, (query, key, value, weights, mask, used, out)

    def backward(
        self,
        dout: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        weights: Tensor,
        mask: Tensor | None,
        used: Tensor,
        out: Tensor,
    ) -> Gradients:
        """Go back through the two products and the softmax between them."""
        dout = dout.contiguous()
        dvalue = used.mT @ dout
        dweights = dout @ value.mT
        if mask is not None:
            dweights *= mask
        dscores = dweights.sub_((dout * out).sum(-1, keepdim=True)).mul_(weights)
        dscores *= 1 / math.sqrt(query.shape[-1])
        return dscores @ key, dscores.mT @ query, dvalue


@dataclass(frozen=True)
class SplitHeads:
    """Split (B, T, 3C) into queries, keys and values of H heads, each (B, H, T, D), C = H D.

    This only moves elements; backward moves the gradients back.
    """

    n_head: int

    def forward(
        self, qkv: Float[Tensor, "B T three_C"]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Saved]:
        """Cut."""
        query, key, value = torch.unflatten(qkv, -1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        return (query, key, value), ()

    def backward(self, dout: tuple[Tensor, Tensor, Tensor]) -> Gradients:
        """Join."""
        return (torch.stack([d.transpose(1, 2) for d in dout], dim=2).flatten(-3),)


class MergeHeads:
    """Join the heads: (B, H, T, D) to (B, T, C), C = H D."""

    def forward(self, x: Float[Tensor, "B H T D"]) -> tuple[Float[Tensor, "B T C"], Saved]:
        """Join."""
        return x.transpose(1, 2).flatten(-2), (x.shape[1],)

    def backward(self, dout: Tensor, n_head: int) -> Gradients:
        """Cut."""
        return (torch.unflatten(dout, -1, (n_head, -1)).transpose(1, 2),)


@dataclass(frozen=True)
class MultiHeadAttention:
    """Five rules as one: `Linear`, `SplitHeads`, `Attention`, `MergeHeads`, `Linear`.

    A chain of rules is a rule; `program` does in general what is written out here.
    """

    n_head: int
    dropout: float = 0.0

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        qkv_weight: Float[Tensor, "three_C C"],
        projection_weight: Float[Tensor, "C C"],
    ) -> tuple[Float[Tensor, "B T C"], Saved]:
        """Let each position gather, in every head, from all up to it."""
        qkv, to_qkv = Linear().forward(x, qkv_weight)
        heads, _ = SplitHeads(self.n_head).forward(qkv)
        gathered, attended = Attention(self.dropout).forward(*heads)
        merged, _ = MergeHeads().forward(gathered)
        out, projected = Linear().forward(merged, projection_weight)
        return out, (to_qkv, attended, projected)

    def backward(self, dout: Tensor, to_qkv: Saved, attended: Saved, projected: Saved) -> Gradients:
        """Apply the five backward rules in reverse order."""
        dmerged, dprojection_weight = Linear().backward(dout, *projected)
        (dgathered,) = MergeHeads().backward(dmerged, self.n_head)
        dheads = Attention(self.dropout).backward(dgathered, *attended)
        (dqkv,) = SplitHeads(self.n_head).backward(dheads)
        dx, dqkv_weight = Linear().backward(dqkv, *to_qkv)
        return dx, dqkv_weight, dprojection_weight


# --- Keeping activations in bounds ----------------------------------------------------------------


class LayerNorm:
    """out = gain n, with n = (x - mean) / s and s = sqrt(variance + 1e-5), over the C channels.

    Moving x_j moves its own n_j by 1/s, but also the mean (by 1/C) and s (by n_j / C):
    d n_i / d x_j = ([i = j] - 1/C - n_i n_j / C) / s. Summing over i, with dn = dout gain,

        dx = (dn - mean(dn) - n mean(dn n)) / s

    This is dn without its components along ones and along n: the output of a norm cannot move in
    those directions. All positions share the gain: dgain = dout n, summed over them. (A bias would
    be an `Add` after it.) Ba et al. 2016, "Layer normalization", 3.
    """

    def forward(
        self, x: Float[Tensor, "*batch C"], gain: Float[Tensor, "C"]
    ) -> tuple[Float[Tensor, "*batch C"], Saved]:
        """Centre, scale to unit variance, and multiply by the gain."""
        centred = x - x.mean(-1, keepdim=True)
        scale = ((centred * centred).mean(-1, keepdim=True) + 1e-5).rsqrt()
        normalised = centred.mul_(scale)
        return normalised * gain, (normalised, scale, gain)

    def backward(self, dout: Tensor, normalised: Tensor, scale: Tensor, gain: Tensor) -> Gradients:
        """Remove from dn the directions in which the output cannot move."""
        dn = dout * gain
        along = (dn * normalised).mean(-1, keepdim=True)
        dx = (dn - dn.mean(-1, keepdim=True)).addcmul_(normalised, along, value=-1).mul_(scale)
        return dx, (dout * normalised).reshape(-1, len(gain)).sum(0)


class RMSNorm:
    """out = x / r, with r = sqrt(mean(x^2) + eps), over the last axis.

    As in `F.rms_norm`, eps is the precision of the arithmetic: of float32 at least.

    d r / d x_j = x_j / (C r) = out_j / C, hence d out_i / d x_j = ([i = j] - out_i out_j / C) / r:

        dx = (dout - out mean(dout out)) / r

    LayerNorm's rule without the mean. Zhang and Sennrich 2019, section 4.
    """

    def forward(self, x: Float[Tensor, "*batch C"]) -> tuple[Float[Tensor, "*batch C"], Saved]:
        """Divide by the root of the mean square."""
        exact = x.to(_at_least_single(x))
        scale = ((exact * exact).mean(-1, keepdim=True) + torch.finfo(exact.dtype).eps).rsqrt()
        out = (exact * scale).to(x.dtype)
        return out, (out, scale)

    def backward(self, dout: Tensor, out: Tensor, scale: Tensor) -> Gradients:
        """Remove from dout its component along the output: its length is fixed."""
        along = (dout * out).mean(-1, keepdim=True)
        return (torch.addcmul(dout, out, along, value=-1).mul_(scale),)


class Rotary:
    """Rotate each pair (x_i, x_(i + D/2)) of position t by an angle a that grows with t.

    (u, v) becomes (u cos a - v sin a, u sin a + v cos a). The inverse of a rotation is its
    transpose, so the gradient is rotated back by the same angle: with -sin a instead of sin a.
    Su et al. 2021, RoFormer, 3.2.
    """

    def forward(
        self, x: Float[Tensor, "*batch T D"], table: Float[Tensor, "2 block D_half"]
    ) -> tuple[Float[Tensor, "*batch T D"], Saved]:
        """Rotate by the angles whose cosines and sines are in the table."""
        table = table[:, : x.shape[-2]]
        return rotate(x, table), (table,)

    def backward(self, dout: Tensor, table: Tensor) -> Gradients:
        """Rotate back."""
        cos, sin = table
        return rotate(dout, torch.stack([cos, -sin])), None


class TokenShift:
    """out_t = (u_t, v_(t-1)) where x_t = (u_t, v_t): half of the channels move one position on.

    v_t is used at position t + 1, so its gradient comes from there; the last v is not used, and its
    gradient is zero. Peng et al. 2023, RWKV, 3.1.
    """

    def forward(self, x: Float[Tensor, "*batch T C"]) -> tuple[Float[Tensor, "*batch T C"], Saved]:
        """Move half of the channels to the next position."""
        return token_shift(x), ()

    def backward(self, dout: Tensor) -> Gradients:
        """Move the gradient of that half back."""
        du, dv = dout.chunk(2, dim=-1)
        return (torch.cat([du, F.pad(dv, (0, 0, -1, 1))], dim=-1),)
