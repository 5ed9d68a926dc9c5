"""Checks the image files of a data set: finds missing, broken, rotated, wrongly sized and duplicate ones."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from grcn.data.annotations import Annotations
from grcn.data.faults import Fault, read_bytes
from grcn.data.findings import MOST_EXAMPLES, Example, FaultCounter, Finding, finding, images_at, name_of
from grcn.data.images import DARK, UNUSED, missing_rows, read_header, read_row
from grcn.data.workers import read_ahead
from grcn.run.checks_before_training import (
    SAMPLE,
    bits_in_use,
    count_tags,
    is_16_bit,
    name_image,
    odd_headers,
    odd_images,
    read_headers,
)

logger = logging.getLogger("grcn")


class ImageFacts(NamedTuple):
    """Facts about one image file.

    Attributes:
        row: the image's in the table.
        fault: why it cannot be used; None if it can.
        mode: Pillow's name of the channels; empty where the header is unreadable.
        orientation: the EXIF tag; 1 is stored as displayed.
        largest: maximum of its pixels as they are read, 0-255; None if it has none.
        contents, pixels: SHA-256 of the file and of the decoded image; empty where there is none.
    """

    row: int
    fault: Fault | None
    mode: str = ""
    orientation: int = 1
    largest: int | None = None
    contents: bytes = b""
    pixels: bytes = b""


def inspect(
    table: Annotations, rows: np.ndarray, workers: int, timeout: float, bits: int | None
) -> Iterator[ImageFacts]:
    """Decodes whole images in ``workers`` processes and yields their facts in the order of ``rows``."""
    batches = (rows[start : start + 8].tolist() for start in range(0, len(rows), 8))
    for pairs in read_ahead(partial(_inspect_row, table, bits), batches, workers, False, timeout):
        yield from (facts for _, facts in pairs)


def _inspect_row(table: Annotations, bits: int | None, row: int) -> tuple[Tensor, ImageFacts]:
    """Inspects one image in a worker, which returns no pixels."""
    nothing = torch.empty(0, dtype=torch.uint8)
    contents, header = b"", None
    try:
        data = read_bytes(table.path(row), "add it")
        contents, header = hashlib.sha256(data).digest(), read_header(io.BytesIO(data))
        image = read_row(table, row, bits)
    except Fault as fault:
        facts = ImageFacts(row, name_image(fault, table, row), contents=contents)
    else:
        facts = ImageFacts(row, None, contents=contents)
        pixels = hashlib.sha256(repr(tuple(image.shape)).encode())
        pixels.update(np.ascontiguousarray(image.permute(1, 2, 0).numpy()).data)
        facts = facts._replace(pixels=pixels.digest(), largest=int(image.max()))
    if header is not None:
        facts = facts._replace(mode=header.mode, orientation=header.orientation)
    return nothing, facts


def check_missing(table: Annotations, split: str) -> tuple[list[Finding], np.ndarray]:
    """Returns a finding for the images that do not exist, and the rows of the others."""
    missing = missing_rows(table)
    found = [finding("image-missing", split, len(missing), images_at(table, missing))] if missing else []
    return found, np.setdiff1d(np.arange(len(table)), missing)


def check_facts(table: Annotations, split: str, facts: Sequence[ImageFacts], bits: int | None) -> list[Finding]:
    """Finds images that cannot be used, are rotated, dark or not RGB, and duplicates within the split."""
    broken = FaultCounter()
    for fact in facts:
        if fact.fault is not None:
            broken(fact.fault)
    found = broken.findings(split)
    turned = [fact for fact in facts if fact.orientation != 1]
    if turned:
        found.append(_of("image-rotated", table, split, turned, count_tags(fact.orientation for fact in turned)))
    largest = {fact.row: fact.largest for fact in facts if fact.largest is not None}
    sixteen = {fact.row: largest[fact.row] for fact in facts if fact.row in largest and is_16_bit(fact.mode)}
    unused = sixteen if sixteen and max(sixteen.values()) < UNUSED else {}
    dark = [fact for fact in facts if fact.row in unused or largest.get(fact.row, DARK) < DARK]
    if dark:
        found.append(_of("image-dark", table, split, dark, bits_in_use(unused.values(), bits) if unused else ""))
    other = [fact for fact in facts if fact.mode not in ("", "RGB")]
    if other:
        modes = Counter(fact.mode for fact in other)
        more = ", ".join(f"{mode}: {count}" for mode, count in modes.most_common())
        found.append(_of("image-mode", table, split, other, more))
    first: dict[bytes, int] = {}
    copies = [(fact, row) for fact in facts if (row := _known(fact, first)) is not None]
    if copies:
        found.append(_copies("image-duplicate", table, split, copies, table))
    return found


def check_leaks(
    train: Annotations, train_facts: Sequence[ImageFacts], test: Annotations, facts: Sequence[ImageFacts]
) -> list[Finding]:
    """Finds test images that are training images too, by their bytes or pixels."""
    first: dict[bytes, int] = {}
    for fact in train_facts:
        _known(fact, first)
    leaks = [(fact, row) for fact in facts if (row := _known(fact, first, add=False)) is not None]
    return [_copies("image-leak", test, "test", leaks, train)] if leaks else []


def check_headers(
    table: Annotations, split: str, rows: np.ndarray, bits: int | None, most: int = SAMPLE
) -> list[Finding]:
    """Finds images that cannot be used, are rotated or dark in an evenly spread sample; few of them are decoded."""
    sample = read_headers(table, rows, most)
    broken = FaultCounter()
    for fault in odd_images(table, sample):
        broken(fault)
    return broken.findings(split) + odd_headers(table, split, sample, bits)


def _known(fact: ImageFacts, first: dict[bytes, int], add: bool = True) -> int | None:
    """Returns the row of an earlier image of the same bytes or pixels; ``add`` records this one's."""
    keys = [key for key in (fact.contents, fact.pixels) if key]
    row = next((first[key] for key in keys if key in first), None)
    if add:
        for key in keys:
            first.setdefault(key, fact.row)
    return row


def _of(kind: str, table: Annotations, split: str, facts: Sequence[ImageFacts], more: str) -> Finding:
    return finding(kind, split, len(facts), images_at(table, [fact.row for fact in facts]), more)


def _copies(
    kind: str, table: Annotations, split: str, copies: Sequence[tuple[ImageFacts, int]], others: Annotations
) -> Finding:
    examples = [
        Example(f"{name_of(table, fact.row)} is {name_of(others, row)}", os.fsdecode(table.files[fact.row]), fact.row)
        for fact, row in copies[:MOST_EXAMPLES]
    ]
    return finding(kind, split, len(copies), examples)
