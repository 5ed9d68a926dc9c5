"""Checks what a training is about to read, in about 0.1 seconds, and warns of what is odd with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import numpy as np

from grcn.build import Training
from grcn.data.annotations import Annotations
from grcn.data.faults import Fault
from grcn.data.findings import check_tables
from grcn.data.images import read_header, read_row
from grcn.data.loader import usable_rows

logger = logging.getLogger("grcn")

SAMPLE = 200  # images of a split of which the header is read
MOST_WARNINGS = 4


def check_training(training: Training) -> None:
    """Checks the data of a training; see :func:`check_before_training`."""
    cfg = training.cfg
    check_before_training(
        training.train.table, training.test.table, short=cfg.model.image.largest, longest=cfg.model.image.max,
        stride=training.model.backbone.feature_specs[cfg.model.rpn.reads].stride, drop_empty=cfg.data.drop_empty,
        limit=cfg.eval.limit,
    )  # fmt: skip


def check_before_training(
    train: Annotations,
    test: Annotations,
    *,
    short: int,
    longest: int,
    stride: int,
    drop_empty: bool,
    limit: int | None = None,
) -> None:
    """Logs a few warnings about a data set that is about to be trained on; reads 400 headers, in about 0.1 seconds.

    Generated data are as they should be. Arguments as of :func:`grcn.data.findings.check_tables`, and

    Args:
        limit: how many images of ``test`` will be read, None for all; which classes there are, all of them say.

    Raises:
        DataError: an image of the sample cannot be used, which would end training when its turn comes.
    """
    if not train.root:
        return
    for table, rows in ((train, usable_rows(train, drop_empty)), (test, np.arange(len(test))[:limit])):
        for fault in odd_images(table, rows, SAMPLE):
            raise fault
    found = check_tables(train, test, short=short, longest=longest, stride=stride)
    warnings = [one for one in found if one.severity == "warning"]
    for one in warnings[:MOST_WARNINGS]:
        logger.warning("%s: %s", one.split, one.text)
    if len(warnings) > MOST_WARNINGS:
        logger.warning("%d more such warnings; tools/check_data.py lists all", len(warnings) - MOST_WARNINGS)


def odd_images(table: Annotations, rows: np.ndarray, most: int) -> Iterator[Fault]:
    """Yields what is wrong with images among a sample, evenly spread: they are decoded only if their header is odd."""
    chosen = rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    for row in chosen.tolist():
        path, size = table.path(row), tuple(table.sizes[row].tolist())
        # A pipe or a device under the name of an image would block for ever.
        header = read_header(path) if os.path.isfile(path) else None
        if header is None or header.size != size or header.orientation > 4:
            try:
                read_row(table, row)
            except Fault as fault:
                yield name_image(fault, table, row)


def name_image(fault: Fault, table: Annotations, row: int) -> Fault:
    """Says in a fault which image it is of, and that it is of one."""
    fault.image = os.fsdecode(table.files[row])
    if not fault.kind.startswith("image-"):
        fault.kind = "image-broken"
    return fault
