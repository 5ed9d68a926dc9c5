"""Reads data sets in the layout of YOLO, as Ultralytics and Roboflow write it.

``root`` has a ``data.yaml`` with the names of the classes, and with what its splits are: a folder of images, a list of
folders, or a ``.txt`` list of images. A split ``NAME`` that it does not have, or one of a folder without such a file,
is the images of ``images/NAME``, of ``NAME/images``, or of the list ``NAME.txt``. The labels of ``images/train/a.jpg``
are in ``labels/train/a.txt``, those of an image in no folder ``images`` beside it; an object is a line ``class x y
width height``, the centre and the sides as shares of the displayed image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from grcn.data import voc_folders
from grcn.data.annotations import Annotations, concatenate
from grcn.data.faults import USUAL_REMEDY, Fault, Notes, Report, fault, is_contained, read_bytes, split_remedy, tell
from grcn.data.images import read_header, read_image
from grcn.data.validate import pack
from grcn.data.yolo_yaml import Description, describe, resolve
from grcn.errors import one_line
from grcn.progress import progress_bar

logger = logging.getLogger("grcn")

# Formats that are read, and others, so that such an image is a clear error and is not left out silently.
IMAGE_SUFFIXES = frozenset((*voc_folders.IMAGE_SUFFIXES, ".mpo", ".heic", ".heif", ".avif", ".jp2", ".dng"))
_ROUNDING = 1e-3  # shares of an image are rounded: a box may stick out by this much, and is clipped
_LARGEST = 2.0  # a larger share must be in pixels
_UNLABELLED = "images without a label file, which have no objects"
_WRITE = "write class x y width height"


@dataclass
class _Split:
    """Contents of one split's files; the lists of the second group have one entry per object."""

    name: str
    files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)

    rows: list[int] = field(default_factory=list)
    shares: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


def load(
    root: str | Path,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
    report: Report | None = None,
    notes: Notes | None = None,
) -> Annotations:
    """Reads splits such as ``train`` below ``root`` into one table.

    Images must exist: their sizes are read from their headers. Their ids are the names of their files without suffix;
    if two of them share one, all ids are paths below ``root``. An image without a label file, or with an
    empty one, has no objects; but a folder of images without any label file is an error: its labels may lie elsewhere.

    Args:
        classes: the class names, in the order of their labels. Left out, they are the ``names`` of the data.yaml;
            without such a file they are those of the numbers from 0 on, and have to be given.
        report: called with the fault of every wrong line and image, which is left out; without it, the first one is an
            error.
        notes: counts what is read as it was meant; without one, a warning counts it.

    Raises:
        DataError: a data.yaml, list, label or image is missing or broken, a class is not listed, or an image is in two
            of the splits.
    """
    own = Notes() if notes is None else notes
    root = Path(root)
    data = describe(root, own)
    if data.path is None and classes is None:
        others = (path.parent.name for path in root.glob("*/images"))
        remedy = split_remedy(root, Path("data.yaml"), "", others)
        where = f"{remedy}, or " if "set data.root=" in remedy else ""
        raise fault(root, f"no data.yaml with names of classes; {where}add one or list them in data.classes")
    names = data.names if data.path is not None else dict(enumerate(classes or ()))
    classes = list(names.values()) if classes is None else classes
    read = [_read_split(root, split, data, names, classes, report, own) for split in splits]
    files = [file for split in read for file in split.files]
    stems = {PurePosixPath(file).stem for file in files}
    table = concatenate([_pack_split(split, str(root), classes, len(stems) == len(files), report) for split in read])
    if notes is None:
        own.log(table.name)
    return table


def _read_split(
    root: Path,
    name: str,
    data: Description,
    names: dict[int, str],
    classes: Sequence[str],
    report: Report | None,
    notes: Notes,
) -> _Split:
    split = _Split(name)
    label_of = {label: number for number, label in enumerate(classes, start=1)}
    folders: dict[Path, frozenset[str]] = {}
    unlabelled: dict[Path, list[str]] = {}  # by the folder of their labels
    labelled: set[Path] = set()
    image_of: dict[Path, str] = {}  # by label file
    images = _images_of(root, name, data, report, notes)
    for file in progress_bar(images, f"reading {name}", leave=False):
        path = root / _label_file(file)
        if path.parent not in folders:
            folders[path.parent] = _names_in(path.parent)
        has_labels = path.name in folders[path.parent]
        if has_labels:
            labelled.add(path.parent)
        try:
            size = _size(root / file)
            if has_labels and image_of.setdefault(path, file) != file:
                notes.add("images that share a label file with another one", root / file, f"as {image_of[path]}")
        except Fault as found:
            found.image = file
            tell(report, found)
            continue
        split.files.append(file)
        split.sizes.append(size)
        if has_labels:
            _read_labels(split, path, names, label_of, report, notes)
        else:
            unlabelled.setdefault(path.parent, []).append(file)
    for folder, files in unlabelled.items():
        if folder not in labelled:
            what = (
                "no such file, nor a label file of any other image of the folder; add them, empty ones for no objects"
            )
            raise fault(root / _label_file(files[0]), what)
    _count_unlabelled(root, name, [file for files in unlabelled.values() for file in files], notes)
    return split


