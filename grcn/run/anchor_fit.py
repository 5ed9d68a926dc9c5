"""Measures how well the anchors of a config fit the objects of a data set, and searches for better ones."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from grcn.data.annotations import Annotations
from grcn.data.findings import Finding, finding
from grcn.models.rpn import RegionProposalNetwork
from grcn.models.transform import DetectionTransform

# Bounds of the size buckets: square roots of areas, in pixels of the network's input.
BUCKETS = (0, 16, 32, 64, 128, 256, 512, float("inf"))
# Bounds of height over width.
ASPECTS = (0, 0.25, 0.5, 1 / 1.5, 1, 1.5, 2, 4, float("inf"))
# Candidates for other anchors: sizes in half octaves; on each of several maps, from 2 to 16 of its cells.
CELLS = (2, 16)
SIZES = (5.7, 8.0, 11.0, 16.0, 23.0, 32.0, 45.0, 64.0, 91.0, 128.0, 181.0, 256.0, 362.0, 512.0, 724.0)
RATIOS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
MOST_OBJECTS = 5_000  # maximum number of objects that candidates are tried on
LEAST_GAIN = 0.01  # minimum gain of recall, the mean of both, to suggest other anchors
MANY_MISSED = 0.1  # share of objects without an anchor of IoU 0.5 that is reported
MANY_ALONE = 0.01  # share of objects without any anchor that costs accuracy
MOST = 0.5  # share of objects whose loss no model can afford
# From objects up to this many cells of the map wide a small network learnt next to nothing, see RESULTS.md.
LEAST_CELLS = 0.5
SIZE_COST = 0.05  # recall that one size more must gain

Place = tuple[int, float]  # a map, and one of its sizes; NaN for one still to be chosen


@dataclass(frozen=True)
class Objects:
    """Objects to train on, at the network's scale.

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
class AnchorSet:
    """Anchors on every cell of some maps.

    Attributes:
        sizes: square roots of the areas, for each map.
        ratios: heights over widths.
        strides: input pixels per cell of each map.
        straddling: whether anchors that cross the image border are trained on.
        offset: where in its cell an anchor is centred, in cells.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    strides: tuple[int, ...]
    straddling: bool = False
    offset: float = 0.5

    @classmethod
    def of(cls, rpn: RegionProposalNetwork) -> AnchorSet:
        """Returns the anchors of a region proposal network."""
        made = rpn.anchors
        return cls(made.sizes, made.ratios, made.strides, rpn.straddling, 0.5 if made.layout == "centred" else 0.0)

    def best_iou(self, objects: Objects) -> np.ndarray:
        """Returns for each object the IoU of the best anchor that is trained on, [M].

        For one shape, the overlap along either axis falls with the distance of the centres, so the best of all
        cells is the nearest one whose anchor may be used: no grid is made.
        """
        best = np.zeros(len(objects.boxes))
        for sizes, stride in zip(self.sizes, self.strides, strict=True):
            for size in sizes:
                for ratio in self.ratios:
                    best = np.maximum(best, self._iou(objects, size, ratio, stride))
        return best

    def _iou(self, objects: Objects, size: float, ratio: float, stride: int) -> np.ndarray:
        """Returns the IoU of each object with the nearest anchor of one shape, [M]."""
        width, height = size / ratio**0.5, size * ratio**0.5
        x = self._overlap(objects.boxes[:, 0::2], objects.images[:, 1], width, stride)
        y = self._overlap(objects.boxes[:, 1::2], objects.images[:, 0], height, stride)
        return x * y / (objects.sides().prod(axis=1) + width * height - x * y)

    def _overlap(self, ends: np.ndarray, limits: np.ndarray, side: float, stride: int) -> np.ndarray:
        """Returns along one axis how much of ``ends`` [M, 2] the nearest anchor covers; 0 where none may be used."""
        first, last = np.zeros(len(limits)), np.ceil(limits / stride) - 1
        if not self.straddling:
            first = np.maximum(first, np.ceil(side / 2 / stride - self.offset))
            last = np.minimum(last, np.floor((limits - side / 2) / stride - self.offset))
        cell = np.clip(np.round(ends.mean(axis=1) / stride - self.offset), first, last)
        centre = (cell + self.offset) * stride
        overlap = np.minimum(ends[:, 1], centre + side / 2) - np.maximum(ends[:, 0], centre - side / 2)
        return np.where(last >= first, np.maximum(overlap, 0), 0)


def objects_of(table: Annotations, short: int, longest: int) -> Objects:
    """Returns the objects to train on as the network sees them; sizes as ``model.image.short`` and ``max``."""
    transform = DetectionTransform(short, longest)
    sizes, which = np.unique(table.sizes, axis=0, return_inverse=True)
    resized = np.array([transform.resized((height, width)) for height, width in sizes.tolist()]).reshape(-1, 2)
    image = which.reshape(-1)[np.repeat(np.arange(len(table)), np.diff(table.offsets))]
    counted = ~(table.iscrowd | table.difficult)
    scales = (resized / np.maximum(sizes, 1))[image[counted]]
    return Objects(table.boxes[counted] * scales[:, [1, 0, 1, 0]], resized[image[counted]])


def fit(objects: Objects, anchors: AnchorSet) -> dict[str, Any]:
    """Measures anchors, and searches for better ones: as many sizes and ratios, or one size more if that gains much.

    Returns:
        ``sizes`` (of one map a list of numbers, of several a list of such lists), ``ratios``, ``strides``;
        ``objects``, their number; ``below``, how many of them are smaller than half a cell; ``median``, their median
        side; ``alone``, how many of them overlap no anchor that is trained on; ``recall50`` and ``recall70``, the share
        that has an anchor of this IoU; ``buckets`` by size and ``aspects`` by height over width, each a list of
        ``from``, ``to``, ``count`` (and the recalls, None where there is no object); and ``suggestion``, with sizes,
        ratios and the recalls, None where nothing better was found.
    """
    best = anchors.best_iou(objects)
    sides = objects.sides()
    result: dict[str, Any] = {
        "sizes": _as_setting(anchors.sizes),
        "ratios": list(anchors.ratios),
        "strides": list(anchors.strides),
    }
    side = np.sqrt(sides.prod(axis=1))
    result |= {"below": int((side < LEAST_CELLS * min(anchors.strides)).sum())}
    result |= {"median": float(np.median(side)) if len(side) else None}
    result |= {"objects": len(best), "alone": int((best == 0).sum()), **_recalls(best)}
    result["buckets"] = _buckets(BUCKETS, side, best)
    result["aspects"] = _buckets(ASPECTS, sides[:, 1] / np.maximum(sides[:, 0], 1e-9), best)
    result["suggestion"] = _suggest(objects, anchors) if len(best) else None
    return result


def findings_of(fitted: Mapping[str, Any], short: int, longest: int) -> list[Finding]:
    """Finds objects that anchors miss or that are too small, in what :func:`fit` returned, and settings to change.

    Args:
        short, longest: ``model.image.short`` and ``max``.
    """
    count, better = fitted["objects"], fitted["suggestion"]
    found = _alone(fitted["alone"], count)
    missed = count - round(count * (fitted["recall50"] or 0))
    too_small = count and fitted["below"] > MOST * count
    if count and missed > MOST * count and not too_small:  # too small objects need a larger image size first
        remedy = f"set {settings(better)}" if better else "try other anchors, or raise model.image.short"
        found.append(finding("anchors-half", "train", missed, more=f"of {count}", remedy=remedy))
    elif count and missed >= MANY_MISSED * count:
        found.append(finding("anchors", "train", missed, more=f"of {count}"))
    if too_small:
        cell = min(fitted["strides"])
        larger = 32 * math.ceil(short * cell / max(fitted["median"], 1) / 32)  # the median object gets a cell
        limit = math.ceil(longest * larger / short)
        more = f"of {count}; a cell has {cell} pixels, the middle object {fitted['median']:.1f}"
        cost = f"{(larger / short) ** 2:.0f} times the pixels"
        remedy = f"set model.image.short={larger} model.image.max={limit} ({cost}), and check again"
        found.append(finding("cell-half", "train", fitted["below"], more=more, remedy=remedy))
    return found


def settings(anchors: Mapping[str, Any]) -> str:
    """Writes anchors as settings of a command line, quoted, since brackets are a pattern to a shell."""
    return " ".join(shlex.quote(f"model.anchors.{key}={listed(anchors[key], ',')}") for key in ("sizes", "ratios"))


def listed(values: Sequence[Any], comma: str = ", ") -> str:
    """Writes numbers, or lists of numbers, as a list of YAML."""
    return f"[{comma.join(f'{one:g}' if isinstance(one, int | float) else listed(one, comma) for one in values)}]"


def objects_alone(table: Annotations, short: int, longest: int, anchors: AnchorSet) -> list[Finding]:
    """Reports whether many of a sample of objects have no anchor to be trained on; arguments as in `objects_of`."""
    if anchors.straddling:  # anchors cover the whole image
        return []
    objects = _sample(objects_of(table, short, longest))
    alone = int((anchors.best_iou(objects) == 0).sum())
    return [one for one in _alone(alone, len(objects.boxes)) if one.severity == "warning"]


def _alone(alone: int, count: int) -> list[Finding]:
    if not alone:
        return []
    found = finding("anchors-none", "train", alone, more=f"{100 * alone / count:.3g} % of {count}")
    return [found if alone >= MANY_ALONE * count else replace(found, severity="note")]


def _sample(objects: Objects) -> Objects:
    step = max(1, -(-len(objects.boxes) // MOST_OBJECTS))
    return Objects(objects.boxes[::step], objects.images[::step])


def _suggest(objects: Objects, anchors: AnchorSet) -> dict[str, Any] | None:
    sample, count, room = _sample(objects), len(anchors.sizes[0]), min(map(len, _candidates(anchors)))
    if room < count:  # a size that is given twice
        return None
    better = _search(sample, anchors, count)
    if room > count:
        one_more = _search(sample, anchors, count + 1)
        gain = _score(one_more.best_iou(sample)) - _score(better.best_iou(sample))
        better = one_more if gain > SIZE_COST else better
    best = better.best_iou(objects)
    if _score(best) < _score(anchors.best_iou(objects)) + LEAST_GAIN:
        return None
    return {"sizes": _as_setting(better.sizes), "ratios": list(better.ratios), **_recalls(best)}


def _as_setting(sizes: Sequence[Sequence[float]]) -> list[Any]:
    """Returns sizes in the form of ``model.anchors.sizes``."""
    return list(sizes[0]) if len(sizes) == 1 else [list(level) for level in sizes]


def _candidates(anchors: AnchorSet) -> list[list[float]]:
    """Returns the sizes to choose from, for each map."""
    several = len(anchors.sizes) > 1
    return [
        sorted({*own, *(size for size in SIZES if not several or CELLS[0] <= size / stride <= CELLS[1])})
        for own, stride in zip(anchors.sizes, anchors.strides, strict=True)
    ]


def _search(objects: Objects, anchors: AnchorSet, count: int) -> AnchorSet:
    """Chooses ``count`` sizes of each map from a grid for the ratios, then ratios for them, and both again."""
    sizes = [(level, size) for level, of_map in enumerate(_candidates(anchors)) for size in of_map]
    ratios = sorted({*anchors.ratios, *RATIOS})
    ious = {
        (level, size, ratio): anchors._iou(objects, size, ratio, anchors.strides[level])
        for level, size in sizes
        for ratio in ratios
    }
    chosen_ratios = [(0, ratio) for ratio in anchors.ratios]
    chosen = [
        (level, own[place] if place < len(own) else math.nan)
        for level, own in enumerate(anchors.sizes)
        for place in range(count)
    ]
    for _ in range(2):
        by_size = {one: np.max([ious[*one, ratio] for _, ratio in chosen_ratios], axis=0) for one in sizes}
        chosen = _best(by_size, chosen)
        by_ratio = {(0, ratio): np.max([ious[*one, ratio] for one in chosen], axis=0) for ratio in ratios}
        chosen_ratios = _best(by_ratio, chosen_ratios)
    return replace(
        anchors,
        sizes=tuple(tuple(size for at, size in chosen if at == level) for level in range(len(anchors.sizes))),
        ratios=tuple(ratio for _, ratio in chosen_ratios),
    )


def _best(ious: Mapping[Place, np.ndarray], start: Sequence[Place]) -> list[Place]:
    """Returns as many keys as ``start`` has places, whose values [M] together have a good maximum.

    Each place is replaced by the best key of its map; one without a size is filled.
    """
    chosen = list(start)
    for _ in range(2):
        for place, (level, _) in enumerate(chosen):
            others = [one for one in chosen[:place] + chosen[place + 1 :] if one in ious]
            kept = np.max([ious[key] for key in others], axis=0) if others else np.zeros(1)
            scores = {
                key: _score(np.maximum(value, kept))
                for key, value in ious.items()
                if key[0] == level and key not in others
            }
            chosen[place] = max(scores, key=scores.__getitem__)
    return sorted(chosen)


def _score(best: np.ndarray) -> float:
    return float((best >= 0.5).mean() + (best >= 0.7).mean()) / 2


def _recalls(best: np.ndarray) -> dict[str, float | None]:
    return {f"recall{percent}": float((best >= percent / 100).mean()) if len(best) else None for percent in (50, 70)}


def _buckets(bounds: Sequence[float], values: np.ndarray, best: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for start, end in zip(bounds, bounds[1:], strict=False):
        inside = (values >= start) & (values < end)
        to = end if np.isfinite(end) else None
        rows.append({"from": start, "to": to, "count": int(inside.sum()), **_recalls(best[inside])})
    return rows
