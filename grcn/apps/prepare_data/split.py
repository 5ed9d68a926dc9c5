"""Splits a folder of images that has no split: writes lists of its images, and moves and copies nothing.

The hash of its name and the seed decides where an image goes, so that a growing folder keeps most of its split.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grcn.config.yaml_nodes import is_plain_word
from grcn.data.coco_values import number as as_number
from grcn.data.coco_values import paths_to
from grcn.data.faults import Notes, check_class_name, fault, is_contained, read_bytes
from grcn.data.voc_folders import source_of
from grcn.data.yolo import IMAGE_SUFFIXES
from grcn.data.yolo_yaml import describe
from grcn.errors import ConfigError
from grcn.fileio import write_durably

FORMATS = ("voc", "yolo", "coco")
_CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")  # of labelImg, Label Studio and CVAT
_MOST_LOOKED_FOR = 20  # maximum number of images looked for to find their folder


@dataclass(frozen=True)
class Written:
    """Result of :func:`split`.

    Attributes:
        files: each with a description of its contents.
        settings: to train with, each ``key=value``.
        remarks: notes for the user.
    """

    files: list[tuple[Path, str]]
    settings: list[str]
    remarks: list[str]

    def __str__(self) -> str:
        lines = [*(f"{path}: {what}" for path, what in self.files), *self.remarks]
        return "\n".join([*lines, f"settings: {shlex.join(self.settings)}"])


def split(root: Path, shares: dict[str, float], seed: int = 0, form: str | None = None) -> Written:
    """Splits a data set at random.

    Args:
        root: a folder with VOC's ``Annotations`` and ``JPEGImages``, or their files side by side, one with YOLO's
            ``images`` and ``labels``, a COCO JSON file, or a folder with one such file.
        shares: of the splits beside ``train``, such as ``{"test": 0.2}``; the rest is ``train``.
        seed: another one makes another split.
        form: one of :data:`FORMATS`; None detects it.

    Raises:
        ConfigError: the shares leave nothing to train on.
        DataError: ``root`` is no such folder, or has fewer images than splits; a file to be written exists.
    """
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        given = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ConfigError(f"shares must lie between 0 and 1, and leave some for train (got {given}); lower them")
    writers: dict[str, Callable[[Path, dict[str, float], int], Written]] = {
        "voc": _split_voc,
        "yolo": _split_yolo,
        "coco": _split_coco,
    }
    return writers[form or _format_of(root)](root, shares, seed)


def assign(names: Sequence[str], shares: dict[str, float], seed: int, place: object) -> dict[str, list[str]]:
    """Returns the names of each split, ``train`` first, each in the order given.

    Raises:
        DataError: there are fewer names than splits; ``place`` says where.
    """
    if len(names) <= len(shares):
        raise fault(place, "too few images to split (got {}); add some", len(names))
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest())
    split_of = dict.fromkeys(names, "train")
    start = 0
    for number, (split, share) in enumerate(shares.items()):
        # At least one, and at least one left for each of those that follow and for train.
        most = len(names) - start - (len(shares) - number)
        count = min(max(1, round(share * len(names))), most)
        split_of |= dict.fromkeys(order[start : start + count], split)
        start += count
    return {split: [name for name in names if split_of[name] == split] for split in ("train", *shares)}


def _format_of(root: Path) -> str:
    if not root.exists():
        raise fault(root, "no such file or folder; give --root the folder of the images")
    if root.is_file():
        return "coco"
    is_voc = (root / "Annotations").is_dir() or bool(source_of(root, ".").annotations.names())
    is_yolo = (root / "labels").is_dir() or any((root / name).is_file() for name in ("data.yaml", "dataset.yaml"))
    is_coco = bool(_documents(root))
    found = [form for form, there in zip(FORMATS, (is_voc, is_yolo, is_coco), strict=True) if there]
    if not found:
        what = "neither Annotations/, nor labels/, nor a JSON file in it; give --root the folder that has them"
        raise fault(root, what)
    if len(found) > 1:
        raise fault(root, "may be any of several layouts (got {}); give --format", ", ".join(found))
    return found[0]


def _split_voc(root: Path, shares: dict[str, float], seed: int) -> Written:
    source = source_of(root, ".")
    annotations = source.annotations.folder
    described, pictures = set(source.annotations.names()), set(source.images.names())
    if not (described and pictures):
        what = "no XML files or no images in it; move them to Annotations/ and JPEGImages/"
        raise fault(root, what)
    stems = sorted(described & pictures)
    for stem in stems:
        if not is_contained(stem) or stem.split() != [stem]:
            raise fault(annotations, "a name that a list cannot hold (got {}); rename the files", stem)
    parts = assign(stems, shares, seed, annotations)
    lists = root / "ImageSets/Main"
    files = {lists / f"{name}.txt": _lines(part) for name, part in parts.items()}
    _write(files)
    whole = Path(os.path.abspath(root))  # "." has no name
    parent = root.parent if root.name not in ("", "..") else whole.parent
    remarks = [
        f"left out: {len(left):,} {what} (first: {min(left)})"
        for left, what in (
            (described - pictures, "annotations without an image"),
            (pictures - described, "images without an annotation"),
        )
        if left
    ]
    written = [(path, f"{len(part):,} images") for path, part in zip(files, parts.values(), strict=True)]
    return Written(written, _settings("voc", parent, {name: f"{whole.name}/{name}" for name in parts}), remarks)


def _split_yolo(root: Path, shares: dict[str, float], seed: int) -> Written:
    data = describe(root, Notes())
    top = root / data.base
    names = ("train", *shares)
    for name in names:
        if name in data.splits:
            what = "has a split {} already; use it, or remove the line"
            raise fault(f"{data.path}:{data.splits[name][0][1]}", what, name)
        for inner in (f"images/{name}", f"{name}/images"):
            if (top / inner).is_dir():
                raise fault(top / inner, "is a split already; use it, or move its images up")
    folder = top / "images" if (top / "images").is_dir() else top
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.name[:1] != ".")
    images = sorted(path.relative_to(top).as_posix() for path in found)
    for image in images:
        if not is_contained(image) or image != image.strip():
            raise fault(folder, "a name that a list cannot hold (got {}); rename the file", image)
    parts = assign(images, shares, seed, folder)
    files = {top / f"{name}.txt": _lines(f"./{image}" for image in part) for name, part in parts.items()}
    written = [(path, f"{len(part):,} images") for path, part in zip(files, parts.values(), strict=True)]
    remarks = []
    if data.path is None:
        classes, source = _class_names(root)
        described = root / "data.yaml"
        document = {**{name: f"{name}.txt" for name in names}, "names": dict(enumerate(classes))}
        files[described] = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        written.append((described, f"{len(classes)} classes"))
        remarks = [f"names of classes: {source}"]
    _write(files)
    return Written(written, _settings("yolo", root, {name: name for name in names}), remarks)


def _class_names(root: Path) -> tuple[list[str], str]:
    """Returns the names of the classes in the order of their numbers, and their source."""
    for name in _CLASS_FILES:
        path = root / name
        if path.is_file():
            text = read_bytes(path, "give access to it").decode("utf-8-sig", errors="replace")
            classes = [line.strip() for line in text.splitlines() if line.strip()]
            for line in classes:
                check_class_name(path, line)
            if classes:
                return classes, f"those of {path}"
    numbers = {-1}
    for path in sorted(root.rglob("*.txt")):
        for line in read_bytes(path, "give access to it").decode(errors="replace").splitlines():
            first, *rest = line.split() or [""]
            if len(rest) >= 4 and first.isascii() and first.isdigit() and len(first) < 5:
                numbers.add(int(first))
    if max(numbers) < 0:
        raise fault(root, "no labels in it; add labels/ beside images/")
    return [
        f"class {number}" for number in range(max(numbers) + 1)
    ], f"none found; write them into {root / 'data.yaml'}"


def _split_coco(root: Path, shares: dict[str, float], seed: int) -> Written:
    documents = [root] if root.is_file() else _documents(root)
    if len(documents) != 1:
        found = ", ".join(str(path.relative_to(root)) for path in documents) or "none"
        raise fault(root, "not one JSON file (got {}); give --root the file", found)
    (path,) = documents
    try:
        document = json.loads(read_bytes(path, "give an existing file"))
    except (ValueError, RecursionError) as error:
        raise fault(path, "broken JSON (got {}); fix or replace it", str(error)) from None
    images, annotations = _records(path, document, "images", "id"), _records(path, document, "annotations", "image_id")
    files_of_images: dict[str, None] = {}
    for number, image in enumerate(images):
        file = image.get("file_name")
        if not isinstance(file, str) or not is_contained(file):
            raise fault(f"{path}#/images/{number}", "file_name is no path below a folder (got {}); fix it", file)
        if file in files_of_images:
            raise fault(f"{path}#/images/{number}", "an image is listed twice (got {}); remove one", file)
        files_of_images[file] = None
    names = list(files_of_images)
    image_of = _referred(path, [image["id"] for image in images], names, annotations)
    parts = assign(names, shares, seed, path)
    files, written = {}, []
    for name, part in parts.items():
        members = set(part)
        own = {
            "images": [image for image in images if image["file_name"] in members],
            "annotations": [
                annotation for annotation, n in zip(annotations, image_of, strict=True) if names[n] in members
            ],
        }
        files[path.parent / f"{name}.json"] = json.dumps(document | own)  # in ASCII: a lone surrogate is not UTF-8
        written.append((path.parent / f"{name}.json", f"{len(part):,} images, {len(own['annotations']):,} objects"))
    _write(files)
    top, folders = _folders_of(path, names)
    folder = folders[0] if len(folders) == 1 else ""
    remarks = []
    if not folders:
        remarks = [f"{names[0]} was not found near {path}: put the folder of the images in place of IMAGES"]
    elif not folder:
        listed = ", ".join(folders)
        remarks = [f"several folders have images of {path} ({listed}): put the right one in place of IMAGES"]
    below = path.parent.relative_to(top)
    splits = {name: f"{folder or 'IMAGES'}:{(below / f'{name}.json').as_posix()}" for name in parts}
    return Written(written, _settings("coco", top, splits), remarks)


def _documents(root: Path) -> list[Path]:
    return sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])


def _records(path: Path, document: Any, key: str, number: str) -> list[dict[str, Any]]:
    """Returns one of the lists of COCO's JSON, every record of which has an id."""
    records = document.get(key) if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise fault(path, "no list of {} in it; use COCO's format", key)
    for place, record in enumerate(records):
        value = record.get(number) if isinstance(record, dict) else None
        if type(value) not in (int, str) and as_number(value) is None:
            raise fault(f"{path}#/{key}/{place}", "no {} in it; add it", number)
    return records


