"""Finds, lists and copies the configs that come with grcn, in a clone and in an installed package."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from grcn.errors import ConfigError


def folder() -> Path:
    """Returns the folder of the configs: beside the package in a clone, inside it if installed."""
    package = Path(__file__).resolve().parents[1]
    return inside if (inside := package / "configs").is_dir() else package.parent / "configs"


def find(path: str | os.PathLike[str]) -> str:
    """Returns the path of a config: a file, or else the shipped config of that name.

    Args:
        path: a file, or a name, such as ``shapes/grcn_tiny``.
    """
    given = os.fspath(path)
    name = given.removesuffix(".yaml")
    if own := next((file for file in (given, f"{name}.yaml") if os.path.isfile(file)), None):
        return own
    return _place(name) if name in names() else given


def find_base(name: str) -> str | None:
    """Returns the path of a shipped config to use as base, ``_base/voc`` or ``shapes/grcn_tiny``, if there is one.

    In a clone they are in ``configs/``; a name with this prefix works everywhere.
    """
    name = name.removesuffix(".yaml").removeprefix("configs/")
    is_one = re.fullmatch(r"\w+/\w+", name) and (folder() / f"{name}.yaml").is_file()
    return _place(name) if is_one else None


def _place(name: str) -> str:
    file = folder() / f"{name}.yaml"
    return os.path.relpath(file) if file.is_relative_to(Path.cwd()) else str(file)


def names() -> list[str]:
    """Lists the configs, such as ``shapes/grcn_tiny``, without those in ``_base``."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in folder().glob("[!_]*/*.yaml"))


def catalogue() -> list[dict[str, Any]]:
    """Returns the facts of each config: ``name``, ``what``, ``parameters`` in millions, ``strides``, ``gmac``."""
    return list(json.loads((folder() / "catalogue.json").read_text(encoding="utf-8")))


def copy(name: str, target: Path) -> list[Path]:
    """Copies a config, its base files and the schema for editors; returns the copies, the config first.

    Raises:
        ConfigError: there is no such config, or another file of that name in ``target``.
        OSError: a copy cannot be written.
    """
    name = name.removesuffix(".yaml")
    if name not in names():
        alike = difflib.get_close_matches(name, names(), 3)
        raise ConfigError(
            f"no such config (got {name!r}); "
            + (f"did you mean {' or '.join(alike)}?" if alike else "see grcn configs")
        )
    files = [f"{name}.yaml"]
    while base := yaml.safe_load((folder() / files[-1]).read_text(encoding="utf-8")).get("base"):
        files.append(os.path.normpath(os.path.join(os.path.dirname(files[-1]), base)))
    copies = {target / file: (folder() / file).read_bytes() for file in [*files, "schema.json"]}
    for path, contents in copies.items():
        if path.exists() and path.read_bytes() != contents:
            raise ConfigError(f"{path}: exists and differs; choose another folder, or remove it")
    for path, contents in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    return list(copies)
