"""Backpropagation through time: the rules of recurrent networks.

A cell is applied to one character after another, with the same weights. `ThroughTime` unrolls it: the
chain rule goes back through the copies in turn, the last first, and every weight gets the sum of the
gradients of all copies. Werbos 1990, "Backpropagation through time: what it does and how to do it".

A cell itself is a `Program` of rules (see `recurrent`), so only what is new is derived here.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from charlm.backprop.rules import Gradients, Rule, Saved, unbroadcast
from charlm.models.mingru import positive
from charlm.models.mlp import side_by_side

# --- Element by element ---------------------------------------------------------------------------


class Tanh:
    """out = tanh(x). d out / dx = 1 - out^2: at most 1, and near 0 where |out| is near 1."""

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Squash to between -1 and 1."""
        out = x.tanh()
        return out, (out,)

    def backward(self, dout: Tensor, out: Tensor) -> Gradients:
        """Scale dout by the slope."""
        return (dout * (1 - out * out),)


class Sigmoid:
    """out = 1 / (1 + e^-x). d out / dx = out (1 - out): at most 1/4."""

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Squash to between 0 and 1."""
        out = x.sigmoid()
        return out, (out,)

    def backward(self, dout: Tensor, out: Tensor) -> Gradients:
        """Scale dout by the slope."""
        return (dout * out * (1 - out),)


class Positive:
    """out = x + 1/2 from 0 on, below it sigmoid(x): the slope is 1, or out (1 - out)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Saved]:
        """Make x positive."""
        out = positive(x)
        return out, (out, x >= 0)

    def backward(self, dout: Tensor, out: Tensor, above: Tensor) -> Gradients:
        """Scale dout by the slope."""
        return (dout * torch.where(above, 1, out * (1 - out)),)


class Blend:
    """out = a + z (b - a), so a for z = 0 and b for z = 1.

    d out / da = 1 - z, d out / db = z, d out / dz = b - a.
    """

    def forward(self, a: Tensor, b: Tensor, z: Tensor) -> tuple[Tensor, Saved]:
        """Go from a to b by the share z."""
        return a + z * (b - a), (a, b, z)

    def backward(self, dout: Tensor, a: Tensor, b: Tensor, z: Tensor) -> Gradients:
        """Share dout between a and b."""
        return dout * (1 - z), dout * z, dout * (b - a)


@dataclass(frozen=True)
class Split:
    """Cut the last axis into parts of these shares; backward joins the gradients."""

    shares: tuple[int, ...]

    def forward(self, x: Float[Tensor, "*batch N"]) -> tuple[tuple[Tensor, ...], Saved]:
        """Cut."""
        unit = x.shape[-1] // sum(self.shares)
        return torch.split(x, [unit * share for share in self.shares], dim=-1), ()

    def backward(self, dout: tuple[Tensor, ...]) -> Gradients:
        """Join."""
        return (torch.cat(dout, dim=-1),)


class Together:
    """Several values as they are: the results of a program whose last steps made one each."""

    def forward(self, *x: Tensor) -> tuple[tuple[Tensor, ...], Saved]:
        """Return all of them."""
        return x, ()

    def backward(self, dout: tuple[Tensor, ...]) -> Gradients:
        """Return the gradient of each."""
        return dout


# --- Time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThroughTime:
    """(s_t, ...) = cell(x_t, s_(t-1), weights) for t = 1 ... T; out_t is the first part of s_t.

    The loss depends on s_t in two ways: through out_t, and through s_(t+1). So going back from the
    last position, the gradient of s_t is dout_t plus what the cell's backward gives at t + 1; that
    of a weight, which all positions share, is the sum over them.

    At each position the gradient of the state is multiplied by the slope of the cell. Over a distance
    of k these are k factors: it vanishes if they are below 1, and explodes if they are above.
    """

    cell: Rule
    states: int = 1

    def forward(self, x: Float[Tensor, "B T C"], *rest: Tensor) -> tuple[Tensor, Saved]:
        """Apply the cell; `rest` is the first state, (H,) or (B, H) each, then the weights."""
        starts, weights = rest[: self.states], rest[self.states :]
        state = tuple(start.expand(x.shape[0], -1) for start in starts)
        outputs, saved = [], []
        for x_t in x.unbind(1):
            after, kept = self.cell.forward(x_t, *state, *weights)
            state = after if isinstance(after, tuple) else (after,)
            outputs.append(state[0])
            saved.append(kept)
        return torch.stack(outputs, dim=1), (saved, [start.shape for start in starts])

    def backward(self, dout: Tensor, saved: list[Saved], starts: list[torch.Size]) -> Gradients:
        """Go back from the last position to the first."""
        d_state = [torch.zeros_like(dout[:, 0]) for _ in starts]
        d_x: list[Tensor] = []
        d_weights: list[Tensor] = []
        for t in reversed(range(dout.shape[1])):
            d_after = (dout[:, t] + d_state[0], *d_state[1:])
            gradients = self.cell.backward(d_after if self.states > 1 else d_after[0], *saved[t])
            d_x.append(gradients[0])
            d_state, found = [*gradients[1 : 1 + self.states]], gradients[1 + self.states :]
            pairs = zip(d_weights, found, strict=True) if d_weights else ()
            d_weights = [total + one for total, one in pairs] or [*found]
        d_starts = (unbroadcast(d, shape) for d, shape in zip(d_state, starts, strict=True))
        return torch.stack(d_x[::-1], dim=1), *d_starts, *d_weights