def _referred(path: Path, ids: list[Any], files: list[str], annotations: list[dict[str, Any]]) -> list[int]:
    """Returns the image of each annotation, by its id or its file, as :mod:`grcn.data.coco` reads them.

    Refuses what that reader refuses, since the fault may not show in any split alone.
    """
    are_names = any(type(value) is str and as_number(value) is None for value in ids)

    def text(value: Any) -> str:
        meant = None if are_names and type(value) is str else as_number(value)
        return str(meant[0] if meant else value)

    position: dict[str, int] = {}
    for number, value in enumerate(ids):
        if text(value) in position:
            raise fault(f"{path}#/images/{number}/id", "used before (got {}); fix it", value)
        position[text(value)] = number
    written = {value for value in ids if type(value) is str}
    images_of = paths_to(files)
    found: list[int] = []
    for number, annotation in enumerate(annotations):
        value = annotation["image_id"]
        meant = {position[text(value)]} if text(value) in position else set()
        if type(value) is str and value not in written:
            meant |= images_of.get(value, set())
        if len(meant) != 1:
            what = "may be any of {} images (got {}); use their ids"
            values = [len(meant), value]
            if not meant:
                what, values = "no image has this image_id (got {}); fix or remove it", [value]
            raise fault(f"{path}#/annotations/{number}", what, *values)
        found += meant
    return found


