"""Checks COCO's JSON and turns it into columns: what an instances file says of images, boxes and categories."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from grcn.data.faults import Fault, Report, check_class_name, fault, is_contained, tell

# Of what :func:`columns` returns and refuses, the checks of ``grcn.data.faults`` among it; a new one for every change
# makes old caches void.
FORMAT = "coco-2"


def columns(path: Path, folder: str, data: bytes, report: Report | None = None) -> dict[str, np.ndarray]:
    """Reads an instances file of N images, M annotations and K categories.

    Args:
        path: the file, for messages.
        folder: of the images, as ``train2014/``, for messages.
        data: the contents of the file.
        report: is told of every record that is wrong, where otherwise the first one is an error; they are left out,
            with the annotations of images and categories that are.

    Returns:
        ``image_ids`` [N] int64; ``sizes`` [N, 2] int32, height and width; of the annotations, image after image,
        ``ids`` [M] int64, ``rows`` [M] int32, the image, ``categories`` [M] int32, the place among the K, ``boxes``
        [M, 4] float64, xyxy, ``area`` [M] float64, NaN where there is none, and ``iscrowd`` [M] bool; ``category_ids``
        [K] int64; and as UTF-8 bytes, joined by line feeds, ``file_names`` and ``category_names``.

    Raises:
        DataError: broken JSON; a field is missing, of the wrong type, out of range, or names what does not exist.
    """
    document = parse(path, data)
    if not isinstance(document, dict):
        raise fault(path, "not an object (got {}); use COCO's instances format", type(document).__name__)
    images, annotations, categories = (
        Records(f"{path}#/{key}", document.get(key), report) for key in ("images", "annotations", "categories")
    )
    for part in (images, categories):
        if not part.records:
            raise fault(part.place, "an empty list; use another split or file")
    files, sizes, names = images.column("file_name", str), _sizes(images), categories.unique("name", str)
    for number, name in enumerate(files):
        if not is_contained(name):
            images.refuse(number, "/file_name", "not a path below {} (got {}); fix it", folder, name)
    for number, name in enumerate(names):
        try:
            check_class_name(f"{categories.place}/{number}/name", name)
        except Fault as found:
            categories.tell(number, found)
    image_ids, category_ids = images.unique("id", int), categories.unique("id", int)
    per_annotation = _per_annotation(annotations, image_ids, category_ids)
    good_images, good_categories, good = images.good(), categories.good(), annotations.good()
    for part in (images, categories):
        if not part.good().any():
            raise fault(part.place, "none of its records can be used; fix them")
    good &= good_images[per_annotation["rows"]] & good_categories[per_annotation["categories"]]
    for key, kept in (("rows", good_images), ("categories", good_categories)):
        per_annotation[key] = (np.cumsum(kept) - 1)[per_annotation[key]].astype(np.int32)
    # Once, not each time that they are packed.
    by_image = np.flatnonzero(good)[np.argsort(per_annotation["rows"][good], kind="stable")]
    return {
        "image_ids": np.array(image_ids, np.int64)[good_images],
        "file_names": _joined([files[number] for number in np.flatnonzero(good_images)]),
        "sizes": sizes.astype(np.int32)[good_images],
        "category_ids": np.array(category_ids, np.int64)[good_categories],
        "category_names": _joined([names[number] for number in np.flatnonzero(good_categories)]),
        **{name: values[by_image] for name, values in per_annotation.items()},
    }


def _sizes(images: Records) -> np.ndarray:
    """Returns height and width of the images, [N, 2] int64."""
    sizes = np.array([images.column("height", int), images.column("width", int)]).T
    for number in np.flatnonzero(((sizes < 1) | (sizes >= 2**31)).any(axis=1)).tolist():
        height, width = sizes[number]
        images.refuse(number, "", "no size of an image (got {} x {}); fix it", width, height)
    return sizes


def _per_annotation(annotations: Records, image_ids: list[int], category_ids: list[int]) -> dict[str, np.ndarray]:
    return {
        "ids": np.array(annotations.unique("id", int), np.int64),
        "rows": annotations.positions("image_id", image_ids),
        "categories": annotations.positions("category_id", category_ids),
        "boxes": annotations.boxes(),
        "area": np.array(annotations.column("area", float, int, default=math.nan), np.float64),
        "iscrowd": annotations.positions("iscrowd", [0, 1], default=0) == 1,
    }


class Records:
    """A list of JSON objects whose fields are checked while they are read, all of one name at once.

    Args:
        place: file and JSON pointer of the list, for messages.
        records: what stands there.
        report: is told of the first fault of every record, where otherwise the first of all is an error. Such a record
            is in ``wrong`` from then on, and empty values stand for its fields.
    """

    def __init__(self, place: str, records: Any, report: Report | None = None) -> None:
        if not isinstance(records, list):
            raise fault(place, "not a list (got {}); use COCO's format", type(records).__name__)
        self.place = place
        self.report = report
        self.wrong: set[int] = set()
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                self.refuse(number, "", "not an object (got {}); fix it", record)
        self.records = [record if isinstance(record, dict) else {} for record in records] if self.wrong else records

    def good(self) -> np.ndarray:
        """Tells which records had no fault so far, bool [M]."""
        good = np.ones(len(self.records), bool)
        good[list(self.wrong)] = False
        return good

    def column(self, key: str, *kinds: type, default: Any = None) -> list[Any]:
        """Returns a field of all records, each of one of the types; a bool is no int."""
        values = [record.get(key, default) for record in self.records]
        if not set(map(type, values)) <= set(kinds):
            for number, value in enumerate(values):
                if type(value) not in kinds:
                    wanted = " or ".join(kind.__name__ for kind in kinds)
                    self._refuse(number, key, f"missing or not of type {wanted} (got {{}})", value)
                    values[number] = kinds[0]()
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
                if value is self.records[number].get(key):  # not one that stands for a wrong one
                    seen.add(value)
        return values

    def positions(self, key: str, known: Sequence[int] | Sequence[str], default: int | None = None) -> np.ndarray:
        """Returns where in ``known`` each value of a column stands, [M] int64."""
        position = {value: index for index, value in reversed(list(enumerate(known)))}
        values = self.column(key, *{type(value) for value in known}, default=default)
        found = np.array([position.get(value, -1) for value in values], np.int64)
        unknown = np.flatnonzero(found < 0).tolist()
        listed = sorted(known) if unknown else known
        for number in unknown:
            self._refuse(number, key, "unknown (got {}, the file has {})", values[number], listed)
        return np.maximum(found, 0)

    def boxes(self) -> np.ndarray:
        """Returns the column ``bbox``, [x, y, width, height], as boxes [M, 4] xyxy."""
        values = self.column("bbox", list)
        for number, box in enumerate(values):
            if len(box) != 4 or not {type(value) for value in box} <= {int, float}:
                self._refuse(number, "bbox", "not four numbers (got {})", box)
                values[number] = [0, 0, 0, 0]
        self._check_range("bbox", values)
        boxes = np.array(values, np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def _check_range(self, key: str, values: list[Any]) -> None:
        """Refuses numbers, or lists of them, that fit no int64, which numpy would not take."""
        flat = chain.from_iterable(values) if values and isinstance(values[0], list) else values
        if not any(abs(value) >= 2**63 for value in flat):
            return
        for number, value in enumerate(values):
            numbers = value if isinstance(value, list) else [value]
            for large in [part for part in numbers if abs(part) >= 2**63][:1]:
                self._refuse(number, key, "too large (got {})", large)
                values[number] = [0, 0, 0, 0] if isinstance(value, list) else 0

    def refuse(self, number: int, field: str, what: str, *values: Any) -> None:
        """Raises a fault of a record, or tells of it; ``field`` is the rest of the JSON pointer."""
        self.tell(number, fault(f"{self.place}/{number}{field}", what, *values))

    def tell(self, number: int, found: Fault) -> None:
        """Raises a fault of a record, or tells of it if it is the first one."""
        if number not in self.wrong:
            tell(self.report, found)
        self.wrong.add(number)

    def _refuse(self, number: int, key: str, what: str, *values: Any) -> None:
        self.refuse(number, f"/{key}", f"{what}; fix it", *values)


def _joined(texts: Sequence[str]) -> np.ndarray:
    """Returns names, which hold no control characters, as bytes with line feeds between them."""
    return np.frombuffer("\n".join(texts).encode(), np.uint8)


def parse(path: Path, data: bytes) -> Any:
    """Reads JSON strictly: no key twice, no NaN. Segmentations are dropped on the way.

    Raises:
        DataError: ``data``, the contents of ``path``, is not JSON.
    """
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
