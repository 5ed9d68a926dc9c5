"""Scores a checkpoint, pretrained weights or a file of detections on the test splits, for ``grcn eval``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from grcn import build
from grcn.config.schema import Config, DataConfig, ShapesDataConfig
from grcn.data import coco as coco_files
from grcn.data import voc_results as voc_files
from grcn.data.annotations import Annotations
from grcn.data.dataset import DetectionDataset
from grcn.data.loader import eval_batches
from grcn.engine import checkpoint, distributed
from grcn.engine.evaluate import detect
from grcn.engine.recorder import Metrics
from grcn.engine.signals import StopSignals
from grcn.errors import ConfigError, DataError
from grcn.fileio import few
from grcn.models.compiled import compile_parts
from grcn.models.detector import Detector
from grcn.models.layer_names import in_first_stage
from grcn.models.memory_format import to_device
from grcn.run.backend import prepare, with_precision
from grcn.run.load_detector import check_classes, load_detector, load_initial_weights
from grcn.run.read_weights import resolve
from grcn.run.results import score


def folder_beside(given: Path, kind: str) -> Path:
    """Returns the folder for results from a checkpoint, ``<run>/eval/<name>-<kind>``, or from detections."""
    given = resolve(given)
    beside = checkpoint.folder_of(given)
    if beside != given.parent or (beside / "env.json").exists():  # the best of a run lies in its folder
        beside /= "eval"
    return beside / f"{given.stem}-{kind}"


def evaluate(
    cfg: Config,
    folder: Path,
    *,
    weights: Path | None = None,
    detections: Path | None = None,
    initial: bool = False,
    allow_changes: bool = False,
    stop: StopSignals | None = None,
) -> Metrics:
    """Scores a checkpoint, or a file of detections, on the test splits; writes all results into ``folder``.

    Args:
        weights: a checkpoint.
        initial: score the detector of ``model.weights``, without any training.
        allow_changes: evaluate even if settings of the model differ from those that it was trained with.
        detections: COCO result JSON, or a folder of VOC devkit files ``comp4_det_<split>_<class>.txt``.
        stop: signals that end it early.
    """
    with found_detections(cfg, weights, detections, allow_changes, stop, initial) as (table, test, found):
        return distributed.on_main(lambda: score(cfg, table, test, found, folder, devkit=True, stop=stop))


@contextmanager
def found_detections(
    cfg: Config,
    weights: Path | None,
    detections: Path | None,
    allow_changes: bool,
    stop: StopSignals | None,
    initial: bool = False,
) -> Iterator[tuple[Annotations, DetectionDataset, dict[str, np.ndarray]]]:
    """Detects in the test images with a checkpoint, or reads a file of detections; arguments as in :func:`evaluate`.

    Yields the annotations of the images to score (``eval.limit``), the test split, and the packed detections. The
    processes of torchrun stay together until the context is left.
    """
    with distributed.process_group(cfg.run.device, cfg.run.timeout) as device:
        prepare(cfg, device)
        cfg = with_precision(cfg, device)
        if weights is not None:
            test, model = distributed.together(lambda: _read_to_evaluate(cfg, weights, device, allow_changes))
        elif initial:
            test, model = _build_initial(cfg, device)
        elif detections is not None:
            test, found = distributed.together(lambda: _read_detections(cfg, detections))
        else:
            raise ConfigError("nothing to evaluate; give --checkpoint, --detections or --initial")
        if detections is None:
            if cfg.run.compile != "none":
                compile_parts(model, cfg.run.compile)
            distributed.raise_if_stopped(stop)
            found = detect_all(model, cfg, test, device, stop)
        yield build.limit_images(cfg.eval, test.table), test, found


def detect_all(
    model: Detector, cfg: Config, test: DetectionDataset, device: torch.device, stop: StopSignals | None
) -> dict[str, np.ndarray]:
    """Detects in all test images, in all processes."""
    images = test.first(cfg.eval.limit)
    rank, world = distributed.rank(), distributed.world_size()
    batches = eval_batches(
        images, rank=rank, world=world, workers=cfg.run.workers, pin_memory=device.type == "cuda",
        timeout=cfg.run.timeout,
    )  # fmt: skip
    share = len(range(rank, len(images), world))
    return detect(model, batches, device, total=share, amp=build.amp_dtype(cfg.run), stop=stop)


def _read_to_evaluate(
    cfg: Config, weights: Path, device: torch.device, allow_changes: bool
) -> tuple[DetectionDataset, Detector]:
    detector = load_detector(weights, device, cfg=cfg, allow_changes=allow_changes)
    try:
        test = build.build_test_split(cfg.data, detector.classes)
    except DataError:
        _check_own_classes(cfg.data, detector.classes, weights)
        raise
    # The built-in data have their own classes, regardless of the model's.
    check_classes(detector.classes, weights, test.table.classes)
    return test, detector.model


def _build_initial(cfg: Config, device: torch.device) -> tuple[DetectionDataset, Detector]:
    if cfg.model.weights is None:
        raise ConfigError("model.weights: null: nothing to evaluate before training; give weights of a detector")
    test = distributed.together(lambda: build.build_test_split(cfg.data, build.class_names(cfg.data)))
    classes = test.table.classes
    model = build.build_model(cfg.model, len(classes) + 1, cfg.run.seed)
    new = load_initial_weights(model, cfg.model, None, classes, cfg.data.same_as)
    if random := [name for name in new if in_first_stage(name).startswith(("rpn.", "roi_heads.heads."))]:
        what = f"no detector like this model, whose {few(random)} are random"
        raise ConfigError(f"model.weights: {cfg.model.weights} is {what}; set COCO_V1, or torchvision:FILE of one")
    return test, to_device(model, device)


def _check_own_classes(cfg: DataConfig, classes: Sequence[str], weights: Path) -> None:
    """Refuses a checkpoint if test splits that cannot be read with its classes can be with the data's own.

    Those are the training splits', as a test split need not have all; or the test splits', without training data.
    """
    if isinstance(cfg, ShapesDataConfig):
        return
    with suppress(DataError):  # the data are faulty in any case, which the first error reports
        try:
            own = build.read_annotations(cfg, "train", cfg.classes).classes
        except DataError:
            own = build.read_annotations(cfg, "test", cfg.classes).classes
        check_classes(classes, weights, build.build_test_split(cfg, own).table.classes)


def _read_detections(cfg: Config, path: Path) -> tuple[DetectionDataset, dict[str, np.ndarray]]:
    test = build.build_test_split(cfg.data, build.class_names(cfg.data))
    return test, read_detections(cfg, test.table, path)


def read_detections(cfg: Config, table: Annotations, path: Path) -> dict[str, np.ndarray]:
    """Reads detections in the images of a test split that are scored (``eval.limit``).

    Args:
        table: of the whole split.
        path: COCO result JSON, or a folder of VOC devkit files.
    """
    if path.is_dir():
        found = voc_files.read_detections(path, table)
    else:
        found = coco_files.read_detections(path, table, getattr(cfg.data, "strict", False))
    known = found["rows"] < len(build.limit_images(cfg.eval, table))
    return {key: values[known] for key, values in found.items()}
