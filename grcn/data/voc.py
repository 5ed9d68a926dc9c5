"""Reads data sets in the layout of PASCAL VOC.

A split ``VOC2007/test`` below ``root`` is::

    VOC2007/ImageSets/Main/test.txt    one image per line
    VOC2007/Annotations/000001.xml     its objects
    VOC2007/JPEGImages/000001.jpg

VOC counts pixels from 1 and both corners are part of the box. :func:`to_continuous` and its inverse
:func:`grcn.data.voc_results.to_devkit` translate, there and nowhere else; plain IoU of the continuous boxes equals the
devkit's IoU, which adds 1 to widths and heights.
"""

from __future__ import annotations

import difflib
import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from grcn.catalog import VOC_CLASSES
from grcn.data.annotations import Annotations, concatenate
from grcn.data.faults import Fault, Notes, Report, check_class_name, fault, is_contained, tell
from grcn.data.validate import pack
from grcn.data.voc_lists import find_split
from grcn.data.voc_xml import box_of, check_tags, read_xml, size_of, text_of

# Values that annotation tools write in place of 0 and 1.
_DIFFICULT = {"": False, "false": False, "0.0": False, "unspecified": False, "true": True, "1.0": True}


@dataclass
class _Split:
    """Contents of one split's files; the lists of the second group have one entry per object."""

    name: str
    folder: str
    ids: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    rows: list[int] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


def load(
    root: str | Path,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
    report: Report | None = None,
    notes: Notes | None = None,
) -> Annotations:
    """Reads splits such as ``VOC2007/trainval`` below ``root`` into one table.

    Objects marked ``difficult`` are kept and flagged. Images need not exist yet. Their ids are the names in the lists;
    if two folders share a name, all ids start with the folder, as in ``VOC2007/000001``.

    Args:
        classes: the class names, in the order of their labels. Left out, they are the 20 of VOC if
            every name in the splits is one of them, otherwise the names found, sorted: load the
            training splits so, and pass their classes on for the test splits.
        report: called with the fault of every wrong line, annotation and object, which is left out; without it, the
            first one is an error.
        notes: counts what is read as it was meant; without one, a warning counts it.

    Raises:
        DataError: a list or annotation is missing or broken, an object's class is not listed, or an image is in two of
            the splits.
    """
    own = Notes() if notes is None else notes
    read = [_read_split(Path(root), split, report, own) for split in splits]
    names = [name for split in read for name in split.ids]
    if len(set(names)) < len(names):
        for split in read:
            split.ids = [str(PurePosixPath(split.folder) / name) for name in split.ids]
    if classes is None:
        found = {name for split in read for name in split.names}
        classes = VOC_CLASSES if found <= set(VOC_CLASSES) else sorted(found)
    table = concatenate([_pack_split(split, str(root), classes, report) for split in read])
    if notes is None:
        own.log(table.name)
    return table


def to_continuous(boxes: np.ndarray) -> np.ndarray:
    """Turns boxes [M, 4] of VOC (1-based, corners inclusive) into continuous 0-based pixels."""
    return boxes - np.array([1.0, 1.0, 0.0, 0.0])


def _read_split(root: Path, name: str, report: Report | None, notes: Notes) -> _Split:
    source = find_split(root, name, report, notes)
    split = _Split(_name_of(root, name), source.folder)
    for stem in source.names:
        path, image = source.annotations.path(stem), source.images.path(stem)
        file = str(image.relative_to(root))
        try:
            files = source.images.find(stem)
            if len(files) > 1:
                notes.add("images in several files, of which one is read", image, ", ".join(files))
            annotation = read_xml(path, notes)
            check_tags(annotation, path)
            size = size_of(annotation, path, image, notes)
        except Fault as found:
            found.image = file
            tell(report, found)
            continue
        split.ids.append(stem)
        split.files.append(file)
        split.sizes.append(size)
        for number, element in enumerate(annotation.findall("object"), start=1):
            try:
                _read_object(split, element, f"{path}: object {number}", notes)
            except Fault as found:
                found.image = file
                tell(report, found)
    return split


def _name_of(root: Path, split: str) -> str:
    """Returns the name of a split; that of the data set's own folder, ``.``, is the folder's name."""
    name = str(PurePosixPath(split))
    if name != ".":
        return name
    return root.name if is_contained(root.name) else "data"


def _read_object(split: _Split, element: ElementTree.Element, place: str, notes: Notes) -> None:
    """Appends an object to those of the last image of ``split``."""
    box = box_of(element, place)
    name = text_of(element, "name", place)
    check_class_name(f"{place}: <name>", name)
    difficult = _difficult(element, place, notes)
    split.rows.append(len(split.ids) - 1)
    split.boxes.append(box)
    split.names.append(name)
    split.difficult.append(difficult)
    split.places.append(place)


def _difficult(element: ElementTree.Element, place: str, notes: Notes) -> bool:
    text = (element.findtext("difficult") or "0").strip()
    if text in ("0", "1"):
        return text == "1"
    meant = _DIFFICULT.get(text.lower())
    if meant is None:
        raise fault(place, "<difficult> is neither 0 nor 1 (got {}); fix it", text)
    notes.add("values of <difficult> other than 0 and 1", place, text)
    return meant


def _pack_split(split: _Split, root: str, classes: Sequence[str], report: Report | None) -> Annotations:
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    boxes = to_continuous(np.array(split.boxes, np.float64).reshape(-1, 4))
    nearest = functools.cache(lambda name: difflib.get_close_matches(name, classes, 1, 0.6))
    for m, name in enumerate(split.names):
        if name not in label_of:
            near = nearest(name)
            listed = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            what = f"unknown class (got {{}}, {'near' if near else 'known:'} {{}}); rename it or add it to data.classes"
            found = fault(split.places[m], what, name, near[0] if near else listed, kind="class-unknown")
            found.image, found.box = split.files[split.rows[m]], tuple(boxes[m].tolist())
            tell(report, found)
    known = [m for m, name in enumerate(split.names) if name in label_of]
    return pack(
        split.name,
        classes,
        image_ids=split.ids,
        files=split.files,
        root=root,
        sizes=split.sizes,
        rows=[split.rows[m] for m in known],
        boxes=boxes[known],
        labels=[label_of[split.names[m]] for m in known],
        difficult=[split.difficult[m] for m in known],
        describe=[split.places[m] for m in known].__getitem__,
        report=report,
    )
