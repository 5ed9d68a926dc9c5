"""How well the anchors of a config fit the objects of a data set, and which would fit better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data.table import Table
from .models.transform import DetectionTransform

# Bounds of the size buckets: square roots of areas, in pixels of the network's input.
BUCKETS = (0, 16, 32, 64, 128, 256, 512, float("inf"))
# Bounds of height over width.
ASPECTS = (0, 0.25, 0.5, 1 / 1.5, 1, 1.5, 2, 4, float("inf"))
MOST_OBJECTS = 20_000  # of which anchors are suggested
LEAST_GAIN = 0.01  # of mean recall, for which other anchors are worth a mention


@dataclass(frozen=True)
class Objects:
    """What anchors are to find: objects to train on, at the network's scale.

    Attributes:
        boxes: [M, 4] absolute xyxy in pixels of the network's input.
        images: [M, 2] height and width of the resized image of each.
    """

    boxes: np.ndarray
    images: np.ndarray

    def sides(self) -> np.ndarray:
        """Returns [M, 2], widths and heights."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


@dataclass(frozen=True)
class Anchors:
    """Anchors on every cell of a map; fields as of :class:`grcn.models.anchors.AnchorGenerator` and the RPN."""

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    stride: int
    straddling: bool = False

    def best_iou(self, objects: Objects) -> np.ndarray:
        """Returns for each object the IoU of the best anchor that is trained on, [M].

        For one shape, the overlap along either axis falls with the distance of the centres, so the best of all
        cells is the nearest one whose anchor may be used: no grid is made.
        """
        best = np.zeros(len(objects.boxes))
        areas = objects.sides().prod(axis=1)
        for size in self.sizes:
            for ratio in self.ratios:
                width, height = size / ratio**0.5, size * ratio**0.5
                x = self._overlap(objects.boxes[:, 0::2], objects.images[:, 1], width)
                y = self._overlap(objects.boxes[:, 1::2], objects.images[:, 0], height)
                common = x * y
                best = np.maximum(best, common / (areas + width * height - common))
        return best

    def _overlap(self, ends: np.ndarray, limits: np.ndarray, side: float) -> np.ndarray:
        """Returns along one axis how much of ``ends`` [M, 2] the nearest anchor covers; 0 where none may be used."""
        first, last = np.zeros(len(limits)), np.ceil(limits / self.stride) - 1
        if not self.straddling:
            first = np.maximum(first, np.ceil(side / 2 / self.stride - 0.5))
            last = np.minimum(last, np.floor((limits - side / 2) / self.stride - 0.5))
        cell = np.clip(np.round(ends.mean(axis=1) / self.stride - 0.5), first, last)
        centre = (cell + 0.5) * self.stride
        overlap = np.minimum(ends[:, 1], centre + side / 2) - np.maximum(ends[:, 0], centre - side / 2)
        return np.where(last >= first, np.maximum(overlap, 0), 0)


def objects_of(table: Table, short: int, longest: int) -> Objects:
    """Returns the objects to train on as the network sees them; sizes as ``model.image.short`` and ``max``."""
    transform = DetectionTransform(short, longest)
    sizes, which = np.unique(table.sizes, axis=0, return_inverse=True)
    resized = np.array([transform.resized((height, width)) for height, width in sizes.tolist()]).reshape(-1, 2)
    image = which.reshape(-1)[np.repeat(np.arange(len(table)), np.diff(table.offsets))]
    counted = ~(table.iscrowd | table.difficult)
    scales = (resized / np.maximum(sizes, 1))[image[counted]]
    return Objects(table.boxes[counted] * scales[:, [1, 0, 1, 0]], resized[image[counted]])


def fit(objects: Objects, anchors: Anchors) -> dict[str, Any]:
    """Measures anchors, and looks for better ones among quantiles and means of the objects' sizes and ratios.

    Returns:
        ``sizes``, ``ratios``, ``stride``; ``objects``, their number; ``recall50`` and ``recall70``, the share that has
        an anchor of this IoU; ``buckets`` by size and ``aspects`` by height over width, each a list of ``from``,
        ``to``, ``count`` (and the recalls, None where there is no object); and ``suggestion``, None where nothing
        better was found, with sizes, ratios and the recalls.
    """
    best = anchors.best_iou(objects)
    sides = objects.sides()
    result = {"sizes": list(anchors.sizes), "ratios": list(anchors.ratios), "stride": anchors.stride}
    result |= {"objects": len(best), **_recalls(best)}
    result["buckets"] = _buckets(BUCKETS, np.sqrt(sides.prod(axis=1)), best)
    result["aspects"] = _buckets(ASPECTS, sides[:, 1] / np.maximum(sides[:, 0], 1e-9), best)
    result["suggestion"] = _suggest(objects, anchors) if len(best) else None
    return result


def _suggest(objects: Objects, anchors: Anchors) -> dict[str, Any] | None:
    step = -(-len(objects.boxes) // MOST_OBJECTS)
    sample = Objects(objects.boxes[::step], objects.images[::step])
    sides = np.maximum(sample.sides(), 1e-9)
    sizes = _centres(np.sqrt(sides.prod(axis=1)), len(anchors.sizes))
    ratios = _centres(sides[:, 1] / sides[:, 0], len(anchors.ratios))
    size_choices = [anchors.sizes, *(tuple(float(max(1, round(value))) for value in choice) for choice in sizes)]
    ratio_choices = [anchors.ratios, *(tuple(max(0.01, round(value, 2)) for value in choice) for choice in ratios)]
    choices = [
        Anchors(tuple(sorted(set(s))), tuple(sorted(set(r))), anchors.stride, anchors.straddling)
        for s in size_choices
        for r in ratio_choices
    ]
    chosen = max(choices, key=lambda choice: _score(choice.best_iou(sample)))
    best = chosen.best_iou(objects)
    if _score(best) < _score(anchors.best_iou(objects)) + LEAST_GAIN:
        return None
    return {"sizes": list(chosen.sizes), "ratios": list(chosen.ratios), **_recalls(best)}


def _centres(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Returns two ways to stand for positive values by a few: evenly spread quantiles, and k-means of logarithms."""
    logs = np.log(values)
    spread = np.quantile(logs, (np.arange(count) + 0.5) / count)
    means = spread.copy()
    for _ in range(50):
        nearest = np.abs(logs[:, None] - means).argmin(axis=1)
        counts = np.bincount(nearest, minlength=count)
        means = np.where(counts > 0, np.bincount(nearest, logs, count) / np.maximum(counts, 1), means)
    return [np.exp(spread), np.exp(means)]


def _score(best: np.ndarray) -> float:
    return float((best >= 0.5).mean() + (best >= 0.7).mean()) / 2


def _recalls(best: np.ndarray) -> dict[str, float | None]:
    return {f"recall{percent}": float((best >= percent / 100).mean()) if len(best) else None for percent in (50, 70)}


def _buckets(bounds: Sequence[float], values: np.ndarray, best: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        chosen = (values >= start) & (values < end)
        to = end if np.isfinite(end) else None
        rows.append({"from": start, "to": to, "count": int(chosen.sum()), **_recalls(best[chosen])})
    return rows
