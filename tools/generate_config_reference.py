"""Writes configs/schema.json and, from it, docs/config.md: every setting with its values, default and meaning."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from grcn.config.files import schema

_HEAD = """\
# Every setting

This page is generated from [schema.py](../grcn/config/schema.py) and [model_schema.py](../grcn/config/model_schema.py)
in grcn/config: `make generated`. `--print-config` shows the values of a config and where each comes from; `key=value`
on the command line replaces one. The tag at the end says where a default comes from: [S] stated in the G-RCN paper,
[R] in the Faster R-CNN paper, whose settings it adopts, [C] common to the public implementations of that time, [T]
torchvision's, [O] our choice.
"""


def reference() -> str:
    """Writes the page."""
    document = json.loads(schema())
    lines = [_HEAD]
    seen: list[object] = []
    for name, kinds in _sections(document):
        if (name, kinds) in seen:  # of each layout of data
            continue
        seen.append((name, kinds))
        for kind in kinds:
            properties = {key: of for key, of in kind["properties"].items() if not _kinds(document, of)}
            which = properties.get("format", {})
            named = [which[key] for key in ("const", "enum") if key in which]
            title = (
                f"{name}, format: {', '.join(named[0]) if isinstance(named[0], list) else named[0]}" if named else name
            )
            lines += [f"## {title}\n", f"{_one_line(kind['description'])}\n"]
            lines += ["| key | values | default | |", "|---|---|---|---|"]
            for key, of in properties.items():
                missing = "–" if kind is document else "required"
                default = f"`{_flow(of['default'])}`" if "default" in of else missing
                lines.append(f"| `{key}` | {_values(of)} | {default} | {_one_line(of['description'])} |")
            lines.append("")
    return "\n".join(lines)


def _sections(document: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yields the sections of a config in order, each below the one that it is part of; joins two of one kind."""

    def below(prefix: str, kind: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
        inner: dict[str, list[str]] = {}
        for key, of in kind["properties"].items():
            if kinds := _kinds(document, of):
                inner.setdefault(json.dumps(kinds), []).append(prefix + key)
        for text, names in inner.items():
            kinds = json.loads(text)
            yield ", ".join(f"`{name}`" for name in names), kinds
            for one in kinds:
                yield from below(f"{names[0]}.", one)

    yield from below("", document)
    yield "the file", [document]


def _kinds(document: Mapping[str, Any], of: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the kinds of section that a key may hold; none for a plain setting, or for a list of sections."""
    references = [of] if "$ref" in of else [one for one in of.get("anyOf", []) if "$ref" in one]
    return [document["$defs"][one["$ref"].rpartition("/")[2]] for one in references]


def _values(of: Mapping[str, Any]) -> str:
    """Describes the values that a setting accepts."""
    if "const" in of:
        return f"`{of['const']}`"
    if "enum" in of:
        return ", ".join(f"`{_flow(value)}`" for value in of["enum"])
    if "anyOf" in of:
        return " or ".join(_values(one) for one in of["anyOf"])
    if of.get("type") == "array":
        return f"list: {_values(of['items'])}" if "items" in of and "$ref" not in of["items"] else "list"
    words = {
        "object": "mapping of names to names",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true`, `false`",
        "string": "text",
        "null": "`null`",
    }
    low = [f"{sign} {of[key]:g}" for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">")) if key in of]
    high = [f"{sign} {of[key]:g}" for key, sign in (("maximum", "≤"), ("exclusiveMaximum", "<")) if key in of]
    # Limits that only catch typos, as 100,000 pixels, are not worth a reader's time.
    bounds = low + [text for text in high if abs(float(text.split()[1])) < 1000]
    return f"{words.get(of.get('type', ''), 'any')} {', '.join(bounds)}".strip()


def _flow(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    root = Path(__file__).resolve().parents[1]
    (root / "configs/schema.json").write_text(schema(), encoding="utf-8")
    (root / "docs/config.md").write_text(reference(), encoding="utf-8")