def _count_unlabelled(root: Path, name: str, files: list[str], notes: Notes) -> None:
    # This is YOLO's own rule, so strict mode must not refuse it.
    if notes.strict:
        if files:
            logger.info("%s", one_line(f"{name}: {len(files):,} {_UNLABELLED}"))
        return
    for file in files:
        notes.add(_UNLABELLED, root / file, f"no {PurePosixPath(_label_file(file)).name}")


def _images_of(root: Path, name: str, data: Description, report: Report | None, notes: Notes) -> list[str]:
    """Returns the images of a split, as paths below ``root``, in the order of lists and sorted in folders."""
    found: dict[str, str] = {}
    parts = _parts(root, name, data, notes)
    for path, _ in parts:
        is_list = path.endswith(".txt") and (root / path).is_file()
        images = _listed(root, path, data.base, report, notes) if is_list else _images_below(root, path, notes)
        for image, where in images:
            if not is_contained(image):
                tell(report, fault(where, "not an image name (got {}); rename it", image, kind="list"))
            elif image in found:
                what = "an image is there before (got {}, as in {}); remove it"
                tell(report, fault(where, what, image, found[image], kind="list"))
            else:
                found[image] = where
    if not found:
        path, place = parts[0]
        raise fault(place, "no image in it (got {}); add images or use another split", path)
    return list(found)


def _parts(root: Path, name: str, data: Description, notes: Notes) -> list[tuple[str, str]]:
    """Returns the parts of a split, as paths below ``root``, each with the place that names it."""
    if name in data.splits:
        places = [(text, f"{data.path}:{line}") for text, line in data.splits[name]]
        return [(resolve(root, [data.base], text, place, notes), place) for text, place in places]
    forms = [f"images/{name}", f"{name}/images", f"{name}.txt"]
    there = [os.path.normpath(os.path.join(data.base, form)) for form in forms] if is_contained(name) else []
    there = [path for path in there if os.path.exists(root / path)]
    if len(there) > 1:
        raise fault(root, "two things are the split {} (got {}); move one away", name, there)
    if not there:
        others = sorted({*data.splits, *(path.parent.name for path in root.glob("*/images")), *_names_in_images(root)})
        listed = f" (found {', '.join(others[:5])})".replace("{", "{{").replace("}", "}}") if others else ""
        what = f"no split {{}} in it, nor images/NAME/, NAME/images/ or NAME.txt beside it; {USUAL_REMEDY}{listed}"
        if data.path is None:
            what = f"neither images/NAME/, NAME/images/ nor NAME.txt of the split {{}}; {USUAL_REMEDY}{listed}"
        raise fault(data.path or root, what, name)
    return [(there[0], str(root / there[0]))]


def _names_in_images(root: Path) -> list[str]:
    return [path.name for path in root.glob("images/*") if path.is_dir()]


def _listed(root: Path, path: str, base: str, report: Report | None, notes: Notes) -> Iterator[tuple[str, str]]:
    """Yields the images of a list with their lines; relative paths count from ``base``, or from the list's folder."""
    folder = os.path.dirname(path) or "."
    for line, text in _lines(root / path):
        place = f"{root / path}:{line}"
        try:
            bases = [folder, base] if text.startswith("./") else [base, folder]
            yield resolve(root, bases, text, place, notes), place
        except Fault as found:
            found.kind = "list"
            tell(report, found)


def _images_below(root: Path, path: str, notes: Notes) -> Iterator[tuple[str, str]]:
    """Yields the images in a folder and its subfolders; linked folders are entered, each once."""
    if not (root / path).is_dir():
        raise fault(root / path, f"neither a folder nor a .txt list; {USUAL_REMEDY}")
    seen: set[tuple[int, int]] = set()
    left = [path]
    while left:
        folder = left.pop()
        info = os.stat(root / folder)
        if (info.st_dev, info.st_ino) in seen:
            continue
        seen.add((info.st_dev, info.st_ino))
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise fault(root / folder, f"{error.strerror}; give access to it") from None
        inner = []
        for entry in entries:
            file = os.path.normpath(os.path.join(folder, entry.name))
            is_image = os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
            if entry.is_dir():
                inner.append(file)
            elif is_image and entry.name.startswith("."):  # a Mac's ._a.jpg beside a.jpg
                notes.add("hidden files among the images, left out", root / folder, entry.name)
            elif is_image:
                yield file, str(root / file)
        left += reversed(inner)


