"""Data-set errors, and checks that keep the names and files of a data set from doing harm."""

from __future__ import annotations

import logging
import os
import re
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from grcn.errors import LONGEST_LINE, PREFIX, DataError, is_of_the_machine, one_line

logger = logging.getLogger("grcn")

MOST_PLACES = 20  # kept for each kind
LONGEST_PATH = 1000  # a table stores every name at the length of the longest one

USUAL_REMEDY = "set data.root and the splits to what exists"

_REPR = reprlib.Repr()  # takes only the beginning of a document of gigabytes
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlist = _REPR.maxdict = 30

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Fault(DataError):
    """One fault of a data set, as :func:`fault` words it.

    Attributes:
        kind: a short id, such as ``box-reversed``; :mod:`grcn.data.findings` lists them.
        image: path of the image below the folder of the data set, where the fault is of one that is known.
        box: absolute xyxy, where the fault is of a box.
    """

    kind = "annotation"
    image = ""
    box: tuple[float, ...] | None = None


# Called with each fault by readers that collect them all; without one, the first fault is raised.
Report = Callable[[Fault], None]


def fault(place: object, what: str, *values: object, kind: str = "annotation") -> Fault:
    """Formats a fault in one line. If it would be too long, the values are shortened and the place stays whole.

    Args:
        place: the file, and where in it.
        what: the problem and the fix, such as ``not a list (got {}); use COCO's format``; the braces take the values.
        kind: see :class:`Fault`.
    """
    where = one_line(str(place))
    free = LONGEST_LINE - len(PREFIX) - len(where) - len(what)
    limit = min(60, max(10, free // max(len(values), 1)))
    found = Fault(one_line(f"{where}: {what.format(*(shown(value, limit) for value in values))}"))
    found.kind = kind
    return found


def tell(report: Report | None, found: Fault) -> None:
    """Passes a fault to ``report``, or raises it without one."""
    if report is None:
        raise found
    report(found)


class Notes:
    """Values that a reader read as meant though written differently: counts, and the first places of each kind.

    Args:
        strict: make the first of them an error instead.

    Attributes:
        counts: by kind, a few words in the plural that can follow a number, such as ``values of <difficult>``.
        places: by kind, the first places, each with the value found there.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: dict[str, int] = {}
        self.places: dict[str, list[str]] = {}

    def add(self, kind: str, place: object, got: object, count: int = 1) -> None:
        """Counts cases of a kind.

        Args:
            place: the file, and where in it.
            got: the value found there.

        Raises:
            DataError: the notes are strict.
        """
        if self.strict:
            what = kind.replace("{", "{{").replace("}", "}}")
            raise fault(place, f"{what} are refused (got {{}}); fix it, or set data.strict=false", got)
        self.counts[kind] = self.counts.get(kind, 0) + count
        kept = self.places.setdefault(kind, [])
        if len(kept) < MOST_PLACES:
            kept.append(one_line(f"{place}: {shown(got)}"))

    def log(self, name: str) -> None:
        """Logs everything that was counted for a data set of this name as a one-line warning."""
        if self.counts:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
            logger.warning("%s", one_line(f"{name}: read as meant: {counts}; grcn check-data lists them"))


def shown(value: object, limit: int = 60) -> str:
    """Returns a value from a data file in a form fit for messages: short, no control characters."""
    if isinstance(value, np.generic):
        value = value.item()
    text = _REPR.repr(os.fsdecode(value) if isinstance(value, bytes) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_contained(path: str) -> bool:
    """Returns whether a path is relative, stays below its folder, is not very long and has no control characters.

    This checks names only. A symbolic link below the folder may lead out of it: image folders are often linked from
    other disks, and whoever can place a link there can read what it points to.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        return False
    return is_printable(path)


def is_printable(path: str) -> bool:
    """Returns whether a path is not very long and has no control characters."""
    return len(path) <= LONGEST_PATH and not _UNPRINTABLE.search(path)


def is_text(value: object, longest: int) -> bool:
    """Returns whether a value is text that is fit for tables and messages: not blank, no control characters."""
    return (
        isinstance(value, str) and 0 < len(value) <= longest and bool(value.strip()) and not _UNPRINTABLE.search(value)
    )


def check_class_name(place: object, name: str) -> None:
    """Refuses a name that is unfit for tables, pictures and messages: blank, long, or with control characters."""
    if not is_text(name, 100):
        raise fault(place, "not a class name (got {}); rename the class", name)


def read_bytes(path: str | os.PathLike[str], remedy: str) -> bytes:
    """Reads a regular file whole; raises a DataError that ends in ``remedy`` if it cannot."""
    try:
        # A pipe or a device under the name of a data file would block for ever.
        if not os.path.isfile(path):
            what = "not a file" if os.path.exists(path) else "no such file"
            raise fault(path, f"{what}; {remedy}")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if is_of_the_machine(error):
            raise
        raise fault(path, f"{error.strerror or 'cannot be read'}; {remedy}") from None


def split_remedy(root: Path, file: Path, split: str, others: Iterable[str]) -> str:
    """Suggests how to set ``data.root`` and the splits where a file of the data set cannot be read.

    Args:
        root: the folder of the data set.
        file: below ``root``, that of ``split``.
        split: as the settings name it.
        others: the splits found below ``root``.

    Returns:
        the end of a message: the right folder, if it is one level above or below; or the existing splits.
    """
    if os.path.exists(root / file):  # does not raise for a name that is too long for the disk
        return USUAL_REMEDY
    try:
        found = sorted(others)
        same = [name for name in found if name.endswith(f"/{split}")]
        below = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        for folder in () if same else (*below, root.parent):
            if os.path.isfile(folder / file):
                where = f"{folder.name}/ is below it" if folder in below else "the data are one folder higher"
                return f"{where}: set data.root={folder}".replace("{", "{{").replace("}", "}}")
    except OSError:
        return USUAL_REMEDY
    shown = ", ".join((same or found)[:5]) + (", ..." if len(same or found) > 5 else "")
    return f"{USUAL_REMEDY} (found {shown})".replace("{", "{{").replace("}", "}}") if found else USUAL_REMEDY
