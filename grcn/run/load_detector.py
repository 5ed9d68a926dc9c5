"""Loads detectors and initial weights from checkpoints, and checks their settings against a config."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import torch

from grcn.build import build_model
from grcn.config.files import difference, parse_config, roles
from grcn.config.model_schema import ModelConfig
from grcn.config.schema import Config, ShapesDataConfig
from grcn.config.types import Role
from grcn.data.annotations import Annotations
from grcn.engine import checkpoint, distributed
from grcn.errors import CheckpointError, ConfigError, named
from grcn.fileio import few
from grcn.models.class_rows import ClassRows, place_rows
from grcn.models.detector import Detector
from grcn.models.layer_names import under_names_of
from grcn.models.weights import load_weights, normalisation_of
from grcn.run.onnx_detector import OnnxDetector
from grcn.run.predict import Predictor
from grcn.run.read_weights import read_weights

logger = logging.getLogger("grcn")


def load_detector(
    path: str | os.PathLike[str],
    device: str | torch.device = "auto",
    *,
    cfg: Config | None = None,
    classes: Sequence[str] | None = None,
    allow_changes: bool = False,
) -> Predictor:
    """Loads a detector that ``grcn train`` has trained, ready to predict; with averaged weights if it has them.

    Args:
        path: a checkpoint; nothing else is needed, it holds its settings and the names of its classes. Or the folder of
            a run, for its best checkpoint, or else its newest; or what ``grcn export`` has written: a folder with
            ``model.safetensors``, or an ``.onnx`` file, which is only to predict with, on the CPU.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: the GPU, if there is one.
        cfg: build the detector by this config instead of the checkpoint's own.
        classes: those of the data; the checkpoint must have the same, in this order.
        allow_changes: accept a ``cfg`` in which settings that a detection depends on differ from the checkpoint's.

    Raises:
        CheckpointError: the file is missing, damaged or of something else; its classes are others.
        ConfigError: ``cfg`` differs in a setting that a detection depends on. Most of them, as the normalisation,
            do not change the shape of any weight.
        EnvironmentFault: there is no such device.
    """
    path = Path(path)
    if path.suffix == ".onnx" and cfg is None:
        return _from_onnx(path, classes, str(device))
    path, state = read_weights(path)
    own = recorded_config(state, path, classes)
    if cfg is not None:
        # The weights that it started from do not matter, if they expect the same images.
        same = normalisation_of(own.model.weights) == normalisation_of(cfg.model.weights)
        changes = _changes(own, cfg, lambda role: role.detection, but=("model.weights",) if same else ())
        remedy = "use the config.yaml of its run or pass --allow-changes"
        _refuse(changes, f"{path}: trained with other settings (its -> the config's); {remedy}", allow_changes)
    return assemble(state, own, path, device, None if cfg is None else cfg.model)


load = load_detector  # its public name, grcn.load


def assemble(
    state: Mapping[str, Any],
    cfg: Config,
    path: Path,
    device: str | torch.device,
    model_cfg: ModelConfig | None = None,
) -> Predictor:
    """Builds the detector of a checkpoint that has been read.

    Args:
        state: its contents.
        cfg: its settings.
        path: of it, for messages.
        device: as in :func:`load_detector`.
        model_cfg: build the detector by this section instead.

    Raises:
        CheckpointError: its weights are not those of such a detector.
        EnvironmentFault: there is no such device.
    """
    model = build_model(model_cfg or cfg.model, len(state["classes"]) + 1)
    _restore(state, model, path)
    bits = None if isinstance(cfg.data, ShapesDataConfig) else cfg.data.bits
    return Predictor(model, state["classes"], distributed.local_device(str(device)), state["step"], bits)


def _from_onnx(path: Path, classes: Sequence[str] | None, device: str) -> Predictor:
    if device not in ("auto", "cpu"):
        raise ConfigError(f"{path}: an ONNX file is run on the CPU (got device {device}); pass cpu, or the checkpoint")
    model = OnnxDetector(path)
    its, step, bits = (model.facts[key] for key in ("classes", "step", "bits"))
    if classes is not None:
        check_classes(its, path, classes)
    # It has everything that prediction needs of a detector.
    return Predictor(cast(Detector, model), its, torch.device("cpu"), step, bits)


def load_initial_weights(
    model: Detector,
    cfg: ModelConfig,
    init: Path | None,
    classes: Sequence[str],
    same_as: Mapping[str, str] | None = None,
    new_classes: str | None = None,
) -> list[str]:
    """Gives a model the weights that training starts from; rank 0 downloads them before the others read them.

    Args:
        cfg: the ``model`` section that it was built by.
        init: a checkpoint, or a folder as :func:`load_detector` takes; None for ``model.weights``.
        classes: those of the data.
        same_as: for some of them, their names in the weights (``data.same_as``).
        new_classes: with ``init``: ``"by-name"``, its classes may be others, and a class of the data starts from the
            rows of its name; ``"fresh"``, all classes start anew. None: its classes must be those of the data.

    Raises:
        CheckpointError: a file is missing, damaged, or of another network or other classes.
        ConfigError: the checkpoint's detector expects other images or has other anchors.

    Returns:
        Names of the weights that keep their initial values.
    """
    if unknown := [name for name in same_as or {} if name not in classes]:
        logger.warning("data.same_as: no class of the data: %s", few(unknown))
    if same_as and (cfg.weights is None if init is None else new_classes != "by-name"):
        reason = "model.weights is null" if init is None else "--init is without --new-classes, or with fresh ones"
        logger.warning("data.same_as: without effect here (%s)", reason)
    arguments = (model, cfg, init, classes, same_as, new_classes)
    level, message, new = distributed.on_main(lambda: _load_initial_weights(*arguments))
    if not distributed.is_main():
        _load_initial_weights(*arguments)
    logger.log(level, message)
    return new


def _load_initial_weights(
    model: Detector,
    cfg: ModelConfig,
    init: Path | None,
    classes: Sequence[str],
    same_as: Mapping[str, str] | None,
    new_classes: str | None,
) -> tuple[int, str, list[str]]:
    """Loads the initial weights; returns the level and text of a log line, and the weights that are new."""
    if init is not None:
        init, state = read_weights(init)
        # A new training may change the settings that a detection depends on, except those the weights were trained for.
        theirs = recorded_config(state, init).model
        if new_classes is None:
            check_classes(state["classes"], init, classes, "pass --new-classes, or set data.classes to its")
        if normalisation_of(theirs.weights) != normalisation_of(cfg.weights):
            needed = f"model.weights={theirs.weights}"
            raise ConfigError(f"{init}: its images are normalised for weights {theirs.weights}; set {needed}")
        if theirs.norm != cfg.norm:
            raise ConfigError(f"{init}: trained with other norms; set model.norm={theirs.norm}")
        if theirs.anchors != cfg.anchors:
            raise ConfigError(f"{init}: trained with other anchors; set model.anchors as in the config.yaml of its run")
        if new_classes is None:
            _restore(state, model, init)
            return logging.INFO, f"initial weights from {init}", []
        rows = place_rows(state["classes"] if new_classes == "by-name" else (), classes, same_as)
        if new_classes == "fresh":
            rows = replace(rows, source=(None,) * len(rows.names))
        _restore(state, model, init, rows)
        return logging.INFO, f"initial weights from {init}; {rows}", []
    every = list(model.state_dict())
    frozen = {f"backbone.{name}" for name, each in model.backbone.named_parameters() if not each.requires_grad}
    if cfg.weights is not None:
        report = load_weights(model, cfg.weights, classes, same_as)
        if random := sorted(frozen.intersection(report.new)):
            warning = f"{report}; {few(random)} frozen at random values: lower model.freeze"
            return logging.WARNING, warning, report.new
        return logging.INFO, str(report), report.new
    if frozen:
        remedy = "give weights, or use a tiny backbone, which trains all of its layers"
        if cfg.is_tiny or cfg.of_timm:  # which freeze nothing by default
            remedy = f"{'use --init' if cfg.is_tiny else 'give weights'}, or leave model.freeze out"
        stay = f"model.weights: null: the first layers of {cfg.backbone} stay as they are, at random values; {remedy}"
        return logging.WARNING, stay, every
    return logging.DEBUG, "initial weights are random", every


def _restore(state: Mapping[str, Any], model: Detector, path: Path, rows: ClassRows | None = None) -> None:
    """Loads a checkpoint's weights into a detector, which may have other stages frozen.

    They are those that its run evaluated: the average, if it kept one (``train.ema``).

    Args:
        rows: if the detector has other classes, the rows of each; the others keep the detector's values.

    Raises:
        CheckpointError: the detectors differ in more than this.
    """
    weights = state.get("ema", state)["model"]
    if rows is not None:
        weights = rows.placed(weights, model.state_dict())
    checkpoint.restore({"step": state["step"], "model": under_names_of(model, weights)}, model, path=path)


def check_continuation(
    cfg: Config, state: Mapping[str, Any], path: Path, table: Annotations, allow_changes: bool
) -> None:
    """Refuses to continue a checkpoint with other classes, or under settings or annotations that change the result."""
    own = recorded_config(state, path, table.classes)
    if state["step"] > cfg.train.steps:
        got = f"step {state['step']}, train.steps: {cfg.train.steps}"
        raise ConfigError(f"{path}: past the end (got {got}); raise train.steps, or pass an earlier one")
    changes = _changes(own, cfg, lambda role: role.training or role.detection)
    if state["data_fingerprint"] != table.fingerprint():
        changes.append("data: the annotations are not those it was trained on")
    _refuse(changes, f"{path}: the settings differ; restore them or pass --allow-changes", allow_changes)


def warn_of_other_evaluation(cfg: Config, state: Mapping[str, Any], path: Path) -> None:
    """Warns how the next evaluations differ from those before the checkpoint, with which they compete for the best.

    Settings that change the training too are left to :func:`check_continuation`.
    """
    for line in _changes(recorded_config(state, path), cfg, lambda role: role.measure and not role.training):
        logger.warning("continuing with a changed setting: %s", line)


def check_same_evaluation(cfg: Config, folder: Path) -> None:
    """Refuses to report a finished run under another evaluation or model: it has only its own metrics.

    Raises:
        ConfigError: ``config.yaml`` in its folder, which was written for its last evaluation, differs.
    """
    path = folder / "config.yaml"
    with named(path):
        its = parse_config(path.read_text(encoding="utf-8"), str(path))
    changes = _changes(its, cfg, lambda role: role.measure or role.detection)
    _refuse(
        changes, f"{folder}: finished, and evaluated under other settings; use grcn eval with its checkpoint", False
    )


def check_classes(
    its: Sequence[str], path: Path, ours: Sequence[str], remedy: str = "use its data, or set data.classes to its"
) -> None:
    """Refuses a checkpoint of other classes than the data's; those of other names or order may fit every shape."""
    for label, (theirs, own) in enumerate(zip_longest(its, ours), start=1):
        if theirs != own:
            got = f"class {label} is {theirs!r:.40} in it, {own!r:.40} in the data"
            raise CheckpointError(f"{path}: has other classes (got {got}); {remedy}")


