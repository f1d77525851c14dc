"""From an arithmetic expression to values, and from values to a picture of the chain rule.

`parse` reads the expression, `as_text` draws what it was computed from as a tree for the terminal,
`as_dot` as a graph for Graphviz. Both show, on each edge, the local derivative that the gradient is
multiplied with on its way from a result down to an input.
"""

import ast
import contextlib
import difflib
import math
import operator
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from charlm.backprop.value import Number, Value
from charlm.errors import UsageError

if TYPE_CHECKING:
    import graphviz

LONGEST = 10_000  # characters of an expression
QUOTED = 60  # characters of it that an error repeats
DEEPEST = 60  # columns to the right before the picture goes on at the left

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
    """Compute an expression such as `(a*b + c) * tanh(f)`, remembering how.

    A name is one leaf however often it is used; a number is a leaf each time, except as an exponent
    (`x**2`), where it belongs to the operation.

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
            raise UsageError(f"{name}={number}: expected a finite number")
    leaves = {name: Value(number, label=name) for name, number in given.items()}
    try:
        tree = _syntax_tree(source)
        result = _Reader(source, tree, leaves).read(tree)
    except (RecursionError, MemoryError):
        raise UsageError(
            f"{_quoted(source)}: too many operations, nested or in a row; compute a part of it and "
            "pass it as a value"
        ) from None
    _match_names(tree, leaves)
    return result


def _syntax_tree(source: str) -> ast.expr:
    if not source:
        raise UsageError("expression: empty; write one such as '(a*b + c) * f'")
    if len(source) > LONGEST:
        raise UsageError(
            f"{_quoted(source)}: {len(source):,} characters; the most is {LONGEST:,}, so compute a "
            "part of it and pass it as a value"
        )
    try:
        with warnings.catch_warnings():  # Python remarks on odd numbers such as "1or 2"
            warnings.simplefilter("ignore")
            return ast.parse(source, mode="eval").body
    except SyntaxError as error:
        # What follows is advice on Python: "invalid syntax. Maybe you meant '==' or ..."
        reason = re.split("[.:;] ", error.msg)[0]
        place = f"character {error.offset}" if error.offset else "the end"
        raise UsageError(
            f"{_quoted(source)}: {reason} at {place}; write an expression such as '(a*b + c) * f'"
        ) from None
    except ValueError:
        raise UsageError(f"{_quoted(source)}: holds what is no character; retype it") from None


def _match_names(tree: ast.expr, leaves: Mapping[str, Value]) -> None:
    """Refuse names without a value and values without a name, all at once."""
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = {node.id for node in names if id(node) not in functions}
    problems = []
    if missing := sorted(used - leaves.keys()):
        mend = " ".join(f"{name}=NUMBER" for name in missing)
        problems.append(f"{', '.join(missing)}: no value given; add {mend}")
    if unused := sorted(leaves.keys() - used):
        problems.append(f"{', '.join(unused)}: not in the expression; use it there or leave it out")
    if problems:
        raise UsageError(*problems)


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
                return self.compute(
                    node,
                    operator.pow,
                    self.read(left),
                    self.read(right) if exponent is None else exponent,
                )
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
                raise UsageError(f"{self.quoted(node)}: too large a number; write a smaller one")
        return None

    def compute(
        self, node: ast.AST, operation: Callable[..., Value], *inputs: Value | float
    ) -> Value:
        """Apply an operation, and refuse what mathematics or floating point refuses."""
        try:
            result = operation(*inputs)
            numbers = [result.data, *(local for _, local in result.made_of)]
            if all(map(math.isfinite, numbers)):
                return result
            reason = "too large for a floating-point number"
        except OverflowError:
            reason = "too large for a floating-point number"
        except (ValueError, ZeroDivisionError):
            division = operation is operator.truediv
            reason = "division by zero" if division else "no real result with a finite slope there"
        numbers = [x.data if isinstance(x, Value) else x for x in inputs]
        given = " and ".join(f"{number:g}" for number in numbers)
        raise UsageError(f"{self.quoted(node)} with {given}: {reason}; choose other values")

    def refusal(self, node: ast.AST) -> UsageError:
        """Say what to write instead of what is no arithmetic."""
        where = self.quoted(node)
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
                return UsageError(f"{where}: {name} takes one number; write {name}(x)")
            case ast.Call(func=ast.Name(id=name)) if name in self.leaves:
                return UsageError(f"{where}: {name} is a number; write * to multiply with it")
            case ast.Call(func=ast.Name(id=name)):
                near = difflib.get_close_matches(name, FUNCTIONS, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                return UsageError(
                    f"{where}: unknown function {name!r}; {hint}there are {', '.join(FUNCTIONS)}"
                )
            case ast.Call(func=ast.Constant() | ast.BinOp() | ast.UnaryOp() | ast.Call()):
                return UsageError(f"{where}: not a function; write * to multiply")
            case ast.BinOp(op=ast.BitXor()):
                return UsageError(f"{where}: ^ is no operation here; write ** for a power")
        return UsageError(
            f"{where}: not arithmetic; use numbers, names, + - * / **, parentheses and "
            f"{', '.join(FUNCTIONS)}"
        )

    def quoted(self, node: ast.AST) -> str:
        return _quoted(ast.get_source_segment(self.source, node) or self.source)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED else f"{text[: QUOTED - 4]} ...")


def as_text(result: Value) -> str:
    """Draw what a value was made of as a tree with its gradients: the result above, inputs below.

    Each line carries one product of the chain rule. A value that is used more than once is drawn
    once and then referred to, and its gradient is the sum over its lines. Call `backward` first.
    """
    rows = [("", "data", "local", "above", "share", "grad"), *_rows(result)]
    titles, *columns = zip(*rows, strict=True)
    width = max(map(len, titles))
    lines = []
    for title, data, local, above, share, grad in zip(titles, *map(_aligned, columns), strict=True):
        signs = ("×", "=") if local.strip() else (" ", " ")
        chain = f"{local} {signs[0]} {above} {signs[1]} {share}"
        lines.append(f"{title:<{width}}   {data}   {chain}   {grad}".rstrip())
    return "\n".join(
        [
            *lines,
            "",
            "local: how fast the line it hangs from moves with it; above: the grad of that line",
            "grad: the sum of a value's shares, which is how fast the top line moves with it",
        ]
    )


def _rows(result: Value) -> Iterator[tuple[str, ...]]:
    """Yield each line of the tree: its title, data, local, above, share and grad."""
    history = result.history()
    uses = Counter(id(parent) for value in history for parent, _ in value.made_of)
    alike = Counter(map(_label, history))
    numbers: dict[int, int] = {}  # of values referred to whose label leaves doubt which is meant

    def name(value: Value) -> str:
        if alike[_label(value)] == 1:
            return _label(value)
        return f"{_label(value)} #{numbers.setdefault(id(value), len(numbers) + 1)}"

    drawn: set[int] = set()
    promised: set[int] = set()
    roots = [result]
    for root in roots:  # which grows on the way, by what is too far to the right
        if id(root) in drawn:
            continue
        if root is not result:
            yield ("",) * 6
        waiting = [(root, ("", "", ""), "", "")]
        while waiting:  # a loop, since a long sum would exhaust Python's stack
            value, chain, branch, indent = waiting.pop()
            if id(value) in drawn:
                yield f"{branch}{name(value)} (above)", "", *chain, ""
                continue
            if value.made_of and len(indent) >= DEEPEST:
                promised.add(id(value))
                roots.append(value)
                yield f"{branch}{name(value)} (below)", "", *chain, ""
                continue
            drawn.add(id(value))
            is_referred_to = uses[id(value)] > 1 or id(value) in promised
            title = name(value) if is_referred_to else _label(value)
            yield f"{branch}{title}", _shown(value.data), *chain, _shown(value.grad)
            last = len(value.made_of) - 1
            for i, (parent, local) in reversed(list(enumerate(value.made_of))):
                chain = (_shown(local), _shown(value.grad), _shown(local * value.grad))
                bend, line = ("└─ ", "   ") if i == last else ("├─ ", "│  ")
                waiting.append((parent, chain, indent + bend, indent + line))


def as_records(result: Value) -> dict[str, list[dict[str, Any]]]:
    """List what a value was made of: nodes, inputs first and the result last, and edges."""
    history = result.history()
    ids = {id(value): number for number, value in enumerate(history)}
    return {
        "nodes": [
            {"id": ids[id(value)], "label": _label(value), "data": value.data, "grad": value.grad}
            for value in history
        ],
        "edges": [
            {"from": ids[id(parent)], "to": ids[id(value)], "local": local}
            for value in history
            for parent, local in value.made_of
        ],
    }


def as_dot(result: Value) -> "graphviz.Digraph":
    """Draw what a value was made of as a graph, from inputs at the left to the result at the right.

    Raises:
        ImportError: The package `graphviz` is not installed.
    """
    import graphviz

    graph = graphviz.Digraph(graph_attr={"rankdir": "LR"}, node_attr={"shape": "record"})
    records = as_records(result)
    for node in records["nodes"]:
        label = re.sub(r"([\\{}<>| ])", r"\\\1", node["label"])  # signs that divide a record
        data, grad = _shown(node["data"]), _shown(node["grad"])
        graph.node(str(node["id"]), f"{{ {label} | data {data} | grad {grad} }}")
    for edge in records["edges"]:
        graph.edge(str(edge["from"]), str(edge["to"]), f"× {_shown(edge['local'])}")
    return graph


def _label(value: Value) -> str:
    return value.label or _shown(value.data)


def _shown(number: float) -> str:
    return f"{number + 0.0:.6g}"  # + 0.0 turns -0 into 0


def _aligned(column: Sequence[str]) -> list[str]:
    """Pad a heading and the numbers below it, so that the decimal points stand in one line."""
    heading, *numbers = column
    parts = [number.partition(".") for number in numbers]
    before = max(len(whole) for whole, _, _ in parts)
    after = max(len(point + digits) for _, point, digits in parts)
    width = max(len(heading), before + after)
    padded = [whole.rjust(before) + (point + digits).ljust(after) for whole, point, digits in parts]
    return [heading.rjust(width), *(number.rjust(width) for number in padded)]
