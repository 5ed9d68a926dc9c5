"""Draws the first images of a training as the network sees them, with ground truth."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from grcn.build import Training, build_batches
from grcn.data.annotations import Annotations
from grcn.engine.evaluate import move_images, move_targets
from grcn.vis.boxes import contact_sheet, title_of
from grcn.vis.image_file import write_picture
from grcn.vis.samples import Sample, inputs_of

_MOST = 8  # images


def draw_inputs(training: Training, path: Path) -> None:
    """Draws images of the first batch of a training, unless ``eval.pictures`` is 0.

    Raises:
        OSError: the picture cannot be written.
        DataError: an image cannot be read.
    """
    cfg, transform, table = training.cfg, training.model.transform, training.train.table
    if not cfg.eval.pictures:
        return
    device = transform.mean.device
    samples: list[Sample] = []
    # One by one, so that no more are read than are drawn; this changes neither the images nor their augmentation.
    batches = build_batches(cfg, training.train, accumulate=cfg.train.batch, workers=0, alone=True)
    for images, targets in itertools.islice(batches, min(_MOST, cfg.train.batch)):
        samples += inputs_of(transform, move_images(images, device), move_targets(targets, device))
    path.parent.mkdir(exist_ok=True)
    titles = [sample_title(table, sample) for sample in samples]
    shown = [sample.image for sample in samples], [sample.target for sample in samples]
    write_picture(contact_sheet(*shown, table.classes, titles=titles), path)


def sample_title(table: Annotations, sample: Sample) -> str:
    """Returns the title of a sample: the name of its image, and the augmentations applied to it."""
    number = int(sample.target["image_id"])
    row = int(np.flatnonzero(table.image_ids == number)[0]) if table.has_ids else number
    return ", ".join([title_of(table, row), *sample.target["augmented"]])
