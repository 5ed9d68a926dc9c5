"""Data sets by index, in torchvision's contract, and a third-party one in our loader."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import grcn.data
from grcn.data.dataset import DetectionDataset
from grcn.data.loader import eval_batches, train_batches
from grcn.errors import DataError

TYPES = {
    "boxes": torch.float32, "labels": torch.int64, "image_id": torch.int64, "area": torch.float32,
    "iscrowd": torch.int64, "difficult": torch.bool,
}  # fmt: skip


class Mine(Dataset[Any]):
    """A researcher's own data set: what torchvision's detectors are trained on, and no more."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image = torch.full((3, 40 + index, 60), index, dtype=torch.uint8)
        boxes = torch.tensor([[5.0, 6.0, 25.0 + index, 30.0]] * (index % 3))
        return image, {"boxes": boxes.reshape(-1, 4), "labels": torch.full((index % 3,), 2)}


def coco_folder(root: Path) -> Path:
    (root / "annotations").mkdir()
    (root / "val").mkdir()
    for number in (7, 9):
        Image.fromarray(np.full((48, 64, 3), number, np.uint8)).save(root / f"val/{number}.png")
    document = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 48} for k in (7, 9)],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 3, "bbox": [4, 5, 20, 10], "area": 150, "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [0, 0, 64, 48], "area": 3000, "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (root / "annotations/instances_val.json").write_text(json.dumps(document))
    return root


def test_an_item_is_an_image_and_its_objects(tmp_path: Path) -> None:
    data = grcn.data.DetectionDataset.coco(coco_folder(tmp_path), ["val"])
    assert len(data) == 2 and data.classes == ("cat",)
    image, target = data[1]
    assert image.dtype == torch.uint8 and image.shape == (3, 48, 64) and int(image.max()) == 9
    assert {key: value.dtype for key, value in target.items()} == TYPES
    assert target["boxes"].tolist() == [[4, 5, 24, 15], [0, 0, 64, 48]]
    assert (int(target["image_id"]), target["area"].tolist(), target["iscrowd"].tolist()) == (9, [150, 3000], [0, 1])
    empty = data[0][1]
    assert empty["boxes"].shape == (0, 4) and {key: value.dtype for key, value in empty.items()} == TYPES
    assert torch.equal(data[-1][0], image)
    with pytest.raises(IndexError):
        data[2]


def test_it_can_be_pickled_and_goes_through_torchs_own_loader() -> None:
    data = DetectionDataset.shapes("flat", "val", 6, size=64)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[3][0], data[3][0]) and torch.equal(again[3][1]["boxes"], data[3][1]["boxes"])
    loader = DataLoader(data, batch_size=2, num_workers=1, collate_fn=lambda items: tuple(zip(*items, strict=True)))
    read = [(image, target) for images, targets in loader for image, target in zip(images, targets, strict=True)]
    assert len(read) == 6
    for (image, target), index in zip(read, range(6), strict=True):
        assert torch.equal(image, data[index][0])
        assert all(torch.equal(target[key], data[index][1][key]) for key in TYPES)


def test_what_is_returned_may_be_written_into() -> None:
    data = DetectionDataset.shapes("flat", "train", 2, size=64)
    before = data[0][1]["boxes"].clone()
    data[0][1]["boxes"] += 1
    data[0][1]["area"].zero_()
    assert torch.equal(data[0][1]["boxes"], before) and data[0][1]["area"].min() > 0


def test_another_data_set_goes_into_our_loader() -> None:
    data = DetectionDataset.wrap(Mine(), classes=["cat", "dog"])
    images, targets = next(iter(train_batches(data, seed=0, batch=3, steps=1, augment=())))
    for image, target in zip(images, targets, strict=True):
        index = int(target["image_id"])
        own, theirs = Mine()[index]
        assert torch.equal(image, own) and torch.equal(target["boxes"], theirs["boxes"])
        assert target["labels"].tolist() == [2] * (index % 3)
    assert [rows for rows, _ in eval_batches(data)] == [[row] for row in range(5)]
    assert data.table.sizes[4].tolist() == [44, 60]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.zeros(3, 8, 8), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)}), r"uint8 \[3, H, W\]"),
        ((torch.zeros(8, 8, 3, dtype=torch.uint8), {}), r"got torch.uint8 \[8, 8, 3\]"),
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), [1]), "must be a dict"),
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), {"boxes": torch.zeros(0), "labels": []}), r"use \[0, 4\]"),
        (
            (torch.zeros(3, 8, 8, dtype=torch.uint8), {"boxes": [[1, 1, 4, 4.0]], "labels": [1, 1]}),
            r"labels must be \[n\], n = 1 like boxes \(got \[2\]\)",
        ),
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), {"boxes": [[1, 1, 4, 4.0]], "labels": [0.5]}), "must be integers"),
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), {"boxes": [[1, 1, 4, 4.0]], "labels": [3]}), "unknown label"),
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), {"boxes": [[4, 1, 1, 4.0]], "labels": [1]}), "mine"),
        (
            (torch.zeros(3, 8, 8, dtype=torch.uint8), {"boxes": np.zeros((0, 4)), "labels": [], "image_id": "a"}),
            r"image_id must be an integer \(got 'a'\)",
        ),
    ],
)
def test_an_item_that_breaks_the_contract_is_named(item: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"^mine.*{message}" if message != "mine" else "^mine"):
        DetectionDataset.wrap([item], classes=["cat", "dog"], name="mine")


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="mine: no items"):
        DetectionDataset.wrap([], classes=["cat"], name="mine")