def _folders_of(path: Path, images: Sequence[str]) -> tuple[Path, list[str]]:
    """Returns the folder to set as ``data.root``, and the folders below it that may hold the images.

    It is one folder if all images looked for are there and nowhere else: thumbnails have the same names.
    """
    some = images[:: -(-len(images) // _MOST_LOOKED_FOR)]
    for top in (path.parent, path.parent.parent):
        folders = [top, *sorted(folder for folder in top.iterdir() if folder.is_dir())]
        counts = {folder: sum(os.path.isfile(folder / image) for image in some) for folder in folders}
        if found := [folder for folder, count in counts.items() if count == max(1, *counts.values())]:
            # If none has all of them, those that have a few may each hold a part.
            if counts[found[0]] < len(some):
                found = [folder for folder, count in counts.items() if count]
            return top, [folder.relative_to(top).as_posix() for folder in found]
    return path.parent, []


def _settings(form: str, root: Path, splits: dict[str, str]) -> list[str]:
    """Returns the settings that read the written files."""
    found = [f"data.format={form}", f"data.root={_quoted(str(root))}"]
    return found + [f"data.{name}=[{_quoted(splits[name])}]" for name in ("train", "test")]


def _quoted(text: str) -> str:
    return text if is_plain_word(text.lstrip("./")) else json.dumps(text, ensure_ascii=False)


def _lines(names: Iterable[str]) -> str:
    return "".join(f"{name}\n" for name in names)


def _write(files: dict[Path, str]) -> None:
    """Writes new files: all of them, or none if one exists."""
    for path in files:
        if path.exists() or path.is_symlink():
            raise fault(path, "exists already; use that split, or remove it")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text.encode(errors="surrogateescape"))
