"""Draws the steps of a walk (:mod:`grcn.apps.walkthrough.walkthrough`) as one picture of numbered panels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from grcn import boxes
from grcn.apps.walkthrough.walkthrough import Walk
from grcn.data.images import to_rgb_tensor
from grcn.models.features import TASKS, strides_as_text
from grcn.models.transform import ImageBatch
from grcn.vis.boxes import GREY, VERMILION, contact_sheet, draw_boxes

WIDTH, _LOWEST, _HIGHEST = 400, 200, 560  # of a panel, which has the picture's aspect ratio unless that is extreme
_ROOM = 1.7  # length shown around the RoI, as a multiple of its own
_DETECTIONS = 6  # maximum number shown
# From low to high. It grows lighter all the way, so that it can be read without colours too.
_COLOURS = np.array([(30, 10, 70), (60, 80, 140), (30, 150, 140), (120, 210, 80), (253, 231, 37)]) / 255


class Window:
    """A part of an image, enlarged or shrunk to a panel.

    Args:
        corner: upper left, x and y in pixels of the image; may lie outside.
        zoom: pixels of the panel per pixel of the image.
        panel: its width and height.
    """

    def __init__(self, corner: Tensor, zoom: float, panel: Tensor) -> None:
        self.corner, self.zoom, self.panel = corner, zoom, panel

    @classmethod
    def of_all(cls, image: Tensor) -> Window:
        """Shows an image ``[C, h, w]`` whole, in the upper left of the panel."""
        height, width = image.shape[1:]
        zoom = min(WIDTH / width, _HIGHEST / height)
        return cls(torch.zeros(2), zoom, torch.tensor([WIDTH, max(_LOWEST, round(height * zoom))]))

    def around(self, box: Tensor) -> Window:
        """Returns a window zoomed in on a box ``[4]`` that shows as little as possible from outside this one."""
        zoom = float((self.panel / (box[2:] - box[:2]).clamp(min=1)).min()) / _ROOM
        corner = (box[:2] + box[2:] - self.panel / zoom) / 2
        last = self.corner + self.panel / self.zoom - self.panel / zoom
        return Window(corner.maximum(self.corner).minimum(last.maximum(self.corner)), zoom, self.panel)

    def show(self, values: Tensor, across: float = 1.0, down: float = 1.0) -> Tensor:
        """Samples values ``[C, h, w]``, whose cells are ``across x down`` pixels of the image.

        Returns:
            ``[C, height, width]`` of the panel, white outside the values.
        """
        column, row = (
            (((torch.arange(pixels) + 0.5) / self.zoom + start) / cell).floor().long()
            for pixels, start, cell in zip(self.panel.tolist(), self.corner.tolist(), (across, down), strict=True)
        )
        height, width = values.shape[1:]
        inside = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))
        return torch.where(inside, values[:, row.clamp(0, height - 1)][:, :, column.clamp(0, width - 1)], 1.0)

    def place(self, boxes: Tensor) -> Tensor:
        """Maps boxes ``[n, 4]`` from pixels of the image to pixels of the panel."""
        return (boxes.cpu() - self.corner.repeat(2)) * self.zoom


def draw(walked: Walk, classes: Sequence[str]) -> Image.Image:
    """Draws a walk: nine panels, numbered as the steps of :func:`grcn.apps.walkthrough.walkthrough.as_text`.

    Args:
        classes: names of the labels 1..C.
    """
    strides, names = walked.strides, ("background", *classes)
    height, width = walked.tensor.shape[1:]
    image = walked.model.transform.pictures(ImageBatch(walked.tensor[None], [(height, width)]))[0].cpu()
    whole = Window.of_all(image)
    roi, shown = whole.place(walked.roi[None]), whole.show(image)
    panels = {"input, and a RoI": draw_boxes(shown, roi)}
    for task in TASKS:
        cells = whole.show(_energy(walked.features[task]), *[strides[task]] * 2)
        others = walked.model.backbone.feature_specs[task].strides
        of_several = f" of {strides_as_text(others)}" if len(others) > 1 else ""
        same = " (the same: no split)" if task == "loc" and walked.model.backbone.shared else ""
        panels[f"{task} map, stride {strides[task]}{of_several}{same}"] = draw_boxes(cells, roi)
    for task in TASKS:
        panels[f"the RoI's bins (red) on cells of the {task} map"] = _bins(walked, task, image, whole)
    attended = next(iter(walked.attention), None)
    if attended is None:
        panels["context: none in this model"] = Image.new("RGB", tuple(whole.panel.tolist()), "#dddddd")
    else:
        looked = walked.looked_at(attended).cpu()
        cells = whole.show(
            _coloured(looked / looked.max()), image.shape[2] / looked.shape[1], image.shape[1] / looked.shape[0]
        )
        most = float(looked.max()) * looked.numel()
        panels[f"where it looks for context (eq. 1): 0 to {most:.2f} times even"] = draw_boxes(
            0.4 * shown + 0.6 * cells, roi
        )
    panels["its scores, by the cls branch"] = _bars(walked.scores, names, whole.panel)
    moved = whole.place(torch.stack([walked.box, walked.roi]))
    panels["its box, by the loc branch: from grey to red"] = draw_boxes(shown, moved, color=[VERMILION, GREY])
    panels["detections"] = _detections(walked, names)
    return contact_sheet(
        [to_rgb_tensor(panel) for panel in panels.values()],
        [{"boxes": torch.zeros(0, 4), "labels": []}] * len(panels),
        classes,
        titles=[f"{number} {title}" for number, title in enumerate(panels, start=1)],
        columns=3,
        width=WIDTH,
    )


def _coloured(shares: Tensor) -> Tensor:
    """Maps shares ``[h, w]`` of 0-1 to colours ``[3, h, w]``."""
    at = np.linspace(0, 1, len(_COLOURS))
    return torch.from_numpy(np.stack([np.interp(shares.numpy(), at, colour) for colour in _COLOURS.T])).float()


def _energy(feature: Tensor) -> Tensor:
    """Colours a map ``[C, h, w]`` by how far each cell's features lie from those of the mean cell.

    Their length alone would be the same everywhere after the norms of networks that train from scratch.
    """
    length = (feature - feature.mean((1, 2), keepdim=True)).float().norm(dim=0).cpu()
    return _coloured(length / length.max().clamp(min=1e-12))


def _bins(walked: Walk, task: str, image: Tensor, whole: Window) -> Image.Image:
    """Draws the surroundings of the RoI: the map's energy over the image, its cells white, the bins pooled red."""
    pool, stride = walked.model.roi_heads.pools[task], walked.strides[task]
    roi = boxes.scaled(walked.roi.cpu(), pool.roi_scale)
    if pool.op == "pool":  # RoIPool rounds to cells, the last one included
        cells = (roi / stride).round()
        roi = torch.cat([cells[:2], cells[2:] + 1]) * stride
    window = whole.around(roi)
    panel = 0.5 * window.show(image) + 0.5 * window.show(_energy(walked.features[task]), stride, stride)
    picture = draw_boxes(panel, torch.zeros(0, 4))
    canvas = ImageDraw.Draw(picture)
    for kind in (0, 1):
        start, pixels = float(window.corner[kind]), int(window.panel[kind])
        for cell in range(int(start // stride) + 1, int((start + pixels / window.zoom) // stride) + 1):
            end = int(window.panel[1 - kind])
            _line(canvas, (cell * stride - start) * window.zoom, kind, (0, end), "white", 1)
    x1, y1, x2, y2 = window.place(roi[None])[0].tolist()
    for first, last, kind, ends in ((x1, x2, 0, (y1, y2)), (y1, y2, 1, (x1, x2))):
        for at in np.linspace(first, last, pool.size + 1):
            _line(canvas, at, kind, ends, VERMILION, 2)
    return picture


def _line(canvas: ImageDraw.ImageDraw, at: float, kind: int, ends: tuple[float, float], color: str, width: int) -> None:
    """Draws an upright line at x (``kind`` 0) or a level one at y (1)."""
    points = [(at, end) if kind == 0 else (end, at) for end in ends]
    canvas.line(points, fill=color, width=width)


def _bars(scores: Tensor, names: Sequence[str], panel: Tensor) -> Image.Image:
    """Draws the best scores as bars, as many as the panel holds."""
    width, height = panel.tolist()
    picture = Image.new("RGB", (width, height), "white")
    canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    left, step = 3 * width // 10, 28
    longest = width - left - 46
    for rank, k in enumerate(scores.argsort(descending=True)[: height // step].tolist()):
        top, score = 4 + step * rank, float(scores[k])
        canvas.rectangle((left, top, left + longest * score, top + 18), fill=VERMILION if rank == 0 else GREY)
        name = names[k]
        while font.getlength(name) > left - 12:
            name = name[:-1]
        canvas.text((6, top + 1), name, fill="black", font=font)
        canvas.text((left + 6 + longest * score, top + 1), f"{score:.2f}", fill="black", font=font)
    return picture


def _detections(walked: Walk, names: Sequence[str]) -> Image.Image:
    picture, found = walked.picture.cpu(), walked.detections
    window = Window.of_all(picture)
    shown = picture if picture.is_floating_point() else picture.float() / 255
    labels, scores = found["labels"][:_DETECTIONS].tolist(), found["scores"][:_DETECTIONS].tolist()
    captions = [f"{names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    return draw_boxes(window.show(shown), window.place(found["boxes"][:_DETECTIONS]), captions)
