"""Mistakes that people make in the gradients of recurrent networks: see `test_check`."""

import torch

from charlm.backprop import recurrence as R
from charlm.backprop.rules import unbroadcast


def through_time_without(part):
    """The backward of `ThroughTime`, with one part of it left out."""

    def backward(self, dout, saved, starts):
        d_state = [torch.zeros_like(dout[:, 0]) for _ in starts]
        d_x, d_weights = [], None
        for t in reversed(range(dout.shape[1])):
            own = 0 if part == "what a later state adds" else d_state[0]
            d_after = (dout[:, t] + own, *d_state[1:])
            if part == "the later parts of the state":
                d_after = (d_after[0], *(torch.zeros_like(d) for d in d_state[1:]))
            found = self.cell.backward(d_after if self.states > 1 else d_after[0], *saved[t])
            d_x.append(found[0])
            d_state, own_weights = list(found[1 : 1 + self.states]), found[1 + self.states :]
            if d_weights is None or part == "the sum over positions":
                d_weights = list(own_weights)
            else:
                d_weights = [a + b for a, b in zip(d_weights, own_weights, strict=True)]
        d_starts = (unbroadcast(d, shape) for d, shape in zip(d_state, starts, strict=True))
        order = d_x if part == "the order of time" else d_x[::-1]
        return torch.stack(order, dim=1), *d_starts, *d_weights

    return backward


def truncated_to(part):
    """The backward of `TruncatedTime`, which keeps one part where it should add up or choose."""

    def backward(self, dout, saved):
        found = [
            self.through_time.backward(d, *kept)
            for d, kept in zip(dout.split(self.reach, dim=1), saved, strict=True)
        ]
        states = self.through_time.states
        starts = found[-1 if part == "the last state" else 0][1 : 1 + states]
        weights = [sum(parts) for parts in zip(*(one[1 + states :] for one in found), strict=True)]
        if part == "the last stretch":
            weights = found[-1][1 + states :]
        return torch.cat([one[0] for one in found], dim=1), *starts, *weights, None

    return backward


def scan_without(part):
    def backward(self, dout, z, c, before, start):
        d_h, found = torch.zeros_like(dout[:, 0]), []
        for t in reversed(range(dout.shape[1])):
            found.append(dout[:, t] + d_h)
            d_h = found[-1] if part == "the decay" else (1 - z[:, t]) * found[-1]
        d = torch.stack(found[::-1], dim=1)
        if part == "what comes from later":
            d = dout
        dz = d * c if part == "the old state" else d * (c - before)
        return dz, d * z, unbroadcast(d_h, start)

    return backward


def convolution_that(looks):
    def backward(self, dout, x, weight):
        k, time = len(weight), dout.shape[1]
        dx, dweight = torch.zeros_like(x), torch.empty_like(weight)
        for i in range(k):
            used = weight[k - 1 - i] if looks == "the wrong way" else weight[i]
            dx[:, i : i + time] += used * dout
            shift = 0 if looks == "at one place" else i
            dweight[i] = (dout * x[:, shift : shift + time]).sum((0, 1))
        return dx[:, k - 1 :], dweight

    return backward


def side_by_side_of_the_last_only(self, dout):
    parts = dout.unflatten(2, (self.context, -1))
    return parts[:, :, -1], parts[:, : self.context - 1, 0].sum((0, 1))


T = R.ThroughTime
MISTAKES = {
    "tanh: the input for the output": (
        "Tanh",
        R.Tanh,
        lambda s, dout, out: (dout * (1 - out.atanh() ** 2),),
    ),
    "sigmoid: the slope of tanh": (
        "Sigmoid",
        R.Sigmoid,
        lambda s, dout, out: (dout * (1 - out * out),),
    ),
    "positive: 1 everywhere": ("Positive", R.Positive, lambda s, dout, out, above: (dout,)),
    "blend: the ends mixed up": (
        "Blend",
        R.Blend,
        lambda s, dout, a, b, z: (dout * z, dout * (1 - z), dout * (b - a)),
    ),
    "blend: dz without the old value": (
        "Blend",
        R.Blend,
        lambda s, dout, a, b, z: (dout * (1 - z), dout * z, dout * b),
    ),
    "split: joined in reverse": (
        "Split",
        R.Split,
        lambda s, dout: (torch.cat(dout[::-1], dim=-1),),
    ),
    "together: added up": ("Together", R.Together, lambda s, dout: (2 * dout[0], dout[1])),
    "scan: no decay": ("GatedScan", R.GatedScan, scan_without("the decay")),
    "scan: dz of a plain sum": ("GatedScan", R.GatedScan, scan_without("the old state")),
    "scan: nothing from later": ("GatedScan", R.GatedScan, scan_without("what comes from later")),
    "convolution: not turned": (
        "CausalConvolution",
        R.CausalConvolution,
        convolution_that("the wrong way"),
    ),
    "convolution: weights at one place": (
        "CausalConvolution",
        R.CausalConvolution,
        convolution_that("at one place"),
    ),
    "side by side: only the newest": ("SideBySide", R.SideBySide, side_by_side_of_the_last_only),
    "time: a step at a time": ("ThroughTime", T, through_time_without("what a later state adds")),
    "time: weights of the first": (
        "ThroughTime",
        T,
        through_time_without("the sum over positions"),
    ),
    "time: forward order": ("ThroughTime", T, through_time_without("the order of time")),
    "gru: weights of the first": ("GRU", T, through_time_without("the sum over positions")),
    "lstm: the memory forgotten": ("LSTM", T, through_time_without("the later parts of the state")),
    "truncated: weights of the last stretch": (
        "TruncatedTime",
        R.TruncatedTime,
        truncated_to("the last stretch"),
    ),
    "truncated: the first state of the last stretch": (
        "TruncatedTime",
        R.TruncatedTime,
        truncated_to("the last state"),
    ),
}
