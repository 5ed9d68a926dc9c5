"""Maps image and category ids of COCO result files by other detectors to those of the data.

An id with one sensible meaning is read, and counted; one with several is refused. Ids of the data come first.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from grcn.data.annotations import Annotations
from grcn.data.coco_records import Records
from grcn.data.coco_values import Known, number, paths_to
from grcn.data.faults import fault

LONGEST_NUMBER = 19  # digits that fit an int64

# Where the ids begin that classes get which no split lists: another file of the data set may list them, and must not
# have one of these ids for another class.
MADE_UP = 2**30

BY_NAME = "of another image than file_name, which counts"
BY_FILE = "that are no ids, read by file_name"
BY_NUMBER = "that are numbers in names of files"


def image_rows(records: Records, table: Annotations, foreign: str) -> np.ndarray:
    """Returns the row in the table of the image of each detection, int64 ``[K]``; -1 for one that it lacks.

    An image is identified by its id, or its file or the end of its path, with or without the suffix. Where there is a
    ``file_name`` beside ``image_id``, as Ultralytics writes it, the name counts. Numbers that are not ids, as 1 for
    ``000001.jpg``, are numbers in names of files if all of them can be.

    Args:
        foreign: the name under which detections in other images are counted.
    """
    files = [os.fsdecode(file) for file in table.files.tolist()]
    known = Known(table.result_ids(), files=files if any(files) else ())
    if known.files and not _read_file_names(records, known):
        _read_numbers(records, known)
    return records.positions("image_id", known, foreign)


def _read_file_names(records: Records, known: Known) -> bool:
    """Replaces ids that ``file_name`` contradicts; returns whether there is such a field."""
    names = [record.get("file_name") for record in records.records]
    if not any(type(name) is str for name in names):
        return False
    paths, rows = paths_to(known.files), {value: row for row, value in enumerate(known.ids)}
    named = [paths.get(name, set()) if type(name) is str else set() for name in names]
    if not any(len(images) == 1 for images in named):
        return False
    for place, (name, images) in enumerate(zip(names, named, strict=True)):
        value = records.records[place].get("image_id")
        if type(value) is not int or type(name) is not str or len(images) > 1 or rows.get(value) in images:
            continue
        if images:
            records.note(place, "image_id", BY_NAME if value in rows else BY_FILE, value)
        meant = known.ids[next(iter(images))] if images else name  # a name of no image here
        records.records[place] = records.records[place] | {"image_id": meant}
    return True


def _read_numbers(records: Records, known: Known) -> None:
    """Replaces numbers in file names by ids, unless some number can only be an id."""
    ids, values = set(known.ids), [record.get("image_id") for record in records.records]
    numbers = {value for value in values if type(value) is int}
    if numbers <= ids:
        return
    images: dict[int, list[int]] = {}
    for row, file in enumerate(known.files):
        stem = PurePosixPath(file.replace("\\", "/")).stem
        if stem.isascii() and stem.isdecimal() and len(stem) < LONGEST_NUMBER:
            images.setdefault(int(stem), []).append(row)
    rows = {value: found[0] for value, found in images.items() if len(found) == 1}
    if type(known.ids[0]) is int and not numbers <= rows.keys():
        return
    for place, value in enumerate(values):
        if type(value) is int and value in rows:
            records.note(place, "image_id", BY_NUMBER, value)
            records.records[place] = records.records[place] | {"image_id": known.ids[rows[value]]}


def class_labels(records: Records, table: Annotations, foreign: str) -> np.ndarray:
    """Returns the label of each detection, int64 ``[K]``; 0 for a category that the table lacks.

    Where the categories are not the data's they may be their places among them, from 0 or from 1. They are read so if
    there is a 0, or if the data count from 0 without gaps; not if the data list only some of the classes.

    Args:
        foreign: the name under which detections of other categories are counted.

    Raises:
        DataError: they may be places, but it is unclear whether they count from 0 or 1.
    """
    ids = sorted(table.category_ids.tolist())
    meant = [_integer(record.get("category_id")) for record in records.records]
    found = {value for value in meant if value is not None}
    starts = [start for start in (0, 1) if found <= set(range(start, start + len(ids)))]
    is_sure = starts == [0] or ids == list(range(len(ids)))
    if not found <= set(ids) and starts and None not in meant and (is_sure or ids[-1] < MADE_UP):
        if not is_sure:
            what = "neither the data's ids ({}) nor surely their places (got {}); write the data's ids"
            raise fault(f"{records.place}/*/category_id", what, ids, sorted(found))
        for place, value in enumerate(value for value in meant if value is not None):
            records.note(place, "category_id", f"that are places among the data's ids, from {starts[0]}", value)
            records.records[place] = records.records[place] | {"category_id": ids[value - starts[0]]}
    return records.positions("category_id", Known(table.category_ids.tolist()), foreign) + 1


def _integer(value: Any) -> int | None:
    meant = (value, "") if type(value) is int else number(value)
    return meant[0] if meant else None
