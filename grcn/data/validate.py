"""Checks annotations and detections as they were read from files, and packs them into arrays."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import numpy as np

from grcn.data.annotations import Annotations, check_unique
from grcn.data.faults import Report, check_class_name, fault, shown, tell
from grcn.errors import one_line

logger = logging.getLogger("grcn")

# Annotations are rounded, so a box may stick out of its image by this many pixels, untouched.
ROUNDING = 0.5
# Sides below this count as zero: as float32, in which targets are computed, they may become zero.
THINNEST = 0.01
# Detections that writers convert to Python numbers at a time: all of COCO's test images at once would take 1.5 GB.
PART = 2**16


def pack(
    name: str,
    classes: Sequence[str],
    *,
    image_ids: Sequence[int] | Sequence[str],
    sizes: Sequence[tuple[int, int]] | np.ndarray,
    rows: Sequence[int] | np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    root: str = "",
    files: Sequence[str] | None = None,
    area: Sequence[float] | np.ndarray | None = None,
    iscrowd: Sequence[bool] | np.ndarray | None = None,
    difficult: Sequence[bool] | np.ndarray | None = None,
    category_ids: Sequence[int] | np.ndarray | None = None,
    describe: Callable[[int], str] | None = None,
    report: Report | None = None,
) -> Annotations:
    """Checks the annotations of N images and M objects and packs them; objects in any order.

    A box whose width or height is zero, or under a hundredth of a pixel, is dropped, and one that
    sticks out of its image by more than half a pixel is clipped; a warning counts both. Everything
    else that is wrong is an error.

    Args:
        image_ids: N integers or strings, each once.
        sizes: N times (height, width).
        rows: [M], each object's image as its position in ``image_ids``. The objects of one image
            keep their order.
        boxes: [M, 4] absolute xyxy.
        labels: [M] in 1..C.
        files: N paths relative to ``root``; left out for images that are not files.
        area: [M]; width x height where it is NaN or left out.
        iscrowd: [M]; left out when no object is.
        difficult: [M]; left out when no object is.
        category_ids: [C]; left out for 1..C.
        describe: names object m of the input in messages, its file first.
        report: called with a fault for every object that is wrong, dropped or clipped; the wrong ones are left out.
            Without it, the first wrong one is an error and a warning counts the others.

    Raises:
        DataError: a class has no usable name or that of another; an image is listed twice or has no
            size; a label is outside 1..C; a box is not finite, reversed, or outside its image.
    """
    ids = _id_array(image_ids)
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    rows = np.asarray(rows, np.int64)
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(labels, np.int64)
    unset = np.zeros(len(rows), bool)

    def object_name(m: int) -> str:
        return describe(m) if describe else f"{name}: object {m} of image {shown(ids[rows[m]])}"

    _check_classes(name, classes)
    _check_images(name, ids, sizes)
    for m in np.flatnonzero((labels < 1) | (labels > len(classes)))[:1]:
        raise fault(object_name(m), "unknown label (got {}); use 1..{}", labels[m], len(classes))

    def report_object(m: int, what: str, value: object, kind: str) -> None:
        found = fault(object_name(m), what, value, kind=kind)
        found.image = os.fsdecode(files[rows[m]]) if files is not None else ""
        found.box = tuple(boxes[m].tolist())
        tell(report, found)

    kept = _check_boxes(name, boxes, sizes[rows], object_name, report_object, report is not None)
    box_area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = box_area if area is None else np.where(np.isnan(area), box_area, area)
    no_area = ~((areas >= 0) & (areas <= np.finfo(np.float32).max))
    for m in np.flatnonzero(no_area).tolist():
        report_object(m, "area is no area (got {}); fix or remove it", areas[m], "annotation")
    kept = kept[~no_area[kept]]
    order = kept[np.argsort(rows[kept], kind="stable")]
    return Annotations(
        name=name,
        classes=tuple(classes),
        image_ids=ids,
        files=_byte_array(files if files is not None else [""] * len(ids)),
        root=root,
        sizes=sizes.astype(np.int32),
        offsets=np.append(0, np.cumsum(np.bincount(rows[order], minlength=len(ids)))),
        boxes=boxes[order],
        labels=labels[order].astype(np.int32),
        area=areas[order].astype(np.float32),
        iscrowd=(unset if iscrowd is None else np.asarray(iscrowd, bool))[order],
        difficult=(unset if difficult is None else np.asarray(difficult, bool))[order],
        category_ids=np.array(range(1, len(classes) + 1) if category_ids is None else category_ids, np.int64),
    )


def pack_detections(
    rows: Sequence[int] | np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    describe: Callable[[int], str],
) -> dict[str, np.ndarray]:
    """Checks and packs K detections that were read from a result file.

    Args:
        rows: [K], the image's row in the table.
        boxes: [K, 4] absolute xyxy in the frame of the original image.
        scores: [K].
        labels: [K] in 1..C.
        describe: names detection k of the input in messages, its file first.

    Returns:
        ``rows`` int64, ``boxes`` float64, ``scores`` float64, ``labels`` int64.

    Raises:
        DataError: a box or a score is not finite, or a box is reversed.
    """
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    scores = np.array(scores, np.float64)
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    for k in np.flatnonzero(~finite | (boxes[:, 2:] < boxes[:, :2]).any(axis=1))[:1]:
        got = [*boxes[k].round(3).tolist(), scores[k].item()]
        raise fault(describe(k), "not a box and a score (got {}); remove it", got)
    return {
        "rows": np.array(rows, np.int64),
        "boxes": boxes,
        "scores": scores,
        "labels": np.array(labels, np.int64),
    }


def _check_classes(name: str, classes: Sequence[str]) -> None:
    """Refuses names that are unusable or differ only in spaces; names that differ in case may be letters."""
    seen: dict[str, str] = {}
    for label in classes:
        check_class_name(name, label)
        key = " ".join(label.split())
        if key in seen:
            raise fault(name, "a class is listed twice (got {} and {}); remove or rename one", seen[key], label)
        seen[key] = label
    same = {key.casefold(): key for key in seen}
    for key in [key for key in seen if same[key.casefold()] != key][:1]:
        logger.warning("%s: classes %r and %r differ in case only: are they one?", name, key, same[key.casefold()])


def _check_images(name: str, ids: np.ndarray, sizes: np.ndarray) -> None:
    check_unique(name, ids)
    for row in np.flatnonzero(((sizes < 1) | (sizes >= 2**31)).any(axis=1))[:1]:
        height, width = sizes[row]
        raise fault(f"{name}: image {shown(ids[row])}", "no valid size (got {} x {}); fix it", width, height)


def _check_boxes(
    name: str,
    boxes: np.ndarray,
    sizes: np.ndarray,
    object_name: Callable[[int], str],
    report_object: Callable[[int, str, object, str], None],
    each: bool,
) -> np.ndarray:
    """Clips boxes [M, 4] to image sizes [M, 2] in place; returns the indices of those to keep.

    Args:
        report_object: raises or reports the fault of an object.
        each: report every box that is dropped or clipped, instead of logging their number.
    """
    limits = sizes[:, ::-1]
    top_left, bottom_right = boxes[:, :2], boxes[:, 2:]
    outside = ((top_left >= limits) | (bottom_right <= 0)).any(axis=1)
    wrong = np.zeros(len(boxes), bool)
    faults = {
        "not-finite": ("is not finite", ~np.isfinite(boxes).all(axis=1)),
        "reversed": ("is reversed", (bottom_right < top_left).any(axis=1)),
        "outside": ("lies outside its image", outside & (bottom_right > top_left).all(axis=1)),
    }
    for kind, (what, mask) in faults.items():
        for m in np.flatnonzero(mask & ~wrong).tolist():
            got = boxes[m].round(3).tolist()
            report_object(m, f"box {what} (got x1, y1, x2, y2 = {{}}); fix it", got, f"box-{kind}")
        wrong |= mask
    boxes[wrong] = 0  # already reported; dropped below as empty

    outside &= ~wrong
    excess = np.maximum(-top_left, bottom_right - limits).max(axis=1, initial=0.0)
    over = (excess > ROUNDING) & ~outside
    inside = np.clip(boxes, 0, np.tile(limits, 2))
    kept = np.where(over[:, None], inside, boxes)
    empty = outside | (kept[:, 2:] - kept[:, :2] < THINNEST).any(axis=1)
    if each:
        for m in np.flatnonzero((over | empty) & ~wrong).tolist():
            kind, what = "clipped", "sticks out of its image (got {}); fix it"
            if empty[m]:
                kind, what = "empty", "has no width or height (got {}); remove it"
            elif abs(excess[m] - 1) < 1e-6:
                kind = "one-off"
            report_object(m, f"box {what}", boxes[m].round(3).tolist(), f"box-{kind}")
    boxes[:] = kept
    if not each:
        _log_repairs(name, boxes, over, empty, object_name)
    return np.flatnonzero(~empty)


def _log_repairs(
    name: str, boxes: np.ndarray, over: np.ndarray, empty: np.ndarray, object_name: Callable[[int], str]
) -> None:
    tiny = (boxes[:, 2:] - boxes[:, :2] < 2).all(axis=1)
    warnings = {
        "have no width or height, dropped": empty,
        "stick out of their image, clipped": over,
        "stick out of their image: are corners stored as sizes?": over & (2 * over.sum() > len(boxes)),
        "are under 2 pixels: are the coordinates relative?": tiny & (10 * tiny.sum() > 9 * len(boxes)),
    }
    for what, mask in warnings.items():
        for m in np.flatnonzero(mask)[:1]:
            logger.warning("%s: %d boxes %s (first: %s)", name, mask.sum(), what, one_line(object_name(m)))


def _id_array(ids: Sequence[int] | Sequence[str]) -> np.ndarray:
    if all(isinstance(value, str) for value in ids):
        return _byte_array([str(value) for value in ids])
    return np.array(ids, np.int64)


def _byte_array(texts: Sequence[str]) -> np.ndarray:
    return np.array([os.fsencode(text) for text in texts], np.bytes_)
