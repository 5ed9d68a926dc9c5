"""Resolves the image names in a COCO annotation file, also where they are unusual, and finds missing sizes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _End:
    """How a written name matches a file: by its last ``shared`` parts. An exact name has no parts."""

    name: str
    parts: tuple[str, ...]
    file: str
    shared: int


class Images:
    """The images of a split.

    Args:
        root: the folder of the data set.
        folder: the folder of the split's images, below it.
        place_of: returns file and JSON pointer of an image, for messages.
        report: gets the faults of images that cannot be found; without it, the first one is raised.
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
        self._ends: dict[int, _End] = {}  # for images that were found by the end of their names

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
        self._settle_ends(names, files, good)
        return [f"{self.prefix}{name}" for name in files], good

    def fill_sizes(self, sizes: np.ndarray, files: list[str], good: np.ndarray) -> np.ndarray:
        """Returns heights and widths [N, 2], missing ones from the images as displayed; changes ``good``."""
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
                real = header.displayed_size
                good[number] = all(side < 1 or side == true for side, true in zip((height, width), real, strict=True))
                if not good[number]:
                    what = "no size of the image (got {} x {}, not {} x {}); fix it"
                    values = (width, height, real[1], real[0])
                    raise _of(files[number], fault(self.place_of(number), what, *values))
                filled[number] = real
                self._note(_NO_SIZE, number, [width, height])
            except Fault as found:
                tell(self.report, found)
                good[number] &= header is not None
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
        """Yields the rest of a path that begins with the end of the folder's path."""
        parts = PurePosixPath(name).parts
        for count in range(1, len(parts)):
            if parts[:count] == self.own[-count:]:
                yield "/".join(parts[count:])

    def _found_by_end(self, number: int, name: str, plain: str) -> str:
        """Returns the one image below the folder whose path shares the longest end with a whole path or URL."""
        inside = PurePosixPath(plain).parts
        if inside[: len(self.own)] == self.own and self._is_file("/".join(inside[len(self.own) :])):
            self._note(_WHOLE, number, name)
            return "/".join(inside[len(self.own) :])
        texts = [plain]
        if _URL.match(plain) or "?" in plain:
            path, _, query = plain.partition("?")
            texts += [path.partition("#")[0], query.rsplit("=", 1)[-1]]
        written = [tuple(text.split("/")) for text in texts]
        for parts in (*written, *(tuple(map(unquote, parts)) for parts in written)):
            ends = ((shared, self._by_end.get(parts[-shared:], [])) for shared in range(len(parts), 0, -1))
            shared, best = next(((shared, files) for shared, files in ends if files), (0, []))
            if len(best) > 1:
                what = "names {} images below {} (got {}); write which"
                raise self._fault(number, what, len(best), self.prefix, name)
            if best:
                self._ends[number] = _End(name, parts, best[0], shared)
                return best[0]
        raise self._fault(number, "not a path below {} (got {}); fix it", self.prefix, name)

    def _settle_ends(self, names: Sequence[str], files: Sequence[str], good: np.ndarray) -> None:
        """Refuses images that were found by the end of their names where other names make that doubtful."""
        if not self._ends:
            return
        claims = self._claims(names, files, good)
        # Maps folders of other machines to local ones; if two match, the longest end wins.
        moved: dict[tuple[str, ...], tuple[tuple[str, ...], _End]] = {}
        for end in sorted(self._ends.values(), key=lambda end: -end.shared):
            moved.setdefault(end.parts[: -end.shared], (tuple(end.file.split("/")[: -end.shared]), end))
        for number, end in self._ends.items():
            rivals = [other for other in claims[end.file] if other.parts != end.parts and other.shared >= end.shared]
            above = end.parts[: -end.shared] if end.shared <= end.file.count("/") else ()
            for count in range(len(above)):
                folder, other = moved.get(above[:count], ((), end))
                if other.shared > end.shared and "/".join((*folder, *end.parts[count:])) != end.file:
                    rivals.append(other)
            try:
                if rivals:
                    what = "leads to {}, which {} contradicts (got {}); add the image or fix it"
                    raise self._fault(number, what, end.file, rivals[0].name, end.name)
                self._note(_WHOLE, number, end.name)
            except Fault as found:
                tell(self.report, found)
                good[number] = good[number] and not rivals

    def _claims(self, names: Sequence[str], files: Sequence[str], good: np.ndarray) -> dict[str, list[_End]]:
        """Returns the two names with most in common with each file that was found by the end of a name."""
        found: dict[str, dict[tuple[str, ...], _End]] = {end.file: {} for end in self._ends.values()}
        for number in np.flatnonzero(good).tolist():
            if files[number] in found:
                exact = _End(names[number], (), files[number], 2**31)
                end = self._ends.get(number, exact)
                found[end.file].setdefault(end.parts, end)
        # Any of many matches will do, and checking all of them for each would take forever.
        return {file: sorted(ends.values(), key=lambda end: -end.shared)[:2] for file, ends in found.items()}

    @cached_property
    def _by_end(self) -> dict[tuple[str, ...], list[str]]:
        """The files below the folder by each end of their paths, in parts."""
        found: dict[tuple[str, ...], list[str]] = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                file = os.path.relpath(os.path.join(folder, name), self.folder)
                parts = tuple(file.split("/"))
                for start in range(len(parts)):
                    found.setdefault(parts[start:], []).append(file)
        return found

    def _fault(self, number: int, what: str, *values: object) -> Fault:
        return fault(f"{self.place_of(number)}/file_name", what, *values)

    def _note(self, kind: str, number: int, got: object) -> None:
        self.notes.add(kind, self.place_of(number) if kind == _NO_SIZE else f"{self.place_of(number)}/file_name", got)


def _of(file: str, found: Fault) -> Fault:
    found.image = file
    return found
