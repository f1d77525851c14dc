"""Backpropagation on single numbers: a value remembers its inputs.

Each operation stores, beside its result, the local derivative with respect to each of its inputs:
how fast the result moves when only that input moves. The chain rule multiplies them along each path
from an input to the final result, and sums over the paths.
"""

import math

Number = int | float


class Value:
    """A number, its inputs, and the gradient of a final result with respect to it.

    Args:
        data: The number.
        made_of: Each input of the operation, with the local derivative with respect to it.
        label: The operation, or the name of a leaf (a value that was made of nothing).
    """

    def __init__(
        self, data: Number, made_of: tuple[tuple["Value", float], ...] = (), label: str = ""
    ) -> None:
        self.data = float(data)
        self.made_of = made_of
        self.label = label
        self.grad = 0.0

    def backward(self) -> None:
        """Compute `grad`, d self / d value, for every value that this one was made of.

        Leaves add it to the gradient they had, so that several results can share them: set theirs
        to zero before the next step. All other values start from zero.
        """
        history = self.history()
        for value in history:
            if value.made_of:
                value.grad = 0.0
        self.grad = 1.0  # the base case: d self / d self
        for value in reversed(history):  # a value's gradient is complete before it is passed on
            for parent, local in value.made_of:
                parent.grad += local * value.grad  # +=, since a value may be used more than once

    def history(self) -> list["Value"]:
        """Return all that this value was made of, inputs before results, itself last."""
        done: dict[int, Value] = {}
        waiting = [(self, False)]
        while waiting:  # depth first; a loop, since a long sum would exhaust Python's stack
            value, inputs_are_done = waiting.pop()
            if inputs_are_done:
                done[id(value)] = value
            elif id(value) not in done:
                waiting.append((value, True))
                waiting += [(parent, False) for parent, _ in reversed(value.made_of)]
        return list(done.values())

    def __add__(self, other: "Value | Number") -> "Value":
        other = _value(other)
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)), "+")

    def __sub__(self, other: "Value | Number") -> "Value":
        other = _value(other)
        return Value(self.data - other.data, ((self, 1.0), (other, -1.0)), "-")

    def __mul__(self, other: "Value | Number") -> "Value":
        other = _value(other)
        return Value(self.data * other.data, ((self, other.data), (other, self.data)), "*")

    def __truediv__(self, other: "Value | Number") -> "Value":
        other = _value(other)
        a, b = self.data, other.data
        return Value(a / b, ((self, 1 / b), (other, -a / b / b)), "/")  # -a / b^2

    def __pow__(self, exponent: "Value | Number") -> "Value":
        a, b = self.data, exponent.data if isinstance(exponent, Value) else exponent
        power = math.pow(a, b)  # unlike a ** b, it refuses complex results
        slope = b * math.pow(a, b - 1) if b else 0.0
        if not isinstance(exponent, Value):
            return Value(power, ((self, slope),), f"** {b:g}")
        growth = power * math.log(a) if power else 0.0  # the limit at a = 0
        return Value(power, ((self, slope), (exponent, growth)), "**")

    def __neg__(self) -> "Value":
        return Value(-self.data, ((self, -1.0),), "-")

    def __radd__(self, other: Number) -> "Value":
        return _value(other) + self

    def __rsub__(self, other: Number) -> "Value":
        return _value(other) - self

    def __rmul__(self, other: Number) -> "Value":
        return _value(other) * self

    def __rtruediv__(self, other: Number) -> "Value":
        return _value(other) / self

    def __rpow__(self, other: Number) -> "Value":
        return _value(other) ** self

    def square(self) -> "Value":
        """Return a^2; d/da = 2a."""
        return Value(self.data**2, ((self, 2 * self.data),), "square")

    def sqrt(self) -> "Value":
        """Return the square root; d/da = 1 / (2 sqrt a)."""
        root = math.sqrt(self.data)
        return Value(root, ((self, 1 / (2 * root)),), "sqrt")

    def exp(self) -> "Value":
        """Return e^a, its own derivative."""
        power = math.exp(self.data)
        return Value(power, ((self, power),), "exp")

    def log(self) -> "Value":
        """Return the natural logarithm; d/da = 1/a."""
        return Value(math.log(self.data), ((self, 1 / self.data),), "log")

    def sin(self) -> "Value":
        """Return the sine; d/da = cos a."""
        return Value(math.sin(self.data), ((self, math.cos(self.data)),), "sin")

    def cos(self) -> "Value":
        """Return the cosine; d/da = -sin a."""
        return Value(math.cos(self.data), ((self, -math.sin(self.data)),), "cos")

    def tan(self) -> "Value":
        """Return the tangent; d/da = sec^2 a = 1 / cos^2 a."""
        return Value(math.tan(self.data), ((self, 1 / math.cos(self.data) ** 2),), "tan")

    def tanh(self) -> "Value":
        """Return the hyperbolic tangent t; d/da = 1 - t^2."""
        t = math.tanh(self.data)
        return Value(t, ((self, 1 - t**2),), "tanh")

    def relu(self) -> "Value":
        """Return max(a, 0); the derivative is 1 where a > 0, else 0 (at 0 by convention)."""
        return Value(max(self.data, 0.0), ((self, float(self.data > 0)),), "relu")

    def __repr__(self) -> str:
        return f"Value(data={self.data:g}, grad={self.grad:g})"


def _value(number: object) -> Value:
    """Wrap a plain number as a leaf."""
    if isinstance(number, Value):
        return number
    if not isinstance(number, int | float):
        raise TypeError(f"expected a number or a Value, got {number!r}")
    return Value(number, label=f"{number:g}")
