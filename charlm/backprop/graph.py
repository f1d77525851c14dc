"""From an arithmetic expression to values, and from values to a picture of the chain rule.

`parse` reads the expression, `as_text` draws what it was computed from as a tree for the terminal,
`as_dot` as a graph for Graphviz. Both show, on each edge, the local derivative that the gradient is
multiplied with on its way from a result down to an input.
"""

import ast
import difflib
import math
import operator
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from charlm.backprop.value import Value
from charlm.errors import UsageError

if TYPE_CHECKING:
    import graphviz

LONGEST = 10_000  # characters of an expression
QUOTED = 60  # characters of it that an error repeats
DEEPEST = 20  # branches to the right before the picture goes on at the left

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


def parse(expression: str, values: Mapping[str, float]) -> Value:
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
        result = _Reader(source, leaves).read(tree)
    except (RecursionError, MemoryError):
        raise UsageError(
            f"{_quoted(source)}: nested too deep; compute a part of it and pass it as a value"
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
        # What follows the first sentence is advice on Python: "Maybe you meant '==' or ..."
        reason = error.msg.partition(". ")[0]
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

    def __init__(self, source: str, leaves: Mapping[str, Value]) -> None:
        self.source = source
        self.leaves = leaves

    def read(self, node: ast.AST) -> Value:
        """Return the value of a part of the expression."""
        if (number := self.literal(node)) is not None:
            return Value(number, label=f"{number:g}")
        match node:
            case ast.Name(id=name):
                if name not in self.leaves:
                    _match_names(ast.parse(self.source, mode="eval").body, self.leaves)
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
        self.refuse(node)

    def literal(self, node: ast.AST) -> float | None:
        """Return the number that is written out there, with its sign, or None."""
        match node:
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as operand):
                number = self.literal(operand)
                return None if number is None else -number
            case ast.Constant(value=number) if type(number) in (int, float):
                try:
                    if math.isfinite(number):
                        return float(number)
                except OverflowError:
                    pass
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
            reason = "division by zero" if division else "no real number with a slope there"
        numbers = [x.data if isinstance(x, Value) else x for x in inputs]
        given = " and ".join(f"{number:g}" for number in numbers)
        raise UsageError(f"{self.quoted(node)} with {given}: {reason}; choose other values")

    def refuse(self, node: ast.AST) -> NoReturn:
        """Refuse what is no arithmetic, with the nearest thing that is."""
        where = self.quoted(node)
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
                raise UsageError(f"{where}: {name} takes one number; write {name}(x)")
            case ast.Call(func=ast.Name(id=name)) if name in self.leaves:
                raise UsageError(f"{where}: {name} is a number; write * to multiply with it")
            case ast.Call(func=ast.Name(id=name)):
                near = difflib.get_close_matches(name, FUNCTIONS, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise UsageError(
                    f"{where}: unknown function {name!r}; {hint}there are {', '.join(FUNCTIONS)}"
                )
            case ast.Call(func=ast.Constant() | ast.BinOp() | ast.UnaryOp() | ast.Call()):
                raise UsageError(f"{where}: not a function; write * to multiply")
            case ast.BinOp(op=ast.BitXor()):
                raise UsageError(f"{where}: ^ is no operation here; write ** for a power")
        raise UsageError(
            f"{where}: not arithmetic; use numbers, names, + - * / **, parentheses and "
            f"{', '.join(FUNCTIONS)}"
        )

    def quoted(self, node: ast.AST) -> str:
        return _quoted(ast.get_source_segment(self.source, node) or self.source)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= QUOTED else f"{text[: QUOTED - 4]} ...")


def as_text(result: Value) -> str:
    """Draw what a value was made of as a tree with its gradients: results above, inputs below.

    Each line carries one product of the chain rule; a value that is used more than once is drawn
    once and then referred to, and its gradient is the sum over its lines. Call `backward` first.
    """
    history = result.history()
    uses = Counter(id(parent) for value in history for parent, _ in value.made_of)
    alike = Counter(map(_label, history))
    numbers: dict[int, int] = {}  # of values that are referred to, where a label leaves doubt which

    def name(value: Value, is_referred_to: bool) -> str:
        label = _label(value)
        if not is_referred_to or alike[label] == 1:
            return label
        return f"{label} #{numbers.setdefault(id(value), len(numbers) + 1)}"

    rows = [("", "data", "local", " × above", " = share", "grad")]
    roots = [result]
    promised: set[int] = set()
    drawn: set[int] = set()
    for root in roots:  # which grows meanwhile
        if id(root) in drawn:
            continue
        if drawn:
            rows.append(("",) * 6)
        waiting = [(root, ("", "", ""), "", "")]
        while waiting:  # a loop, since a long sum would exhaust Python's stack
            value, edge, branch, indent = waiting.pop()
            if id(value) in drawn:
                rows.append((f"{branch}{name(value, True)} (above)", "", *edge, ""))
                continue
            if len(indent) >= 3 * DEEPEST and value.made_of:
                promised.add(id(value))
                roots.append(value)
                rows.append((f"{branch}{name(value, True)} (below)", "", *edge, ""))
                continue
            drawn.add(id(value))
            title = branch + name(value, uses[id(value)] > 1 or id(value) in promised)
            rows.append((title, _shown(value.data), *edge, _shown(value.grad)))
            below = []
            for parent, local in value.made_of:
                share = local * value.grad
                chain = (_shown(local), f" × {_shown(value.grad)}", f" = {_shown(share)}")
                below.append((parent, chain, f"{indent}├─ ", f"{indent}│  "))
            if below:
                parent, chain, *_ = below.pop()
                below.append((parent, chain, f"{indent}└─ ", f"{indent}   "))
            waiting += reversed(below)
    titles, *columns = zip(*rows, strict=True)
    width = max(map(len, titles))
    table = [[title.ljust(width) for title in titles], *map(_aligned, columns)]
    lines = [f"{a}   {b}   {c}{d}{e}   {f}".rstrip() for a, b, c, d, e, f in zip(*table, strict=True)]
    return "\n".join(
        [
            *lines,
            "",
            "local: how fast the result moves with this input; above: the gradient of that result",
            "grad: how fast the top line moves with this value, the sum of the value's shares",
        ]
    )


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


def _aligned(column: Iterable[str]) -> list[str]:
    """Pad texts to one width, so that the decimal points of the numbers stand in one line."""
    heading, *numbers = column
    parts = [re.fullmatch(r"([ ×=]*)(-?\d*)(.*)", number) for number in numbers]
    ...
