"""Builds data sets, their classes and training batches from the ``data`` section of a config."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Literal

from grcn.catalog import COCO_CLASSES, SHAPES_CLASSES, VOC_CLASSES
from grcn.config.schema import Config, DataConfig, EvalConfig, FilesDataConfig, ShapesDataConfig
from grcn.data import coco, voc, yolo
from grcn.data.annotations import Annotations
from grcn.data.augment import Augmentation, ColorJitter, HorizontalFlip, RandomCrop
from grcn.data.dataset import DetectionDataset
from grcn.data.faults import Notes, Report
from grcn.data.images import FileImages
from grcn.data.loader import TrainBatch, train_batches
from grcn.data.synthetic import dataset as shapes
from grcn.engine import distributed
from grcn.errors import DataError, one_line

_READERS = {"voc": voc.load, "coco": coco.load, "yolo": yolo.load}


def build_train_split(cfg: DataConfig) -> DetectionDataset:
    """Reads the annotations to train on."""
    return _split(cfg, "train", cfg.classes if isinstance(cfg, FilesDataConfig) else None)


def class_names(cfg: DataConfig) -> tuple[str, ...] | None:
    """Returns the classes of a model trained on this data; None where the test split itself names them all.

    In VOC's layout without ``data.classes`` they are those of the training split. Only where that cannot be read, and
    the test split has VOC's classes, are they VOC's.
    """
    if isinstance(cfg, ShapesDataConfig) or cfg.classes is not None or cfg.format != "voc":
        return cfg.classes if isinstance(cfg, FilesDataConfig) else None
    try:
        return read_annotations(cfg, "train", None).classes
    except DataError:
        if read_annotations(cfg, "test", None).classes != VOC_CLASSES:
            raise
        return None


def usual_classes(cfg: DataConfig) -> tuple[str, ...]:
    """Returns the default classes of a data set of this format, or those of the config; reads nothing."""
    if isinstance(cfg, ShapesDataConfig):
        return cfg.classes or SHAPES_CLASSES[cfg.level]
    return cfg.classes or (VOC_CLASSES if cfg.format == "voc" else COCO_CLASSES)


def build_test_split(cfg: DataConfig, classes: tuple[str, ...] | None) -> DetectionDataset:
    """Reads the annotations to evaluate on.

    Args:
        cfg: the ``data`` section.
        classes: those of the model: a class that it does not know is an error. None takes them from the split.
    """
    return _split(cfg, "test", classes)


def limit_images(cfg: EvalConfig, table: Annotations) -> Annotations:
    """Returns the images of a test split to evaluate on: all, or the first ``eval.limit``."""
    return table if cfg.limit is None else table.first(cfg.limit)


def _split(cfg: DataConfig, side: Literal["train", "test"], classes: tuple[str, ...] | None) -> DetectionDataset:
    if isinstance(cfg, ShapesDataConfig):
        count, split = (cfg.train_images, side) if side == "train" else (cfg.test_images, cfg.test)
        table = shapes.load(cfg.level, split, count, cfg.size, cfg.seed)
        table = table if cfg.classes is None else table.only(cfg.classes)
        return DetectionDataset(table, shapes.ShapesImages(cfg.level, split, cfg.size, cfg.seed))
    table = read_annotations(cfg, side, classes)
    return DetectionDataset(table, FileImages(table, cfg.bits))


def read_annotations(
    cfg: FilesDataConfig,
    side: Literal["train", "test"],
    classes: tuple[str, ...] | None,
    report: Report | None = None,
    notes: Notes | None = None,
) -> Annotations:
    """Reads the annotations of one side of a data set on disk; its images need not exist.

    Args:
        report: called with every fault; without it, the first one is raised.
        notes: counts lenient readings; without it, a warning is logged.

    Raises:
        DataError: as the readers do; or there is no folder to read.
    """
    exists = os.path.isdir(cfg.folder)
    try:
        own = Notes(cfg.strict) if notes is None else notes
        table = _READERS[cfg.format](cfg.folder, getattr(cfg, side), classes, report if exists else None, own)
        if notes is None:
            own.log(table.name)
        return table
    except DataError as error:
        if exists or "set data.root=" in str(error):  # it names where the data are instead
            raise
        what, remedy = _no_folder(cfg.root)
        raise DataError(one_line(f"data.root: {what} (got {cfg.root!r}); {remedy}")) from error


def _no_folder(root: str) -> tuple[str, str]:
    """Describes a ``data.root`` that is no folder, and the fix."""
    if re.match(r"\w+://", root):
        return "an address, not a folder", "download the data and set it to their folder"
    if windows := re.match(r"([A-Za-z]):[\\/]+(.*)", root):
        drive, rest = windows[1].lower(), windows[2].replace("\\", "/")
        return "a Windows path, invalid on this machine", f"set it to the folder here, as /mnt/{drive}/{rest} in WSL"
    return "no such folder", "set it to the folder of the data"


def build_augmentations(cfg: DataConfig) -> tuple[Augmentation, ...]:
    """Builds the augmentations of ``data.flip`` and ``data.augment``."""
    crop, color = cfg.augment.crop, cfg.augment.color
    found: list[Augmentation] = [HorizontalFlip(cfg.flip)]  # always first, so that the draws of others do not change
    if crop.prob:
        found.append(RandomCrop(crop.prob, crop.scale, crop.min_kept))
    if any((color.brightness, color.contrast, color.saturation, color.hue)):
        found.append(ColorJitter(color.brightness, color.contrast, color.saturation, color.hue))
    return tuple(found)


def build_batches(
    cfg: Config,
    data: DetectionDataset,
    *,
    start_step: int = 0,
    steps: int | None = None,
    batch: int | None = None,
    accumulate: int | None = None,
    workers: int | None = None,
    pin_memory: bool = False,
    alone: bool = False,
) -> Iterator[TrainBatch]:
    """Yields this process's micro-batches of a training, as :func:`grcn.data.loader.train_batches` documents them.

    Args:
        start_step: the first step.
        steps: the step to stop before; None for ``train.steps``.
        batch, accumulate, workers: None for the config's.
        alone: yield the micro-batches of all processes.
    """
    return train_batches(
        data,
        seed=cfg.run.seed,
        batch=cfg.train.batch if batch is None else batch,
        steps=cfg.train.steps if steps is None else steps,
        start_step=start_step,
        accumulate=cfg.train.accumulate if accumulate is None else accumulate,
        rank=0 if alone else distributed.rank(),
        world=1 if alone else distributed.world_size(),
        workers=cfg.run.workers if workers is None else workers,
        augment=build_augmentations(cfg.data),
        drop_empty=cfg.data.drop_empty,
        pin_memory=pin_memory,
        timeout=cfg.run.timeout,
    )