def _label_file(image: str) -> str:
    """Returns the label file of an image, both as paths below the root."""
    folders = list(PurePosixPath(image).parts[:-1])
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return os.path.join(*folders, f"{PurePosixPath(image).stem}.txt")


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise fault(folder, f"{error.strerror}; give access to it") from None


def _size(path: Path) -> tuple[int, int]:
    """Returns (height, width) of an image as displayed."""
    # A pipe or a device under the name of an image would block for ever.
    header = read_header(str(path)) if path.is_file() else None
    if header is not None:
        return header.displayed_size
    try:
        read_image(path)
    except Fault as found:
        if not found.kind.startswith("image-"):
            found.kind = "image-broken"
        raise
    raise fault(path, "its size cannot be read; save it anew as JPEG or PNG", kind="image-broken")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file that are not blank, with their numbers."""
    data = read_bytes(path, "add it or give access to it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise fault(f"{path}:{line}", "not UTF-8 text; convert the file") from None
    for line, content in enumerate(text.splitlines(), start=1):
        if content.strip():
            yield line, content.strip()


def _read_labels(
    split: _Split,
    path: Path,
    names: dict[int, str],
    label_of: dict[str, int],
    report: Report | None,
    notes: Notes,
) -> None:
    """Appends the objects of a label file to those of the last image of ``split``."""
    try:
        lines: Iterable[tuple[int, str]] = list(_lines(path))
    except Fault as found:
        found.image = split.files[-1]
        tell(report, found)
        return
    for line, text in lines:
        place = f"{path}:{line}"
        try:
            number, shares = _object(text, place, notes)
            if number not in names:
                known = f"{min(names)} to {max(names)}" if names else "none"
                raise fault(place, f"unknown class (got {{}}, known: {known}); fix it", number, kind="class-unknown")
            if names[number] not in label_of:
                what = "unknown class (got {}, {}); add it to data.classes"
                raise fault(place, what, number, names[number], kind="class-unknown")
        except Fault as found:
            found.image = split.files[-1]
            tell(report, found)
            continue
        split.rows.append(len(split.files) - 1)
        split.shares.append(shares)
        split.labels.append(label_of[names[number]])
        split.places.append(place)


def _object(text: str, place: str, notes: Notes) -> tuple[int, list[float]]:
    """Returns the class number and the four shares of a line."""
    columns = text.split()
    if len(columns) == 6:
        raise fault(place, "a sixth number, such as a confidence: predictions are no labels (got {}); remove it", text)
    if len(columns) > 5:
        what = "{} numbers: outlines, turned boxes and key points are not read; convert them to boxes: " + _WRITE
        raise fault(place, what, len(columns))
    try:
        number, *shares = map(float, columns)
    except ValueError:
        raise fault(place, f"not five numbers (got {{}}); {_WRITE}", text) from None
    if len(columns) < 5 or "_" in text:  # Python accepts _ in a number
        raise fault(place, f"not five numbers (got {{}}); {_WRITE}", text)
    if not (number.is_integer() and abs(number) < 2**31):
        raise fault(place, "the class is no whole number (got {}); fix it", columns[0])
    if not columns[0].isdigit() and number >= 0:
        notes.add("numbers of classes that are not written as whole ones", place, columns[0])
    if max(shares) > _LARGEST and max(shares) < float("inf"):
        what = "no shares of an image (got {}); divide pixels by its width and height"
        raise fault(place, what, text, kind="box-outside")
    return int(number), shares


def _pack_split(split: _Split, root: str, classes: Sequence[str], by_stem: bool, report: Report | None) -> Annotations:
    shares = np.array(split.shares, np.float64).reshape(-1, 4)
    half = shares[:, 2:] / 2
    corners = np.concatenate([shares[:, :2] - half, shares[:, :2] + half], axis=1)
    nearly = (corners > -_ROUNDING) & (corners < 1 + _ROUNDING)
    corners = np.where(nearly, np.clip(corners, 0, 1), corners)
    sizes = np.array(split.sizes, np.int64).reshape(-1, 2)
    boxes = corners * np.tile(sizes[np.array(split.rows, np.int64)][:, ::-1], 2)
    return pack(
        split.name,
        classes,
        image_ids=[PurePosixPath(file).stem if by_stem else file for file in split.files],
        files=split.files,
        root=root,
        sizes=sizes,
        rows=split.rows,
        boxes=boxes,
        labels=split.labels,
        describe=split.places.__getitem__,
        report=report,
    )
