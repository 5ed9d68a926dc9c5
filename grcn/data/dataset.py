"""Map-style data set for PyTorch: images with their objects, by index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from grcn.data import coco, voc, yolo
from grcn.data.annotations import Annotations
from grcn.data.images import FileImages
from grcn.data.synthetic import dataset as synthetic
from grcn.data.validate import pack
from grcn.errors import DataError
from grcn.progress import progress_bar

ReadImage = Callable[[int], Tensor]


class DetectionDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images and their objects, in torchvision's contract.

    ``ds[i]`` is an image, uint8 ``[3, H, W]``, RGB as displayed, and a target::

        boxes       float32 [n, 4]   absolute xyxy, in pixels of the image
        labels      int64 [n]        1..C
        image_id    int64 scalar     COCO's id; elsewhere the index
        area        float32 [n]      square pixels; COCO's is that of the segmentation
        iscrowd     int64 [n]        1 for a region of many objects
        difficult   bool [n]         VOC's flag

    It includes all objects; :func:`grcn.data.loader.train_batches` leaves out crowd regions and difficult ones. A data
    set can be pickled and needs neither a config nor a GPU, so it works in a :class:`torch.utils.data.DataLoader`.

    Args:
        table: the annotations.
        read_image: index -> uint8 ``[3, H, W]`` of the table's size.

    Attributes:
        table, read_image: as given.
    """

    def __init__(self, table: Annotations, read_image: ReadImage) -> None:
        self.table = table
        self.read_image = read_image

    @classmethod
    def voc(
        cls, root: str | Path, splits: Sequence[str], classes: Sequence[str] | None = None, bits: int | None = None
    ) -> DetectionDataset:
        """Reads a data set in PASCAL VOC's layout; arguments and errors as in :func:`grcn.data.voc.load`, and bits
        as in :func:`grcn.data.images.read_image`."""
        table = voc.load(root, splits, classes)
        return cls(table, FileImages(table, bits))

    @classmethod
    def coco(
        cls, root: str | Path, splits: Sequence[str], classes: Sequence[str] | None = None, bits: int | None = None
    ) -> DetectionDataset:
        """Reads a data set in COCO's layout; arguments and errors as in :func:`grcn.data.coco.load`, and bits
        as in :func:`grcn.data.images.read_image`."""
        table = coco.load(root, splits, classes)
        return cls(table, FileImages(table, bits))

    @classmethod
    def yolo(
        cls, root: str | Path, splits: Sequence[str], classes: Sequence[str] | None = None, bits: int | None = None
    ) -> DetectionDataset:
        """Reads a data set in YOLO's layout; arguments and errors as in :func:`grcn.data.yolo.load`, and bits
        as in :func:`grcn.data.images.read_image`."""
        table = yolo.load(root, splits, classes)
        return cls(table, FileImages(table, bits))

    @classmethod
    def shapes(
        cls, level: str = "full", split: str = "train", count: int = 2000, size: int = 128, seed: int = 0
    ) -> DetectionDataset:
        """Returns the built-in images; arguments and errors as in :func:`grcn.data.synthetic.dataset.load`."""
        table = synthetic.load(level, split, count, size, seed)
        return cls(table, synthetic.ShapesImages(level, split, size, seed))

    @classmethod
    def wrap(cls, dataset: Any, classes: Sequence[str], name: str = "dataset") -> DetectionDataset:
        """Wraps another data set of the same contract for our loader and our evaluation.

        Reads every item once, for the sizes and boxes that batches are planned with; boxes are checked like those of a
        file, and later only the images are read. ``area``, ``iscrowd`` and ``difficult`` may be missing.

        Args:
            dataset: with ``len(dataset)`` and ``dataset[i]``; picklable if images are to be read by workers.
            classes: names of the labels 1..C.
            name: its name in messages.

        Raises:
            DataError: an item breaks the contract, or a box is wrong; the message names the item.
        """
        sizes, rows, ids = [], [], []
        objects: dict[str, list[np.ndarray]] = {"boxes": [], "labels": [], "area": [], "iscrowd": [], "difficult": []}
        for index in progress_bar(range(len(dataset)), f"reading {name}", leave=False):
            image, target = dataset[index]
            fields = _checked(f"{name}[{index}]", image, target)
            sizes.append((image.shape[1], image.shape[2]))
            ids.append(_integer(f"{name}[{index}]: image_id", target.get("image_id", index)))
            rows += [index] * len(fields["boxes"])
            for key, values in objects.items():
                values.append(fields[key])
        if not sizes:
            raise DataError(f"{name}: no items; give a data set that has some")
        boxes, labels, area, iscrowd, difficult = (np.concatenate(values) for values in objects.values())
        table = pack(
            name, classes, image_ids=ids, sizes=sizes, rows=rows, boxes=boxes, labels=labels, area=area,
            iscrowd=iscrowd, difficult=difficult,
        )  # fmt: skip
        return cls(table, _ImagesOf(dataset))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1..C."""
        return self.table.classes

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads one image and its objects.

        Raises:
            IndexError: there is no such image.
            DataError: the image is missing, broken or not of the annotated size.
        """
        row = range(len(self))[index]  # negative ones count from the end
        target = {key: torch.from_numpy(value) for key, value in self.objects(row).items()}
        return self.read_image(row), {**target, "boxes": target["boxes"].float()}

    def first(self, count: int | None) -> DetectionDataset:
        """Returns the first ``count`` images, or all where there are fewer or ``count`` is None."""
        return self if count is None else DetectionDataset(self.table.first(count), self.read_image)

    def objects(self, row: int) -> dict[str, np.ndarray]:
        """Returns the target of an image as arrays, its boxes in float64 as the annotations have them."""
        table, objects = self.table, self.table.objects(row)
        return {
            "boxes": table.boxes[objects].copy(),
            "labels": table.labels[objects].astype(np.int64),
            "image_id": np.array(table.image_ids[row] if table.has_ids else row, np.int64),
            "area": table.area[objects].copy(),
            "iscrowd": table.iscrowd[objects].astype(np.int64),
            "difficult": table.difficult[objects].copy(),
        }


