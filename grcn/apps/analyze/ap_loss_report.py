"""Reports where a detector loses average precision: figures, pictures and a table."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from grcn.config.schema import Config
from grcn.data.annotations import Annotations
from grcn.data.dataset import DetectionDataset
from grcn.engine import distributed
from grcn.engine.signals import StopSignals
from grcn.errors import EnvironmentFault, named
from grcn.evaluation.ap_loss import Analysis, analyse
from grcn.fileio import write_durably
from grcn.run.evaluate import found_detections
from grcn.vis.boxes import detection_grid
from grcn.vis.charts import confusion_map, error_curves

logger = logging.getLogger("grcn")

_MEANINGS = {
    "Cls": "wrong class, good box",
    "Loc": "right class, bad box",
    "Both": "wrong class, bad box",
    "Dupe": "found before",
    "Bkg": "background",
    "Miss": "not found",
    "FP": "all false positives",
    "FN": "all objects not found",
}


def report_errors(
    cfg: Config,
    folder: Path,
    *,
    weights: Path | None = None,
    detections: Path | None = None,
    allow_changes: bool = False,
    score_threshold: float = 0.3,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Analyses the detections of a checkpoint in the test splits, or a file of detections; writes into ``folder``.

    Writes ``errors.json``; ``errors.png`` and ``confusion.png``, if matplotlib is installed; and ``worst.png``, the
    ``eval.pictures`` images with the most ``faults`` (:class:`grcn.evaluation.ap_loss.Analysis`).

    Args:
        weights: a checkpoint.
        detections: COCO result JSON, or a folder of VOC devkit files.
        allow_changes: detect even if settings of the model differ from those that it was trained with.
        score_threshold: minimum score of detections in the confusion matrix and in ``worst.png``.
        stop: signals that end it early.

    Returns:
        The ``figures`` of :func:`grcn.evaluation.ap_loss.analyse`, which ``errors.json`` holds too.

    Raises:
        UserError: whatever is wrong with config, data, checkpoint or machine.
        Stopped: a signal came.
    """
    stop = stop or StopSignals()

    def analyse_and_write() -> dict[str, Any]:
        stop.check()
        analysis = analyse(table, found, score_threshold)
        with named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_durably(folder / "errors.json", (json.dumps(analysis.figures, indent=1) + "\n").encode())
            stop.check()
            _draw(cfg, table, test, found, analysis, folder)
        logger.info("figures and pictures are in %s", folder)
        return analysis.figures

    with found_detections(cfg, weights, detections, allow_changes, stop) as (table, test, found):
        return distributed.on_main(analyse_and_write)


def errors_as_text(figures: Mapping[str, Any]) -> str:
    """Formats the result of :func:`report_errors` as text; AP and gains in percent."""
    lines = [
        f"{figures['images']:,} images, {figures['objects']:,} objects to find, {figures['detections']:,} detections; "
        f"AP50 {_percent(figures['ap50'])}; AP and gains in percent",
        "",
        f"{'error':<7}{'':<24}{'count':>9}{'small':>9}{'medium':>9}{'large':>9}{'AP50 gain':>12}",
    ]
    for name, gain in figures["gains"].items():
        counted = [figures, *figures["per_size"].values()] if name in figures["counts"] else []
        counts = "".join(f"{of['counts'][name]:>9,}" for of in counted)
        lines.append(f"{name:<7}{_MEANINGS[name]:<24}{counts:<36}{_percent(gain):>12}")
    agreement, oracles = figures["agreement"], figures["oracles"]
    lines += [
        # TIDE fixes a miss by leaving its object out; where nothing is detected, AP stays 0 all the same.
        "AP50 gain: if all errors of this kind were fixed, and no others (TIDE)"
        if figures["detections"]
        else "no detections: the gains mean nothing",
        "",
        f"score and IoU of {agreement['detections']:,} detections: Spearman {_number(agreement['spearman'])}, "
        f"Pearson {_number(agreement['pearson'])} (1: the better box always has the higher score; 0: scores and "
        "boxes are unrelated)",
        "AP at IoU " + "  ".join(f"{iou} {_percent(ap)}" for iou, ap in figures["ap_by_iou"].items()),
        "",
        f"{'COCO AP':<22}{'AP':>7}{'gain':>9}",
    ]
    for name, ap in oracles.items():
        gain = None if ap is None else ap - oracles["measured"]
        lines.append(
            f"{name.replace('_', ' '):<22}{_percent(ap):>7}{'' if name == 'measured' else _percent(gain, '+'):>9}"
        )
    lines.append("right: each detection has the class or box of the object it lies on, the best-scored of each counts")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"


def _draw(
    cfg: Config,
    table: Annotations,
    test: DetectionDataset,
    found: Mapping[str, np.ndarray],
    analysis: Analysis,
    folder: Path,
) -> None:
    threshold = analysis.figures["confusion"]["score_threshold"]
    worst = np.argsort(-analysis.faults, kind="stable")[: cfg.eval.pictures]
    worst = worst[analysis.faults[worst] > 0]
    if len(worst):
        grid = detection_grid(table, test.read_image, found, worst.tolist(), min_score=threshold)
        grid.save(folder / "worst.png")
    try:
        error_curves(analysis.figures, analysis.scores, analysis.ious, folder / "errors.png", table.name)
        title = f"{table.name}, scores from {threshold:g}, IoU 0.5"
        confusion_map(analysis.figures["confusion"]["matrix"], table.classes, folder / "confusion.png", title)
    except EnvironmentFault as error:
        logger.info("no curves drawn: %s", error)
