"""Reads strict YAML with places: every value knows its file, line and column.

Plain scalars follow the core schema of YAML 1.2: ``3e-4`` is a number and ``on`` a word. Repeated
keys, aliases, tags and several documents in one file are problems.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grcn.config import shipped
from grcn.errors import ConfigError

MAX_BYTES = 2**17  # a config has a few thousand; a data set passed by mistake has many millions
MAX_DEPTH = 20


@dataclass(frozen=True, order=True)
class Place:
    """Source of a value: a position in a file, or (without a line) an override."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    @property
    def source(self) -> str:
        """The place as provenance: ``file:line`` or ``command line``."""
        return f"{self.file}:{self.line}" if self.line else "command line"


Problem = tuple[Place, str]


@dataclass(frozen=True)
class Node:
    """A value with its place and that of its key; mappings and lists hold nodes.

    A value that cannot be read is reported as a problem and leaves a node that is not ``readable``.
    """

    value: dict[str, Node] | list[Node] | str | int | float | bool | None
    place: Place
    key_place: Place
    readable: bool = True

    def plain(self) -> Any:
        """Returns the value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def find(self, path: Iterable[str | int]) -> tuple[Node, bool]:
        """Follows keys and indices as far as they lead.

        Returns:
            The last node reached, and whether that is the end of the path.
        """
        node = self
        for step in path:
            if isinstance(node.value, dict) and isinstance(step, str) and step in node.value:
                node = node.value[step]
            elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                return node, False
        return node, True


def merge(parent: Node, child: Node) -> Node:
    """Merges two nodes: mappings key by key, anything else is replaced.

    A merged mapping has the child's place, unless the child is an override, which has no position.
    """
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    entries = dict(parent.value)
    for key, node in child.value.items():
        entries[key] = merge(entries[key], node) if key in entries else node
    at = child if child.place.line else parent
    return Node(entries, at.place, at.key_place)


def read_file(path: str, problems: list[Problem]) -> Node:
    """Reads a YAML file.

    Args:
        path: the file; it is named in problems as given.
        problems: receives the problems found.

    Raises:
        ConfigError: the file cannot be read, or is not YAML.
    """
    try:
        with Path(path).open("rb") as file:
            contents = file.read(MAX_BYTES + 1)
        if len(contents) > MAX_BYTES:
            raise ConfigError(f"{path}: too large for a config (over {MAX_BYTES >> 10} KiB); pass the config file")
        text = contents.decode("utf-8-sig")
    except FileNotFoundError as error:
        where = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"{path}: no such file{where}; {_likely(path)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this file ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return read_text(text, path, problems)


def _likely(path: str) -> str:
    """Suggests the shipped configs with a name like that of a missing file."""
    given = path.removesuffix(".yaml")
    named = [name for name in shipped.names() if name.rpartition("/")[2] == Path(given).name]
    alike = named[:3] or difflib.get_close_matches(given, shipped.names(), 1, 0.8)
    return f"did you mean {' or '.join(alike)}?" if alike else "check the path, or see grcn configs"


def read_text(text: str, name: str, problems: list[Problem]) -> Node:
    """Reads YAML; an empty text is an empty mapping.

    Args:
        text: the contents of a file.
        name: its name in problems.
        problems: receives the problems found.

    Raises:
        ConfigError: the text is not YAML.
    """
    start = Place(name, 1, 1)
    root = _compose(text, start)
    return Node({}, start, start) if root is None else _Converter(start, problems).node(root, "", start)


def read_value(text: str, key: str, place: Place, problems: list[Problem]) -> Node:
    """Reads the YAML value of an override; an empty text is null.

    Args:
        text: the value.
        key: the dotted key it belongs to, for messages.
        place: the override, which is the place of all its values.
        problems: receives the problems found.

    Raises:
        ConfigError: the text is not YAML.
    """
    root = _compose(text, place)
    ends = [token.end_mark.index for token in yaml.scan(text, _Loader) if not isinstance(token, _UNWRITTEN)]
    if comment := text[max(ends, default=0) :].strip():
        raise ConfigError(f"{place}: {comment!r} would be a comment; put quotes around the value too: '{key}=\"…\"'")
    if root is None:
        return Node(None, place, place)
    return _Converter(place, problems).node(root, key, place)


def is_plain_word(text: str) -> bool:
    """Whether a text without quotes, even inside a flow list, is read back as the same text."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text):
        return False
    return not any(form.match(text) for tag, (form, _) in _SCALARS.items() if tag != _TAG + "str")


