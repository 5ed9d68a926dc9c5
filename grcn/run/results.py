"""Scores detections, and writes figures, detections and pictures into one folder."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grcn.config.schema import Config
from grcn.data import coco as coco_files
from grcn.data import voc_results as voc_files
from grcn.data.annotations import Annotations
from grcn.data.dataset import DetectionDataset
from grcn.engine.signals import StopSignals
from grcn.errors import DataError, EnvironmentFault, named
from grcn.evaluation import coco, voc
from grcn.evaluation.diagnosis import diagnose
from grcn.fileio import sync, write_durably
from grcn.vis.boxes import detection_grid
from grcn.vis.curves import pr_curves

logger = logging.getLogger("grcn")


def score(
    cfg: Config,
    table: Annotations,
    test: DetectionDataset,
    found: Mapping[str, np.ndarray],
    folder: Path,
    devkit: bool = False,
    stop: StopSignals | None = None,
) -> dict[str, float | None]:
    """Scores packed detections by every protocol in ``eval.protocols``; writes them and the results into ``folder``.

    Args:
        devkit: write VOC's devkit files too; warns if a class has a name that no file can have.

    Raises:
        Stopped: a signal came; this is checked before each protocol and before pictures are drawn.
    """
    stop = stop or StopSignals()
    with named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        coco_files.write_detections(folder / "detections.json", table, found)
        if devkit:
            _write_devkit(folder / "devkit", table, found)
        metrics: dict[str, float | None] = {}
        per_class: dict[str, dict[str, Any]] = {name: {} for name in table.classes}
        results: dict[str, Any] = {"images": len(table), "detections": len(found["rows"])}
        for protocol in cfg.eval.protocols:
            stop.check()
            if protocol == "voc":
                scored = voc.evaluate(table, found, cfg.eval.voc_iou)
            else:
                scored = coco.evaluate(table, found)
                results["coco_backend"] = scored["backend"]
            metrics |= scored["metrics"]
            for name, figures in scored["per_class"].items():
                per_class[name] |= figures
        if text := diagnose(table, found, metrics):
            logger.warning("%s", text)
        results |= {"metrics": metrics, "per_class": per_class}
        write_durably(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
        _write_per_class(folder / "per_class.csv", per_class)
        stop.check()
        _draw(cfg, table, test, found, folder)
        for path in folder.iterdir():  # the log will refer to them
            if path.is_file():
                sync(path)
        main = metrics[cfg.eval.best_metric]
        figure = "without objects" if main is None else f"{100 * main:.1f} %"
        logger.info("%s: %s %s; results, detections and pictures in it", folder, cfg.eval.best_metric, figure)
        return metrics


def _write_devkit(folder: Path, table: Annotations, found: Mapping[str, np.ndarray]) -> None:
    try:
        voc_files.write_detections(folder, table.name.split("+")[0].rpartition("/")[2], table, found)
    except DataError as error:  # a name of a class; the JSON has the same detections
        logger.warning("no devkit files: %s", error)


def _write_per_class(path: Path, per_class: Mapping[str, Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        columns = list(dict.fromkeys(name for figures in per_class.values() for name in figures))
        writer = csv.DictWriter(file, ["class", *columns])
        writer.writeheader()
        writer.writerows({"class": name, **figures} for name, figures in per_class.items())


def _draw(
    cfg: Config, table: Annotations, test: DetectionDataset, found: Mapping[str, np.ndarray], folder: Path
) -> None:
    rows = np.linspace(0, len(table) - 1, min(cfg.eval.pictures, len(table)), dtype=int)
    if len(rows):
        detection_grid(table, test.read_image, found, rows.tolist()).save(folder / "detections.png")
    if "voc" not in cfg.eval.protocols or not cfg.eval.pictures:
        return
    try:
        for threshold, curves in zip(cfg.eval.voc_iou, voc.curves(table, found, cfg.eval.voc_iou), strict=True):
            pr_curves(curves, folder / f"pr_iou{threshold * 100:g}.png", f"{table.name}, IoU {threshold:g}")
    except EnvironmentFault as error:
        logger.info("no curves drawn: %s", error)
