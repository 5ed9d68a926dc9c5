"""Interprets values in COCO's JSON that a tool writes in another form than the format requires."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from grcn.data.faults import LONGEST_PATH, MOST_PLACES, Fault, Notes, Report, shown, tell

# A value, and the form in which it is written, for a count; empty where it is counted elsewhere.
Meant = tuple[Any, str]

AS_TEXT = "written as text or decimals"
NO_NUMBER = "that are null or NaN"
AS_FILE = "that are names of files"

_NUMBER = re.compile(r"\s{0,9}([+-]?[0-9]{1,30})(?:\.0{0,30})?\s{0,9}")
_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "": 0}
_EXACT = 2**53  # from here on a float may stand for several integers


class Readings:
    """Values that were read in another sense than written: by kind the count, and the first places with their values.

    Unlike :class:`grcn.data.faults.Notes` it can be kept in a cache, which does not know where the file is.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.places: dict[str, list[tuple[str, Any]]] = {}

    def add(self, kind: str, pointer: str, value: Any) -> None:
        """Counts a case of a kind, see :class:`grcn.data.faults.Notes`; ``pointer`` is the place within the file."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self.places.setdefault(kind, [])
        if len(kept) < MOST_PLACES:
            kept.append((pointer, shown(value) if isinstance(value, list | dict) else value))

    def packed(self) -> np.ndarray:
        """Returns the counts and places as bytes."""
        kinds = [[kind, count, self.places[kind]] for kind, count in self.counts.items()]
        return np.frombuffer(json.dumps(kinds).encode(), np.uint8)


def tell_readings(packed: np.ndarray, path: Path, notes: Notes, report: Report | None) -> None:
    """Adds the packed readings of a file (:meth:`Readings.packed`) to the notes.

    Raises:
        DataError: the notes are strict, and no ``report`` collects faults.
    """
    for kind, count, places in json.loads(packed.tobytes()):
        rest = count - len(places)
        for pointer, value in places:
            try:
                notes.add(kind, f"{path}{pointer}", value, 1 + rest)
            except Fault as found:
                tell(report, found)
            rest = 0


def number(value: Any) -> Meant | None:
    """Reads an integer that is written as text or decimals, such as ``"160"`` or ``160.0``."""
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        return int(value), AS_TEXT
    found = _NUMBER.fullmatch(value) if type(value) is str else None
    return (int(found[1]), AS_TEXT) if found else None


def side(value: Any) -> Meant | None:
    """Reads the side of an image; a missing one is 0, and the code that reads the image counts it."""
    return (0, "") if _is_none(value) else number(value)


def flag(value: Any) -> Meant | None:
    """Reads 0 or 1 from other forms of it; nothing is 0."""
    what = "other than 0 and 1"
    if _is_none(value) or type(value) is bool:
        return (1 if value is True else 0), what
    meant = _FLAGS.get(value.strip().lower()) if type(value) is str else value
    return (int(meant), what) if meant in (0, 1) else None


def real(value: Any) -> Meant | None:
    """Reads a number that may be missing, which is NaN."""
    if _is_none(value):
        return math.nan, NO_NUMBER
    try:
        return (float(value), AS_TEXT) if type(value) is str and len(value) < 50 else None
    except ValueError:
        return None


def text(value: Any) -> Meant | None:
    """Reads a name that looks like a number."""
    meant = (value, AS_TEXT) if type(value) is int else number(value)
    return None if meant is None else (str(meant[0]), AS_TEXT)


def _is_none(value: Any) -> bool:
    return value is None or value == "" or (type(value) is float and math.isnan(value))


@dataclass(frozen=True)
class Known:
    """Records that other records may refer to.

    Attributes:
        ids: those of the records, each once, all of one type.
        texts: those that are written as text, for numbers.
        files: the file names of images, which annotations may use instead.
    """

    ids: Sequence[int] | Sequence[str]
    texts: frozenset[str] = frozenset()
    files: Sequence[str] = ()


def paths_to(files: Iterable[str]) -> dict[str, set[int]]:
    """Returns which files a name may mean: the end of a path, with or without its suffix."""
    found: dict[str, set[int]] = {}
    for number, name in enumerate(files):
        if len(name) > LONGEST_PATH:
            continue
        path = PurePosixPath(name.replace("\\", "/"))
        for start in range(len(path.parts)):
            end = str(PurePosixPath(*path.parts[start:]))
            for key in {end, end.removesuffix(path.suffix)}:
                found.setdefault(key, set()).add(number)
    return found
