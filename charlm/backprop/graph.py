"""Pictures of the chain rule: a tree for the terminal, or a graph for Graphviz.

Both show on each edge the local derivative, by which the gradient is multiplied on its way from a
result to an input.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from charlm.backprop.value import Value

if TYPE_CHECKING:
    import graphviz

DEEPEST = 60  # columns of indentation before the tree continues at the left
LEGEND = (
    "local: derivative of the parent line by this one; above: gradient of the parent\n"
    "grad: the sum of a value's shares, which is the derivative of the top line by it"
)


def as_text(result: Value) -> str:
    """Draw a value's computation as a tree with gradients: the result at the top, inputs below.

    Each line shows one product of the chain rule. A value that is used several times is drawn once
    and then referred to; its gradient is the sum over its lines. Call `backward` first.
    """
    rows = [("", "data", "local", "above", "share", "grad"), *_rows(result)]
    titles, *columns = zip(*rows, strict=True)
    width = max(map(len, titles))
    lines = []
    for title, data, local, above, share, grad in zip(titles, *map(_aligned, columns), strict=True):
        signs = ("×", "=") if local.strip() else (" ", " ")
        chain = f"{local} {signs[0]} {above} {signs[1]} {share}"
        lines.append(f"{title:<{width}}   {data}   {chain}   {grad}".rstrip())
    return "\n".join([*lines, "", LEGEND])


def _rows(result: Value) -> Iterator[tuple[str, ...]]:
    """Yield each line of the tree: its title, data, local, above, share and grad."""
    history = result.history()
    uses = Counter(id(parent) for value in history for parent, _ in value.made_of)
    alike = Counter(map(_label, history))
    numbers: dict[int, int] = {}  # of values referred to by a label that is not unique

    def name(value: Value) -> str:
        if alike[_label(value)] == 1:
            return _label(value)
        return f"{_label(value)} #{numbers.setdefault(id(value), len(numbers) + 1)}"

    drawn: set[int] = set()
    promised: set[int] = set()
    roots = [result]
    for root in roots:  # grows by values that are too far to the right
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
    """List a value's computation: nodes, inputs first and the result last, and edges."""
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
    """Draw a value's computation from inputs at the left to the result at the right.

    Raises ImportError if the package `graphviz` is not installed.
    """
    import graphviz

    graph = graphviz.Digraph(graph_attr={"rankdir": "LR"}, node_attr={"shape": "record"})
    records = as_records(result)
    for node in records["nodes"]:
        label = node["label"].replace("&", "&amp;")  # Graphviz reads HTML entities
        label = re.sub(r"([\\{}<>| ])", r"\\\1", label)  # characters that divide a record
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
    """Pad a heading and the numbers below it, so that decimal points line up."""
    heading, *numbers = column
    parts = [number.partition(".") for number in numbers]
    before = max(len(whole) for whole, _, _ in parts)
    after = max(len(point + digits) for _, point, digits in parts)
    width = max(len(heading), before + after)
    padded = [whole.rjust(before) + (point + digits).ljust(after) for whole, point, digits in parts]
    return [heading.rjust(width), *(number.rjust(width) for number in padded)]
