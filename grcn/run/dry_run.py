"""Dry run: tries the first batch and the largest possible batch, and describes the run."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grcn.build import Training, amp_dtype
from grcn.data.annotations import Annotations
from grcn.engine import checkpoint
from grcn.engine.average import WeightAverage
from grcn.engine.checkpoint import restore
from grcn.engine.evaluate import are_finite, detect, move_images, move_targets
from grcn.engine.step import peak_mb, training_step
from grcn.errors import NonFiniteError
from grcn.models.detector import Detector

logger = logging.getLogger("grcn")


def dry_run(
    training: Training,
    optimizer: torch.optim.Optimizer,
    ema: WeightAverage | None,
    state: dict[str, Any] | None,
    device: torch.device,
) -> dict[str, float | None]:
    """Does a step on the first batch and one on the largest possible, detects in two test images, and saves and reads
    a checkpoint, in a temporary folder. Leaves nothing behind.

    Args:
        training: its model is on ``device``.
        ema: the average of its weights, which takes memory and disk too.
        state: a checkpoint whose weights are tried; None for those of the model.

    Returns:
        the losses of the first batch.
    """
    model, train_table, test = training.model, training.train.table, training.test
    dtype = amp_dtype(training.cfg.run)
    amp = torch.autocast(device.type, dtype, enabled=dtype is not None)
    if state is not None:
        restore(state, model)
    first = next(training.batches(device, workers=0))

    def step(images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        return training_step(model, optimizer, move_images(images, device), move_targets(targets, device), amp)

    losses: dict[str, float | None] = {name: value.item() for name, value in step(*first).items()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("trains %d parameters on %d images of %s", trained, len(train_table), train_table.name)
    logger.info("tests on %d images of %s", len(test.table), test.table.name)
    logger.info("classes: %s", ", ".join(test.table.classes))

    images, targets = _largest(model, train_table, training.cfg.train.batch, len(first[0]))
    step(images, targets)
    if not are_finite(model.parameters()):
        raise NonFiniteError("weights are not finite after two steps; lower train.lr")
    batch = model.transform(images, targets)[0]
    logger.info(
        "largest batch of a process: %d x %d x %d pixels, %d objects in each image; peak memory %.0f MB",
        len(images), *batch.tensors.shape[-2:], len(targets[0]["boxes"]), peak_mb(device),
    )  # fmt: skip
    rows = range(min(2, len(test.table)))
    images_read = (([row], [test.read_image(row)]) for row in rows)
    found = detect(model, images_read, device, amp=dtype, progress=False)
    logger.info("detected in %d test images: %d boxes", len(rows), len(found["rows"]))
    logger.info("a checkpoint takes %.0f MB", _saved_megabytes(model, optimizer, ema))
    return losses


def _saved_megabytes(model: Detector, optimizer: torch.optim.Optimizer, ema: WeightAverage | None) -> float:
    """Saves a checkpoint, reads it back and returns its size."""
    with tempfile.TemporaryDirectory() as folder:
        state = {"format": checkpoint.FORMAT, "step": 0, "losses": []}
        state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {} if ema is None else {"ema": ema.state()}
        path = checkpoint.save(Path(folder), state, keep=1)
        restore(checkpoint.load(path), model, optimizer)
        return path.stat().st_size / 1e6


def _largest(
    model: Detector, table: Annotations, step_images: int, images: int
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Makes blank images of the largest size after resizing, with as many objects as any image of the table."""
    originals = [(height, width) for height, width in np.unique(table.sizes, axis=0).tolist()]
    resized = [model.transform.resized(size) for size in originals]
    area = max(range(len(originals)), key=lambda i: resized[i][0] * resized[i][1])
    extremes = [max(range(len(originals)), key=lambda i: resized[i][side]) for side in (0, 1)]
    # A batch is padded to its tallest and its widest image, which may be different ones.
    size, together = originals[area], [originals[i] for i in ([area, *extremes] if step_images > 1 else [area])]
    crowded = int(np.diff(table.offsets).argmax())
    objects = table.objects(crowded)
    scale = np.tile(np.array(size[::-1]) / table.sizes[crowded, ::-1], 2)
    target = {
        "boxes": torch.from_numpy(table.boxes[objects] * scale).float(),
        "labels": torch.from_numpy(table.labels[objects].astype(np.int64)),
        "batch_sizes": together,
    }
    return [torch.zeros(3, *size, dtype=torch.uint8)] * images, [target] * images
