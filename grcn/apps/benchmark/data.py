"""Times what surrounds a model: image loading, beside torchvision's, and the scoring of detections."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.functional import convert_image_dtype, pil_to_tensor

from grcn.build import build_batches
from grcn.config.schema import Config, ShapesDataConfig
from grcn.data.annotations import Annotations
from grcn.data.dataset import DetectionDataset
from grcn.data.images import FileImages
from grcn.data.synthetic import dataset as shapes
from grcn.data.validate import pack
from grcn.evaluation import coco, voc

_HEIGHT, _WIDTH = 480, 640
_REPEATS = 5


def loader_rate(cfg: Config, images: int = 64) -> dict[str, float | None]:
    """Times the loading of training batches, on made-up JPEG files of 640 x 480 pixels or on the config's shapes.

    The contents of ``data.root`` are not read. The files have been read before, so no disk is timed.

    Args:
        cfg: a whole config; its batch, workers, flips and image size are used.
        images: how many are made; each is loaded at least once before it is timed.

    Returns:
        ``loader_img_s``, images per second of wall time that ``run.workers`` processes deliver while nothing else
        runs; ``loader_cpu_ms``, CPU time of a worker for one image, in this process and thread;
        ``reference_cpu_ms``, that of torchvision for the same file (decode, float, normalise, resize, pad), None
        for shapes. Both are medians of five rounds.
    """
    with tempfile.TemporaryDirectory(prefix="grcn-benchmark-") as folder:
        data = _data(cfg, images, folder)
        table = data.table
        passes: list[Callable[[], None]] = [
            lambda: _exhaust(build_batches(cfg, data, batch=1, accumulate=1, steps=images, workers=0, alone=True))
        ]
        if table.root:
            passes.append(lambda: _read_as_torchvision(table, cfg.model.image.largest, cfg.model.image.max))
        ours, *reference = (1000 * seconds / images for seconds in _cpu_seconds(passes))
        count = images + 2 * cfg.run.workers * cfg.train.batch  # more than the workers read ahead
        steps = -(-2 * count // cfg.train.batch)
        rate = _rate(build_batches(cfg, data, accumulate=1, steps=steps, alone=True), count)
    return {
        "loader_img_s": rate,
        "loader_cpu_ms": ours,
        "reference_cpu_ms": reference[0] if reference else None,
    }


def data_wait_ms(cfg: Config, step: Callable[[], object], batch: int, steps: int) -> float:
    """Times how long training steps wait for their images, with ``run.workers`` processes that read them.

    Args:
        cfg: a whole config, see :func:`loader_rate`.
        step: does a step, with other images.
        batch: images of a step.
        steps: how many are done, after one that is not timed.

    Returns:
        The median, in milliseconds.
    """
    waits = []
    with tempfile.TemporaryDirectory(prefix="grcn-benchmark-") as folder:
        data = _data(cfg, max(8, batch), folder)
        batches = build_batches(cfg, data, batch=batch, accumulate=1, steps=steps + 1, alone=True)
        next(batches)
        for _ in range(steps):
            step()
            start = time.perf_counter()
            next(batches)
            waits.append(1000 * (time.perf_counter() - start))
    return statistics.median(waits)


def evaluation_seconds(images: int, per_image: int = 100, classes: int = 80) -> dict[str, float | str]:
    """Times both protocols on made-up detections, conversions included.

    Args:
        images: of 640 x 480 pixels, with seven objects each.
        per_image: detections per image, of which six in ten are of the class of an object that they overlap.
        classes: number of classes.

    Returns:
        ``coco_s`` and ``voc_s``, CPU seconds over all threads; ``backend``, which computed COCO's figures.
    """
    generator = np.random.default_rng(0)
    few = _scored(generator, 2, per_image, classes)
    coco.evaluate(*few)  # imports what it needs
    table, found = _scored(generator, images, per_image, classes)
    start = time.process_time()
    backend = coco.evaluate(table, found)["backend"]
    between = time.process_time()
    voc.evaluate(table, found)
    return {"coco_s": between - start, "voc_s": time.process_time() - between, "backend": backend}


def _data(cfg: Config, images: int, folder: str) -> DetectionDataset:
    """Makes some images to train on; files are written into ``folder``."""
    data = cfg.data
    if isinstance(data, ShapesDataConfig):
        table = shapes.load(data.level, "train", images, data.size, data.seed)
        return DetectionDataset(table, shapes.ShapesImages(data.level, "train", data.size, data.seed))
    generator = np.random.default_rng(0)
    names = [f"{row:06d}.jpg" for row in range(images)]
    for name in names:
        _photograph(generator).save(Path(folder, name), quality=90)
    table = _table(generator, images, 20, names, folder)
    return DetectionDataset(table, FileImages(table))


def _photograph(generator: np.random.Generator) -> Image.Image:
    """Makes an image of soft patches and grain, which takes about as long to decode as a photograph."""
    patches = generator.integers(0, 256, (_HEIGHT // 20, _WIDTH // 20, 3), dtype=np.uint8)
    smooth = Image.fromarray(patches).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
    grain = generator.normal(0, 12, (_HEIGHT, _WIDTH, 1))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def _table(
    generator: np.random.Generator, images: int, classes: int, files: list[str] | None = None, root: str = ""
) -> Annotations:
    """Makes seven objects per image, from 12 to 300 pixels long."""
    count = 7 * images
    sides = np.exp(generator.uniform(2.5, 5.7, (count, 2)))
    corners = generator.uniform(0, 1, (count, 2)) * (np.array([_WIDTH, _HEIGHT]) - sides)
    return pack(
        "made up",
        [f"class {label}" for label in range(1, classes + 1)],
        image_ids=range(images),
        files=files,
        root=root,
        sizes=np.tile([_HEIGHT, _WIDTH], (images, 1)),
        rows=np.arange(count) % images,
        boxes=np.concatenate([corners, corners + sides], axis=1),
        labels=generator.integers(1, classes + 1, count),
    )


def _scored(
    generator: np.random.Generator, images: int, per_image: int, classes: int
) -> tuple[Annotations, dict[str, np.ndarray]]:
    """Makes objects, and detections around them."""
    table = _table(generator, images, classes)
    rows = np.repeat(np.arange(images), per_image)
    objects = table.offsets[rows] + generator.integers(0, 7, len(rows))
    boxes, labels = table.boxes[objects], table.labels[objects].astype(np.int64)
    sides = boxes[:, 2:] - boxes[:, :2]
    moved = boxes + 0.15 * generator.normal(size=boxes.shape) * np.tile(sides, 2)
    corners = np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    others = generator.random(len(rows)) > 0.6
    labels[others] = generator.integers(1, classes + 1, others.sum())
    scores = generator.random(len(rows), dtype=np.float32)
    return table, {"rows": rows, "boxes": corners.astype(np.float32), "scores": scores, "labels": labels}


def _read_as_torchvision(table: Annotations, short: int, longest: int) -> None:
    """Reads every image as torchvision's reference training and its detectors' transform do."""
    transform = GeneralizedRCNNTransform(short, longest, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()
    for row in range(len(table)):
        with Image.open(table.path(row)) as image:
            transform([convert_image_dtype(pil_to_tensor(image.convert("RGB")), torch.float32)])


def _cpu_seconds(passes: list[Callable[[], None]]) -> list[float]:
    """Runs all in turn, on one thread as in a worker; returns the median CPU seconds of each, after a warm-up round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: list[list[float]] = [[] for _ in passes]
    try:
        for _ in range(_REPEATS + 1):
            for run, seconds in zip(passes, found, strict=True):
                start = time.process_time()
                run()
                seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return [statistics.median(seconds[1:]) for seconds in found]


def _rate(batches: Iterable[tuple[list[Tensor], object]], count: int) -> float:
    """Returns images per second after the first ``count``, when all workers have started."""
    seen = counted = 0
    start = end = 0.0
    for images, _ in batches:
        end = time.perf_counter()
        seen += len(images)
        if start:
            counted += len(images)
        elif seen >= count:
            start = end
    return counted / (end - start)


def _exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass
