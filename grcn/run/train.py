"""Trains and evaluates a detector, from a config to a run folder, for ``grcn train``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grcn import fileio
from grcn.build import Training, build_training, limit_images
from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.engine import checkpoint, distributed
from grcn.engine.environment import FLAGS, write_environment
from grcn.engine.log import check_tensorboard, is_evaluated, last_entry
from grcn.engine.recorder import Metrics
from grcn.engine.signals import StopSignals
from grcn.errors import CheckpointError, ConfigError
from grcn.evaluation.detections import check_objects
from grcn.fileio import run_lock
from grcn.models.compiled import compile_parts
from grcn.models.detector import count_parameters
from grcn.models.features import TASKS, strides_as_text
from grcn.models.memory_format import memory_formats, to_device
from grcn.run.backend import prepare, suggest_bf16, with_precision
from grcn.run.checks_before_training import check_training
from grcn.run.dry_run import dry_run as try_steps
from grcn.run.evaluate import detect_all
from grcn.run.html_report import write_report
from grcn.run.load_detector import (
    check_continuation,
    check_same_evaluation,
    load_initial_weights,
    recorded_config,
    warn_of_other_evaluation,
)
from grcn.run.results import score
from grcn.torchvision_baseline import check_is_baseline, torchvision_detector
from grcn.vis.inputs import draw_inputs

logger = logging.getLogger("grcn")


def default_folder(path: str | Path, cfg: Config, torchvision: bool = False) -> Path:
    """Returns ``runs/<folder of the config>/<config>/seed<k>``, and for the config of a run its own folder."""
    path = Path(path)
    if (path.parent / "env.json").exists():
        return path.parent
    return (
        Path("runs") / path.resolve().parent.name / (path.stem + "_torchvision" * torchvision) / f"seed{cfg.run.seed}"
    )


def train(
    cfg: Config,
    folder: Path,
    *,
    resume: bool = False,
    resume_from: Path | None = None,
    init: Path | None = None,
    new_classes: str | None = None,
    allow_changes: bool = False,
    dry_run: bool = False,
    torchvision: bool = False,
    stop: StopSignals | None = None,
) -> Metrics:
    """Trains a detector, evaluates it and returns its last metrics.

    Under torchrun every process calls this; rank 0 writes.

    Args:
        folder: of the run; must be empty unless the run is resumed.
        resume: continue from the newest checkpoint in ``folder``, from the start if there is none.
        resume_from: continue from this checkpoint.
        init: a run that is not continued starts from the weights of this checkpoint instead of ``model.weights``.
        new_classes: see :func:`grcn.run.load_detector.load_initial_weights`.
        allow_changes: resume even if settings that change the result differ from those of the checkpoint.
        dry_run: do one step on the first batch and one on the largest, describe them, and write nothing.
        torchvision: train torchvision's FasterRCNN with the same network, head, anchors and initial weights instead.
        stop: signals that end it early; a checkpoint is saved.

    Raises:
        UserError: whatever is wrong with config, data, checkpoint or machine.
        Stopped: a signal came; the checkpoint is saved.
    """
    with ExitStack() as held:
        device = held.enter_context(distributed.process_group(cfg.run.device, cfg.run.timeout))
        prepare(cfg, device)
        _check_settings(cfg, torchvision)
        if cfg.run.tensorboard:
            distributed.on_main(check_tensorboard)
        if not dry_run:
            distributed.on_main(lambda: _claim(folder, resume or resume_from is not None, held))
        resumed = distributed.on_main(lambda: _find_checkpoint(folder, resume, resume_from))
        begun = recorded_config(resumed[1], resumed[0]) if resumed is not None and cfg.run.amp == "auto" else None
        cfg = with_precision(cfg, device, begun)
        if resumed is None:
            suggest_bf16(cfg, device)
        training = distributed.together(lambda: _build(cfg, resumed, allow_changes))
        settings, fingerprint = training.record["config"], training.record["data_fingerprint"]
        distributed.check_same({"settings": settings, "annotations": fingerprint, "device": device.type})
        state = None if resumed is None else resumed[1]
        if state is None:
            distributed.on_main(lambda: check_training(training))
            load_initial_weights(training.model, cfg.model, init, training.classes, cfg.data.same_as, new_classes)
        model = to_device(torchvision_detector(cfg.model, training.model) if torchvision else training.model, device)
        optimizer, ema = training.optimizer(model), training.average(model)
        detector: Any = model if ema is None else ema.module  # to evaluate
        if cfg.run.compile != "none":
            compile_parts(training.model, cfg.run.compile)
            if ema is not None:
                compile_parts(detector, cfg.run.compile)
        distributed.raise_if_stopped(stop)
        if dry_run:
            return try_steps(training, optimizer, ema, state, device)

        recorder = training.recorder(folder, state)
        recorder.restore(model, optimizer, ema)  # a checkpoint that does not fit must not change the run's files
        batches = training.batches(device, 0 if state is None else state["step"])
        finished = state is not None and state["step"] == training.steps
        if finished and distributed.on_main(lambda: is_evaluated(folder / "metrics.jsonl", training.steps)):
            distributed.on_main(lambda: check_same_evaluation(cfg, folder))
            logger.info("%s: finished; its recorded metrics follow", folder)
        else:
            if resumed is not None:
                warn_of_other_evaluation(cfg, resumed[1], resumed[0])
            given = {
                "--init": init is not None and state is None,
                "--resume-from": resume_from is not None,
                "--allow-changes": allow_changes,
                "--torchvision": torchvision,
            }
            flags = [flag for flag in FLAGS if given[flag]]
            distributed.on_main(lambda: _write_facts(folder, training, model, device, flags, state is not None))
            if state is None:
                distributed.on_main(lambda: _draw_inputs(folder, training))

        evaluated: list[int] = []

        def evaluate_now(step: int) -> Metrics:
            evaluated.append(step)
            found = detect_all(detector, cfg, training.test, device, stop)
            table, into = limit_images(cfg.eval, training.test.table), folder / "eval" / f"step_{step}"
            return distributed.on_main(lambda: score(cfg, table, training.test, found, into, stop=stop))

        metrics = training.run(model, batches, optimizer, recorder, evaluate_now, ema, stop)
        if evaluated or not (folder / "report.html").exists():
            distributed.on_main(lambda: _report(folder, training))
        return metrics


def _check_settings(cfg: Config, torchvision: bool) -> None:
    """Refuses settings that a training cannot have together, or in several processes."""
    if torchvision:
        check_is_baseline(cfg.model)
        if cfg.run.compile != "none":
            raise ConfigError(
                f"--torchvision: its FasterRCNN is not compiled (got {cfg.run.compile}); set run.compile=none"
            )
    if cfg.run.compile == "reduce-overhead" and cfg.train.accumulate > 1:
        # The gradients of a micro-batch lie in memory that the next one overwrites.
        raise ConfigError("run.compile: reduce-overhead needs train.accumulate: 1; set run.compile=default")
    if cfg.model.timm.norm == "trained" and (processes := distributed.world_size()) > 1:
        raise ConfigError(
            f"model.timm.norm: trained norms would differ between {processes} processes; set frozen, or use one"
        )


def _draw_inputs(folder: Path, training: Training) -> None:
    with _dispensable(folder, "vis/inputs.png"):
        draw_inputs(training, folder / "vis" / "inputs.png")


def _report(folder: Path, training: Training) -> None:
    with _dispensable(folder, "report.html"):
        write_report(folder, training.steps, training.cfg.eval.pictures > 0)
        best = "".join(f", the best checkpoint {path}" for path in folder.glob("best-step_*.pt"))
        logger.info("the report is %s%s", folder / "report.html", best)


@contextmanager
def _dispensable(folder: Path, name: str) -> Iterator[None]:
    """Turns an OSError, such as a full disk, into a warning: the file is not worth losing the run."""
    try:
        yield
    except OSError as error:
        logger.warning("%s: no %s (%s)", folder, name, error.strerror or error)


def _claim(folder: Path, resume: bool, held: ExitStack) -> None:
    """Locks the run's folder for as long as ``held`` is open; refuses one that holds another run.

    Detects a full or read-only disk before data are read.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder; choose another --output-dir")
    held.enter_context(run_lock(folder))
    found = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    if found and not resume:
        raise ConfigError(
            f"{folder}: not empty (got {', '.join(found[:3])}); continue with --resume, or choose another --output-dir"
        )


