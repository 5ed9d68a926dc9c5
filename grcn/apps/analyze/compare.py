"""Compares detections of several detectors on the same images, with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from grcn.data.annotations import Annotations
from grcn.engine.signals import StopSignals
from grcn.evaluation import bootstrap, coco
from grcn.evaluation.comparison import FIGURES, measure
from grcn.evaluation.diagnosis import diagnose
from grcn.evaluation.matching import ignored_objects
from grcn.progress import progress_bar

_EVALUATED = ("ap", "ap50", "ap75")  # as grcn eval has them


def compare(
    table: Annotations,
    detections: Mapping[str, Mapping[str, Any]],
    draws: int = 1000,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Compares packed detections with those of the first name.

    Args:
        table: annotations of all images that are scored.
        detections: by name.
        draws: resamples of the images, the same for all; 0 for no intervals.
        stop: signals that end it early.

    Returns:
        plain types: ``data``, ``images``, ``objects``, ``draws``; ``files``, a list of ``name``, ``detections`` and
        ``diagnosis`` (text, or empty); and ``figures``, for each key of
        :data:`grcn.evaluation.comparison.FIGURES` its ``title``, ``higher_is_better``, and lists of one entry per name:
        ``values``, their 95 % ``intervals`` over images, ``differences`` to the first, and the paired
        ``intervals_of_differences``. What is not defined is None.

    Raises:
        DataError: the table has no object, or a detection cannot be scored.
        Stopped: a signal came.
    """
    stop = stop or StopSignals()
    times = bootstrap.draws(len(table), draws)
    measured, files = [], []
    with progress_bar(desc="bootstrap", total=len(detections) * len(times), unit="draw") as bar:
        for name, found in detections.items():
            stop.check()
            drawn = measure(table, found, times, partial(_advance, bar, stop))
            metrics = coco.evaluate(table, found)["metrics"]
            for key in _EVALUATED:
                drawn[key][0] = np.nan if metrics[f"coco_{key}"] is None else metrics[f"coco_{key}"]
            measured.append(drawn)
            wrong = diagnose(table, found, metrics) or ""
            files.append({"name": name, "detections": len(found["rows"]), "diagnosis": wrong})
    return {
        "data": table.name,
        "images": len(table),
        "objects": int((~ignored_objects(table)).sum()),
        "draws": draws,
        "files": files,
        "figures": {key: _figure(key, [drawn[key] for drawn in measured]) for key in FIGURES},
    }


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Names files or folders by as few of their last parts as distinguish them; numbers repeated ones."""
    parts = [path.resolve().with_suffix("").parts if path.is_file() else path.resolve().parts for path in paths]
    different = len(set(parts))
    length = next(n for n in range(1, 1 + max(map(len, parts))) if len({part[-n:] for part in parts}) == different)
    names: list[str] = []
    for part in parts:
        name = "/".join(part[-length:])
        copies = sum(before == part for before in parts[: len(names)])
        names.append(f"{name} ({copies + 1})" if copies else name)
    return names


def _advance(bar: tqdm, stop: StopSignals) -> None:
    stop.check()
    bar.update()


def _figure(key: str, values: Sequence[np.ndarray]) -> dict[str, Any]:
    differences = [own - values[0] for own in values]
    return FIGURES[key]._asdict() | {
        "values": [_plain(own[0]) for own in values],
        "intervals": [bootstrap.interval(own[1:]) for own in values],
        "differences": [None, *(_plain(own[0]) for own in differences[1:])],
        "intervals_of_differences": [None, *(bootstrap.interval(own[1:]) for own in differences[1:])],
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
