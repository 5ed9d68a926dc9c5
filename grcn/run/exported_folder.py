"""Reads the folder of an exported detector: weights as safetensors, settings, and facts about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grcn.engine import checkpoint
from grcn.errors import CheckpointError, EnvironmentFault
from grcn.fileio import read_file, read_tensors, unusable

FORMAT = 1
WEIGHTS, CONFIG, FACTS = "model.safetensors", "config.yaml", "detector.json"
_KINDS = {"format": int, "step": int, "classes": list, "data_fingerprint": str, "sha256": dict}
_REMEDY = "copy the folder again, or export the checkpoint again"


def is_exported(folder: Path) -> bool:
    """Whether a folder is meant to be an exported detector."""
    return (folder / FACTS).exists() or (folder / WEIGHTS).exists()


def facts_of(state: Mapping[str, Any], contents: Mapping[str, bytes]) -> dict[str, Any]:
    """Returns the contents of ``detector.json``.

    Args:
        state: the checkpoint.
        contents: of the other files that are read again, by name.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    kept = {key: state[key] for key in ("step", "classes", "data_fingerprint")}
    return {"format": FORMAT, **kept, "sha256": digests}


def read_exported(folder: Path) -> dict[str, Any]:
    """Reads an exported folder as a checkpoint without a state of training; nothing in it is unpickled.

    Raises:
        CheckpointError: a file is missing, damaged or of something else.
        EnvironmentFault: safetensors is not installed.
    """
    facts = _read_facts(folder / FACTS)
    contents = {name: read_file(folder / name, _REMEDY) for name in (CONFIG, WEIGHTS)}
    for name, data in contents.items():
        if hashlib.sha256(data).hexdigest() != facts["sha256"].get(name):
            raise CheckpointError(f"{folder / name}: damaged or changed: its SHA-256 is not that in {FACTS}; {_REMEDY}")
    require_safetensors()
    weights = read_tensors(folder / WEIGHTS, contents[WEIGHTS])
    if fault := unusable(weights):
        raise CheckpointError(f"{folder / WEIGHTS}: {fault}; {_REMEDY}")
    kept = {key: facts[key] for key in ("step", "classes", "data_fingerprint")}
    training = {"format": checkpoint.FORMAT, "optimizer": {}, "losses": []}
    return {**training, **kept, "config": contents[CONFIG].decode(), "model": weights}


def require_safetensors() -> None:
    """Checks that safetensors is installed.

    Raises:
        EnvironmentFault: it is not.
    """
    try:
        import safetensors.torch  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'grcn[export]'"
        raise EnvironmentFault(f"{WEIGHTS} needs safetensors, which is not installed; {remedy}") from error


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(read_file(path, "pass a folder of grcn export"))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged (got no JSON); {_REMEDY}") from error
    found = facts if isinstance(facts, dict) else {}
    if wrong := [key for key, kind in _KINDS.items() if not isinstance(found.get(key), kind)]:
        raise CheckpointError(f"{path}: not written by grcn export (no {', '.join(wrong)} in it); pass a folder of it")
    if found["format"] != FORMAT:
        raise CheckpointError(f"{path}: written in another format (got {found['format']}, need {FORMAT}); update grcn")
    return found
