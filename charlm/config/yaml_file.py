"""Strict reading of YAML: data only, each key once, with the line of each key.

PyYAML's own loader silently keeps the last of two equal keys, reads `010` as 8 and `1:30` as 90,
and expands aliases without limit. This reader composes the nodes with PyYAML and builds plain
dictionaries, lists and scalars itself. Numbers stay text: whether 1.10 is a number or the name of a
file depends on its key, and the schema knows the keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from charlm.errors import UsageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 100
MAX_NODES = 10_000

_TAG = "tag:yaml.org,2002:"
_TAGS = {
    yaml.MappingNode: {"map"},
    yaml.SequenceNode: {"seq"},
    yaml.ScalarNode: {"null", "bool", "int", "float", "str", "timestamp", "value", "merge"},
}
_LIMIT = "a configuration needs far less; write it out plainly"
_BOOLEANS = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}


@dataclass
class Document:
    """A configuration before it is checked; `where` is its file, for messages."""

    where: str
    value: Any = None
    lines: dict[str, int] = field(default_factory=dict)  # by dotted key, from 1
    overrides: dict[str, str] = field(default_factory=dict)  # each KEY=VALUE, by its key

    def at(self, path: Sequence[str]) -> Any:
        """Return the value at a path of keys; None where there is none."""
        value = self.value
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def line_of(self, path: Sequence[str]) -> str:
        """Return the file and line of a key, or of the section around a missing key."""
        for n in range(len(path), 0, -1):
            if line := self.lines.get(".".join(path[:n])):
                return f"{self.where}:{line}"
        return self.where


def read_yaml(data: bytes, where: str) -> Document:
    """Read one YAML document; `where` is its name, for messages.

    Raises:
        UsageError: Not UTF-8, not YAML, a repeated key, a tag that asks for a Python object, or too
            large or too deeply nested for a configuration.
    """
    text = _decode(data, where)
    try:
        loader = _Loader(text)
        loader.where = where
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise UsageError(at, reason, "correct the YAML there") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the latter for "\U99999999"
        what = f"not YAML: {str(error).splitlines()[0]}"
        raise UsageError(where, what, "correct it or start from a preset") from None
    document = Document(where)
    if node is not None:
        document.value = _Builder(document).build(node)
    return document


def dump_yaml(value: Any) -> str:
    """Write plain data as YAML that `read_yaml` reads back equal, numbers as their text."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def plain_scalar(text: str) -> Any:
    """Read the VALUE of KEY=VALUE as YAML reads an unquoted scalar; an empty one is empty text."""
    if not text:
        return text
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return _scalar(tag, text)


def refuse_large(data: bytes, where: str) -> None:
    """Refuse a file that is too large to be a configuration, with a UsageError."""
    if len(data) > MAX_BYTES:
        what = f"more than {MAX_BYTES:,} bytes (1 MiB)"
        raise UsageError(where, what, "is this the configuration, or a text?")


def _decode(data: bytes, where: str) -> str:
    refuse_large(data, where)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.start + len(data) - len(error.object)  # a byte order mark is not in object
        what = f"not UTF-8 at byte {byte} (0x{data[byte]:02x})"
        raise UsageError(where, what, "save it as UTF-8") from None
    if "\0" in text:
        what = f"a NUL at byte {data.index(0)}"
        raise UsageError(where, what, "save it as plain UTF-8 text")
    return text


class _Loader(yaml.SafeLoader):
    """Limits the parser's events, before PyYAML composes them into nodes by recursion."""

    where = ""
    depth = nodes = 0

    def get_event(self) -> yaml.Event:
        event: yaml.Event = super().get_event()  # type: ignore[no-untyped-call]
        self.depth += isinstance(event, yaml.CollectionStartEvent)
        self.depth -= isinstance(event, yaml.CollectionEndEvent)
        self.nodes += isinstance(event, yaml.NodeEvent)
        if self.depth > MAX_DEPTH:
            raise UsageError(self.where, f"nested deeper than {MAX_DEPTH} levels", _LIMIT)
        if self.nodes > MAX_NODES:
            raise UsageError(self.where, f"more than {MAX_NODES:,} values", _LIMIT)
        return event


class _Dumper(yaml.SafeDumper):
    """Quotes text with escapes where a plain scalar would lose a line break such as U+0085."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        _TAG + "str", text, style=None if text.isprintable() else '"'
    ),
)


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = 0

    def build(self, node: yaml.Node, path: tuple[str, ...] = (), depth: int = 0) -> Any:
        self.nodes += 1  # counted again: an alias is one event but may expand to many nodes
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            what = f"aliases expand to more than {MAX_NODES:,} values or {MAX_DEPTH} levels"
            raise UsageError(self.document.where, what, _LIMIT)
        if node.tag.removeprefix(_TAG) not in _TAGS[type(node)]:
            what = f"tag {node.tag.replace(_TAG, '!!')!r} is not allowed"
            raise self.refused(node, what, "a configuration is plain data, remove it")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, path, depth + 1) for item in node.value]
        return _scalar(node.tag, node.value)

    def refused(self, node: yaml.Node, what: str, mend: str = "") -> UsageError:
        return UsageError(f"{self.document.where}:{node.start_mark.line + 1}", what, mend)

    def mapping(self, node: yaml.MappingNode, path: tuple[str, ...], depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.refused(key_node, "a key must be a plain word, such as model")
            key = str(key_node.value)
            if key_node.tag == _TAG + "merge":
                raise self.refused(key_node, "'<<' is not read here", "write the keys out")
            whole = ".".join((*path, key))
            if key in result:
                what = f"{whole} is defined on lines {first_line[key]} and {line}"
                raise UsageError(self.document.where, what, "keep one")
            first_line[key] = line
            self.document.lines.setdefault(whole, line)
            result[key] = self.build(value_node, (*path, key), depth + 1)
        return result


def _scalar(tag: str, text: str) -> Any:
    if tag == _TAG + "null":
        return None
    if tag == _TAG + "bool":
        return _BOOLEANS.get(text.lower(), text)
    return text
