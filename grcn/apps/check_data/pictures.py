"""Draws the pictures of a data check: examples of its findings, and images with their objects."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from grcn.data.annotations import Annotations
from grcn.data.findings import Example, Finding
from grcn.vis.boxes import contact_sheet, draw_boxes

PER_KIND, MOST_PICTURES = 4, 40  # pictures on the page
SAMPLES = 8  # images of each side, regardless of findings
_SIDE = 320  # of pictures, in pixels

PictureOf = Callable[[Example], Tensor | None]  # the image of an example, None if there is none to show


def pictures_of(
    findings: Sequence[Finding], sides: Mapping[str, PictureOf]
) -> dict[tuple[str, str], list[tuple[str, bytes]]]:
    """Draws examples of each finding, one of each image: by kind and split, captions and JPEG files."""
    drawn: dict[tuple[str, str], list[tuple[str, bytes]]] = {}
    count = 0
    for one in findings:
        pictures = drawn.setdefault((one.kind, one.split), [])
        first: dict[tuple[str, int], Example] = {}
        for example in one.examples:
            first.setdefault((example.image, example.row), example)
        for example in first.values():
            if count == MOST_PICTURES or len(pictures) == PER_KIND:
                break
            image = sides[one.split](example)
            if image is not None:
                pictures.append((example.place, _drawn(image, example)))
                count += 1
    return drawn


def sheet_of(table: Annotations | None, picture: PictureOf) -> bytes:
    """Draws images from all over a side with their objects; returns nothing if none can be read."""
    if table is None or not len(table):
        return b""
    images, targets = [], []
    for row in sorted({number * (len(table) - 1) // (SAMPLES - 1) for number in range(SAMPLES)}):
        file = table.files[row].decode(errors="replace")
        image = picture(Example(file, file, row))
        if image is not None:
            images.append(image)
            fields = ("boxes", "labels", "difficult", "iscrowd")
            targets.append({name: getattr(table, name)[table.objects(row)] for name in fields})
    return _jpeg(contact_sheet(images, targets, table.classes)) if images else b""


def _drawn(image: Tensor, example: Example) -> bytes:
    """Draws an example with its box; the surroundings of a small box are cropped and enlarged."""
    boxes = torch.zeros(0, 4)
    if example.box is not None and all(abs(value) < 1e6 for value in example.box):
        x1, y1, x2, y2 = example.box
        box = torch.tensor([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)])
        image, corner = _surroundings(image, box)
        boxes = (box - corner.repeat(2))[None]
    picture = draw_boxes(image, boxes, scale=_SIDE / max(image.shape[1:]))
    return _jpeg(picture)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _surroundings(image: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a part of an image eight times as large as a box, and where it begins, (x, y); or all of the image."""
    sides = torch.tensor([image.shape[2], image.shape[1]])
    window = torch.minimum(sides, (8 * (box[2:] - box[:2]).max()).clamp(min=64).expand(2).long())
    if (2 * window > sides).any():
        return image, torch.zeros(2)
    x, y = torch.minimum(((box[:2] + box[2:] - window) / 2).long().clamp(min=0), sides - window).tolist()
    width, height = window.tolist()
    return image[:, y : y + height, x : x + width], torch.tensor([x, y])
