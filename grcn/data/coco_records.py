"""Reads and checks the lists of records in COCO's JSON, one field of all records at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from grcn.data.coco_values import AS_FILE, AS_TEXT, Known, Meant, Readings, flag, number, paths_to, text
from grcn.data.faults import Fault, Report, fault, is_text, tell

LONGEST_NAME = 200  # characters in the name of an image without a number

_NO_BOX = "missing; compute boxes from the outlines"


class Records:
    """A list of JSON objects.

    A column whose values all have the type of the format is read at once. In other columns each value is checked: it
    is read as it was meant, and counted, or it is a fault.

    Args:
        path: the file.
        key: of the list; empty where the file is one list.
        records: the value of that list.
        report: called with the first fault of every record; without it, the first fault is an error. Such a record is
            in ``wrong`` from then on, and its fields have empty values.
    """

    def __init__(self, path: Path, key: str, records: Any, readings: Readings, report: Report | None = None) -> None:
        self.pointer = f"#/{key}" if key else "#"
        self.place = f"{path}{self.pointer}"
        if not isinstance(records, list):
            raise fault(self.place, "not a list (got {}); use COCO's format", type(records).__name__)
        self.name = f"{key}/" if key else ""
        self.readings = readings
        self.report = report
        self.wrong: set[int] = set()
        for place_of, record in enumerate(records):
            if not isinstance(record, dict):
                self.refuse(place_of, "", "not an object (got {}); fix it", record)
        self.records = [record if isinstance(record, dict) else {} for record in records] if self.wrong else records

    def good(self) -> np.ndarray:
        """Returns which records have had no fault so far, bool [M]."""
        good = np.ones(len(self.records), bool)
        good[list(self.wrong)] = False
        return good

    def column(
        self,
        key: str,
        *kinds: type,
        default: Any = None,
        meant: Callable[[Any], Meant | None] | None = None,
        missing: str = "",
    ) -> list[Any]:
        """Returns a field of all records, each of one of the types; a bool is no int.

        Args:
            meant: reads a value of another type; None where it has no sensible meaning.
            missing: the message where there is no value.
        """
        return self._column(key, kinds, default, meant, missing)[0]

    def ids(self, files: Sequence[str] = ()) -> Known:
        """Returns the column ``id``, in which no value may occur twice, as numbers."""
        texts = frozenset(value for value in self._raw("id") if type(value) is str)
        values, unread = self._column("id", (int,), None, number)
        self.refuse_repeated("id", values, unread)
        return Known(values, texts, files)

    def ids_or_names(self, files: Sequence[str]) -> Known:
        """Returns the column ``id`` as numbers, or as text if one of them is a name; ``files`` as in :class:`Known`."""
        texts = {value for value in self._raw("id") if type(value) is str}
        if not any(is_text(value, LONGEST_NAME) and number(value) is None for value in texts):
            return self.ids(files)
        values, unread = self._column("id", (str,), None, text)
        for place, value in enumerate(values):
            if place in unread:
                continue
            if not is_text(value, LONGEST_NAME):
                self._refuse(place, "id", "not an id (got {})", value)
            self.note(place, "id", "that are names", value)
        self.refuse_repeated("id", values, unread)
        return Known(values, files=files)

    def own_ids(self) -> tuple[np.ndarray, bool]:
        """Returns the column ``id``, int64 [M], for messages only; if one is missing or repeated, the places of all.

        Returns:
            the numbers, and whether they are the ids.
        """
        values = self._raw("id")
        without = []
        if not set(map(type, values)) <= {int}:
            for place, value in enumerate(values):
                meant = (value, "") if type(value) is int else number(value)
                if meant is None:
                    without.append(place)
                elif meant[1]:
                    self.note(place, "id", meant[1], value)
                values[place] = meant[0] if meant else 0
        self._check_range("id", values)
        if not without and len(set(values)) == len(values):
            return np.array(values, np.int64), True
        seen: set[int] = set()
        left = {*without, *self.wrong}
        for place, value in enumerate(values):
            if place in left:
                continue
            if value in seen:
                self.read(place, "/id", f"{self.name[:-1]} with the id of an earlier one", value)
            seen.add(value)
        for place in without:
            if place not in self.wrong:
                kind = f"{self.name[:-1]} without a number for an id"
                self.read(place, "/id", kind, self.records[place].get("id"))
        return np.arange(len(values)), False

    def positions(self, key: str, known: Known, foreign: str = "") -> np.ndarray:
        """Returns the index of each value of a column among the known ids, [M] int64.

        Args:
            foreign: count references to anything else under this name, and return -1 for them; if empty, they are
                faults.
        """
        position = {value: index for index, value in reversed(list(enumerate(known.ids)))}
        kind = type(known.ids[0])
        values = self._raw(key)
        if set(map(type, values)) <= {kind}:
            found = np.array([position.get(value, -1) for value in values], np.int64)
        else:  # True is 1 to a dict
            same = (position.get(value, -1) if type(value) is kind else -1 for value in values)
            found = np.fromiter(same, np.int64, len(values))
        unknown = np.flatnonzero(found < 0).tolist()
        listed = sorted(known.ids) if unknown else known.ids
        files = paths_to(known.files) if any(type(values[place]) is str for place in unknown) else {}
        for place in unknown:
            found[place] = self._refer(place, key, values[place], position, known, files, listed, foreign)
        return found if foreign else np.maximum(found, 0)

    def flags(self, key: str) -> np.ndarray:
        """Returns a column of 0 and 1, bool [M]; what is missing is 0."""
        values = self.column(key, int, default=0, meant=flag)
        if not set(values) <= {0, 1}:
            for place, value in enumerate(values):
                if value not in (0, 1):
                    self._refuse(place, key, "unknown (got {}, it is {})", value, [0, 1])
        return np.array([value == 1 for value in values], bool)

    def boxes(self) -> np.ndarray:
        """Returns the column ``bbox``, [x, y, width, height], as boxes [M, 4] xyxy."""
        values = self.column("bbox", list, missing=_NO_BOX)
        for place, box in enumerate(values):
            if len(box) != 4 or not {type(value) for value in box} <= {int, float}:
                self._refuse(place, "bbox", "not four numbers (got {})", box)
                values[place] = [0, 0, 0, 0]
        self._check_range("bbox", values)
        boxes = np.array(values, np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def refuse_repeated(self, key: str, values: Sequence[Any], but: Collection[int]) -> None:
        """Refuses repeated values of a column; ``but`` are places to skip."""
        if len(set(values)) == len(values):
            return
        seen = set()
        for place, value in enumerate(values):
            if place in but:
                continue
            if value in seen:
                self._refuse(place, key, "used before (got {})", value)
            seen.add(value)

    def read(self, place: int, field: str, kind: str, value: Any) -> None:
        """Counts a value that deviates from the format; ``field`` is the rest of the JSON pointer."""
        self.readings.add(kind, f"{self.pointer}/{place}{field}", value)

    def refuse(self, place: int, field: str, what: str, *values: Any) -> None:
        """Raises or reports a fault of a record; ``field`` is the rest of the JSON pointer."""
        self.tell(place, fault(f"{self.place}/{place}{field}", what, *values))

    def tell(self, place: int, found: Fault) -> None:
        """Raises a fault of a record, or reports it if it is the record's first one."""
        if place not in self.wrong:
            tell(self.report, found)
        self.wrong.add(place)

    def _raw(self, key: str, default: Any = None) -> list[Any]:
        return [record.get(key, default) for record in self.records]

    def _column(
        self,
        key: str,
        kinds: tuple[type, ...],
        default: Any,
        meant: Callable[[Any], Meant | None] | None,
        missing: str = "",
    ) -> tuple[list[Any], set[int]]:
        """Returns a column, and the places of unreadable values, which have defaults."""
        values = self._raw(key, default)
        unread: set[int] = set()
        if not set(map(type, values)) <= set(kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            for place, value in enumerate(values):
                if type(value) in kinds:
                    continue
                read = meant(value) if meant else None
                if read is None:
                    if missing and value is None:
                        self.refuse(place, f"/{key}", missing)
                    else:
                        self._refuse(place, key, f"missing or not of type {expected} (got {{}})", value)
                    unread.add(place)
                    values[place] = kinds[0]()
                    continue
                values[place] = read[0]
                if read[1]:
                    self.note(place, key, read[1], value)
        if int in kinds:
            self._check_range(key, values)
        return values, unread

    def _refer(
        self,
        place: int,
        key: str,
        value: Any,
        position: dict[Any, int],
        known: Known,
        files: dict[str, set[int]],
        listed: Any,
        foreign: str,
    ) -> int:
        """Returns the index that a value refers to if it is not itself one of the ids; -1 for nothing."""
        kind = type(known.ids[0])
        meant = None if type(value) is kind else (text if kind is str else number)(value)
        found = {position[meant[0]]: AS_TEXT} if meant and meant[0] in position else {}
        if type(value) is str and value not in known.texts:
            found |= {image: AS_FILE for image in files.get(value, ()) if image not in found}
        if len(found) == 1:
            ((index, what),) = found.items()
            self.note(place, key, what, value)
            return index
        target = meant[0] if meant else value
        if found:
            what = "may be any of {} images (got {}); use their ids"
            self.refuse(place, f"/{key}", what, len(found), value)
        elif type(target) is int and abs(target) >= 2**63:
            self._refuse(place, key, "too large (got {})", value)
        elif type(target) is not kind and not (known.files and is_text(target, LONGEST_NAME)):
            self._refuse(place, key, f"missing or not of type {kind.__name__} (got {{}})", value)
        elif foreign and (type(target) is int or is_text(target, LONGEST_NAME)):
            self.read(place, f"/{key}", foreign, value)
        else:
            self._refuse(place, key, "unknown (got {}, the file has {})", value, listed)
        return -1

    def _check_range(self, key: str, values: list[Any]) -> None:
        """Refuses numbers, or lists of them, that fit no int64, which numpy would not take."""
        flat = chain.from_iterable(values) if values and isinstance(values[0], list) else values
        if not any(abs(value) >= 2**63 for value in flat):
            return
        for place, value in enumerate(values):
            numbers = value if isinstance(value, list) else [value]
            for large in [part for part in numbers if abs(part) >= 2**63][:1]:
                self._refuse(place, key, "too large (got {})", large)
                values[place] = [0, 0, 0, 0] if isinstance(value, list) else 0

    def note(self, place: int, key: str, what: str, value: Any) -> None:
        """Counts a value of a column that is not written as the format says."""
        self.read(place, f"/{key}", f"values of {self.name}{key} {what}", value)

    def _refuse(self, place: int, key: str, what: str, *values: Any) -> None:
        self.refuse(place, f"/{key}", f"{what}; fix it", *values)
