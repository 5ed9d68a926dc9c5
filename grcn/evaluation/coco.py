"""Average precision and recall by the COCO protocol: pycocotools or, where installed, hotcoco.

Both give the same figures, hotcoco many times faster. The ground truth is passed in memory.
At most 100 detections of a class count per image; equal scores are ranked by image id, then by
their place in the packed arrays.

A crowd object is COCO's: it need not be found, and detections that lie inside it count for
nothing. A difficult object (VOC) is ignored in the way in which COCO ignores one outside of the
area range: it need not be found, and a detection that matches it by plain IoU counts for nothing.
It is therefore passed with area -1, which is in no range. It is not passed as crowd, because that
would also excuse detections of other things inside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from grcn.data.annotations import Annotations
from grcn.errors import EnvironmentFault
from grcn.evaluation.detections import Detections, Matches, check
from grcn.evaluation.matching import matches_by_class, objects_to_find, overlapping

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())

# Where each figure lies in the evaluators' arrays. IoU: 0 is 0.5, 5 is 0.75, None averages over
# 0.5, 0.55, …, 0.95. Area: all, small, medium, large. Maximum detections: 1, 10, 100.
_AP_PLACES: dict[str, tuple[int | None, int, int]] = {  # IoU, area, maximum detections
    "coco_ap": (None, 0, 2),
    "coco_ap50": (0, 0, 2),
    "coco_ap75": (5, 0, 2),
    "coco_ap_small": (None, 1, 2),
    "coco_ap_medium": (None, 2, 2),
    "coco_ap_large": (None, 3, 2),
}
_AR_PLACES: dict[str, tuple[int, int]] = {  # area, maximum detections
    "coco_ar1": (0, 0),
    "coco_ar10": (0, 1),
    "coco_ar100": (0, 2),
    "coco_ar_small": (1, 2),
    "coco_ar_medium": (2, 2),
    "coco_ar_large": (3, 2),
}


def evaluate(table: Annotations, detections: Mapping[str, Any], backend: str | None = None) -> dict[str, Any]:
    """Computes COCO's twelve figures, in the order in which COCO prints them, and AP per class.

    Args:
        table: annotations of all images that count, whether or not anything is detected in them.
        detections: packed detections (:mod:`grcn.evaluation.detections`), original pixels.
        backend: ``"pycocotools"``, ``"hotcoco"``, or None for hotcoco where it is installed.

    Returns:
        ``{"metrics": {name: value}, "ap_by_iou": {IoU: value}, "per_class": {class: {name: value}}, "backend": name}``.
        ``metrics`` holds ``coco_ap``, ``coco_ap50|ap75``, ``coco_ap_small|medium|large``,
        ``coco_ar1|ar10|ar100`` and ``coco_ar_small|medium|large``, in 0-1; ``per_class`` the
        six of AP, and ``objects``, the number of objects to find. ``ap_by_iou`` is what ``coco_ap``
        averages: AP at IoU ``"0.50"``, ``"0.55"``, … ``"0.95"``. A value is None where there are
        no objects.

    Raises:
        DataError: the table has no object, or a detection cannot be scored; names the image.
        EnvironmentFault: hotcoco is requested and not installed.
        ValueError: there is no such backend.
    """
    found = check(table, detections)
    if backend is None:
        backend = "hotcoco" if importlib.util.find_spec("hotcoco") else "pycocotools"
    if backend not in ("hotcoco", "pycocotools"):
        raise ValueError(f"backend must be 'hotcoco' or 'pycocotools' (got {backend!r})")
    score = _score_with_hotcoco if backend == "hotcoco" else _score_with_pycocotools
    image_ids = _image_ids(table)
    precision, recall = score(_ground_truth(table, image_ids), _results(table, found, image_ids))

    metrics = {name: _mean(_at(precision, *place)) for name, place in _AP_PLACES.items()}
    for name, (area, most) in _AR_PLACES.items():
        metrics[name] = _mean(recall[:, :, area, most])
    ap_by_iou = {f"{0.5 + place / 20:.2f}": _mean(_at(precision, place, 0, 2)) for place in range(len(precision))}
    counts = objects_to_find(table).sum(1).tolist()
    # The evaluators sort the classes by category id.
    places = np.argsort(np.argsort(table.category_ids))
    per_class: dict[str, dict[str, Any]] = {}
    for name, place, count in zip(table.classes, places, counts, strict=True):
        own = precision[:, :, place]
        per_class[name] = {key: _mean(_at(own, *where)) for key, where in _AP_PLACES.items()}
        per_class[name]["objects"] = count
    return {"metrics": metrics, "ap_by_iou": ap_by_iou, "per_class": per_class, "backend": backend}


def matches(table: Annotations, detections: Mapping[str, Any]) -> list[Matches]:
    """Matches detections to objects at IoU 0.5, 0.55, …, 0.95; returns for each class the input of its AP.

    All areas, and at most 100 detections of a class per image.
    """
    found = check(table, detections)
    return matches_by_class(table, found, overlapping(table, found), THRESHOLDS)


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Converts boxes ``[K, 4]`` from xyxy to COCO's x, y, width, height, float64.

    ``(x + width) - x`` is not always ``width`` in floating point. Where a width of at most nine
    decimals leads from x1 to the very same x2, that is the width; so boxes that were read from
    COCO's JSON come back bit by bit.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    sides = boxes[:, 2:] - boxes[:, :2]
    rounded = np.round(sides, 9)
    sides = np.where(boxes[:, :2] + rounded == boxes[:, 2:], rounded, sides)
    return np.concatenate((boxes[:, :2], sides), axis=1)


def _at(precision: np.ndarray, iou: int | None, area: int, most: int) -> np.ndarray:
    """Selects one IoU, or all, from precision ``[IoU, recall, (class,) area, detections]``."""
    return precision[slice(None) if iou is None else iou, ..., area, most]


def _mean(values: np.ndarray) -> float | None:
    """Averages the defined values (the evaluators write -1 for others); None if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if len(defined) else None


