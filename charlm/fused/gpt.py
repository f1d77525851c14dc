"""The fused forms of the two styles of GPT."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from charlm.config import GPTConfig
from charlm.fused.activation import gelu, gelu_backward, squared_relu, squared_relu_backward
from charlm.fused.attention import Tape
from charlm.fused.blocks import Found, Fused, Weights
from charlm.fused.heads import join_heads, split_heads, to_heads
from charlm.fused.norms import add_layer_norm, add_rms_norm, layer_norm_backward, rms_norm_backward
from charlm.fused.numbers import array
from charlm.models.gpt2 import GPT2
from charlm.models.modern import norm

PARTS = 16  # of the rows, whose gradients of a gain are summed apart


class FusedModernGPT(Fused):
    """Lesson 6."""

    def embed(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Return the input of the first block."""
        x: Tensor = self.model.token_embedding(idx)
        if self.model.ngram_embedding is not None:
            x = x + self.model.ngram_embedding(idx)
        return norm(x)

    def head(self) -> Float[Tensor, "V C"]:
        """Return the matrix that makes logits."""
        return self.model.head.weight  # type: ignore[no-any-return]

    def add_norm(
        self,
        x: Tensor,
        branch: Tensor,
        seed: np.uint32,
        weights: Weights,
        tape: Tape,
        last: bool = False,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
        """Return x + branch, and its norm, shifted unless it is the last."""
        total, out = torch.empty_like(x), torch.empty_like(x, dtype=branch.dtype)
        scale = torch.empty(len(x))
        own = self._own(x, last)
        arrays = map(array, (x, branch, total, out, scale))
        add_rms_norm(*arrays, self.length, own, seed, self.threshold)
        tape.append((total, scale, seed))
        return total, out

    def add_norm_backward(
        self, d_out: Tensor, d_x: Tensor, found: Found, tape: Tape, last: bool = False
    ) -> Float[Tensor, "N C"]:
        """Add the gradient of x to `d_x`; return it in the precision of products."""
        low = torch.empty_like(d_out)
        total, scale, seed = tape.pop()
        arrays = map(array, (d_out, total, scale, d_x, low))
        own = self._own(total, last)
        rms_norm_backward(*arrays, self.length, own, seed, self.threshold)
        return low

    def split(self, qkv: Float[Tensor, "N Q"], tape: Tape) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys, normalised and rotated, and values."""
        query, key, value = (self.new_heads(qkv, 3) for _ in range(3))
        scale = torch.empty(2, len(qkv), self.heads)
        split_heads(*map(array, (qkv, self._table(), query, key, value, scale)))
        tape.append((scale,))
        return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)

    def split_backward(
        self,
        d_query: Tensor,
        d_key: Tensor,
        d_value: Tensor,
        query: Tensor,
        key: Tensor,
        tape: Tape,
    ) -> Float[Tensor, "N Q"]:
        """Go back through `split`."""
        (scale,) = tape.pop()
        heads = (
            x.view(self.windows, self.heads, self.length, -1)
            for x in (d_query, d_key, d_value, query, key)
        )
        d_qkv = query.new_empty(scale.shape[1], 3 * self.heads * query.shape[-1])
        join_heads(*map(array, (*heads, self._table(), scale, d_qkv)))
        return d_qkv

    def activation(self, x: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Return the squared ReLU of x, which it overwrites."""
        squared_relu(array(x))
        tape.append((x,))
        return x

    def activation_backward(self, d_out: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Go back through `activation`."""
        (out,) = tape.pop()
        squared_relu_backward(array(out), array(d_out))
        return d_out

    def _own(self, x: Tensor, last: bool) -> int:
        """Return how many channels stay where they are: `token_shift` moves the second half."""
        whole = last or not self.model.shift
        return x.shape[1] if whole else (x.shape[1] + 1) // 2

    def _table(self) -> Float[Tensor, "2 T D_half"]:
        table: Tensor = self.model.blocks[0].attention.rotary
        return table[:, : self.length].contiguous()


class FusedGPT2(Fused):
    """Lesson 5, with GELU by the normal distribution, and without biases."""

    @classmethod
    def fits(cls, options: GPT2 | GPTConfig) -> bool:
        """Tell whether there are kernels for the options of a model, or of its configuration."""
        return not options.bias and options.gelu == "exact"

    def embed(self, idx: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Return the input of the first block."""
        positions: Tensor = self.model.position_embedding.weight
        return self.model.token_embedding(idx) + positions[: idx.shape[1]]  # type: ignore[no-any-return]

    def head(self) -> Float[Tensor, "V C"]:
        """Return the matrix that makes logits; the embedding's, if tied: its gradients add up."""
        table = self.model.token_embedding if self.model.head is None else self.model.head
        return table.weight  # type: ignore[no-any-return]

    def find_weights(self) -> list[nn.Parameter]:
        """Return the weights in the order in which `run` uses them."""
        return [*super().find_weights(), self.model.final_norm.weight]

    def add_norm(
        self,
        x: Tensor,
        branch: Tensor,
        seed: np.uint32,
        weights: Weights,
        tape: Tape,
        last: bool = False,
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
        """Return x + branch, and its norm."""
        total, out = torch.empty_like(x), torch.empty_like(x, dtype=branch.dtype)
        mean, scale, gain = torch.empty(len(x)), torch.empty(len(x)), next(weights)
        arrays = map(array, (x, branch, total, gain, out, mean, scale))
        eps = np.float32(self.model.final_norm.eps)
        add_layer_norm(*arrays, eps, seed, self.threshold)
        tape.append((total, gain, mean, scale, seed))
        return total, out

    def add_norm_backward(
        self, d_out: Tensor, d_x: Tensor, found: Found, tape: Tape, last: bool = False
    ) -> Float[Tensor, "N C"]:
        """Add the gradient of x to `d_x`; return it in the precision of products."""
        low, d_gains = torch.empty_like(d_out), torch.empty(PARTS, d_out.shape[1])
        *kept, seed = tape.pop()
        arrays = map(array, (d_out, *kept, d_x, low, d_gains))
        layer_norm_backward(*arrays, seed, self.threshold)
        found.append(d_gains.sum(0))
        return low

    def split(self, qkv: Float[Tensor, "N Q"], tape: Tape) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values."""
        query, key, value = (self.new_heads(qkv, 3) for _ in range(3))
        to_heads(array(qkv), tuple(map(array, (query, key, value))))
        return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)

    def split_backward(
        self,
        d_query: Tensor,
        d_key: Tensor,
        d_value: Tensor,
        query: Tensor,
        key: Tensor,
        tape: Tape,
    ) -> Float[Tensor, "N Q"]:
        """Go back through `split`."""
        return self.join(d_query, d_key, d_value)

    def activation(self, x: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Return the GELU of x, which it overwrites by the slope."""
        out = torch.empty_like(x)
        gelu(array(x), array(out))
        tape.append((x,))
        return out

    def activation_backward(self, d_out: Float[Tensor, "N E"], tape: Tape) -> Float[Tensor, "N E"]:
        """Go back through `activation`."""
        (slope,) = tape.pop()
        gelu_backward(array(slope), array(d_out))
        return d_out
