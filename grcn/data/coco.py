"""Reads data sets in the layout of COCO, and COCO's detection files.

A split ``train2014`` below ``root`` has its images in ``train2014/`` and its boxes in
``annotations/instances_train2014.json``; a split ``pics/all:labels/train.json`` has them in ``pics/all/`` and
``labels/train.json``. What was read of that file is kept in the user's cache folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from grcn.data.annotations import Annotations, concatenate
from grcn.data.cache import cached
from grcn.data.coco_json import FORMAT, Records, columns, parse
from grcn.data.faults import Notes, Report, fault, read_bytes, split_remedy, tell
from grcn.data.validate import PART, pack, pack_detections
from grcn.errors import DataError, one_line

logger = logging.getLogger("grcn")


def load(
    root: str | Path,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
    report: Report | None = None,
    notes: Notes | None = None,
) -> Annotations:
    """Reads splits such as ``train2014``, or ``IMAGES:FILE.json``, below ``root`` into one table.

    Crowd regions are kept and flagged, ``area`` is the file's. Images need not exist yet.

    Args:
        classes: the class names, in the order of their labels. Left out, they are the categories
            of the first split in the order of their ids: load the training splits so, and pass
            their classes on for the test splits.
        report: is told of every record that is wrong, where otherwise the first one is an error; they are left out.
        notes: counts what is read as it was meant; without one, a warning does.

    Raises:
        DataError: a file is missing or broken, or the splits disagree about categories or share ids of images.
    """
    own = Notes() if notes is None else notes
    tables: list[Annotations] = []
    for split in splits:
        tables.append(_load_split(Path(root), split, classes, report, own))
        classes = tables[0].classes
    table = concatenate(tables)
    if notes is None:
        own.log(table.name)
    return table


def read_detections(file: str | Path, table: Annotations) -> dict[str, np.ndarray]:
    """Reads COCO's result file: a list of {image_id, category_id, bbox: [x, y, w, h], score}.

    Returns:
        packed detections of the images of ``table``: rows, boxes, scores, labels.

    Raises:
        DataError: broken JSON, a field is missing or of the wrong type, an unknown image or
            category id.
    """
    path = Path(file)
    document = parse(path, read_bytes(path, "pass an existing file"))
    if not isinstance(document, list):
        raise fault(path, "not a list (got {}); use COCO's result format", type(document).__name__)
    records = Records(f"{path}#", document)
    scores = records.column("score", float, int)
    return pack_detections(
        records.positions("image_id", table.result_ids()),
        records.boxes(),
        scores,
        records.positions("category_id", table.category_ids.tolist()) + 1,
        lambda k: f"{path}#/{k}",
    )


def write_detections(file: str | Path, table: Annotations, detections: Mapping[str, np.ndarray]) -> None:
    """Writes packed detections as COCO's result file; images of VOC go by their names.

    Numbers are written in full, so that reading them back gives the same boxes and scores.
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


def _places(split: str) -> tuple[Path, Path, str]:
    """Returns the folder of images and the annotation file of a split, below the root, and the name of its table.

    Of ``IMAGES:FILE.json`` the name is ``FILE``: its last part goes into names of result files, where no colon may be.
    """
    images, colon, file = split.partition(":")
    if colon:
        return Path(images), Path(file), file.removesuffix(".json")
    return Path(split), Path("annotations") / f"instances_{split}.json", split


def _load_split(
    root: Path, split: str, classes: Sequence[str] | None, report: Report | None, notes: Notes
) -> Annotations:
    folder, file, name = _places(split)
    path = root / file
    others = (path.stem.removeprefix("instances_") for path in root.glob("annotations/instances_*.json"))
    remedy = split_remedy(root, file, split, others)
    prefix = "" if folder == Path() else f"{folder}/"
    try:
        read = cached(path, FORMAT, remedy, partial(columns, path, prefix))
    except DataError:
        if report is None:
            raise
        read = columns(path, prefix, read_bytes(path, remedy), report)  # all faults, of which none is kept
    files = [f"{prefix}{image}" for image in read["file_names"].tobytes().decode().split("\n")]
    if len(set(files)) < len(files):
        repeated = len(files) - len(set(files))
        logger.warning("%s: %d files are listed again, under other ids", one_line(str(path)), repeated)
    classes, category_ids, labels = _labels(path, read, classes, report)
    known = labels > 0
    ids = read["ids"][known]
    return pack(
        name,
        classes,
        image_ids=read["image_ids"].tolist(),
        files=files,
        root=str(root),
        sizes=read["sizes"],
        rows=read["rows"][known],
        boxes=read["boxes"][known],
        labels=labels[known],
        area=read["area"][known],
        iscrowd=read["iscrowd"][known],
        category_ids=category_ids,
        describe=lambda m: f"{path}: annotation {ids[m]}",
        report=report,
    )


def _labels(
    path: Path, read: Mapping[str, np.ndarray], classes: Sequence[str] | None, report: Report | None
) -> tuple[Sequence[str], list[int], np.ndarray]:
    """Returns the class names, their category ids, and the label of each annotation: 0 is none of them."""
    names = read["category_names"].tobytes().decode().split("\n")
    id_of = dict(zip(names, read["category_ids"].tolist(), strict=True))
    if classes is None:
        classes = sorted(names, key=id_of.__getitem__)
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    used = set(read["categories"].tolist())
    for place, name in enumerate(names):
        if name not in label_of and place in used:
            tell(report, fault(path, "unknown class (got {}); add it to data.classes", name, kind="class-unknown"))
    for name in classes:
        if name not in id_of:
            tell(report, fault(f"{path}#/categories", "a class is missing (got no {}); add it", name))
    labels = np.array([label_of.get(name, 0) for name in names], np.int64)
    return classes, [id_of.get(name, -1) for name in classes], labels[read["categories"]]
