"""Reads data sets in the layout of COCO, and COCO's detection files.

A split ``train2014`` below ``root`` has its images in ``train2014/`` and its boxes in
``annotations/instances_train2014.json``; a split ``pics/all:labels/train.json`` has them in ``pics/all/`` and
``labels/train.json``. The parsed file is kept in the user's cache folder.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from grcn.data.annotations import Annotations, concatenate
from grcn.data.cache import cached
from grcn.data.coco_images import Images
from grcn.data.coco_json import FORMAT, HEADINGS, columns, parse
from grcn.data.coco_records import Records
from grcn.data.coco_result_ids import MADE_UP, class_labels, image_rows
from grcn.data.coco_values import Readings, tell_readings
from grcn.data.faults import Fault, Notes, Report, fault, read_bytes, split_remedy, tell
from grcn.data.validate import PART, pack, pack_detections
from grcn.errors import DataError, one_line

logger = logging.getLogger("grcn")

NO_ID = -(2**63)  # category id of a class that a split does not list, until the splits are joined

_RENUMBERED = "classes numbered anew, as two splits have one category id for two of them"


def load(
    root: str | Path,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
    report: Report | None = None,
    notes: Notes | None = None,
) -> Annotations:
    """Reads splits such as ``train2014``, or ``IMAGES:FILE.json``, below ``root`` into one table.

    Crowd regions are kept and flagged, ``area`` is taken from the file. Images need not exist yet.

    Args:
        classes: the class names, in the order of their labels. Left out, they are the categories
            of the first split in the order of their ids: load the training splits so, and pass
            their classes on for the test splits.
        report: called with the fault of every wrong record, which is left out; without it, the first one is an error.
        notes: counts what is read as it was meant; without one, a warning counts it.

    Raises:
        DataError: a file is missing or broken, or the splits disagree about categories or share ids of images.
    """
    own = Notes() if notes is None else notes
    tables: list[Annotations] = []
    for split in splits:
        tables.append(_load_split(Path(root), split, classes, report, own))
        classes = tables[0].classes
    table = _joined(tables, report, own)
    if notes is None:
        own.log(table.name)
    return table


def read_detections(file: str | Path, table: Annotations, strict: bool = False) -> dict[str, np.ndarray]:
    """Reads COCO's result file: a list of {image_id, category_id, bbox: [x, y, w, h], score}.

    Images and categories may have other ids, see :mod:`grcn.data.coco_result_ids`. Detections in other images or
    of other categories are left out; a warning counts them, and what is read as it was meant.

    Args:
        strict: refuse all of that.

    Returns:
        packed detections of the images of ``table``: rows, boxes, scores, labels.

    Raises:
        DataError: broken JSON, a field is missing or of the wrong type, or no detection is left.
    """
    path = Path(file)
    document = parse(path, read_bytes(path, "pass an existing file"))
    if not isinstance(document, list):
        raise fault(path, "not a list (got {}); use COCO's result format", type(document).__name__)
    readings = Readings()
    records = Records(path, "", document, readings)
    scores = np.array(records.column("score", float, int), np.float64)
    foreign = f"detections left out, as {table.name} has no such"
    rows = image_rows(records, table, f"{foreign} image")
    labels = class_labels(records, table, f"{foreign} category")
    boxes = records.boxes()
    known = np.flatnonzero((rows >= 0) & (labels > 0))
    if len(document) and not len(known):
        what = "no detection is of an image and a category of {}; use the results of this split"
        raise fault(path, what, table.name)
    notes = Notes(strict)
    tell_readings(readings.packed(), path, notes, None)
    if notes.counts:
        counts = ", ".join(f"{number:,} {kind}" for kind, number in notes.counts.items())
        logger.warning("%s", one_line(f"{path}: {counts}"))
    return pack_detections(rows[known], boxes[known], scores[known], labels[known], lambda k: f"{path}#/{known[k]}")


def write_detections(file: str | Path, table: Annotations, detections: Mapping[str, np.ndarray]) -> None:
    """Writes packed detections as COCO's result file; images of VOC are identified by their names.

    Numbers are written in full, so that reading them back gives the same scores, and the same boxes to float32.
    """
    encode = json.JSONEncoder(allow_nan=False).encode
    with open(file, "w", encoding="utf-8") as out:
        separator = "[\n"
        for record in _result_records(table, detections):
            out.write(separator + encode(record))
            separator = ",\n"
        out.write("\n]\n" if separator == ",\n" else "[]\n")


def _result_records(table: Annotations, detections: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    keys = table.result_ids()
    for start in range(0, len(detections["rows"]), PART):
        part = slice(start, start + PART)
        boxes = np.asarray(detections["boxes"][part], np.float64)
        fields = zip(
            detections["rows"][part].tolist(),
            table.category_ids[detections["labels"][part] - 1].tolist(),
            np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist(),
            np.asarray(detections["scores"][part], np.float64).tolist(),
            strict=True,
        )
        for row, category, box, score in fields:
            yield {"image_id": keys[row], "category_id": category, "bbox": box, "score": score}


def _places(root: Path, split: str) -> tuple[Path, Path, str]:
    """Returns the folder of images and the annotation file of a split, below the root, and the name of its table.

    For ``IMAGES:FILE.json`` the name is ``FILE``: its last part goes into names of result files, which allow no colon.
    """
    images, colon, file = split.partition(":")
    if colon:
        return Path(images), Path(file), file.removesuffix(".gz").removesuffix(".json")
    usual = Path("annotations") / f"instances_{split}.json"
    packed = usual.with_name(f"{usual.name}.gz")
    return Path(split), packed if (root / packed).exists() and not (root / usual).exists() else usual, split


def _load_split(
    root: Path, split: str, classes: Sequence[str] | None, report: Report | None, notes: Notes
) -> Annotations:
    folder, file, name = _places(root, split)
    path = root / file
    found = (path.name.removeprefix("instances_") for path in root.glob("annotations/instances_*.json*"))
    others = {name.removesuffix(".gz").removesuffix(".json") for name in found}
    remedy = split_remedy(root, file, split, others)
    prefix = "" if folder == Path() else f"{folder}/"
    try:
        read = cached(path, FORMAT, remedy, partial(columns, path, prefix))
    except DataError:
        if report is None:
            raise
        read = columns(path, prefix, read_bytes(path, remedy), report)  # reports all faults; the cache keeps none
    if read["gzipped"] and not path.name.endswith(".gz"):  # the cache knows contents, not names
        _note(notes, report, "gzipped files that are not called so", path, path.name)
    tell_readings(read["readings"], path, notes, report)
    images = Images(root, folder, lambda n: f"{path}#/images/{read['image_places'][n]}", report, notes)
    files, good = images.files(read["file_names"].tobytes().decode().split("\n"))
    sizes = images.fill_sizes(read["sizes"], files, good)
    if len(set(files)) < len(files):
        repeated = len(files) - len(set(files))
        logger.warning("%s: %d files are listed again, under other ids", one_line(str(path)), repeated)
    classes, category_ids, labels = _labels(path, read, classes, report, notes)
    known = (labels > 0) & good[read["rows"]]
    ids, place = read["ids"][known], ": annotation " if read["are_ids"] else "#/annotations/"
    return pack(
        name,
        classes,
        image_ids=[image.decode() if isinstance(image, bytes) else image for image in read["image_ids"][good].tolist()],
        files=[file for file, kept in zip(files, good, strict=True) if kept],
        root=str(root),
        sizes=sizes[good],
        rows=(np.cumsum(good) - 1)[read["rows"][known]],
        boxes=read["boxes"][known],
        labels=labels[known],
        area=read["area"][known],
        iscrowd=read["iscrowd"][known],
        category_ids=category_ids,
        describe=lambda m: f"{path}{place}{ids[m]}",
        report=report,
    )


def _labels(
    path: Path, read: Mapping[str, np.ndarray], classes: Sequence[str] | None, report: Report | None, notes: Notes
) -> tuple[Sequence[str], list[int], np.ndarray]:
    """Returns the class names, their category ids, and the label of each annotation: 0 is none of them."""
    names = read["category_names"].tobytes().decode().split("\n")
    id_of = dict(zip(names, read["category_ids"].tolist(), strict=True))
    headings = {name for name, is_heading in zip(names, read["headings"], strict=True) if is_heading}
    for name in names:
        if name in headings and name not in (classes or ()):
            _note(notes, report, HEADINGS, f"{path}#/categories", name)
    if classes is None:
        classes = sorted((name for name in names if name not in headings), key=id_of.__getitem__)
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    used = set(read["categories"].tolist())
    for place, name in enumerate(names):
        if name not in label_of and place in used:
            tell(report, fault(path, "unknown class (got {}); add it to data.classes", name, kind="class-unknown"))
    for name in classes:
        if name not in id_of:
            _note(notes, report, "classes that the split does not list", f"{path}#/categories", name)
    labels = np.array([label_of.get(name, 0) for name in names], np.int64)
    return classes, [id_of.get(name, NO_ID) for name in classes], labels[read["categories"]]


def _note(notes: Notes, report: Report | None, kind: str, place: object, got: object, number: int = 1) -> None:
    try:
        notes.add(kind, place, got, number)
    except Fault as found:
        tell(report, found)


def _joined(tables: list[Annotations], report: Report | None, notes: Notes) -> Annotations:
    """Joins the tables of splits, some of which may list only some of the classes, or identify images by names."""
    ids = np.stack([table.category_ids for table in tables])
    listed = ids != NO_ID
    used = set(ids[listed].tolist())
    for label in np.flatnonzero(~listed.all(axis=0)).tolist():
        known = ids[listed[:, label], label]
        number = known[0] if len(known) else next(free for free in count(MADE_UP + label) if free not in used)
        used.add(int(number))
        ids[~listed[:, label], label] = number
    shared = [number for number, times in Counter(ids[0].tolist()).items() if times > 1]
    # Splits that disagree about a class are refused below.
    if shared and (ids == ids[0]).all():
        ids[:] = np.arange(1, ids.shape[1] + 1)
        place = "+".join(table.name for table in tables)
        _note(notes, report, _RENUMBERED, place, shared[0], ids.shape[1])
    if len({table.has_ids for table in tables}) > 1:
        tables = [replace(table, image_ids=np.array(table.image_ids, np.bytes_)) for table in tables]
    return concatenate([replace(table, category_ids=own) for table, own in zip(tables, ids, strict=True)])
