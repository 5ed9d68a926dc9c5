"""Draws the inputs, anchors and RoIs of each image of a training step, side by side.

Every object has a colour, the same in all pictures of its image; its anchors and RoIs share it. Where there are more
objects than colours, those of the same colour lie far apart.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from grcn.data.images import to_rgb_tensor
from grcn.vis.boxes import GREY, draw_boxes, grid, titled
from grcn.vis.curves import LINE_COLORS
from grcn.vis.samples import Anchors, RoIs, Sample

Panel = Literal["inputs", "anchors", "rois"]
PANELS: tuple[Panel, ...] = ("inputs", "anchors", "rois")
COLORS = LINE_COLORS[1:]  # without black

LEGEND: dict[Panel, str] = {
    "inputs": "inputs: the image in the network's pixels, without padding; each object has its colour",
    "anchors": "anchors: boxes without a white edge are foreground in the loss, in the colour of their object; on it "
    "are their number and its best IoU. low: by the low-quality rule only. none: no anchor belongs to it",
    "rois": "RoIs: boxes without a white edge are foreground, to become the class of their object, in its colour; on "
    "it is their number. Grey: background",
}

_LIGHT_GREY = "#C0C0C0"  # on dark images
_SIDE, _CROWDED_SIDE, _CROWDED = 640, 1000, 10  # longest side of images; larger if one has more objects than _CROWDED
_NARROWEST = 400  # width of a panel that its text needs
_ROW = 4  # panels in a row
_LETTERS = 7  # width of a letter, in pixels


def draw_sheet(
    samples: Sequence[Sample],
    titles: Sequence[str],
    classes: Sequence[str],
    panels: Sequence[Panel],
    heading: Sequence[str] = (),
) -> Image.Image:
    """Draws samples, each with the panels asked for side by side, below a heading and a legend.

    Args:
        samples: with anchors and RoIs where panels show them.
        titles: one for each sample.
        classes: names of the labels 1..C.
        panels: what to show, in this order.
        heading: lines of text.
    """
    crowded = any(len(sample.target["boxes"]) > _CROWDED for sample in samples)
    side = _CROWDED_SIDE if crowded else _SIDE
    cells = [
        grid([_panel(sample, title, classes, panel, side) for panel in panels], len(panels), margin=0)
        for sample, title in zip(samples, titles, strict=True)
    ]
    sheet = grid(cells, max(1, _ROW // len(panels)), gap=12)
    text = Image.new("RGB", (sheet.width, 1), "white")
    paragraphs = [*heading, *(LEGEND[panel] for panel in panels)]
    lines = [line for one in paragraphs for line in textwrap.wrap(one, sheet.width // _LETTERS)]
    for line in reversed(lines):
        text = titled(text, f"  {line}")
    return grid([text, sheet], 1, gap=0, margin=0)


def _panel(sample: Sample, title: str, classes: Sequence[str], panel: Panel, side: int) -> Image.Image:
    """Draws one picture of a sample, as long as ``side``, under two lines of text."""
    objects, names = sample.target["boxes"], [classes[label - 1] for label in sample.target["labels"].tolist()]
    colors = object_colors(objects)
    if panel == "inputs":
        lines = [title, _sizes(sample)]
        picture = _drawn(sample.image, side, objects, names, colors, [])
    elif panel == "anchors":
        assert sample.anchors is not None
        lines, captions = _anchor_text(sample.anchors)
        thin = [(box, colors[index]) for box, index in _rows(sample.anchors.boxes, sample.anchors.matched_gt)]
        picture = _drawn(sample.image, side, objects, captions, colors, thin)
    else:
        assert sample.rois is not None
        lines, counts = _roi_text(sample.rois, len(objects))
        grey = GREY if sample.image.mean() > 0.5 else _LIGHT_GREY
        thin = [(box, grey) for box in sample.rois.background.tolist()]
        thin += [(box, colors[index]) for box, index in _rows(sample.rois.boxes, sample.rois.matched_gt)]
        captions = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
        picture = _drawn(sample.image, side, objects, captions, colors, thin)
    picture = _widened(picture, _NARROWEST)
    for line in reversed(lines):
        picture = titled(picture, line)
    return picture


def _sizes(sample: Sample) -> str:
    """Describes the image's size before and after resizing and padding, as width x height."""
    original, resized, canvas = (f"{w} x {h}" for h, w in (sample.original, sample.image.shape[1:], sample.canvas))
    padded = f", padded to {canvas}" if canvas != resized else ""
    count = len(sample.target["labels"])
    return f"{original} -> {resized}{padded}; {count} object{'s' * (count != 1)}"


