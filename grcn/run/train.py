"""One run, from a config to a run folder: what ``tools/train.py`` calls."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grcn import build, fileio
from grcn.apps.browse.browse import write_inputs
from grcn.apps.check_data.images import check_before_training
from grcn.config.files import dump_config
from grcn.config.schema import Config
from grcn.data.annotations import Table
from grcn.data.loader import train_batches
from grcn.engine import checkpoint, distributed
from grcn.engine.checkpoint import restore
from grcn.engine.environment import write_environment
from grcn.engine.log import check_tensorboard, is_evaluated, start_logging
from grcn.engine.recorder import Metrics
from grcn.engine.signals import StopSignals
from grcn.engine.train import learning_rate
from grcn.engine.train import train as train_loop
from grcn.errors import ConfigError
from grcn.evaluation.detections import check_objects
from grcn.fileio import run_lock
from grcn.models.detector import Detector, count_parameters, to_device
from grcn.models.features import TASKS, memory_formats
from grcn.run.backend import AMP, prepare
from grcn.run.dry_run import dry_run as try_steps
from grcn.run.evaluate import detect_all
from grcn.run.html_report import write_report
from grcn.run.load_detector import (
    check_continuation,
    check_same_evaluation,
    load_initial_weights,
    warn_of_other_evaluation,
)
from grcn.run.results import score
from grcn.torchvision_baseline import baseline_of, torchvision_twin

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
    allow_changes: bool = False,
    dry_run: bool = False,
    torchvision: bool = False,
    stop: StopSignals | None = None,
) -> Metrics:
    """Trains a detector, evaluates it and returns its last metrics.

    Under torchrun every process calls this; the first one writes.

    Args:
        folder: of the run; must be empty unless the run is resumed.
        resume: continue from the newest checkpoint in ``folder``, from the start if there is none.
        resume_from: continue from this checkpoint.
        init: a run that is not continued starts from the weights of this checkpoint instead of ``model.weights``.
        allow_changes: resume although settings that change the result differ from those of the checkpoint.
        dry_run: do one step on the first batch and one on the largest, describe them, and write nothing.
        torchvision: train torchvision's FasterRCNN with the same network, head, anchors and initial weights instead.
        stop: signals to obey.

    Raises:
        UserError: whatever is wrong with config, data, checkpoint or machine.
        Stopped: a signal came; the checkpoint is saved.
    """
    if torchvision and baseline_of(cfg.model) != cfg.model:
        raise ConfigError("--torchvision: its FasterRCNN has neither split nor context; use a config of Faster R-CNN")
    with ExitStack() as held:
        device = held.enter_context(distributed.process_group(cfg.run.device, cfg.run.timeout))
        start_logging()
        prepare(cfg, device)
        if cfg.run.tensorboard:
            distributed.on_main(check_tensorboard)
        if not dry_run:
            distributed.on_main(lambda: _claim(folder, resume or resume_from is not None, held))
        found = distributed.on_main(lambda: _find_checkpoint(folder, resume, resume_from))
        data, test, model = distributed.together(lambda: _read(cfg, found, allow_changes))
        record = _record(cfg, data.table)
        facts = {"settings": record["config"], "annotations": record["data_fingerprint"], "device": device.type}
        distributed.check_same(facts)
        state = None if found is None else found[1]
        if state is None:
            distributed.on_main(lambda: _look_over(cfg, data.table, test.table, model))
            load_initial_weights(model, cfg.model, init, data.table.classes)
        strides = [model.backbone.feature_specs[task].stride for task in TASKS]
        trained = to_device(torchvision_twin(cfg.model, model) if torchvision else model, device)
        optimizer = build.build_optimizer(cfg.train, trained)
        distributed.obey(stop)

        if dry_run:
            if state is not None:
                restore(state, model)
            first = next(_batches(cfg, data, device, 0, workers=0))
            return try_steps(model, optimizer, cfg, data.table, test, first, device)
        batches = _batches(cfg, data, device, 0 if state is None else state["step"], cfg.run.workers)
        finished = state is not None and state["step"] == cfg.train.steps
        if finished and distributed.on_main(lambda: is_evaluated(folder / "metrics.jsonl", cfg.train.steps)):
            distributed.on_main(lambda: check_same_evaluation(cfg, folder))
            logger.info("%s: finished; its recorded metrics follow", folder)
        else:
            if found is not None:
                warn_of_other_evaluation(cfg, found[1], found[0])
            distributed.on_main(lambda: _write_facts(folder, cfg, trained, strides, device))
            if state is None and cfg.eval.pictures:
                distributed.on_main(lambda: _draw_inputs(folder, cfg, data, model))

        evaluated: list[int] = []

        def evaluate_now(step: int) -> Metrics:
            evaluated.append(step)
            found = detect_all(trained, cfg, test, device, stop)
            table, into = build.counted(cfg.eval, test.table), folder / "eval" / f"step_{step}"
            return distributed.on_main(lambda: score(cfg, table, test, found, into, stop=stop))

        metrics = train_loop(
            trained, batches, optimizer, steps=cfg.train.steps,
            lr_at=partial(
                learning_rate, lr=cfg.train.lr, steps=cfg.train.steps, schedule=cfg.train.schedule,
                milestones=cfg.train.lr_steps, gamma=cfg.train.gamma, warmup=cfg.train.warmup,
                warmup_factor=cfg.train.warmup_factor,
            ),
            device=device, folder=folder, state=state, record=record, seed=cfg.run.seed,
            accumulate=cfg.train.accumulate, amp=AMP[cfg.run.amp], clip_grad_norm=cfg.train.clip_grad_norm,
            log_every=cfg.train.log_every, checkpoint_every=cfg.train.checkpoint_every, keep=cfg.train.keep,
            best=cfg.eval.best_metric, tensorboard=cfg.run.tensorboard,
            evaluate=evaluate_now, eval_every=cfg.train.eval_every, stop=stop,
        )  # fmt: skip
        if evaluated or not (folder / "report.html").exists():
            distributed.on_main(lambda: _report(folder, cfg))
        return metrics


def _batches(
    cfg: Config, data: build.Split, device: torch.device, start: int, workers: int
) -> Iterator[tuple[list[torch.Tensor], list[dict[str, Any]]]]:
    """Yields this process's batches from step ``start`` on."""
    return train_batches(
        data.table, data.read_image, seed=cfg.run.seed, batch=cfg.train.batch, steps=cfg.train.steps,
        start_step=start, accumulate=cfg.train.accumulate, rank=distributed.rank(), world=distributed.world_size(),
        workers=workers, flip=cfg.data.flip, drop_empty=cfg.data.drop_empty, pin_memory=device.type == "cuda",
        timeout=cfg.run.timeout,
    )  # fmt: skip


