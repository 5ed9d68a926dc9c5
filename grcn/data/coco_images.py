"""Finds the images that a file in COCO's layout names, where it names them otherwise, and their sizes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np

from grcn.data.faults import Fault, Notes, Report, fault, is_contained, tell
from grcn.data.images import read_header

_BACKSLASHES = "names of files with backslashes"
_ESCAPES = "names of files with percent escapes"
_FOLDER = "names of files with the folder of the split in front"
_WHOLE = "names of files that are whole paths or URLs"
_NO_SIZE = "images whose size is that of the file"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WHOLE_PATH = re.compile(rf"/|[A-Za-z]:/|{_URL.pattern}")


class Images:
    """The images of a split.

    Args:
        root: the folder of the data set.
        folder: of the split's images, below it.
        place_of: returns file and JSON pointer of an image, for messages.
        report: takes the faults of images that cannot be found, where otherwise the first one is raised.
        notes: counts what is read as it was meant.
    """

    def __init__(
        self, root: Path, folder: Path, place_of: Callable[[int], str], report: Report | None, notes: Notes
    ) -> None:
        self.root = root
        self.folder = root / folder
        self.prefix = "" if folder == Path() else f"{folder}/"
        self.place_of = place_of
        self.report = report
        self.notes = notes
        self.own = Path(os.path.abspath(self.folder)).parts

    def files(self, names: list[str]) -> tuple[list[str], np.ndarray]:
        """Returns the paths of images below the root, and whether each can be used, bool [N].

        Only names that look unusual are looked for; the others need not exist.
        """
        good = np.ones(len(names), bool)
        files = list(names)
        for number, name in enumerate(names):
            if "\\" in name or "%" in name or _WHOLE_PATH.match(name) or name.split("/", 1)[0] in self.own[1:]:
                try:
                    files[number] = self._found(number, name)
                except Fault as found:
                    tell(self.report, found)
                    good[number] = False
        return [f"{self.prefix}{name}" for name in files], good

    def fill_sizes(self, sizes: np.ndarray, files: list[str], good: np.ndarray) -> np.ndarray:
        """Returns heights and widths [N, 2], those that are missing as the images are displayed; changes ``good``."""
        missing = np.flatnonzero((sizes < 1).any(axis=1) & good).tolist()
        filled = sizes.copy() if missing else sizes
        for number in missing:
            height, width = sizes[number].tolist()
            path = os.path.join(self.root, files[number])
            header = read_header(path) if os.path.isfile(path) else None  # a pipe would block for ever
            try:
                if header is None:
                    what = "no size (got {} x {}), and no image {} to take it from; add one"
                    raise _of(files[number], fault(self.place_of(number), what, width, height, files[number]))
                filled[number] = header.size[::-1] if header.orientation > 4 else header.size
                self._note(_NO_SIZE, number, [width, height])
            except Fault as found:
                tell(self.report, found)
                good[number] = header is not None
        return filled

    def _found(self, number: int, name: str) -> str:
        if not name.startswith("/") and self._is_file(name):
            return name
        plain = name.replace("\\", "/")
        kinds = [_BACKSLASHES] if plain != name else []
        if _WHOLE_PATH.match(plain):
            return self._found_by_end(number, name, plain)
        for text, escapes in ((plain, []), (unquote(plain), [_ESCAPES])):
            for file, folders in ((text, []), *((rest, [_FOLDER]) for rest in self._below(text))):
                if file != name and is_contained(file) and self._is_file(file):
                    for kind in [*kinds, *escapes, *folders]:
                        self._note(kind, number, name)
                    return file
        return name

    def _is_file(self, name: str) -> bool:
        return os.path.isfile(self.folder / name)

    def _below(self, name: str) -> Iterator[str]:
        """Yields what is left of a path where it begins with the end of the folder's."""
        parts = PurePosixPath(name).parts
        for count in range(1, len(parts)):
            if parts[:count] == self.own[-count:]:
                yield "/".join(parts[count:])

    def _found_by_end(self, number: int, name: str, plain: str) -> str:
        """Returns the one image below the folder that has the last part of a whole path or URL for its name."""
        inside = PurePosixPath(plain).parts
        if inside[: len(self.own)] == self.own and self._is_file("/".join(inside[len(self.own) :])):
            self._note(_WHOLE, number, name)
            return "/".join(inside[len(self.own) :])
        ends = [plain.rsplit("/", 1)[-1]]
        if _URL.match(plain) or "?" in plain:
            path, _, query = plain.partition("?")
            ends += [path.partition("#")[0].rsplit("/", 1)[-1], re.split("[/=]", query)[-1]]
        for end in (*ends, *map(unquote, ends)):
            paths = self._by_name.get(end, [])
            if len(paths) > 1:
                what = "names {} images below {} (got {}); write which"
                raise self._fault(number, what, len(paths), self.prefix, name)
            if paths:
                self._note(_WHOLE, number, name)
                return paths[0]
        raise self._fault(number, "not a path below {} (got {}); fix it", self.prefix, name)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                found.setdefault(name, []).append(os.path.relpath(os.path.join(folder, name), self.folder))
        return found

    def _fault(self, number: int, what: str, *values: object) -> Fault:
        return fault(f"{self.place_of(number)}/file_name", what, *values)

    def _note(self, kind: str, number: int, got: object) -> None:
        self.notes.add(kind, self.place_of(number) if kind == _NO_SIZE else f"{self.place_of(number)}/file_name", got)


def _of(file: str, found: Fault) -> Fault:
    found.image = file
    return found
