"""Reads, prints and compares config files: strict YAML in, :class:`grcn.config.schema.Config` out.

A file may name one parent, ``base: FILE`` relative to itself or the name of one that comes with grcn, which may name
one too: at most three in a row. Mappings merge key by key, anything else replaces. Overrides, ``key=value`` with a
dotted key and a YAML value, are merged last. All problems are reported at once, each with its place.

``make generated`` writes :func:`schema` to ``configs/schema.json``, with which editors complete and
check configs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from pydantic import ValidationError

from grcn.config import shipped
from grcn.config.messages import clip, explain, show
from grcn.config.rules import without_effect
from grcn.config.schema import Config
from grcn.config.types import Role, Section, roles_of
from grcn.config.yaml_nodes import (
    MAX_DEPTH,
    Node,
    Place,
    Problem,
    is_plain_word,
    merge,
    read_file,
    read_text,
    read_value,
)
from grcn.errors import ConfigError, one_line

MAX_PARENTS = 3
MAX_PROBLEMS = 50


def load_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Config:
    """Reads a config file and applies overrides.

    Args:
        path: the YAML file, or the name of one that comes with grcn (:mod:`grcn.config.shipped`).
        overrides: ``key=value`` each, such as ``train.lr=3e-4`` or ``data.train=[a, b]``; the last wins.

    Raises:
        ConfigError: a file cannot be read or something in it is wrong; one line for each problem.
    """
    return load_config_with_sources(path, overrides)[0]


def load_config_with_sources(
    path: str | os.PathLike[str], overrides: Iterable[str] = ()
) -> tuple[Config, dict[str, str]]:
    """Reads a config as :func:`load_config` does, and returns the source of each setting too.

    Returns:
        The config, and the source of every key of :func:`leaves`: ``file:line``, ``command line``
        or ``default``.
    """
    problems: list[Problem] = []
    try:
        tree = _read_with_parents(shipped.find(path), problems)
    except ConfigError as error:
        raise ConfigError(one_line(str(error))) from error
    for override in overrides:
        tree = merge(tree, _read_override(override, problems))
    config = _validate(tree, problems)
    sources = {}
    for key in leaves(config):
        node, found = tree.find(key.split("."))
        sources[key] = node.place.source if found else "default"
    return config, sources


def set_in_vain(config: Config, sources: Mapping[str, str], path: str | os.PathLike[str]) -> list[str]:
    """Returns the settings that were set and have no effect beside the others, each with the reason.

    A base serves other files too, so only the command line and the file itself are considered.

    Args:
        config, sources: of :func:`load_config_with_sources`.
        path: the file.
    """
    own = ["command line"]
    # The config.yaml of a run has every setting, set by the user or not.
    if "default" in sources.values():
        own.append(f"{shipped.find(path)}:")
    return [f"{key} ({why})" for key, why in without_effect(config).items() if sources[key].startswith(tuple(own))]


def parse_config(text: str, name: str) -> Config:
    """Reads a config from what :func:`dump_config` wrote; such a text has no ``base``.

    Args:
        text: the YAML.
        name: its name in problems, as that of the checkpoint that holds it.

    Raises:
        ConfigError: as :func:`load_config` raises.
    """
    problems: list[Problem] = []
    try:
        tree = read_text(text, name, problems)
    except ConfigError as error:
        raise ConfigError(one_line(str(error))) from error
    return _validate(tree, problems)


def leaves(section: Section, prefix: str = "") -> dict[str, Any]:
    """Returns every setting by its dotted key; a list is one setting, as a tuple."""
    settings: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            settings |= leaves(value, f"{prefix}{name}.")
        else:
            settings[prefix + name] = value
    return settings


def difference(before: Config, after: Config) -> dict[str, str]:
    """Returns the settings in which two configs differ, by dotted key, each as ``key: before -> after``."""
    old = {key: _flow(value) for key, value in leaves(before).items()}
    new = {key: _flow(value) for key, value in leaves(after).items()}
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    return {key: f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in changed}


@cache
def roles() -> dict[str, Role]:
    """Returns the role of each setting, by dotted key."""
    return roles_of(Config)


def dump_config(config: Config) -> str:
    """Writes every setting as YAML that :func:`load_config` reads back to an equal config."""
    return "".join(f"{line}\n" for line, _ in _lines(config))


def print_config(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> str:
    """Writes every setting of a config file as YAML, each with a comment on its source and on whether it is unused."""
    config, sources = load_config_with_sources(path, overrides)
    notes = sources | {key: f"{sources[key]}; without effect: {why}" for key, why in without_effect(config).items()}
    return "".join(f"{line:<44}  # {notes[key]}\n" if key else f"{line}\n" for line, key in _lines(config))


def schema() -> str:
    """Returns the JSON schema of config files.

    No key is required, since any may come from the base or the command line.
    """

    def loosen(part: Any) -> Any:
        if isinstance(part, list):
            return [loosen(item) for item in part]
        if not isinstance(part, dict):
            return part
        # Without required keys an incomplete section matches several variants, which oneOf rejects.
        return {
            "anyOf" if key == "oneOf" else key: loosen(value)
            for key, value in part.items()
            if key not in ("required", "discriminator")
        }

    document = loosen(Config.model_json_schema())
    document["properties"]["base"] = {
        "type": "string",
        "description": "Parent, relative to this file.",
    }
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | document
    return json.dumps(document, indent=1) + "\n"


def _read_with_parents(path: str, problems: list[Problem], children: tuple[str, ...] = ()) -> Node:
    """Reads a file, whose children are the files that led to it, and merges it over its parents."""
    tree = read_file(path, problems)
    base = tree.value.pop("base", None) if isinstance(tree.value, dict) else None
    if base is None:
        return tree
    if not isinstance(base.value, str):
        got = show(base.plain())
        raise ConfigError(f"{base.place}: base: expected the name of a file (got {got}); write base: FILE")
    if len(children) == MAX_PARENTS:
        chain = " -> ".join((*children, path))
        raise ConfigError(f"{base.place}: base: too many levels (got {chain}); join two files")
    parent = os.path.normpath(os.path.join(os.path.dirname(path), base.value))
    if not os.path.isfile(parent):
        parent = shipped.find_base(base.value) or parent
    if not os.path.isfile(parent):
        raise ConfigError(f"{base.place}: base: no such file (got {parent}); name it relative to this file")
    return merge(_read_with_parents(parent, problems, (*children, path)), tree)


def _read_override(override: str, problems: list[Problem]) -> Node:
    """Turns ``a.b=value`` into the mapping ``{a: {b: value}}``; a wrong one into an empty one."""
    place = Place(f"command line: {clip(override, 80)}")
    key, equals, text = override.partition("=")
    end = {"[": "]", "{": "}"}.get(text[:1], "")
    names = key.split(".")
    try:
        if not equals or not all(names):
            raise ConfigError("not a setting; write key=value with a dotted key, as train.lr=0.01")
        if len(names) > MAX_DEPTH:
            raise ConfigError("nested too deeply for a config; write key=value with a dotted key, as train.lr=0.01")
        if key == "base":
            raise ConfigError("base is read from files only; pass another config instead")
        node = read_value(text, key, place, problems)
    except ConfigError as error:
        problem = str(error).removeprefix(f"{place}: ")
        if end and "<stream end>" in problem:
            quoted = f"'{clip(override, 60)} …{end}'"
            problem = f"the {text[0]} is not closed, as when a shell splits at a space; put quotes around it: {quoted}"
        problems.append((place, problem))
        return Node({}, place, place)
    for name in reversed(names):
        node = Node({name: node}, place, place)
    return node


def _validate(tree: Node, problems: list[Problem]) -> Config:
    """Builds a config from the tree, or raises its problems together with those found in reading."""
    try:
        config = Config.model_validate(tree.plain())
    except ValidationError as error:
        problems += explain(error, tree)
    if problems:
        lines = [one_line(f"{place}: {text}") for place, text in sorted(problems)]
        if len(lines) > MAX_PROBLEMS:
            lines[MAX_PROBLEMS:] = [f"{len(lines) - MAX_PROBLEMS} more problems; correct these first"]
        raise ConfigError("\n".join(lines))
    return config


def _lines(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the YAML lines of a section, each with the dotted key of its setting.

    The line that opens an inner section has the key "".
    """
    indent = "  " * prefix.count(".")
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield f"{indent}{name}:", ""
            yield from _lines(value, f"{prefix}{name}.")
        else:
            yield f"{indent}{name}: {_flow(value)}", prefix + name


def _flow(value: Any) -> str:
    """Writes a setting as YAML in one line."""
    if isinstance(value, tuple):
        return f"[{', '.join(_flow(item) for item in value)}]"
    if isinstance(value, Section | dict):
        pairs = value if isinstance(value, dict) else {name: getattr(value, name) for name in type(value).model_fields}
        return f"{{{', '.join(f'{_flow(key)}: {_flow(inner)}' for key, inner in pairs.items())}}}"
    if isinstance(value, str):
        if is_plain_word(value):
            return value
        quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf"))
        return quoted.strip()
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
