"""What may differ between a checkpoint and the config that it is used with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from grcn.config.files import difference, parse_config
from grcn.config.schema import Config
from grcn.data.annotations import Table
from grcn.errors import CheckpointError, ConfigError, named

logger = logging.getLogger("grcn")

# Settings that do not change what is computed, only how fast, how often and where it is written.
HARMLESS = (
    "data.root",  # the fingerprint of the annotations decides
    "data.test",
    "eval.",
    "paper",
    "run.device",
    "run.tensorboard",
    "run.threads",
    "run.timeout",
    "run.workers",
    "train.checkpoint_every",
    "train.eval_every",
    "train.keep",
    "train.log_every",
)
# Settings that decide what a finished run was measured by.
MEASURED = ("data.test", "eval.limit", "eval.protocols", "eval.voc_iou")
# Settings of the model that a detection does not depend on.
TRAINING_ONLY = (
    "model.head.dropout",
    *(
        f"model.rpn.{key}"
        for key in ("batch", "bg_iou", "fg_", "post_nms_train", "pre_nms_train", "smooth_l1", "straddling")
    ),
    *(f"model.roi.{key}" for key in ("add_gt", "batch", "bg_iou", "fg_", "smooth_l1")),
)


def check_continuation(cfg: Config, state: Mapping[str, Any], path: Path, table: Table, allow_changes: bool) -> None:
    """Refuses to continue a checkpoint with other classes, or under settings or annotations that change the result."""
    check_classes(state, path, table)
    if state["step"] > cfg.train.steps:
        got = f"step {state['step']}, train.steps: {cfg.train.steps}"
        raise ConfigError(f"{path}: past the end (got {got}); raise train.steps, or pass an earlier one")
    changes = [line for line in _changes(state, path, cfg) if not line.startswith(HARMLESS)]
    if state["data_fingerprint"] != table.fingerprint():
        changes.append("data: the annotations are not those it was trained on")
    _refuse(changes, f"{path}: the settings differ; restore them or pass --allow-changes", allow_changes)


def check_classes(state: Mapping[str, Any], path: Path, table: Table) -> None:
    """Refuses a checkpoint of other classes than the data's; those of other names or order may fit every shape."""
    check_record(state, path)
    for label, (its, ours) in enumerate(zip_longest(state["classes"], table.classes), start=1):
        if its != ours:
            got = f"class {label} is {its!r:.40} in it, {ours!r:.40} in the data"
            raise CheckpointError(f"{path}: of other classes (got {got}); use its data, or set data.classes to its")


def tell_other_evaluation(cfg: Config, state: Mapping[str, Any], path: Path) -> None:
    """Says how the next evaluations differ from those before the checkpoint, with which they compete for the best."""
    for line in _changes(state, path, cfg):
        if line.startswith(MEASURED):
            logger.warning("going on under a change: %s", line)


def check_same_evaluation(cfg: Config, folder: Path) -> None:
    """Refuses to report a finished run under another evaluation or model: it has metrics of its own only.

    Raises:
        ConfigError: ``config.yaml`` in its folder, which was written for its last evaluation, is another.
    """
    path = folder / "config.yaml"
    with named(path):
        its = parse_config(path.read_text(encoding="utf-8"), str(path))
    changes = [line for line in difference(its, cfg) if line.startswith(MEASURED) or _is_of_detection(line)]
    _refuse(
        changes, f"{folder}: finished, and evaluated under other settings; use tools/eval.py with its checkpoint", False
    )


def check_model(cfg: Config, state: Mapping[str, Any], path: Path, allow_changes: bool) -> None:
    """Refuses a checkpoint of other model settings: most of them, as the normalisation, change no weight's shape."""
    check_record(state, path)
    found = _changes(state, path, cfg)
    changes = [line for line in found if _is_of_detection(line)]
    remedy = "use the config.yaml of its run or pass --allow-changes"
    _refuse(changes, f"{path}: trained with other settings (its -> the config's); {remedy}", allow_changes)


def check_record(state: Mapping[str, Any], path: Path) -> None:
    """Refuses a checkpoint of somebody else's use of the training loop, which records what it likes."""
    kinds = {"config": str, "classes": list, "data_fingerprint": str}
    missing = [key for key, kind in kinds.items() if not isinstance(state.get(key), kind)]
    if missing:
        raise CheckpointError(f"{path}: not of tools/train.py (no {', '.join(missing)} in it); use one of its runs")


def _is_of_detection(change: str) -> bool:
    """Whether a changed setting is one of the model that detections depend on."""
    return change.startswith("model.") and not change.startswith(TRAINING_ONLY)


def _changes(state: Mapping[str, Any], path: Path, cfg: Config) -> list[str]:
    """Lists the settings in which a checkpoint and a config differ, as ``key: its -> the config's``."""
    return difference(parse_config(state["config"], str(path)), cfg)


def _refuse(changes: list[str], message: str, allow_changes: bool) -> None:
    """Stops with the message and the changed settings, or, where they are allowed, says what they are."""
    if changes and not allow_changes:
        raise ConfigError("\n".join([message, *changes]))
    for line in changes:
        logger.warning("going on under a change: %s", line)
