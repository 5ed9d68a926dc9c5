"""Errors of a data set, and what keeps the names and files in it from doing harm."""

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

MOST_PLACES = 20  # that are kept of each kind
LONGEST_PATH = 1000  # a table keeps every name at the length of the longest one

USUAL_REMEDY = "set data.root and the splits to what exists"

_REPR = reprlib.Repr()  # of a document of gigabytes it takes the beginning only
_REPR.maxstring = _REPR.maxother = 200
_REPR.maxlist = _REPR.maxdict = 30

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Fault(DataError):
    """One fault of a data set, as :func:`fault` words it.

    Attributes:
        kind: a short id, as ``box-reversed``; :mod:`grcn.data.findings` lists them.
        image: path of the image below the folder of the data set, where the fault is of one that is known.
        box: absolute xyxy, where the fault is of a box.
    """

    kind = "annotation"
    image = ""
    box: tuple[float, ...] | None = None


# What is told of each fault by those who want them all; without one, the first fault is raised.
Report = Callable[[Fault], None]


def fault(place: object, what: str, *values: object, kind: str = "annotation") -> Fault:
    """Words a fault in one line. Where it would be too long, the values are shortened and the place stays whole.

    Args:
        place: the file, and where in it.
        what: what is wrong and the remedy, as ``not a list (got {}); use COCO's format``; the braces take the values.
        kind: see :class:`Fault`.
    """
    where = one_line(str(place))
    free = LONGEST_LINE - len(PREFIX) - len(where) - len(what)
    limit = min(60, max(10, free // max(len(values), 1)))
    found = Fault(one_line(f"{where}: {what.format(*(shown(value, limit) for value in values))}"))
    found.kind = kind
    return found


def tell(report: Report | None, found: Fault) -> None:
    """Hands a fault to whoever collects them; without ``report`` it is raised."""
    if report is None:
        raise found
    report(found)


class Notes:
    """What a reader read as it was meant, though it was written otherwise: counted, with the first places of each kind.

    Args:
        strict: make the first of them an error instead.

    Attributes:
        counts: by kind, a few words in the plural that can follow a number, as ``values of <difficult>``.
        places: of each kind the first places, each with what stood there.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: dict[str, int] = {}
        self.places: dict[str, list[str]] = {}

    def add(self, kind: str, place: object, got: object, count: int = 1) -> None:
        """Counts cases of a kind.

        Args:
            place: the file, and where in it.
            got: what stands there.

        Raises:
            DataError: this is strict.
        """
        if self.strict:
            what = kind.replace("{", "{{").replace("}", "}}")
            raise fault(place, f"{what} are refused (got {{}}); fix it, or set data.strict=false", got)
        self.counts[kind] = self.counts.get(kind, 0) + count
        kept = self.places.setdefault(kind, [])
        if len(kept) < MOST_PLACES:
            kept.append(one_line(f"{place}: {shown(got)}"))

    def log(self, name: str) -> None:
        """Warns in one line of everything that was counted for a data set of this name."""
        if self.counts:
            counts = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.items())
            logger.warning("%s", one_line(f"{name}: read as meant: {counts}; grcn check-data lists them"))


def shown(value: object, limit: int = 60) -> str:
    """Returns a value out of a data file as a message may show it: short, no control characters."""
    if isinstance(value, np.generic):
        value = value.item()
    text = _REPR.repr(os.fsdecode(value) if isinstance(value, bytes) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_contained(path: str) -> bool:
    """Tells whether a path is relative, stays below its folder, and is neither very long nor has control characters.

    This is about names. A symbolic link below the folder may lead out of it: image folders are often linked from other
    disks, and whoever can place a link there can read what it points to.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        return False
    return is_printable(path)


def is_printable(path: str) -> bool:
    """Tells whether a path is neither very long nor has control characters."""
    return len(path) <= LONGEST_PATH and not _UNPRINTABLE.search(path)


def is_text(value: object, longest: int) -> bool:
    """Tells whether a value is text that can stand in tables and messages: not blank, no control characters."""
    return (
        isinstance(value, str) and 0 < len(value) <= longest and bool(value.strip()) and not _UNPRINTABLE.search(value)
    )


def check_class_name(place: object, name: str) -> None:
    """Refuses a name that cannot stand in tables, pictures and messages: blank, long, or with control characters."""
    if not is_text(name, 100):
        raise fault(place, "not a class name (got {}); rename the class", name)


def read_bytes(path: str | os.PathLike[str], remedy: str) -> bytes:
    """Reads a regular file whole; what stands in the way is a DataError that ends in ``remedy``."""
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
    """Says how to set ``data.root`` and the splits where a file of the data set cannot be read.

    Args:
        root: the folder of the data set.
        file: below ``root``, that of ``split``.
        split: as the settings name it.
        others: the splits found below ``root``.

    Returns:
        the end of a message: the right folder, where it is one level above or below; the splits that there are.
    """
    if os.path.exists(root / file):  # which a name too long for the disk does not upset
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
