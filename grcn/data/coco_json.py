"""Checks COCO's instances JSON and turns its images, annotations and categories into columns."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grcn.data.coco_records import Records
from grcn.data.coco_values import NO_NUMBER, Known, Readings, real, side
from grcn.data.faults import Fault, Report, check_class_name, fault, is_contained

# Version of what :func:`columns` returns and refuses, including the checks of ``grcn.data.faults``; every change needs
# a new one, which invalidates old caches.
FORMAT = "coco-4"

# Roboflow writes one as category 0, and other tools as the headings of their lists.
HEADINGS = "headings of other categories, which no annotation uses"

_NO_AREA = math.nan  # this object marks records without an area, unlike a NaN in the file
_GZIP = b"\x1f\x8b"
# The mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
# A file that expands to more than this many bytes, and this many times its size, only fills the memory.
_LARGE, _MOST_TIMES = 2**30, 200


def columns(path: Path, folder: str, data: bytes, report: Report | None = None) -> dict[str, np.ndarray]:
    """Reads an instances file of N images, M annotations and K categories.

    Args:
        path: the file, for messages.
        folder: of the images, such as ``train2014/``, for messages.
        data: the contents of the file.
        report: called with the fault of every wrong record; without it, the first one is an error. Wrong records are
            left out, with the annotations of wrong images and categories.

    Returns:
        ``image_ids`` [N] int64, or bytes where they are names; ``image_places`` [N] int32, which record each is;
        ``sizes`` [N, 2] int32, height and width, below 1 where they have to be looked up; of the annotations, image
        after image, ``ids`` [M] int64, ``rows`` [M] int32, the image, ``categories`` [M] int32, the place among the K,
        ``boxes`` [M, 4] float64, xyxy, ``area`` [M] float64, NaN where there is none, and ``iscrowd`` [M] bool;
        ``are_ids``, one bool, false where ``ids`` are the places of records; ``gzipped``, one bool;
        ``category_ids`` [K] int64 and ``headings`` [K] bool, see :data:`HEADINGS`; as UTF-8 bytes, joined by
        line feeds, ``file_names``, which are paths or, if they begin with a slash, have to be looked for by their end,
        and ``category_names``; and ``readings``, see :meth:`grcn.data.coco_values.Readings.packed`.

    Raises:
        DataError: broken JSON; a field is missing, of the wrong type, out of range, or names what does not exist.
    """
    readings = Readings()
    gzipped = data.startswith(_GZIP)
    data = _unpacked(path, data)
    if mark := _mark(data):
        readings.add("files that are not UTF-8", "", mark)
    document = parse(path, data)
    if not isinstance(document, dict):
        raise fault(path, "not an object (got {}); use COCO's instances format", type(document).__name__)
    images, annotations, categories = (
        Records(path, key, document.get(key), readings, report) for key in ("images", "annotations", "categories")
    )
    for part in (images, categories):
        if not part.records:
            raise fault(part.place, "an empty list; use another split or file")
    files, sizes, names = images.column("file_name", str), _sizes(images), categories.column("name", str)
    for number, name in enumerate(files):
        # A name that begins with a slash may be a whole path of another machine.
        if not is_contained(name.replace("\\", "/").lstrip("/")):
            images.refuse(number, "/file_name", "not a path below {} (got {}); fix it", folder, name)
    for number, name in enumerate(names):
        try:
            check_class_name(f"{categories.place}/{number}/name", name)
        except Fault as found:
            categories.tell(number, found)
    known_images, known_categories = images.ids_or_names(files), categories.ids()
    ids, are_ids = annotations.own_ids()
    per_annotation = {"ids": ids} | _per_annotation(annotations, known_images, known_categories)
    headings, twins = _headings(categories, names, per_annotation["categories"][annotations.good()])
    good_images, good_categories, good = images.good(), categories.good() & ~twins, annotations.good()
    for part, kept in ((images, good_images), (categories, good_categories)):
        if not kept.any():
            raise fault(part.place, "none of its records can be used; fix them")
    good &= good_images[per_annotation["rows"]] & good_categories[per_annotation["categories"]]
    for key, kept in (("rows", good_images), ("categories", good_categories)):
        per_annotation[key] = (np.cumsum(kept) - 1)[per_annotation[key]].astype(np.int32)
    # Once, not each time that they are packed.
    by_image = np.flatnonzero(good)[np.argsort(per_annotation["rows"][good], kind="stable")]
    has_names = isinstance(known_images.ids[0], str)
    encoded = [str(name).encode() for name in known_images.ids] if has_names else []
    return {
        "image_ids": (np.array(encoded, np.bytes_) if has_names else np.array(known_images.ids, np.int64))[good_images],
        "image_places": np.flatnonzero(good_images).astype(np.int32),
        "file_names": _joined([files[number] for number in np.flatnonzero(good_images)]),
        "sizes": sizes.astype(np.int32)[good_images],
        "category_ids": np.array(known_categories.ids, np.int64)[good_categories],
        "category_names": _joined([names[number] for number in np.flatnonzero(good_categories)]),
        "headings": headings[good_categories],
        "are_ids": np.array(are_ids),
        "gzipped": np.array(gzipped),
        "readings": readings.packed(),
        **{name: values[by_image] for name, values in per_annotation.items()},
    }


def _sizes(images: Records) -> np.ndarray:
    """Returns height and width of the images, [N, 2] int64; 0 or -1 where they have to be looked up."""
    sizes = np.array([images.column(key, int, meant=side) for key in ("height", "width")], np.int64).T
    for number in np.flatnonzero(((sizes < -1) | (sizes >= 2**31)).any(axis=1)).tolist():
        height, width = sizes[number]
        images.refuse(number, "", "no size of an image (got {} x {}); fix it", width, height)
    return sizes


def _per_annotation(annotations: Records, images: Known, categories: Known) -> dict[str, np.ndarray]:
    return {
        "rows": annotations.positions("image_id", images),
        "categories": annotations.positions("category_id", categories),
        "boxes": annotations.boxes(),
        "area": _areas(annotations),
        "iscrowd": annotations.flags("iscrowd"),
    }


def _areas(annotations: Records) -> np.ndarray:
    values = annotations.column("area", float, int, default=_NO_AREA, meant=real)
    areas = np.array(values, np.float64)
    for number in np.flatnonzero(np.isnan(areas)).tolist():
        written = annotations.records[number].get("area", _NO_AREA)
        if written is values[number] and written is not _NO_AREA:  # what is null was counted with its column
            annotations.note(number, "area", NO_NUMBER, written)
    return areas


def _headings(categories: Records, names: Sequence[str], used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the categories that are headings of others and of no annotation, and those of them with another's name.

    Raises:
        DataError: other categories share a name.
    """
    above = [record.get("supercategory") for record in categories.records]
    headed = {name for name in above if isinstance(name, str)}
    # A category may be its own heading, as COCO's person is.
    headings = np.array([name in headed and above[k] != name for k, name in enumerate(names)], bool)
    headings[used] = False
    if headings.all():  # they are headings of each other
        headings[:] = False
    twins = np.zeros(len(names), bool)
    seen = {name for name, is_heading in zip(names, headings, strict=True) if not is_heading}
    for number in np.flatnonzero(headings).tolist():
        if names[number] in seen:
            twins[number] = True
            categories.read(number, "/name", HEADINGS, names[number])
        seen.add(names[number])
    categories.refuse_repeated("name", names, np.flatnonzero(twins).tolist())
    return headings, twins


