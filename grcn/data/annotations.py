"""Packed annotation table, which every reader fills and every evaluator reads.

All objects of a data set are stored in a few numpy arrays, one after the other, image by image. There
are no Python objects per box, so worker processes share the parent's memory pages, and COCO's
train2014 (82,783 images, 604,907 boxes) takes about 30 MB. Boxes are absolute (x1, y1, x2, y2) in
continuous pixels: an image covers [0, width] x [0, height].
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from grcn.data.faults import fault


@dataclass(frozen=True, eq=False)
class Annotations:
    """One data set: N images and their M objects, in C classes. The arrays are read-only.

    Attributes:
        name: name of the data set in messages, for example ``VOC2007/test``.
        classes: the C class names; label k in 1..C is ``classes[k - 1]``.
        image_ids: [N] int64 (COCO's ids) or fixed-width bytes (VOC's names of images), each once.
        files: [N] fixed-width bytes, paths relative to ``root``; empty where images are no files.
        root: folder of the data set.
        sizes: [N, 2] int32, (height, width) of the image as displayed (EXIF orientation applied).
        offsets: [N + 1] int64; the objects of image i are rows offsets[i]:offsets[i + 1] below.
        boxes: [M, 4] float64.
        labels: [M] int32 in 1..C.
        area: [M] float32 in square pixels; COCO's is that of the segmentation.
        iscrowd: [M] bool, a region of many objects: not trained on, ignored in evaluation.
        difficult: [M] bool, VOC's flag: not trained on, ignored in evaluation.
        category_ids: [C] int64, COCO's category id of each label; 1..C where there is none.
    """

    name: str
    classes: tuple[str, ...]
    image_ids: np.ndarray
    files: np.ndarray
    root: str
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    difficult: np.ndarray
    category_ids: np.ndarray

    def __post_init__(self) -> None:
        for array in self._arrays().values():
            array.setflags(write=False)

    def __len__(self) -> int:
        """Returns N, the number of images."""
        return len(self.image_ids)

    @property
    def has_ids(self) -> bool:
        """Returns whether images are identified by numbers, COCO's ids, and not by names."""
        return bool(self.image_ids.dtype.kind == "i")

    def objects(self, row: int) -> slice:
        """Returns the slice of the per-object arrays that belongs to image ``row``."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def path(self, row: int) -> str:
        """Returns the path of the file of image ``row``."""
        return os.path.join(self.root, os.fsdecode(self.files[row]))

    def first(self, count: int) -> Annotations:
        """Returns the table of the first ``count`` images, or of all when there are fewer."""
        offsets = self.offsets[: max(count, 0) + 1]
        per_image, per_object = slice(len(offsets) - 1), slice(int(offsets[-1]))
        return replace(
            self,
            image_ids=self.image_ids[per_image],
            files=self.files[per_image],
            sizes=self.sizes[per_image],
            offsets=offsets,
            boxes=self.boxes[per_object],
            labels=self.labels[per_object],
            area=self.area[per_object],
            iscrowd=self.iscrowd[per_object],
            difficult=self.difficult[per_object],
        )

    def only(self, classes: Sequence[str]) -> Annotations:
        """Returns the table with only the objects of these classes, labelled in this order; all images stay.

        Args:
            classes: each one of the table's.
        """
        rows = [self.classes.index(name) for name in classes]
        labels = np.zeros(len(self.classes) + 1, np.int32)
        labels[[row + 1 for row in rows]] = range(1, len(rows) + 1)
        kept = labels[self.labels] > 0
        return replace(
            self,
            classes=tuple(classes),
            category_ids=self.category_ids[rows],
            offsets=np.concatenate([[0], kept.cumsum()])[self.offsets],
            boxes=self.boxes[kept],
            labels=labels[self.labels[kept]],
            area=self.area[kept],
            iscrowd=self.iscrowd[kept],
            difficult=self.difficult[kept],
        )

    def result_ids(self) -> list[int] | list[str]:
        """Returns the ids of the images in result files: COCO's ids, or VOC's names."""
        if self.has_ids:
            return self.image_ids.tolist()
        return [os.fsdecode(name) for name in self.image_ids.tolist()]

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the contents in hex; name and root do not count."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _arrays(self) -> dict[str, np.ndarray]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def concatenate(tables: Sequence[Annotations]) -> Annotations:
    """Joins tables of the same classes and root into one; images and objects keep their order.

    Raises:
        DataError: the classes or category ids differ, or an image id is in two of the tables.
    """
    first = tables[0]
    if len(tables) == 1:
        return first
    for table in tables[1:]:
        same_ids = np.array_equal(table.category_ids, first.category_ids)
        if table.classes != first.classes or not same_ids:
            raise fault(table.name, "classes differ from those of {}; use one list", first.name)
        if table.root != first.root:
            raise ValueError(f"tables of two roots: {first.root} and {table.root}")

    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(table, field) for table in tables])

    name = "+".join(table.name for table in tables)
    ids = joined("image_ids")
    check_unique(name, ids)
    starts = np.cumsum([0] + [len(table.boxes) for table in tables])
    offsets = [table.offsets[:-1] + start for table, start in zip(tables, starts, strict=False)]
    return Annotations(
        name=name,
        classes=first.classes,
        image_ids=ids,
        files=joined("files"),
        root=first.root,
        sizes=joined("sizes"),
        offsets=np.concatenate([*offsets, starts[-1:]]),
        boxes=joined("boxes"),
        labels=joined("labels"),
        area=joined("area"),
        iscrowd=joined("iscrowd"),
        difficult=joined("difficult"),
        category_ids=first.category_ids,
    )


def check_unique(name: str, ids: np.ndarray) -> None:
    """Raises a DataError if one of the image ids ``[N]`` occurs twice."""
    what = "an image is listed twice (got {}); remove one"
    if ids.dtype.kind == "i":  # may be two images that were numbered separately
        what = "an image id is listed twice (got {}); remove one of the images, or number one split anew"
    values, counts = np.unique(ids, return_counts=True)
    for value in values[counts > 1][:1]:
        raise fault(name, what, value)
