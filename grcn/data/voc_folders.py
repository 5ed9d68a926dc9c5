"""Finds the files of VOC's layout in its folders, under the names that annotation tools use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

# Suffixes of grcn.data.images.FORMATS, in order of preference where an image is there twice.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".jpe", ".jfif", ".apng"),
)
XML_SUFFIXES = (".xml",)
ANNOTATIONS = ("Annotations", "annotations")
IMAGES = ("JPEGImages", "images")
_MOST_FOLDERS = 500  # searched for annotations, if the split names none


class Files:
    """The files in and below a folder by their names: ``sub/a`` for ``sub/a.jpg``.

    Every folder is listed once, when it is first needed; files whose names begin with a dot are left out.

    Args:
        folder: need not exist.
        suffixes: of the files, in lower case, the best ones first.
    """

    def __init__(self, folder: Path, suffixes: tuple[str, ...]) -> None:
        self.folder = folder
        self._suffixes = suffixes
        self._listed: dict[str, dict[str, list[str]]] = {}

    def __contains__(self, name: str) -> bool:
        return bool(self.find(name))

    def names(self) -> list[str]:
        """Returns the names in the folder itself, in the order of the files."""
        found = self._list("")
        return sorted(found, key=found.__getitem__)

    def find(self, name: str) -> list[str]:
        """Returns the files of a name without their folders, the best one first."""
        parent, _, stem = name.rpartition("/")
        return self._list(parent).get(stem, [])

    def path(self, name: str) -> Path:
        """Returns the best file of a name, or the path where it should be."""
        found = self.find(name)
        return (self.folder / name).parent / found[0] if found else self.folder / f"{name}{self._suffixes[0]}"

    def _list(self, parent: str) -> dict[str, list[str]]:
        if parent not in self._listed:
            ranked: dict[str, list[tuple[int, bool, str]]] = {}
            for entry in _entries(self.folder / parent):
                stem, suffix = os.path.splitext(entry.name)
                lower = suffix.lower()
                if lower in self._suffixes and not stem.startswith(".") and _is_file(entry):
                    ranked.setdefault(stem, []).append((self._suffixes.index(lower), suffix != lower, entry.name))
            self._listed[parent] = {stem: [file for *_, file in sorted(files)] for stem, files in ranked.items()}
        return self._listed[parent]


@dataclass(frozen=True)
class Source:
    """The images of a split.

    Attributes:
        folder: the folder below the root in which their names are unique.
        names: of the images.
        annotations: their XML files.
        images: their image files.
    """

    folder: str
    annotations: Files
    images: Files
    names: list[str] = field(default_factory=list)


def source_of(root: Path, folder: str) -> Source:
    """Returns the files in a folder, each kind from the first of its usual places that has any."""

    def files(names: tuple[str, ...], suffixes: tuple[str, ...]) -> Files:
        usual = [Files(root / folder / name, suffixes) for name in names]
        beside = Files(root / folder, suffixes)
        found = [one for one in usual if one.names()] or [one for one in usual if any(_entries(one.folder))]
        return (found or [beside] * bool(beside.names()) or usual)[0]

    return Source(folder, files(ANNOTATIONS, XML_SUFFIXES), files(IMAGES, IMAGE_SUFFIXES))


def elsewhere(annotations: Files) -> list[Path]:
    """Returns the XML files that lie in other usual places than those of a split without a list, or below them."""
    chosen = annotations.folder
    base = chosen.parent if chosen.name in ANNOTATIONS else chosen
    places = [base, *(base / name for name in ANNOTATIONS)]
    places += [chosen / entry.name for entry in _entries(chosen) if _is_folder(entry)]
    found = {place: Files(place, XML_SUFFIXES) for place in places if place.is_dir() and not place.samefile(chosen)}
    return [files.path(name) for place, files in found.items() for name in files.names()]


def has_lists(folder: Path) -> bool:
    """Returns whether a folder has lists of images."""
    return any(entry.name.endswith(".txt") for entry in _entries(folder / "ImageSets/Main"))


def folders_with_annotations(root: Path) -> list[str]:
    """Returns the folders at most three below the root that could be a split without a list."""
    found: dict[str, None] = {}
    level = [PurePosixPath()]
    seen = 0
    for _ in range(4):
        below: list[PurePosixPath] = []
        for folder in level[: _MOST_FOLDERS - seen]:
            seen += 1
            entries = sorted(_entries(root / folder), key=lambda entry: entry.name)
            if any(entry.name.lower().endswith(".xml") and entry.name[0] != "." for entry in entries):
                found[str(folder.parent if folder.name in ANNOTATIONS else folder)] = None
            hidden = (".", "__")
            below += [folder / one.name for one in entries if not one.name.startswith(hidden) and _is_folder(one)]
        level = below
    return list(found)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yields the entries of a folder; none if it cannot be read, which opening a file in it will report."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (OSError, ValueError):
        return


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
