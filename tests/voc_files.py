"""Small folders in VOC's layout, of images of 40 x 30 pixels with one cup each, and a helper that reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from grcn.data import voc
from grcn.data.faults import Notes
from grcn.data.images import FileImages
from grcn.errors import DataError

SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"
BOX = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
OBJECT = f"<object><name>cup</name>{BOX}</object>"


def annotation(objects: str = OBJECT, size: str = SIZE) -> str:
    return f"<annotation>{size}{objects}</annotation>"


def picture(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    formats = {".pfm": "PPM", ".apng": "PNG", ".jpe": "JPEG", ".jfif": "JPEG"}
    Image.new("RGB", size).save(path, formats.get(path.suffix.lower()), **options)


def text(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def pair(folder: Path, *stems: str, images: str = "JPEGImages", annotations: str = "Annotations") -> None:
    """Writes images with one cup each."""
    for stem in stems:
        picture(folder / images / f"{stem}.jpg")
        text(folder / annotations / f"{stem}.xml", annotation())


def read(root: Path, *splits: str) -> tuple[list[str], dict[str, int]]:
    """Reads splits and their images; returns the names of the images and what was counted."""
    notes = Notes()
    table = voc.load(root, splits, ["cup"], notes=notes)
    FileImages(table)
    assert table.boxes.tolist() == [[2, 3, 20, 25]] * len(table), "every image has one cup"
    assert all(len(notes.places[kind]) == min(count, 20) for kind, count in notes.counts.items())
    if notes.counts:
        with pytest.raises(DataError, match=r"are refused .*data\.strict=false"):
            voc.load(root, splits, ["cup"], notes=Notes(strict=True))
    return [os.fsdecode(name) for name in table.image_ids.tolist()], notes.counts


def listed(root: Path, lines: str | bytes) -> tuple[list[str], dict[str, int]]:
    text(root / "mine/ImageSets/Main/train.txt", lines)
    return read(root, "mine/train")
