"""Draws boxes on images, ground truth beside detections, and contact sheets.

Colours are those of Okabe and Ito, which colour-blind readers can distinguish: ground truth is blue,
detections are vermilion, ignored objects (difficult, crowd) are grey.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from grcn.data.annotations import Annotations

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#707070"

_FONT_SIZE = 12
_NOTE_SIZE = 20
_GAP = 6
_NARROWEST, _WIDEST = 320, 560
_Rectangle = tuple[int, int, int, int]


def draw_boxes(
    image: Tensor,
    boxes: Tensor | np.ndarray,
    captions: Sequence[str] = (),
    color: str | Sequence[str] = VERMILION,
    scale: float = 1.0,
) -> Image.Image:
    """Draws boxes and captions on a picture.

    Args:
        image: ``[3, H, W]`` RGB, uint8 or float in 0-1.
        boxes: ``[n, 4]`` absolute xyxy in pixels of ``image``, on the CPU.
        captions: one per box, in the order of importance: the first are placed best. May be empty.
        color: one for all boxes, or one for each.
        scale: enlarges the picture; lines and text keep their size.

    Returns:
        A Pillow image of ``scale`` times H and W, which ``save("boxes.png")`` writes.
    """
    picture = _picture(image, scale)
    canvas = ImageDraw.Draw(picture)
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale
    colors = [color] * len(corners) if isinstance(color, str) else color
    rectangles: list[_Rectangle] = []
    for x1, y1, x2, y2 in np.round(corners).astype(int).tolist():
        rectangles.append((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)))
    # The least important first, so that nothing hides what matters most; captions above all lines.
    for (x1, y1, x2, y2), line in reversed(list(zip(rectangles, colors, strict=True))):
        canvas.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white", width=4)
        canvas.rectangle((x1, y1, x2, y2), outline=line, width=2)
    if captions:
        _draw_captions(canvas, picture.size, rectangles, captions, colors)
    return picture


def contact_sheet(
    images: Sequence[Tensor],
    targets: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    *,
    titles: Sequence[str] | None = None,
    columns: int = 4,
    width: int | None = None,
) -> Image.Image:
    """Draws images with their ground truth, in rows of ``columns``.

    Args:
        images: each ``[3, H, W]`` RGB, uint8 or float in 0-1.
        targets: torchvision's, for each image: ``boxes`` in its pixels, ``labels``, and if known
            ``difficult`` and ``iscrowd``: such objects are grey.
        classes: names of the labels 1..C.
        titles: a line above each image.
        width: of each image in the sheet; None draws small images larger and large ones smaller.
    """
    names = titles or [""] * len(images)
    cells = [
        titled(_draw_target(image, target, classes, width), title)
        for image, target, title in zip(images, targets, names, strict=True)
    ]
    return grid(cells, columns)


def detection_grid(
    table: Annotations,
    read_image: Callable[[int], Tensor],
    detections: Mapping[str, np.ndarray],
    rows: Sequence[int],
    *,
    min_score: float = 0.3,
    most: int = 20,
    columns: int = 2,
    width: int | None = None,
) -> Image.Image:
    """Draws the ground truth of images (left, blue) beside their detections (right).

    Args:
        table: holds the ground truth and the names of classes and images.
        read_image: returns the image of a row, uint8 or float ``[3, H, W]``.
        detections: packed detections: ``rows``, ``boxes`` (pixels of the original image),
            ``scores`` and ``labels``.
        rows: the images to draw.
        min_score: detections below it are left out.
        most: maximum number of detections drawn in an image, the best-scored.
        columns: pairs in a row.
        width: of each image in the grid; None draws small images larger and large ones smaller.
    """
    cells = []
    for row in rows:
        image, objects = read_image(row), table.objects(row)
        fields = ("boxes", "labels", "difficult", "iscrowd")
        truth = {name: getattr(table, name)[objects] for name in fields}
        found = np.flatnonzero((detections["rows"] == row) & (detections["scores"] >= min_score))
        best = found[np.argsort(-detections["scores"][found], kind="stable")][:most]
        labels, scores = detections["labels"][best], detections["scores"][best]
        captions = [f"{table.classes[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        left = _draw_target(image, truth, table.classes, width)
        right = draw_boxes(image, detections["boxes"][best], captions, VERMILION, _scale(image, width))
        if not len(found):
            _write_note(right, _why_none(detections["scores"][detections["rows"] == row], min_score))
        count = f"{len(best)} of {len(found)}" if len(found) > most else f"{len(found)}"
        pair = [
            titled(left, f"{title_of(table, row)}: ground truth", BLUE),
            titled(right, f"detections from score {min_score:g}: {count}", VERMILION),
        ]
        cells.append(grid(pair, 2, margin=0))
    return grid(cells, columns, gap=3 * _GAP)


def _why_none(scores: np.ndarray, min_score: float) -> str:
    """Describes the detections below the score threshold of an image that has none to draw."""
    return f"none from score {min_score:g} (best {scores.max():.2g})" if len(scores) else "no detections"


def _write_note(picture: Image.Image, note: str) -> None:
    """Writes a line into the upper left corner of a picture, as large as its width allows."""
    size = _NOTE_SIZE
    while size > _FONT_SIZE and ImageFont.load_default(size).getlength(note) + 10 > picture.width:
        size -= 1
    font, canvas = ImageFont.load_default(size), ImageDraw.Draw(picture)
    canvas.rectangle((0, 0, math.ceil(font.getlength(note)) + 10, size + 8), fill="white")
    canvas.text((5, 2), note, fill=VERMILION, font=font)


def _picture(image: Tensor, scale: float) -> Image.Image:
    if image.is_floating_point():
        image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def _draw_captions(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    rectangles: Sequence[_Rectangle],
    captions: Sequence[str],
    colors: Sequence[str],
) -> None:
    """Writes white captions on the colour of their boxes, placed to overlap each other least."""
    font = ImageFont.load_default(_FONT_SIZE)
    placed: list[_Rectangle] = []
    for box, caption, color in zip(rectangles, captions, colors, strict=True):
        tag_width = math.ceil(font.getlength(caption)) + 6
        tag = _place(box, (tag_width, _FONT_SIZE + 4), size, placed)
        placed.append(tag)
        canvas.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=color)
        canvas.text((tag[0] + 3, tag[1] + 1), caption, fill="white", font=font)


def _place(box: _Rectangle, tag: tuple[int, int], size: tuple[int, int], placed: Sequence[_Rectangle]) -> _Rectangle:
    """Chooses the place of a tag: at a corner of its box, inside the picture, with little overlap with other tags."""
    x1, y1, x2, y2 = box
    width, height = tag
    best, least = (0, 0, 0, 0), math.inf
    # Above the box, below it, then inside; on the left before the right.
    for top in (y1 - height, y2 + 1, y1, y2 - height):
        for left in (x1, x2 - width):
            left_inside = max(0, min(left, size[0] - width))
            top_inside = max(0, min(top, size[1] - height))
            moved = abs(left_inside - left) + abs(top_inside - top)
            place = (left_inside, top_inside, left_inside + width, top_inside + height)
            cost = 20 * moved + sum(_overlap(place, other) for other in placed)
            if cost < least:
                best, least = place, cost
    return best


def _overlap(a: _Rectangle, b: _Rectangle) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _draw_target(image: Tensor, target: Mapping[str, Any], classes: Sequence[str], width: int | None) -> Image.Image:
    labels = np.asarray(target["labels"]).tolist()
    ignored = np.zeros(len(labels), dtype=bool)
    notes = [""] * len(labels)
    for flag, note in (("difficult", " (difficult)"), ("iscrowd", " (crowd)")):
        if flag in target:
            for i in np.flatnonzero(np.asarray(target[flag])):
                ignored[i], notes[i] = True, note
    captions = [classes[label - 1] + note for label, note in zip(labels, notes, strict=True)]
    colors = [GREY if grey else BLUE for grey in ignored]
    return draw_boxes(image, target["boxes"], captions, colors, _scale(image, width))


def _scale(image: Tensor, width: int | None) -> float:
    """Returns the scale that resizes an image to a width; None: to its own, within limits that are easy to see."""
    own = image.shape[2]
    return (min(max(own, _NARROWEST), _WIDEST) if width is None else width) / own


def title_of(table: Annotations, row: int) -> str:
    """Returns the title of an image: the name of its file, or its id if it has none."""
    name = Path(table.files[row].decode(errors="replace")).name
    return name or f"image {table.image_ids[row]}"


def titled(picture: Image.Image, title: str, color: str = "black") -> Image.Image:
    """Adds a line of text above a picture, shortened to its width; no text adds nothing."""
    font = ImageFont.load_default(_FONT_SIZE + 1)
    shortened = title
    while title and font.getlength(shortened) > picture.width:
        title = title[:-1]
        shortened = title + "..."
    band = _FONT_SIZE + 8 if shortened else 0
    titled = Image.new("RGB", (picture.width, picture.height + band), "white")
    titled.paste(picture, (0, band))
    ImageDraw.Draw(titled).text((0, 2), shortened, fill=color, font=font)
    return titled


def grid(cells: Sequence[Image.Image], columns: int, gap: int = _GAP, margin: int = _GAP) -> Image.Image:
    """Puts pictures in rows of ``columns``; a row is as high as its highest picture.

    Args:
        cells: in reading order.
        gap: pixels between two pictures.
        margin: pixels around all.
    """
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    widths = [sum(cell.width for cell in row) + gap * (len(row) - 1) for row in rows]
    height = sum(heights) + gap * max(len(rows) - 1, 0)
    size = (max(widths, default=0) + 2 * margin, height + 2 * margin)
    sheet = Image.new("RGB", (max(size[0], 1), max(size[1], 1)), "white")
    top = margin
    for row, row_height in zip(rows, heights, strict=True):
        left = margin
        for cell in row:
            sheet.paste(cell, (left, top))
            left += cell.width + gap
        top += row_height + gap
    return sheet
