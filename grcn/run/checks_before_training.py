"""Checks the data of a training before it starts, in about 0.1 seconds, and warns of oddities."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from grcn.build import Training
from grcn.config.schema import ShapesDataConfig
from grcn.data.annotations import Annotations
from grcn.data.faults import Fault
from grcn.data.findings import Finding, check_tables, finding, images_at
from grcn.data.images import UNUSED, Header, read_header, read_row
from grcn.data.loader import usable_rows
from grcn.run.anchor_fit import AnchorSet, objects_alone

logger = logging.getLogger("grcn")

SAMPLE = 200  # images of a split whose header is read
DECODED = 4  # 16-bit images of them that are decoded
MOST_WARNINGS = 4


def check_training(training: Training) -> None:
    """Checks the data of a training; see :func:`check_before_training`."""
    cfg = training.cfg
    anchors = AnchorSet.of(training.model.rpn)
    check_before_training(
        training.train.table, training.test.table, short=cfg.model.image.largest, longest=cfg.model.image.max,
        stride=min(anchors.strides), drop_empty=cfg.data.drop_empty, limit=cfg.eval.limit,
        bits=None if isinstance(cfg.data, ShapesDataConfig) else cfg.data.bits,
        anchors=anchors,
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
    bits: int | None = None,
    anchors: AnchorSet | None = None,
) -> None:
    """Logs a few warnings about a data set that is about to be trained on.

    Reads 400 headers and decodes 8 images of 16 bits, in about 0.1 seconds. Generated data need no check.

    Args:
        train, test, short, longest, drop_empty: as in :func:`grcn.data.findings.check_tables`.
        limit: how many images of ``test`` will be read, None for all; the classes are those of all images.
        bits: as in :func:`grcn.data.images.read_image`.
        anchors: those of the network; None checks none.

    Raises:
        DataError: an image of the sample cannot be used, which would end training when its turn comes.
    """
    if not train.root:
        return
    # The most serious findings come first, since only a few warnings are shown.
    found = [] if anchors is None else objects_alone(train, short, longest, anchors)
    splits = (train, "train", usable_rows(train, drop_empty)), (test, "test", np.arange(len(test))[:limit])
    for table, split, rows in splits:
        sample = read_headers(table, rows, SAMPLE)
        for fault in odd_images(table, sample):
            raise fault
        found += odd_headers(table, split, sample, bits)
    found += check_tables(train, test, short=short, longest=longest, stride=stride)
    warnings = [one for one in found if one.severity == "warning"]
    for one in warnings[:MOST_WARNINGS]:
        logger.warning("%s: %s", one.split, one.text)
    if len(warnings) > MOST_WARNINGS:
        logger.warning("%d more such warnings; grcn check-data lists all", len(warnings) - MOST_WARNINGS)


Sample = Sequence[tuple[int, Header | None]]


def read_headers(table: Annotations, rows: np.ndarray, most: int) -> Sample:
    """Reads the headers of some images, evenly spread: each row, and None where there is no image."""
    # A pipe or a device under the name of an image would block for ever.
    paths = ((row, table.path(row)) for row in _spread(rows, most).tolist())
    return [(row, read_header(path) if os.path.isfile(path) else None) for row, path in paths]


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def odd_images(table: Annotations, sample: Sample) -> Iterator[Fault]:
    """Yields the faults of images of a sample; they are decoded only if their header is odd."""
    for row, header in sample:
        if header is None or header.size != _size(table, row) or header.orientation > 4:
            try:
                read_row(table, row)
            except Fault as fault:
                yield name_image(fault, table, row)


def odd_headers(table: Annotations, split: str, sample: Sample, bits: int | None) -> list[Finding]:
    """Finds images of a sample that are rotated where sizes do not show it, and 16-bit ones that become dark."""
    known = [(row, header) for row, header in sample if header is not None]
    of = f"of {len(sample)} looked at"
    found = []
    # Others of another orientation are annotated with their size as displayed, so their boxes are too.
    turned = [(row, header) for row, header in known if header.orientation != 1 and header.size == _size(table, row)]
    if turned:
        more = f"{count_tags(header.orientation for _, header in turned)}, {of}"
        found.append(finding("image-rotated", split, len(turned), images_at(table, [row for row, _ in turned]), more))
    largest = {}
    for row in _spread(np.array([row for row, header in known if is_16_bit(header.mode)]), DECODED).tolist():
        try:
            largest[row] = int(read_row(table, row, bits).max())
        except Fault:  # found when all images are decoded
            continue
    if largest and max(largest.values()) < UNUSED:
        more = f"{bits_in_use(largest.values(), bits)}, {len(largest)} looked at"
        found.append(finding("image-dark", split, len(largest), images_at(table, largest), more))
    return found


def count_tags(orientations: Iterable[int]) -> str:
    """Counts EXIF orientations, the most frequent first."""
    return ", ".join(f"tag {tag}: {count}" for tag, count in Counter(orientations).most_common())


def is_16_bit(mode: str) -> bool:
    """Whether an image of Pillow's ``mode`` is 16-bit grey."""
    return mode.startswith("I;16")


def bits_in_use(largest: Iterable[int], bits: int | None) -> str:
    """Describes how many bits 16-bit images use, by their largest values as read with ``bits``."""
    used = (bits or 16) - 8 + max(largest).bit_length()
    return f"grey ones use {used} of 16 bits: data.bits={max(8, used)}"


def _size(table: Annotations, row: int) -> tuple[int, int]:
    height, width = table.sizes[row].tolist()
    return height, width


def name_image(fault: Fault, table: Annotations, row: int) -> Fault:
    """Records in a fault which image it is of, and gives it a kind for images."""
    fault.image = os.fsdecode(table.files[row])
    if not fault.kind.startswith("image-"):
        fault.kind = "image-broken"
    return fault
