"""Reads and writes the detection files of PASCAL VOC's devkit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from grcn.data.annotations import Annotations
from grcn.data.faults import fault, is_contained
from grcn.data.validate import PART, pack_detections
from grcn.data.voc import to_continuous
from grcn.data.voc_lists import lines_of

logger = logging.getLogger("grcn")

_LONGEST_NAME = 255  # bytes, on the usual file systems


def to_devkit(boxes: np.ndarray) -> np.ndarray:
    """Turns boxes [M, 4] in continuous 0-based pixels into VOC's (1-based, corners inclusive)."""
    return boxes + np.array([1.0, 1.0, 0.0, 0.0])


def read_detections(folder: str | Path, table: Annotations) -> dict[str, np.ndarray]:
    """Reads the devkit's result files ``comp4_det_<split>_<class>.txt`` of one split.

    Every line is ``image score xmin ymin xmax ymax``; the image's folder may have spaces in its name. A class without a
    file has no detections, which is logged as a warning.

    Returns:
        packed detections of the images of ``table``: rows, boxes, scores, labels.

    Raises:
        DataError: no such file, files of two splits, an unknown image or class, a broken line.
    """
    row_of = {name: row for row, name in enumerate(map(str, table.result_ids()))}
    files = _result_files(Path(folder), table)
    rows: list[int] = []
    numbers: list[list[float]] = []
    labels: list[int] = []
    places: list[str] = []
    for label, path in files.items():
        for line, text in enumerate(lines_of(path), start=1):
            if not text.strip():
                continue
            image, *values = text.strip().rsplit(maxsplit=5)
            if image not in row_of:
                raise fault(f"{path}:{line}", "image is not in {} (got {}); remove it", table.name, image)
            try:
                score, xmin, ymin, xmax, ymax = map(float, values)
            except ValueError:
                what = "broken line (got {}); write 'image score xmin ymin xmax ymax'"
                raise fault(f"{path}:{line}", what, text) from None
            rows.append(row_of[image])
            numbers.append([score, xmin, ymin, xmax, ymax])
            labels.append(label)
            places.append(f"{path}:{line}")
    columns = np.array(numbers, np.float64).reshape(-1, 5)
    boxes = to_continuous(columns[:, 1:])
    return pack_detections(rows, boxes, columns[:, 0], labels, places.__getitem__)


def write_detections(folder: str | Path, split: str, table: Annotations, detections: Mapping[str, np.ndarray]) -> None:
    """Writes packed detections as the devkit's result files, one per class, empty ones too.

    Numbers are written in full, so that reading them back gives the same scores, and the same boxes to float32.

    Args:
        folder: created if missing.
        split: the part of the file names between ``comp4_det_`` and the class, such as ``test``.

    Raises:
        DataError: a class cannot be in a file name; nothing is written.
    """
    folder = Path(folder)
    for name in table.classes:
        too_long = len(os.fsencode(_file_name(split, name))) > _LONGEST_NAME
        if not is_contained(name) or "/" in name or too_long:
            raise fault(folder, "class cannot be in a file name (got {}); rename it", name)
    folder.mkdir(parents=True, exist_ok=True)
    images = [str(image) for image in table.result_ids()]
    for label, name in enumerate(table.classes, start=1):
        own = np.flatnonzero(detections["labels"] == label)
        with open(folder / _file_name(split, name), "w", encoding="utf-8") as file:
            for start in range(0, len(own), PART):
                part = own[start : start + PART]
                boxes = to_devkit(np.asarray(detections["boxes"][part], np.float64))
                numbers = np.column_stack([np.asarray(detections["scores"][part], np.float64), boxes]).tolist()
                for row, values in zip(detections["rows"][part].tolist(), numbers, strict=True):
                    file.write(" ".join([images[row], *map(repr, values)]) + "\n")


def _file_name(split: str, class_name: str) -> str:
    return f"comp4_det_{split}_{class_name}.txt"


def _result_files(folder: Path, table: Annotations) -> dict[int, Path]:
    """Returns the result file of each label that has one."""
    files: dict[int, Path] = {}
    splits = set()
    for path in sorted(folder.glob("comp4_det_*.txt")):
        rest = path.stem.removeprefix("comp4_det_")
        named = [name for name in table.classes if rest.endswith(f"_{name}")]
        if not named:
            raise fault(path, "its name ends in no class of {}; remove or rename it", table.name)
        name = max(named, key=len)
        files[table.classes.index(name) + 1] = path
        splits.add(rest.removesuffix(f"_{name}"))
    if not files:
        hint = "; compare runs with grcn analyze runs" if (folder / "config.yaml").exists() else "; use another folder"
        raise fault(folder, f"no file comp4_det_<split>_<class>.txt{hint}")
    if len(splits) > 1:
        raise fault(folder, "files of several splits (got {}); use one", sorted(splits))
    for label, name in enumerate(table.classes, start=1):
        if label not in files:
            logger.warning("%s: no file of class %s, counted as no detections", folder, name)
    return files
