"""Reads the weights given by ``--checkpoint`` or ``--init``: a checkpoint, the folder of a run, or an exported one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from grcn.engine import checkpoint
from grcn.errors import CheckpointError
from grcn.run.exported_folder import is_exported, read_exported

logger = logging.getLogger("grcn")


def resolve(path: Path) -> Path:
    """Resolves a path: a run's folder to its best checkpoint, else its newest; any other path to itself."""
    if not path.is_dir() or is_exported(path):
        return path
    return checkpoint.best_or_newest(path) or path


def read_weights(path: Path) -> tuple[Path, dict[str, Any]]:
    """Reads the checkpoint of a path; if it is a run's folder, logs which checkpoint is used.

    Raises:
        CheckpointError: there is none; it is damaged or of something else.
    """
    found = resolve(path)
    if found.is_dir():
        if not is_exported(found):
            remedy = "pass a checkpoint, a run's folder or one of grcn export"
            raise CheckpointError(f"{path}: a folder without a checkpoint; {remedy}")
        return found, read_exported(found)
    if found.suffix in (".onnx", ".pt2"):
        remedy = "pass the checkpoint that it was exported from"
        raise CheckpointError(f"{path}: an exported graph, which cannot be evaluated or trained; {remedy}")
    state = checkpoint.load(found)
    if found != path:
        kind = "best" if found.name.startswith("best-") else "newest"
        logger.info("%s: taking its %s checkpoint, %s, of step %d", path, kind, found.name, state["step"])
    return found, state