def _anchor_text(anchors: Anchors) -> tuple[list[str], list[str]]:
    """Returns the lines above the picture, and what to write on each object."""
    drawn = torch.bincount(anchors.matched_gt, minlength=len(anchors.matched)).tolist()
    captions = []
    for count, iou, missed, rescued in zip(
        drawn, anchors.best_iou.tolist(), anchors.missed.tolist(), anchors.rescued.tolist(), strict=True
    ):
        # Rounded down, or an IoU just below the threshold would look like it; and short, since there may be many.
        captions.append(
            "none" if missed else f"{count} {'low ' * rescued}{int(iou * 100) / 100:.2f}".replace(" 0.", " .")
        )
    low, none = int(anchors.rescued.sum()), int(anchors.missed.sum())
    fg, of = len(anchors.boxes), int(anchors.matched.sum())
    return [
        f"anchors: {fg} of {of} foreground, {anchors.num_bg} background",
        f"objects: {len(drawn) - low - none} from IoU {anchors.fg_iou:g}, {low} low, {none} none",
    ], captions


def _roi_text(rois: RoIs, objects: int) -> tuple[list[str], list[int]]:
    """Returns the lines above the picture, and the number of foreground RoIs of each object."""
    counted = f"RoIs: {len(rois.boxes)} foreground, {len(rois.background)} background"
    return [counted, overlap_text([rois])], torch.bincount(rois.matched_gt, minlength=objects).tolist()


def overlap_text(rois: Sequence[RoIs]) -> str:
    """Describes how well the foreground RoIs of some images overlap their objects, ground truth itself aside."""
    overlaps, truth = torch.cat([one.iou for one in rois]), torch.cat([one.truth for one in rois])
    if not len(overlaps):
        return "no foreground"
    mean, count = f"mean IoU {overlaps.mean().item():.2f}", int(truth.sum())
    if count == len(truth):
        return f"{mean}, all are ground-truth boxes"
    others = f"{overlaps[~truth].mean().item():.2f}"
    return f"{mean}, {others} without {count} ground-truth box{'es' * (count > 1)}" if count else mean


def object_colors(objects: Tensor) -> list[str]:
    """Gives each object ``[n, 4]`` the colour whose nearest object so far is the farthest."""
    middles = (objects[:, :2] + objects[:, 2:]) / 2
    colors: list[int] = []
    for row in torch.cdist(middles, middles).tolist():
        away = [math.inf] * len(COLORS)
        for color, distance in zip(colors, row, strict=False):
            away[color] = min(away[color], distance)
        colors.append(away.index(max(away)))
    return [COLORS[color] for color in colors]


def _drawn(
    image: Tensor,
    side: int,
    objects: Tensor,
    captions: Sequence[str],
    colors: Sequence[str],
    thin: Sequence[tuple[list[float], str]],
) -> Image.Image:
    """Draws thin boxes on an image, and objects with captions above them; all in pixels of the image ``[3, h, w]``."""
    longer = max(image.shape[1:])
    times = max(1, side // longer)
    # Whole pixels, which show how few the network sees.
    enlarged = image.repeat_interleave(times, 1).repeat_interleave(times, 2)
    scale = min(1.0, side / longer)
    picture = draw_boxes(enlarged, torch.zeros(0, 4), scale=scale)
    scale *= times
    canvas = ImageDraw.Draw(picture)
    for corners, color in thin:
        x1, y1, x2, y2 = (round(value * scale) for value in corners)
        line = 1 if color in (GREY, _LIGHT_GREY) else 2
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line)
    return draw_boxes(to_rgb_tensor(picture), objects * scale, captions, colors)


def _widened(picture: Image.Image, width: int) -> Image.Image:
    """Pads a picture with white to at least this width."""
    if picture.width >= width:
        return picture
    wide = Image.new("RGB", (width, picture.height), "white")
    wide.paste(picture)
    return wide


def _rows(boxes: Tensor, matched_gt: Tensor) -> list[tuple[list[float], int]]:
    return list(zip(boxes.tolist(), matched_gt.tolist(), strict=True))
