"""Parse an arithmetic expression such as `(a*b + c) * tanh(f)` into values."""

import ast
import contextlib
import difflib
import math
import operator
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from charlm.backprop.value import Number, Value
from charlm.errors import Problem, UsageError

SHORTEN = "compute a part of it and pass it as a value"
LONGEST = 10_000  # characters of an expression
QUOTED = 60  # characters of it that an error quotes

OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "square": Value.square,
    "sqrt": Value.sqrt,
    "exp": Value.exp,
    "log": Value.log,
    "sin": Value.sin,
    "cos": Value.cos,
    "tan": Value.tan,
    "tanh": Value.tanh,
    "relu": Value.relu,
}


def parse(expression: str, values: Mapping[str, Number]) -> Value:
    """Compute an expression such as `(a*b + c) * tanh(f)` in values.

    A name is one leaf, however often it is used. Each number is a leaf, except an exponent
    (`x**2`), which belongs to the operation.

    Args:
        expression: Numbers, names, + - * / **, parentheses, and the functions in `FUNCTIONS`.
        values: The number that each name stands for.

    Raises:
        UsageError: The expression cannot be read or computed, a name has no value, or a value no
            name.
    """
    source = " ".join(expression.split())  # one line, so that columns can be named
    # Python reads an identifier in this normal form: "ﬁ" as "fi"
    given = {unicodedata.normalize("NFKC", name): number for name, number in values.items()}
    for name, number in given.items():
        if not math.isfinite(number):
            raise UsageError(f"{name}={number}", "expected a finite number")
    leaves = {name: Value(number, label=name) for name, number in given.items()}
    try:
        tree = _syntax_tree(source)
        result = _Reader(source, tree, leaves).read(tree)
    except (RecursionError, MemoryError):
        what = "too many operations, nested or in a row"
        raise UsageError(_quoted(source), what, SHORTEN) from None
    _match_names(tree, leaves)
    return result


def _syntax_tree(source: str) -> ast.expr:
    if not source:
        raise UsageError("expression", "empty", "write one such as '(a*b + c) * f'")
    if "#" in source:  # Python would read the rest as a comment
        what = f"# at character {source.index('#') + 1}"
        raise UsageError(_quoted(source), what, "leave it out, with what follows")
    if len(source) > LONGEST:
        what = f"{len(source):,} characters, more than {LONGEST:,}"
        raise UsageError(_quoted(source), what, SHORTEN)
    try:
        with warnings.catch_warnings():  # Python remarks on odd numbers such as "1or 2"
            warnings.simplefilter("ignore")
            return ast.parse(source, mode="eval").body
    except SyntaxError as error:
        # Cut off advice about Python: "invalid syntax. Maybe you meant '==' or ..."
        reason = re.split("[.:;] ", error.msg)[0]
        place = f"character {error.offset}" if error.offset else "the end"
        mend = "write an expression such as '(a*b + c) * f'"
        raise UsageError(_quoted(source), f"{reason} at {place}", mend) from None
    except ValueError:
        raise UsageError(_quoted(source), "not all of it is characters", "retype it") from None


def _match_names(tree: ast.expr, leaves: Mapping[str, Value]) -> None:
    """Refuse names without a value and values without a name, all at once."""
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = {node.id for node in names if id(node) not in functions}
    problems = []
    if missing := sorted(used - leaves.keys()):
        mend = " ".join(f"{name}=NUMBER" for name in missing)
        problems.append(Problem(", ".join(missing), "no value given", f"add {mend}"))
    if unused := sorted(leaves.keys() - used):
        mend = "use it there or leave it out"
        problems.append(Problem(", ".join(unused), "not in the expression", mend))
    if problems:
        raise UsageError.of(*problems)


class _Reader:
    """Turns a syntax tree into values, one branch at a time."""

    def __init__(self, source: str, tree: ast.expr, leaves: Mapping[str, Value]) -> None:
        self.source = source
        self.tree = tree
        self.leaves = leaves

    def read(self, node: ast.AST) -> Value:
        """Return the value of a part of the expression."""
        if (number := self.literal(node)) is not None:
            return Value(number, label=f"{number:g}")
        match node:
            case ast.Name(id=name):
                if name not in self.leaves:
                    _match_names(self.tree, self.leaves)
                return self.leaves[name]
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.read(operand)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.compute(node, operator.neg, self.read(operand))
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                exponent = self.literal(right)
                base = self.read(left)
                power = self.read(right) if exponent is None else exponent
                return self.compute(node, operator.pow, base, power)
            case ast.BinOp(left=left, op=symbol, right=right) if type(symbol) in OPERATORS:
                operation = OPERATORS[type(symbol)]
                return self.compute(node, operation, self.read(left), self.read(right))
            case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if (
                name in FUNCTIONS and not isinstance(argument, ast.Starred)
            ):
                return self.compute(node, FUNCTIONS[name], self.read(argument))
        raise self.refusal(node)

    def literal(self, node: ast.AST) -> float | None:
        """Return the number that is written out there, with its sign, or None."""
        match node:
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as operand):
                number = self.literal(operand)
                return None if number is None else -number
            case ast.Constant(value=int() | float() as written) if not isinstance(written, bool):
                with contextlib.suppress(OverflowError):
                    if math.isfinite(written):
                        return float(written)
                raise UsageError(self.quoted(node), "too large a number", "write a smaller one")
        return None

    def compute(
        self, node: ast.AST, operation: Callable[..., Value], *inputs: Value | float
    ) -> Value:
        """Apply an operation, or raise UsageError if it has no finite result."""
        reason = "too large for a floating-point number"
        try:
            result = operation(*inputs)
            if all(map(math.isfinite, [result.data, *(local for _, local in result.made_of)])):
                return result
        except OverflowError:
            pass
        except (ValueError, ZeroDivisionError):
            division = operation is operator.truediv
            reason = "division by zero" if division else "no real result with a finite slope there"
        given = " and ".join(f"{x.data if isinstance(x, Value) else x:g}" for x in inputs)
        raise UsageError(f"{self.quoted(node)} with {given}", reason, "choose other values")

    def refusal(self, node: ast.AST) -> UsageError:
        """Return an error that says what to write instead of something other than arithmetic."""
        where = self.quoted(node)
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
                return UsageError(where, f"{name} takes one number", f"write {name}(x)")
            case ast.Call(func=ast.Name(id=name)) if name in self.leaves:
                return UsageError(where, f"{name} is a number", "write * to multiply with it")
            case ast.Call(func=ast.Name(id=name)):
                near = difflib.get_close_matches(name, FUNCTIONS, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                mend = f"{hint}there are {', '.join(FUNCTIONS)}"
                return UsageError(where, f"unknown function {name!r}", mend)
            case ast.Call(func=ast.Constant() | ast.BinOp() | ast.UnaryOp() | ast.Call()):
                return UsageError(where, "not a function", "write * to multiply")
            case ast.BinOp(op=ast.BitXor()):
                return UsageError(where, "^ is no operation here", "write ** for a power")
        mend = f"use numbers, names, + - * / **, parentheses and {', '.join(FUNCTIONS)}"
        return UsageError(where, "not arithmetic", mend)

    def quoted(self, node: ast.AST) -> str:
        return _quoted(ast.get_source_segment(self.source, node) or self.source)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED else f"{text[: QUOTED - 4]} ...")