def _find_checkpoint(folder: Path, resume: bool, resume_from: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """Returns the checkpoint to continue from, or None to begin at step 0."""
    if resume_from is None:
        found = checkpoint.newest(folder / "checkpoints") if resume else None
        if resume and found is None:
            _check_never_saved(folder)
            logger.info("%s: no checkpoint yet; starting at step 0", folder)
        return found
    there = checkpoint.latest_step(folder / "checkpoints")
    if there >= 0 and folder.resolve() not in resume_from.resolve().parents:
        # The log, evaluations and best checkpoint there would be taken for those of the run that is continued.
        raise ConfigError(
            f"{folder}: has checkpoints, and {resume_from} is none of them; continue them with --resume, or choose "
            "another --output-dir"
        )
    state = checkpoint.load(resume_from)
    if there > state["step"]:
        raise ConfigError(
            f"{folder}: holds later checkpoints than {resume_from}; choose another --output-dir or remove them"
        )
    return resume_from, state


def _check_never_saved(folder: Path) -> None:
    """Refuses a run without checkpoints that must have had some: starting anew would remove its log and results."""
    before, log = folder / "config.yaml", folder / "metrics.jsonl"
    if not before.exists() or not log.exists():
        return
    train, step = load_config(before).train, int(last_entry(log).get("step", 0))
    # The second checkpoint waits for the first one, which is written while training continues.
    if step > 2 * train.checkpoint_every or is_evaluated(log, train.steps):
        best = next(folder.glob("best-step_*.pt"), None)
        remedy = f"continue from {best} in another --output-dir" if best else "choose another --output-dir"
        raise CheckpointError(
            f"{folder}: no checkpoint left of a run that is at step {step}; restore them, or {remedy}"
        )


def _build(cfg: Config, found: tuple[Path, dict[str, Any]] | None, allow_changes: bool) -> Training:
    """Reads the data and builds the model, and checks that a checkpoint belongs to them."""
    training = build_training(cfg)
    check_objects(limit_images(cfg.eval, training.test.table))
    if found is not None:
        path, state = found
        check_continuation(cfg, state, path, training.train.table, allow_changes)
        logger.info("resuming from %s", path)
    return training


def _write_facts(
    folder: Path, training: Training, model: nn.Module, device: torch.device, flags: list[str], continued: bool
) -> None:
    fileio.write_durably(folder / "config.yaml", training.record["config"].encode())
    bf16 = training.cfg.run.amp == "bf16"
    formats = {part: str(form) for part, form in memory_formats(device, bf16).items()}
    parameters = count_parameters(model)
    write_environment(folder, device, {"memory_formats": formats, "parameters": parameters}, flags, continued)
    specs = training.model.backbone.feature_specs
    strides = ", ".join(f"{task} {strides_as_text(specs[task].strides)}" for task in TASKS)
    logger.info("%s: %.1f M parameters; strides: %s; %s", folder, parameters / 1e6, strides, training)