def _joined(texts: Sequence[str]) -> np.ndarray:
    """Returns names, which hold no control characters, as bytes with line feeds between them."""
    return np.frombuffer("\n".join(texts).encode(), np.uint8)


def parse(path: Path, data: bytes) -> Any:
    """Reads JSON, gzipped or not, in any Unicode encoding with a mark; no key twice. Segmentations are dropped.

    NaN and infinity are read as Python writes them: most fields are skipped, and the others are checked.

    Raises:
        DataError: ``data``, the contents of ``path``, is not JSON.
    """
    data = _unpacked(path, data)
    try:
        text = data.decode(_mark(data) or "utf-8-sig")
    except UnicodeDecodeError:
        raise fault(path, f"not {_mark(data) or 'UTF-8'} text; convert the file") from None
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise fault(place, "broken JSON (got {}); fix or replace it", error.msg) from None
    except (ValueError, RecursionError) as error:
        raise fault(path, "bad JSON (got {}); fix it", str(error)) from None


def _mark(data: bytes) -> str:
    """Returns the encoding that the first bytes name, but for UTF-8; empty where they name none."""
    return next((encoding for mark, encoding in _MARKS.items() if data.startswith(mark)), "")


def _unpacked(path: Path, data: bytes) -> bytes:
    if not data.startswith(_GZIP):
        return data
    most = max(_LARGE, _MOST_TIMES * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            contents = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise fault(path, "broken gzip (got {}); replace it", str(error)) from None
    if len(contents) > most:
        raise fault(path, "expands to over {} bytes; unpack it", most)
    return contents


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = sorted(key for key, _ in pairs)
        raise ValueError(f"a key twice in an object with keys {', '.join(keys)}")
    record.pop("segmentation", None)
    return record