class _ImagesOf:
    """Reads the images of another data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __call__(self, row: int) -> Tensor:
        image: Tensor = self.dataset[row][0]
        return image


def _integer(what: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DataError(f"{what} must be an integer (got {value!r}); number the images, or leave it out") from None


def _checked(where: str, image: object, target: object) -> dict[str, np.ndarray]:
    """Returns the objects of an item ``[n, ...]``, after checking that it meets the contract."""
    if not (isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() == 3 and image.shape[0] == 3):
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise DataError(f"{where}: the image must be a tensor uint8 [3, H, W] (got {got}); convert it")
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        got = ", ".join(map(str, target)) if isinstance(target, Mapping) else type(target).__name__
        raise DataError(f"{where}: the target must be a dict with boxes and labels (got {got}); add them")
    boxes, labels = np.asarray(target["boxes"], np.float64), np.asarray(target["labels"])
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where}: boxes must be [n, 4] (got {list(boxes.shape)}); use [0, 4] for an empty image")
    count = len(boxes)
    fields = {"boxes": boxes, "labels": labels}
    missing = {"area": np.nan, "iscrowd": False, "difficult": False}
    fields |= {key: np.asarray(target.get(key, np.full(count, value))) for key, value in missing.items()}
    for key, values in fields.items():
        if key != "boxes" and values.shape != (count,):
            raise DataError(f"{where}: {key} must be [n], n = {count} like boxes (got {list(values.shape)}); fix it")
    if labels.dtype.kind not in "iu" and count:
        raise DataError(f"{where}: labels must be integers (got {labels.dtype}); convert them")
    return fields
