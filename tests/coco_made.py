"""Small data sets in COCO's layout, and a helper that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from grcn.data import coco
from grcn.data.annotations import Annotations
from grcn.data.faults import Notes
from grcn.errors import DataError

FILE = "annotations/instances_train.json"


def document(**changes: Any) -> dict[str, Any]:
    """Two images of 64 x 48; a nut in the first and a cup in the second."""
    images = [{"id": n, "file_name": f"im{n}.jpg", "width": 64, "height": 48} for n in (5, 6)]
    box = {"bbox": [4, 5, 20, 10], "area": 150, "iscrowd": 0}
    annotations = [{"id": n, "image_id": n, "category_id": 7 - n, **box} for n in (5, 6)]
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "nut"}]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


def each(records: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    """Sets fields of all records; a function is given the old value."""
    return [
        record | {key: value(record.get(key)) if callable(value) else value for key, value in fields.items()}
        for record in records
    ]


def write(root: Path, content: object, *images: str, name: str = FILE) -> Path:
    """Writes annotations, and images of 64 x 48 at these paths."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(root / image, "JPEG")
    return root / name


def read(root: Path, *splits: str, classes: list[str] | None = None) -> tuple[Annotations, dict[str, int]]:
    """Reads splits twice, the second time from the cache; returns the table and what was counted."""
    found = []
    for _ in range(2):
        notes = Notes()
        table = coco.load(root, splits or ["train"], classes, notes=notes)
        found.append((table.fingerprint(), notes.counts, notes.places))
    assert found[0] == found[1]
    if found[0][1]:
        with pytest.raises(DataError, match="are refused"):
            coco.load(root, splits or ["train"], classes, notes=Notes(strict=True))
    return table, found[0][1]