def recorded_config(state: Mapping[str, Any], path: Path, classes: Sequence[str] | None = None) -> Config:
    """Returns the settings of a checkpoint's run.

    Raises:
        CheckpointError: it was not written by grcn train, but by another use of the training loop; or it is not of
            these classes.
    """
    kinds = {"config": str, "classes": list, "data_fingerprint": str}
    missing = [key for key, kind in kinds.items() if not isinstance(state.get(key), kind)]
    if missing:
        raise CheckpointError(f"{path}: not written by grcn train (no {', '.join(missing)} in it); use one of its runs")
    if classes is not None:
        check_classes(state["classes"], path, classes)
    return parse_config(state["config"], str(path))


def _changes(before: Config, after: Config, matters: Callable[[Role], bool], but: Sequence[str] = ()) -> list[str]:
    """Lists the settings of roles that matter in which two configs differ, as ``key: before -> after``.

    Args:
        but: settings that may differ.
    """
    known = roles()
    changed = difference(before, after)
    return [line for key, line in changed.items() if matters(known[key]) and key not in but]


def _refuse(changes: list[str], message: str, allow_changes: bool) -> None:
    """Stops with the message and the changed settings or, where they are allowed, warns of each."""
    if changes and not allow_changes:
        raise ConfigError("\n".join([message, *changes]))
    for line in changes:
        logger.warning("continuing with a changed setting: %s", line)