def _boolean(text: str) -> bool:
    return text.lower() == "true"


def _integer(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(re.sub(r"\.(?=[a-zA-Z])", "", text))  # .inf and .nan lose their point, 1.e3 too


# The scalars of YAML 1.2, section 10.3.2: tag, form and meaning; the first form that matches decides.
# Python refuses to convert integers of thousands of digits, so the longest are read as floats.
_TAG = "tag:yaml.org,2002:"
_TOO_DEEP = "nested too deeply for a config; flatten it"
_FLOAT = (
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    _TAG + "null": (re.compile(r"(null|Null|NULL|~|)\Z"), lambda text: None),
    _TAG + "bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), _boolean),
    _TAG + "int": (re.compile(r"([-+]?[0-9]{1,99}|0o[0-7]{1,99}|0x[0-9a-fA-F]{1,99})\Z"), _integer),
    _TAG + "float": (re.compile(rf"({_FLOAT})\Z"), _float),
    _TAG + "str": (re.compile(r"(?s:.*)\Z"), str),
}


# Tokens that end where the text does, whatever precedes it.
_UNWRITTEN = (yaml.StreamStartToken, yaml.StreamEndToken, yaml.BlockEndToken, yaml.DocumentEndToken)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser, which follows YAML 1.1, with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {None: [(tag, form) for tag, (form, _) in _SCALARS.items()]}

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Stops at a depth that no config has, before the interpreter's stack overflows."""
        if self.depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.peek_event().start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, place: Place) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is not None and place.line:
            place = Place(place.file, mark.line + 1, mark.column + 1)
        problem = error.problem or error.context or ""
        if problem.startswith("but "):  # the sentence begins in the context
            problem = f"{error.context}, {problem}"
        if problem == _TOO_DEEP:
            raise ConfigError(f"{place}: {problem}") from error
        remedy = "indent with spaces" if "'\\t'" in problem else "correct the syntax"
        raise ConfigError(f"{place}: not valid YAML: {problem}; {remedy}") from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        if place.line:
            place = Place(place.file, before.count("\n") + 1, len(before) - before.rfind("\n"))
        raise ConfigError(f"{place}: not valid YAML: unprintable letter U+{error.character:04X}; remove it") from error


class _Converter:
    """Turns the nodes of one document into :class:`Node`."""

    def __init__(self, start: Place, problems: list[Problem]) -> None:
        self.start = start
        self.problems = problems
        self.seen: set[int] = set()

    def node(self, node: yaml.Node, path: str, key_place: Place) -> Node:
        place = self._place(node)
        if id(node) in self.seen:
            return self._reject(key_place, path, "aliases (*name) are not read; write the value out")
        self.seen.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return Node(self._entries(node, path), place, key_place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return Node([self.node(item, path, self._place(item)) for item in node.value], place, key_place)
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            form, meaning = _SCALARS[node.tag]
            if form.match(node.value):
                return Node(meaning(node.value), place, key_place)
        tag = node.tag.replace(_TAG, "!!")
        return self._reject(place, path, f"tags are not read (got {tag}); remove it")

    def _entries(self, mapping: yaml.MappingNode, path: str) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key, value in mapping.value:
            place = self._place(key)
            if not isinstance(key, yaml.ScalarNode):
                self._reject(place, path, "expected a word as the key; write key: value")
                continue
            dotted = f"{path}.{key.value}" if path else key.value
            if key.value in entries:
                first = entries[key.value].key_place
                self._reject(place, dotted, f"this key is repeated (first at {first}); remove one")
            entries[key.value] = self.node(value, dotted, place)
        return entries

    def _place(self, node: yaml.Node) -> Place:
        if not self.start.line:
            return self.start
        return Place(self.start.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def _reject(self, place: Place, path: str, text: str) -> Node:
        self.problems.append((place, f"{path}: {text}" if path else text))
        return Node(None, place, place, readable=False)
