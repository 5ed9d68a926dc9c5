"""Words the problems of a config in its writer's terms: the place, the key, the expected value."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic import ValidationError

from grcn.config.schema import Config
from grcn.config.types import Section, section_kinds
from grcn.config.yaml_nodes import Node, Problem, is_plain_word

Keys = tuple[str, ...]
Path = tuple[str | int, ...]

# The expectation of each of pydantic's kinds of error, and the fix; the braces take the error's context.
_EXPECTED = {
    "int_type": ("a whole number", "write one, without quotes"),
    "float_type": ("a number", "write one, without quotes"),
    "finite_number": ("a finite number", "write one"),
    "bool_type": ("true or false", "write one of them, without quotes"),
    "string_type": ("text", "write some, in quotes if it is a number"),
    "string_unicode": ("text", "write some"),
    "string_too_short": ("text", "write some"),
    "tuple_type": ("a list", "write [a, b]"),
    "dict_type": ("a mapping", "write {a: b}"),
    "model_type": ("a mapping of keys", "write key: value"),
    "model_attributes_type": ("a mapping of keys", "write key: value"),
    "literal_error": ("{expected}", "choose one"),
    "union_tag_invalid": ("{expected_tags}", "choose one"),
    "choice": ("{expected}", "choose one"),
    "greater_than": ("a number above {gt}", "raise it"),
    "greater_than_equal": ("at least {ge}", "raise it"),
    "less_than": ("a number below {lt}", "lower it"),
    "less_than_equal": ("at most {le}", "lower it"),
    "too_short": ("at least {min_length} in the list", "add one"),
    "too_long": ("at most {max_length} in the list", "remove one"),
}

_SPLITS = ("data.train", "data.test")
_NO_SPLIT = "name one, such as [val]; grcn prepare-data split makes a test split of data without one"


def explain(error: ValidationError, tree: Node) -> Iterator[Problem]:
    """Yields place and explanation of everything that pydantic found wrong in a tree."""
    for item in error.errors(include_url=False):
        kind, context, loc = item["type"], item.get("ctx", {}), item["loc"]
        path = _as_written(loc)
        if kind.startswith("union_tag"):
            path = (*path, "format")
        node, found = tree.find(path)
        key = _dotted(path)
        if kind == "contradiction":
            for inner, message in context["problems"]:
                setting, _ = node.find(inner.split("."))
                yield setting.place, f"{_dotted((*path, inner))}: {message}"
        elif kind == "extra_forbidden":
            yield node.key_place, f"unknown key {key!r}; {_suggestion(loc)}"
        elif not found:
            yield node.key_place, f"missing {key!r}; add it"
        elif kind == "too_short" and len(item["input"]) >= context["min_length"]:
            continue  # its entries are wrong, and each is reported on its own
        elif node.readable:
            text = _mismatch(kind, context, item["msg"], node.plain())
            if kind == "tuple_type" and isinstance(node.value, str) and is_plain_word(node.value):
                written = f"[{node.value}]" if node.place.line else f"'{key}=[{node.value}]'"
                text = text.replace("write [a, b]", f"write {written}")
            elif kind == "tuple_type" and node.value is None and key in _SPLITS:
                text = text.replace("write [a, b]", _NO_SPLIT)
            yield node.place, f"{key}: {text}" if key else text


def show(value: object) -> str:
    """Writes the user's value, for a message."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return clip(f"[{', '.join(show(item) for item in value)}]", 60)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return clip(repr(value), 60)


def clip(text: str, length: int) -> str:
    """Shortens a text to a length, with an ellipsis where something is left out."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _mismatch(kind: str, context: dict[str, Any], message: str, got: object) -> str:
    """States what was expected and, where the choices are listed, which of them is close."""
    numbers = {key: f"{value:g}" for key, value in context.items() if isinstance(value, float)}
    template, remedy = _EXPECTED.get(kind, ("{message}", "correct it"))
    expected = template.format_map(context | numbers | {"message": message})
    word = str(got)[:60].lower()
    # Names with other digits, as resnet18 and resnet101, look alike but are different things.
    close = difflib.get_close_matches(word, expected.split("'")[1::2], n=1, cutoff=0.9 if word[-1:].isdigit() else 0.6)
    return f"expected {expected} (got {show(got)}); " + (f"did you mean {close[0]!r}?" if close else remedy)


def _suggestion(loc: Path) -> str:
    """Suggests what an unknown key may mean: a neighbour, a key elsewhere, or else lists the keys."""
    sections = _all_sections()
    section, key = tuple(step for step in loc[:-1] if isinstance(step, str)), str(loc[-1])[:80]
    close = difflib.get_close_matches(key, sections[section], n=1)
    near = f"did you mean {_dotted(_as_written((*loc[:-1], close[0])))!r}?" if close else ""
    if close and difflib.SequenceMatcher(None, key, close[0]).ratio() >= 0.8:
        return near
    others = [path for path, keys in sections.items() if key in keys]
    formats = [path[1] for path in others if path[:1] == section[:1] == ("data",)]
    if formats:
        return f"only format {', '.join(formats[:-1])}{' and ' * (len(formats) > 1)}{formats[-1]} has it"
    if others:
        meant = sorted({repr(_dotted(_as_written((*path, key)))) for path in others})
        return f"did you mean {' or '.join(meant)}?"
    return near or f"known: {', '.join(sections[section])}"


@cache
def _all_sections() -> dict[Keys, list[str]]:
    return dict(_sections(Config))


def _sections(kind: type[Section], path: Keys = ()) -> Iterator[tuple[Keys, list[str]]]:
    """Yields pydantic's path and the keys of a section and of those in it."""
    yield path, list(kind.model_fields)
    for name, field in kind.model_fields.items():
        for inner in section_kinds(field.annotation):
            if field.discriminator is None:
                yield from _sections(inner, (*path, name))
            else:
                for tag in get_args(inner.model_fields[str(field.discriminator)].annotation):
                    yield from _sections(inner, (*path, name, tag))


def _as_written(loc: Path) -> Path:
    """Turns pydantic's path, ("data", "voc", "root"), into the file's, ("data", "root")."""
    return (loc[0], *loc[2:]) if len(loc) > 1 and loc[0] == "data" else loc


def _dotted(path: Path) -> str:
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(steps).lstrip(".")
