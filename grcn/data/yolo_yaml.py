"""Reads the ``data.yaml`` of a data set in YOLO's layout, and resolves its paths below one folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import yaml

from grcn.data.faults import Fault, Notes, check_class_name, fault, is_printable, read_bytes

_MOST_BYTES = 2**20  # thousands of names take a hundredth of it; a larger file is no description
_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True)
class Description:
    """Description of a data set.

    Attributes:
        path: the file; None where the folder has none.
        names: of the classes, by number.
        base: the folder below the root that paths are relative to.
        splits: by name the paths of a split, each with its line.
    """

    path: Path | None = None
    names: dict[int, str] = field(default_factory=dict)
    base: str = "."
    splits: dict[str, list[tuple[str, int]]] = field(default_factory=dict)


def describe(root: Path, notes: Notes) -> Description:
    """Reads the one YAML file directly below ``root`` that has ``names``.

    Raises:
        DataError: there are several; it is broken; a name or a path is none.
    """
    found: list[tuple[Path, dict[str, yaml.Node]]] = []
    broken: list[Fault] = []
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            entries = _entries(path)
        except Fault as error:
            broken.append(error)
            continue
        if "names" in entries:
            found.append((path, entries))
    if len(found) > 1:
        files = ", ".join(path.name for path, _ in found)
        raise fault(root, "several files have names of classes (got {}); keep one of them here", files)
    if not found:
        if broken:
            raise broken[0]
        return Description()
    path, entries = found[0]
    names = _names(path, entries["names"], notes)
    _check_count(path, entries.get("nc"), len(names), notes)
    base = _base(root, path, entries.get("path"), notes)
    others = {key: node for key, node in entries.items() if key not in ("names", "nc", "path")}
    splits = {key: paths for key, node in others.items() if (paths := list(_paths(node)))}
    return Description(path, names, base, splits)


def resolve(root: Path, bases: Sequence[str], text: str, place: str, notes: Notes) -> str:
    """Resolves a path from a data.yaml or a list of images.

    One that leads nowhere, or out of ``root``, is read without the ``..`` it begins with, or also without its first
    folder, if that leads to something in a folder: downloaded data sets were described for another place.

    Args:
        bases: folders below ``root`` that a relative path may start from, the likeliest first.
        place: the place of the path, for messages.

    Returns:
        the path of an existing file or folder, below ``root``.

    Raises:
        DataError: nothing is there, or it lies outside ``root``.
    """
    if not text or not is_printable(text):
        raise fault(place, "not a path (got {}); fix it", text)
    meant = text
    if "\\" in text and "/" not in text:
        meant = text.replace("\\", "/")
    # Path.exists would raise for a name that is too long for the disk.
    inside = [path for base in bases if (path := _inside(root, os.path.join(base, meant))) is not None]
    here = next((path for path in inside if os.path.exists(root / path)), None)
    if here is None:
        here = _moved(root, bases, meant)
        if here is None and not inside:
            raise fault(place, "leads out of data.root (got {}); put the data below it, or set data.root", text)
        if here is None:
            raise fault(place, "no such file or folder (got {}); fix the path or set data.root", text)
        notes.add("paths written for another place, found below data.root", place, text)
    elif meant != text:
        notes.add("paths with backslashes", place, text)
    return here


def _moved(root: Path, bases: Sequence[str], text: str) -> str | None:
    """Returns the target of a relative path below ``root`` without its first parts; None where there is nothing."""
    parts = PurePosixPath(text).parts
    if not parts or parts[0] == "/":
        return None
    up = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    for rest, fewest in ((parts[up:], 1), (parts[up + 1 :], 2)):
        for base in bases:
            path = _inside(root, os.path.join(base, *rest))
            if len(rest) >= fewest and path is not None and os.path.exists(root / path):
                return path
    return None


def _inside(root: Path, path: str) -> str | None:
    """Returns a path as one below ``root``, which it may name by a link; None where it leads out of it."""
    for whole in (os.path.abspath, os.path.realpath):
        below = os.path.relpath(whole(os.path.join(root, path)), whole(root))
        if below != ".." and not below.startswith("../"):
            return below
    return None


def _entries(path: Path) -> dict[str, yaml.Node]:
    """Returns the entries of a YAML file by key, as nodes: they know what was written, and where."""
    data = read_bytes(path, "fix or remove it")
    if len(data) > _MOST_BYTES:
        raise fault(path, "too large for a description of data (over 1 MiB); remove it")
    try:
        node = yaml.compose(data, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else path
        raise fault(place, "not YAML (got {}); fix it", getattr(error, "problem", None) or str(error)) from None
    if not isinstance(node, yaml.MappingNode):
        return {}
    return {key.value: value for key, value in _pairs(path, node)}


def _pairs(path: Path, node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    seen = set()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise fault(_place(path, key), "a key is no word; fix it")
        if key.value in seen:
            raise fault(_place(path, key), "a key is there twice (got {}); remove one", key.value)
        seen.add(key.value)
        yield key, value


def _names(path: Path, node: yaml.Node, notes: Notes) -> dict[int, str]:
    numbered: list[tuple[int, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        numbered = list(enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        for key, value in _pairs(path, node):
            if not (key.value.isascii() and key.value.isdigit() and len(key.value) < 10):
                raise fault(_place(path, key), "a class has no number (got {}); write NUMBER: NAME", key.value)
            if key.value != str(int(key.value)):
                raise fault(_place(path, key), "a number begins with 0 (got {}); write it without", key.value)
            numbered.append((int(key.value), value))
    else:
        raise fault(_place(path, node), "names is neither a list nor NUMBER: NAME; write one of them")
    if not numbered:
        raise fault(_place(path, node), "names is empty; list the classes")
    names = {}
    for number, name in sorted(numbered, key=lambda pair: pair[0]):
        if not isinstance(name, yaml.ScalarNode):
            raise fault(_place(path, name), "the name of class {} is no text; write one", number)
        if name.tag != _TEXT:  # as written: YAML would make False of no, and 1.0 of 1.00
            notes.add("names of classes that YAML takes for something else than text", _place(path, name), name.value)
        check_class_name(_place(path, name), name.value)
        names[number] = name.value
    return names


def _check_count(path: Path, node: yaml.Node | None, count: int, notes: Notes) -> None:
    if isinstance(node, yaml.ScalarNode) and node.value not in ("", str(count)):
        notes.add("values of nc that are not the number of names", _place(path, node), node.value)


def _base(root: Path, file: Path, node: yaml.Node | None, notes: Notes) -> str:
    """Returns the folder that ``path`` names: ``root`` itself where there is no such folder on this machine."""
    if node is None or node.tag == _NULL:
        return "."
    if not isinstance(node, yaml.ScalarNode) or not is_printable(node.value):
        raise fault(_place(file, node), "path is no path; write one or remove it")
    base = _inside(root, node.value)
    if not os.path.exists(root / node.value):
        notes.add("values of path that do not exist, taken for data.root", _place(file, node), node.value)
        return "."
    if base is None:
        what = "path leads out of data.root (got {}); move the file there, and set data.root to that folder"
        raise fault(_place(file, node), what, node.value)
    return base


def _paths(node: yaml.Node) -> Iterator[tuple[str, int]]:
    """Yields the paths of an entry that may be a split."""
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if isinstance(item, yaml.ScalarNode) and item.tag != _NULL:
            yield item.value, item.start_mark.line + 1


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"