@dataclass(frozen=True)
class TruncatedTime:
    """`ThroughTime` in stretches of `reach`; each begins with a state that counts as a constant.

    That is the state in which the stretch before it ended, so the output is the same. But no gradient
    goes back further than the stretch, and the first state gets that of the first stretch only: less
    to keep and to compute, and nothing learned about what lies further back than `reach`.
    """

    through_time: ThroughTime
    reach: int

    def forward(self, x: Float[Tensor, "B T C"], *rest: Tensor) -> tuple[Tensor, Saved]:
        """Apply the cell; `rest` is as in `ThroughTime`, then the states at the cuts, (K, s, B, H)."""
        *given, cuts = rest
        states = self.through_time.states
        outputs, saved = [], []
        for k, stretch in enumerate(torch.split(x, self.reach, dim=1)):
            first = cuts[k - 1] if k else given[:states]
            out, kept = self.through_time.forward(stretch, *first, *given[states:])
            outputs.append(out)
            saved.append(kept)
        return torch.cat(outputs, dim=1), (saved,)

    def backward(self, dout: Tensor, saved: list[Saved]) -> Gradients:
        """Go back in each stretch by itself; add up the gradients of the weights."""
        d_x, d_rest = [], []
        for d_stretch, kept in zip(torch.split(dout, self.reach, dim=1), saved, strict=True):
            one, *rest = self.through_time.backward(d_stretch, *kept)
            d_x.append(one)
            d_rest.append(rest)
        states = self.through_time.states
        d_weights = (sum(parts) for parts in zip(*(rest[states:] for rest in d_rest), strict=True))
        return torch.cat(d_x, dim=1), *d_rest[0][:states], *d_weights, None


class GatedScan:
    """h_t = (1 - z_t) h_(t-1) + z_t c_t for t = 1 ... T, where z and c do not depend on h.

    `Blend` at each position, and `ThroughTime` around it: with dh_t = dout_t + (1 - z_(t+1)) dh_(t+1),

        dc_t = z_t dh_t        dz_t = (c_t - h_(t-1)) dh_t        dh_0 = (1 - z_1) dh_1

    dh obeys the recurrence of h, backward in time: whatever computes one computes the other.
    """

    def forward(
        self, z: Float[Tensor, "B T H"], c: Float[Tensor, "B T H"], h: Float[Tensor, "H"]
    ) -> tuple[Float[Tensor, "B T H"], Saved]:
        """Blend the state with one candidate after another."""
        states = [h.expand(z.shape[0], -1)]
        for z_t, c_t in zip(z.unbind(1), c.unbind(1), strict=True):
            states.append(states[-1] + z_t * (c_t - states[-1]))
        before = torch.stack(states[:-1], dim=1)
        return torch.stack(states[1:], dim=1), (z, c, before, h.shape)

    def backward(
        self, dout: Tensor, z: Tensor, c: Tensor, before: Tensor, start: torch.Size
    ) -> Gradients:
        """Blend the gradients, the last first."""
        d_h, found = torch.zeros_like(dout[:, 0]), []
        for t in reversed(range(dout.shape[1])):
            found.append(dout[:, t] + d_h)
            d_h = (1 - z[:, t]) * found[-1]
        d = torch.stack(found[::-1], dim=1)
        return d * (c - before), d * z, unbroadcast(d_h, start)


class CausalConvolution:
    """out_t = sum_i w_i x_(t - k + 1 + i), i = 0 ... k - 1, for each channel; before the text x is 0.

    x_s is in out_t once, with the weight w_(s - t + k - 1): dx_s = sum_i w_i dout_(s + k - 1 - i), a
    convolution with the future. dw_i = the sum over positions of dout_t x_(t - k + 1 + i).
    """

    def forward(
        self, x: Float[Tensor, "B T C"], weight: Float[Tensor, "k 1 C"]
    ) -> tuple[Float[Tensor, "B T C"], Saved]:
        """Look at the last k positions."""
        k, time = len(weight), x.shape[1]
        x = torch.cat([x.new_zeros(x.shape[0], k - 1, x.shape[2]), x], dim=1)
        out = torch.zeros_like(x[:, k - 1 :])
        for i in range(k):
            out += weight[i] * x[:, i : i + time]
        return out, (x, weight)

    def backward(self, dout: Tensor, x: Tensor, weight: Tensor) -> Gradients:
        """Give each position its share in the k outputs that saw it."""
        k, time = len(weight), dout.shape[1]
        dx, dweight = torch.zeros_like(x), torch.empty_like(weight)
        for i in range(k):
            dx[:, i : i + time] += weight[i] * dout
            dweight[i] = (dout * x[:, i : i + time]).sum((0, 1))
        return dx[:, k - 1 :], dweight


@dataclass(frozen=True)
class SideBySide:
    """out_t = the last n inputs side by side; places before the text hold the vector `before`.

    x_t is in out_t, ... out_(t + n - 1), in another part of each: its gradient is the sum of those
    parts. `before` gets the sum over all places that it fills.
    """

    context: int

    def forward(
        self, x: Float[Tensor, "B T C"], before: Float[Tensor, "C"]
    ) -> tuple[Float[Tensor, "B T nC"], Saved]:
        """Put the last n side by side, the oldest first."""
        return side_by_side(x, before, self.context), ()

    def backward(self, dout: Tensor) -> Gradients:
        """Add up the parts that came from one place."""
        n, (batch, time, _) = self.context, dout.shape
        parts = torch.unflatten(dout, 2, (n, -1))
        dx = dout.new_zeros(batch, n - 1 + time, parts.shape[-1])
        for i in range(n):
            dx[:, i : i + time] += parts[:, :, i]
        return dx[:, n - 1 :], dx[:, : n - 1].sum((0, 1))
