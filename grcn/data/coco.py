"""Reads data sets in the layout of COCO, and COCO's detection files.

A split ``train2014`` below ``root`` has its images in ``train2014/`` and its boxes in
``annotations/instances_train2014.json``. Segmentations are dropped while the file is parsed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from grcn.data.faults import check_class_name, fault, is_contained, read_bytes
from grcn.data.table import Table, concatenate, pack, pack_detections
from grcn.errors import one_line

logger = logging.getLogger("grcn")

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def load(root: str | Path, splits: Sequence[str], classes: Sequence[str] | None = None) -> Table:
    """Reads splits such as ``train2014`` below ``root`` into one table.

    Crowd regions are kept and flagged, ``area`` is the file's. Images need not exist yet.

    Args:
        classes: the class names, in the order of their labels. Left out, they are the categories
            of the first split in the order of their ids: load the training splits so, and pass
            their classes on for the test splits.

    Raises:
        DataError: a file is missing or broken, or the splits disagree about categories.
    """
    tables: list[Table] = []
    for split in splits:
        tables.append(_load_split(Path(root), split, classes))
        classes = tables[0].classes
    return concatenate(tables)


def read_detections(file: str | Path, table: Table) -> dict[str, np.ndarray]:
    """Reads COCO's result file: a list of {image_id, category_id, bbox: [x, y, w, h], score}.

    Returns:
        packed detections of the images of ``table``: rows, boxes, scores, labels.

    Raises:
        DataError: broken JSON, a field is missing or of the wrong type, an unknown image or
            category id.
    """
    path = Path(file)
    document = _read_json(path, "pass an existing file")
    if not isinstance(document, list):
        raise fault(path, "not a list (got {}); use COCO's result format", type(document).__name__)
    records = _Records(f"{path}#", document)
    scores = records.column("score", float, int)
    return pack_detections(
        records.positions("image_id", table.result_ids()),
        records.boxes(),
        scores,
        records.positions("category_id", table.category_ids.tolist()) + 1,
        lambda k: f"{path}#/{k}",
    )


def write_detections(file: str | Path, table: Table, detections: Mapping[str, np.ndarray]) -> None:
    """Writes packed detections as COCO's result file; images of VOC go by their stem.

    Numbers are written in full, so that reading them back gives the same boxes and scores.
    """
    keys = table.result_ids()
    boxes = np.asarray(detections["boxes"], np.float64)
    fields = zip(
        detections["rows"].tolist(),
        table.category_ids[detections["labels"] - 1].tolist(),
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist(),
        np.asarray(detections["scores"], np.float64).tolist(),
        strict=True,
    )
    with open(file, "w", encoding="utf-8") as out:
        separator = "[\n"
        for row, category, box, score in fields:
            record = {"image_id": keys[row], "category_id": category, "bbox": box, "score": score}
            out.write(separator + json.dumps(record, allow_nan=False))
            separator = ",\n"
        out.write("\n]\n" if separator == ",\n" else "[]\n")


class _Records:
    """A list of JSON objects whose fields are checked while they are read, all of one name at once.

    Args:
        place: file and JSON pointer of the list, for messages.
        records: what stands there.
    """

    def __init__(self, place: str, records: Any) -> None:
        if not isinstance(records, list):
            raise fault(place, "not a list (got {}); use COCO's format", type(records).__name__)
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                raise fault(f"{place}/{number}", "not an object (got {}); fix it", record)
        self.place = place
        self.records = records

    def column(self, key: str, *kinds: type, default: Any = None) -> list[Any]:
        """Returns a field of all records, each of one of the types; a bool is no int."""
        values = [record.get(key, default) for record in self.records]
        if not set(map(type, values)) <= set(kinds):
            for number, value in enumerate(values):
                if type(value) not in kinds:
                    wanted = " or ".join(kind.__name__ for kind in kinds)
                    self._refuse(number, key, f"missing or not of type {wanted} (got {{}})", value)
        if int in kinds:
            self._check_range(key, values)
        return values

    def unique(self, key: str, kind: type) -> list[Any]:
        """Returns a column in which no value may stand twice."""
        values = self.column(key, kind)
        if len(set(values)) < len(values):
            seen = set()
            for number, value in enumerate(values):
                if value in seen:
                    self._refuse(number, key, "used before (got {})", value)
                seen.add(value)
        return values

    def positions(self, key: str, known: Sequence[int] | Sequence[str], default: int | None = None) -> np.ndarray:
        """Returns where in ``known`` each value of a column stands, [M] int64."""
        position = {value: index for index, value in enumerate(known)}
        values = self.column(key, *{type(value) for value in known}, default=default)
        found = np.array([position.get(value, -1) for value in values], np.int64)
        for number in np.flatnonzero(found < 0)[:1]:
            self._refuse(int(number), key, "unknown (got {}, the file has {})", values[number], sorted(known))
        return found

    def boxes(self) -> np.ndarray:
        """Returns the column ``bbox``, [x, y, width, height], as boxes [M, 4] xyxy."""
        values = self.column("bbox", list)
        for number, box in enumerate(values):
            if len(box) != 4 or not {type(value) for value in box} <= {int, float}:
                self._refuse(number, "bbox", "not four numbers (got {})", box)
        self._check_range("bbox", list(chain.from_iterable(values)), 4)
        boxes = np.array(values, np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def _check_range(self, key: str, values: list[Any], per_record: int = 1) -> None:
        """Refuses numbers that fit no int64, which numpy would not take."""
        for index, value in enumerate(values):
            if abs(value) >= 2**63:
                self._refuse(index // per_record, key, "too large (got {})", value)

    def _refuse(self, number: int, key: str, what: str, *values: Any) -> NoReturn:
        raise fault(f"{self.place}/{number}/{key}", f"{what}; fix it", *values)


def _load_split(root: Path, split: str, classes: Sequence[str] | None) -> Table:
    path = root / "annotations" / f"instances_{split}.json"
    document = _read_json(path, "set data.root and the splits to what exists")
    if not isinstance(document, dict):
        raise fault(path, "not an object (got {}); use COCO's instances format", type(document).__name__)
    images, annotations, categories = (
        _Records(f"{path}#/{key}", document.get(key)) for key in ("images", "annotations", "categories")
    )
    for part in (images, categories):
        if not part.records:
            raise fault(part.place, "an empty list; use another split or file")
    names = images.column("file_name", str)
    for number, name in enumerate(names):
        if not is_contained(name):
            place = f"{path}#/images/{number}/file_name"
            raise fault(place, "not a path below {} (got {}); fix it", f"{split}/", name)
    if len(set(names)) < len(names):
        repeated = len(names) - len(set(names))
        logger.warning("%s: %d files are listed again, under other ids", one_line(str(path)), repeated)
    sizes = np.array([images.column("height", int), images.column("width", int)]).T
    for number in np.flatnonzero(((sizes < 1) | (sizes >= 2**31)).any(axis=1))[:1]:
        height, width = sizes[number]
        raise fault(f"{path}#/images/{number}", "no size of an image (got {} x {}); fix it", width, height)
    image_ids = images.unique("id", int)
    ids = annotations.unique("id", int)
    classes, category_ids = _categories(path, categories, annotations, classes)
    return pack(
        split,
        classes,
        image_ids=image_ids,
        files=[f"{split}/{name}" for name in names],
        root=str(root),
        sizes=sizes,
        rows=annotations.positions("image_id", image_ids),
        boxes=annotations.boxes(),
        labels=annotations.positions("category_id", category_ids) + 1,
        area=annotations.column("area", float, int, default=math.nan),
        iscrowd=annotations.positions("iscrowd", [0, 1], default=0) == 1,
        category_ids=category_ids,
        describe=lambda m: f"{path}: annotation {ids[m]}",
    )


def _categories(
    path: Path, categories: _Records, annotations: _Records, classes: Sequence[str] | None
) -> tuple[Sequence[str], list[int]]:
    """Returns the class names and their category ids, in the order of the labels."""
    names = categories.unique("name", str)
    for number, name in enumerate(names):
        check_class_name(f"{categories.place}/{number}/name", name)
    id_of = dict(zip(names, categories.unique("id", int), strict=True))
    if classes is None:
        classes = sorted(names, key=id_of.__getitem__)
    used = set(annotations.column("category_id", int))
    for name in names:
        if name not in classes and id_of[name] in used:
            raise fault(path, "unknown class (got {}); add it to data.classes", name)
    for name in classes:
        if name not in id_of:
            raise fault(categories.place, "a class is missing (got no {}); add it", name)
    return classes, [id_of[name] for name in classes]


def _read_json(path: Path, remedy: str) -> Any:
    """Reads JSON strictly: no key twice, no NaN. Segmentations are dropped on the way."""
    data = read_bytes(path, remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise fault(path, "not UTF-8 text; convert the file") from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise fault(place, "broken JSON (got {}); fix or replace it", error.msg) from None
    except (ValueError, RecursionError) as error:
        raise fault(path, "bad JSON (got {}); fix it", str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = sorted(key for key, _ in pairs)
        raise ValueError(f"a key twice in an object with keys {', '.join(keys)}")
    record.pop("segmentation", None)
    return record


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
