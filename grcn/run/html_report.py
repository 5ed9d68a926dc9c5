"""Writes the report of a run, ``report.html``: settings, losses, figures and detections."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from grcn.errors import EnvironmentFault
from grcn.fileio import write_durably
from grcn.vis.curves import loss_curves
from grcn.vis.html import render

_MAIN = ("coco_ap", "coco_ap50", "coco_ap75", "voc07_ap50", "voc07_ap70", "voc07_ap75")


def write_report(folder: Path, step: int, pictures: bool = True) -> None:
    """Writes ``report.html`` into the folder of a run, from its files there; everything is in that one file.

    Args:
        folder: of a run that was evaluated.
        step: of the evaluation to show.
        pictures: whether losses are plotted, which needs matplotlib.
    """
    evaluation = folder / "eval" / f"step_{step}"
    metrics = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))["metrics"]
    names = dict.fromkeys(name for name in (*_MAIN, *metrics) if name in metrics)
    with (evaluation / "per_class.csv").open(newline="", encoding="utf-8") as file:
        classes = list(csv.DictReader(file))
    losses, no_losses = folder / "losses.png", ""
    if pictures:
        try:
            loss_curves(folder / "metrics.jsonl", losses)
        except EnvironmentFault as error:
            no_losses = str(error)
    page = render(
        "run/report.html",
        title=f"{folder.parent.name} {folder.name}",
        folder=folder,
        step=step,
        figures=[(name, metrics[name]) for name in names],
        losses=_contents([losses] if pictures and not no_losses else []),
        no_losses=no_losses,
        inputs=_contents((folder / "vis").glob("inputs.png")),
        curves=_contents(sorted(evaluation.glob("pr_*.png"))),
        class_figures=[name for name in classes[0] if name in ("objects", *_MAIN)] if classes else [],
        classes=classes,
        detections=_contents(evaluation.glob("detections.png")),
        files=[(name, (folder / name).read_text(encoding="utf-8")) for name in ("config.yaml", "env.json")],
    )
    write_durably(folder / "report.html", page)


def _contents(paths: Iterable[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]
