"""Compares the two tasks' gradients over a training run: at its start and at every checkpoint that it kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from grcn import build, fileio
from grcn.apps.analyze.gradients import Conflict, conflict
from grcn.config.schema import Config
from grcn.data.dataset import DetectionDataset
from grcn.engine import checkpoint, distributed
from grcn.engine.checkpoint import restore
from grcn.engine.environment import flags_of, read_environment
from grcn.engine.signals import StopSignals
from grcn.errors import CheckpointError, ConfigError, EnvironmentFault, named
from grcn.models.detector import Detector
from grcn.models.memory_format import to_device
from grcn.models.weights import load_weights
from grcn.progress import progress_bar
from grcn.run import train as run
from grcn.run.backend import prepare, with_precision
from grcn.run.load_detector import check_continuation, recorded_config
from grcn.vis.charts import cosine_curves

logger = logging.getLogger("grcn")

Layers = dict[str, dict[str, Conflict]]

_FEW = 8  # batches, whose standard error is itself off by a quarter


def gradients_over_training(
    cfg: Config,
    folder: Path,
    output: Path,
    *,
    images: int = 64,
    points: int | None = None,
    allow_changes: bool = False,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Compares the tasks' gradients at the start of a run and at its checkpoints; writes the result.

    All are compared on the same images of the training split, augmented as in training: the batches with which the run
    would continue after its last step. They are rounded up to whole steps.

    Args:
        folder: of the run. The start is the model of ``run.seed`` and ``model.weights``; left out if it was another.
        output: gets ``gradients.json`` and, if matplotlib is installed, ``gradients.png``.
        images: number of images.
        points: train first, or continue training, with this many evenly spaced checkpoints; None analyses those that
            exist.
        allow_changes: continue even if settings that change the result differ from those of the checkpoints.
        stop: signals that end it early.

    Returns:
        the contents of ``gradients.json``: ``settings``; ``steps``, each with its ``step`` and ``layers``, and of each
        layer the fields of :class:`grcn.apps.analyze.gradients.Conflict` by stage.

    Raises:
        UserError: whatever is wrong with config, data, checkpoints or machine; the tasks share no layer.
        Stopped: a signal came.
    """
    stop = stop or StopSignals()
    with distributed.process_group(cfg.run.device, cfg.run.timeout) as device:
        if distributed.world_size() > 1:
            raise ConfigError("gradients are compared in one process; train with torchrun, then analyse with --run")
        if points is None and checkpoint.latest_step(folder / "checkpoints") < 0:
            raise CheckpointError(f"{folder}: no checkpoints in it; name the folder of a run")
        data, model = _start(cfg, device)
        if images > len(data.table):
            raise ConfigError(f"--images {images}: more than there are (got {len(data.table)} to train on); lower it")
        count = -(-images // cfg.train.batch)

        def compare(step: int) -> Layers:
            return conflict(model.train(), _batches(cfg, data, count, step, stop))

        compared = {0: compare(0)}
        _check_shared(compared[0])
        if "--init" in flags_of(read_environment(folder)):
            logger.info("step 0 is left out: the run began with --init")
            del compared[0]
        if points is not None:
            run.train(_spaced(cfg, points), folder, resume=True, allow_changes=allow_changes, stop=stop)
        for path, state in checkpoint.every(folder / "checkpoints"):
            cfg = with_precision(cfg, device, recorded_config(state, path))
            check_continuation(cfg, state, path, data.table, allow_changes)
            restore(state, model, path=path)
            compared[state["step"]] = compare(state["step"])
        settings = {"run": str(folder), "images": count * cfg.train.batch, "batches": count * cfg.train.accumulate}
        return _write(output, settings, compared)


def as_text(found: dict[str, Any]) -> str:
    """Formats the last step of the result of :func:`gradients_over_training` as a table."""
    last, settings = found["steps"][-1], found["settings"]
    width = max(map(len, last["layers"]))
    few = "; few: raise --images" if settings["batches"] < _FEW else ""
    lines = [
        f"{settings['run']}, step {last['step']}: cosine between the gradients of classification and localization",
        f"mean of {settings['batches']} batches, {settings['images']} images, ± standard error{few}",
        "",
        f"{'':{width}}  second stage      < 0  |cls|/|loc|  first stage       both stages",
    ]
    for name, stages in last["layers"].items():
        second, first, both = (stages[key] for key in ("second_stage", "first_stage", "both_stages"))
        negative = "" if second["negative"] is None else f"{second['negative']:.0%}"
        ratio = "" if second["ratio"] is None else f"{second['ratio']:.3g}"
        row = f"{_cosine(second):16}  {negative:>4}  {ratio:>11}  {_cosine(first):16}  {_cosine(both)}"
        lines.append(f"{name:{width}}  {row}".rstrip())
    lines += [
        "+1: what helps one task helps the other; 0: they do not interact; -1: one undoes the other's step",
        "< 0: batches with a cosine below zero. |cls|/|loc|: how many times longer the gradient of classification is",
    ]
    return "\n".join(lines)


def _cosine(of: dict[str, Any]) -> str:
    if of["cosine"] is None:
        return {"cls": "cls only", "loc": "loc only"}.get(of["reached_by"], "-")
    error = "" if of["standard_error"] is None else f" ± {of['standard_error']:.3f}"
    return f"{of['cosine']:+.3f}{error}"


def _start(cfg: Config, device: torch.device) -> tuple[DetectionDataset, Detector]:
    """Reads the training split and builds the model as training starts with it."""
    prepare(cfg, device)
    data = build.build_train_split(cfg.data)
    model = build.build_model(cfg.model, len(data.table.classes) + 1, cfg.run.seed)
    if cfg.model.weights is not None:
        logger.info("%s", load_weights(model, cfg.model.weights, data.table.classes, cfg.data.same_as))
    return data, to_device(model, device)


def _batches(cfg: Config, data: DetectionDataset, steps: int, step: int, stop: StopSignals) -> Iterator[Any]:
    """Yields the batches after the last step, with a progress bar that names the step compared."""
    first = cfg.train.steps
    batches = build.build_batches(cfg, data, start_step=first, steps=first + steps)
    for batch in progress_bar(batches, f"step {step}", steps * cfg.train.accumulate, leave=False):
        stop.check()
        yield batch


def _check_shared(layers: Layers) -> None:
    if not any(stages["second_stage"].reached_by == "both" for stages in layers.values()):
        raise ConfigError(
            "no trained layer is shared by classification and localization; use a later model.split, or none"
        )


def _spaced(cfg: Config, points: int) -> Config:
    """Returns a config that keeps all checkpoints, ``points`` of them, evenly spaced."""
    schedule = {"checkpoint_every": -(-cfg.train.steps // points), "keep": cfg.train.steps}
    return cfg.model_copy(update={"train": cfg.train.model_copy(update=schedule)})


def _write(output: Path, settings: dict[str, Any], compared: dict[int, Layers]) -> dict[str, Any]:
    """Writes the figures and, if matplotlib is installed, the picture; returns the figures."""
    steps = sorted(compared)
    figures = [
        {
            "step": step,
            "layers": {
                name: {key: asdict(of) for key, of in stages.items()} for name, stages in compared[step].items()
            },
        }
        for step in steps
    ]
    series = {
        name: [compared[step][name]["second_stage"] for step in steps]
        for name, stages in compared[steps[-1]].items()
        if stages["second_stage"].reached_by == "both"
    }
    lines = {name: ([of.cosine for of in every], [of.standard_error for of in every]) for name, every in series.items()}
    found = {"settings": settings, "steps": figures}
    title = f"{settings['run']}: gradients of loss_classifier and loss_box_reg"
    with named(output):
        output.mkdir(parents=True, exist_ok=True)
        contents = json.dumps(found, indent=1, allow_nan=False) + "\n"
        fileio.write_durably(output / "gradients.json", contents.encode())
        try:
            cosine_curves(steps, lines, output / "gradients.png", title)
        except EnvironmentFault as error:
            logger.info("no curves drawn: %s", error)
    logger.info("figures are in %s", output)
    return found