def _draw_inputs(folder: Path, cfg: Config, data: build.Split, model: Detector) -> None:
    with _dispensable(folder, "vis/inputs.png"):
        write_inputs(cfg, data, model.transform, folder / "vis" / "inputs.png")


def _report(folder: Path, cfg: Config) -> None:
    with _dispensable(folder, "report.html"):
        write_report(folder, cfg.train.steps, cfg.eval.pictures > 0)
        best = "".join(f", the best checkpoint {path}" for path in folder.glob("best-step_*.pt"))
        logger.info("the report is %s%s", folder / "report.html", best)


@contextmanager
def _dispensable(folder: Path, name: str) -> Iterator[None]:
    """Makes what a full disk refuses a warning: a file that is worth nothing beside the run."""
    try:
        yield
    except OSError as error:
        logger.warning("%s: no %s (%s)", folder, name, error.strerror or error)


def _claim(folder: Path, resume: bool, held: ExitStack) -> None:
    """Locks the run's folder for as long as ``held`` is open; one that holds another run is refused.

    A folder on a full or read-only disk is found out here, before data are read.
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
            logger.info("%s: no checkpoint yet; starting at step 0", folder)
        return found
    state = checkpoint.load(resume_from)
    if checkpoint.latest_step(folder / "checkpoints") > state["step"]:
        raise ConfigError(
            f"{folder}: holds later checkpoints than {resume_from}; choose another --output-dir or remove them"
        )
    return resume_from, state


def _read(
    cfg: Config, found: tuple[Path, dict[str, Any]] | None, allow_changes: bool
) -> tuple[build.Split, build.Split, Detector]:
    """Reads both splits and builds the model, after making sure that the checkpoint belongs to config and data."""
    data = build.build_train_split(cfg.data)
    test = build.build_test_split(cfg.data, data.table.classes)
    check_objects(build.counted(cfg.eval, test.table))
    if found is not None:
        path, state = found
        check_continuation(cfg, state, path, data.table, allow_changes)
        logger.info("resuming from %s", path)
    return data, test, build.build_model(cfg.model, len(data.table.classes) + 1, cfg.run.seed)


def _look_over(cfg: Config, train: Table, test: Table, model: Detector) -> None:
    """Warns of what is odd with the data; finds most of what would end the run later."""
    check_before_training(
        train, test, short=cfg.model.image.short, longest=cfg.model.image.max,
        stride=model.backbone.feature_specs[cfg.model.rpn.reads].stride, drop_empty=cfg.data.drop_empty,
        limit=cfg.eval.limit,
    )  # fmt: skip


def _record(cfg: Config, table: Table) -> dict[str, Any]:
    return {"config": dump_config(cfg), "classes": list(table.classes), "data_fingerprint": table.fingerprint()}


def _write_facts(folder: Path, cfg: Config, model: nn.Module, strides: list[int], device: torch.device) -> None:
    fileio.write_durably(folder / "config.yaml", dump_config(cfg).encode())
    formats = {part: str(form) for part, form in memory_formats(device).items()}
    parameters = count_parameters(model)
    write_environment(folder / "env.json", device, {"memory_formats": formats, "parameters": parameters})
    images = cfg.train.batch
    logger.info(
        "%s: %.1f M parameters, strides %s, %d steps of %d image%s, lr %g (scale lr with the batch: %g per image)",
        folder, parameters / 1e6, "/".join(map(str, strides)),
        cfg.train.steps, images, "s" * (images > 1), cfg.train.lr, cfg.train.lr / images,
    )  # fmt: skip