def _image_ids(table: Annotations) -> np.ndarray:
    """Returns an integer id for each row, in the order of the table's own ids."""
    image_ids = np.empty(len(table), dtype=np.int64)
    image_ids[np.argsort(table.image_ids, kind="stable")] = np.arange(len(table))
    return image_ids


def _ground_truth(table: Annotations, image_ids: np.ndarray) -> dict[str, Any]:
    """Returns the table as a COCO data set.

    Annotation ids begin at 1: pycocotools treats a match with object 0 as none.
    """
    columns = {
        "id": range(1, len(table.boxes) + 1),
        "image_id": np.repeat(image_ids, np.diff(table.offsets)).tolist(),
        "category_id": table.category_ids[table.labels - 1].tolist(),
        "bbox": to_xywh(table.boxes).tolist(),
        "area": np.where(table.difficult, -1.0, table.area.astype(np.float64)).tolist(),
        "iscrowd": table.iscrowd.astype(int).tolist(),
    }
    heights, widths = table.sizes.T.tolist()
    images = zip(image_ids.tolist(), heights, widths, strict=True)
    categories = zip(table.category_ids.tolist(), table.classes, strict=True)
    return {
        "images": [{"id": i, "height": h, "width": w} for i, h, w in images],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
    }


def _results(table: Annotations, found: Detections, image_ids: np.ndarray) -> np.ndarray:
    """Returns float64 ``[K, 7]``: image id, x, y, width, height, score, category id."""
    categories = table.category_ids[found.labels - 1]
    columns = (image_ids[found.rows], to_xywh(found.boxes), found.scores, categories)
    return np.column_stack(columns).astype(np.float64)


def _score_with_pycocotools(truth: dict[str, Any], results: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns precision ``[IoU, recall, class, area, detections]`` and recall, without its axis."""
    evaluator = _evaluator(truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _evaluator(truth: dict[str, Any], results: np.ndarray) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # It prints its progress, and stdout is reserved for the one line of JSON.
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO()
        objects.dataset = truth
        objects.createIndex()
        if len(results):
            detected = objects.loadRes(results)
        else:  # loadRes fails on an empty list
            detected = COCO()
            detected.dataset = truth | {"annotations": []}
            detected.createIndex()
        return COCOeval(objects, detected, "bbox")


def _score_with_hotcoco(truth: dict[str, Any], results: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the same two arrays as :func:`_score_with_pycocotools`."""
    try:
        import hotcoco
    except ImportError as error:
        raise EnvironmentFault("hotcoco is not installed; pip install 'grcn[fast]', or use pycocotools") from error
    objects = hotcoco.COCO(truth)
    evaluator = hotcoco.COCOeval(objects, objects.load_res(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    curves = evaluator.eval
    assert curves is not None, "accumulate() fills eval"
    return curves["precision"], curves["recall"]
