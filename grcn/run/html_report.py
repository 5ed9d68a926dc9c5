"""The report of a run, ``report.html``: what was trained, how it went, and what it detects."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from grcn.errors import EnvironmentFault
from grcn.fileio import write_durably
from grcn.vis.curves import loss_curves
from grcn.vis.html import page, picture, table, text

_MAIN = ("coco_ap", "coco_ap50", "coco_ap75", "voc07_ap50", "voc07_ap70", "voc07_ap75")
_FED = "Images of the first batch, as the network sees them, and their ground truth"


def write_report(folder: Path, step: int, pictures: bool = True) -> None:
    """Writes ``report.html`` into the folder of a run, from what lies there; everything is in that one file.

    Args:
        folder: of a run that was evaluated.
        step: of the evaluation to show.
        pictures: whether losses are plotted, which needs matplotlib.
    """
    evaluation = folder / "eval" / f"step_{step}"
    metrics = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))["metrics"]
    shown = [name for name in (*_MAIN, *metrics) if name in metrics]
    figures = {name: metrics[name] for name in shown}
    parts = [
        f"<p>{text(folder)}, step {step:,}. In percent:</p>",
        table([text(name) for name in list(figures)[:6]], [[_percent(value) for value in list(figures.values())[:6]]]),
        "<h2>Training</h2>",
        _losses(folder) if pictures else "",
        *(picture(path.read_bytes(), _FED) for path in (folder / "vis").glob("inputs.png")),
        "<h2>Precision over recall</h2>",
        *(picture(path.read_bytes(), width="48%") for path in sorted(evaluation.glob("pr_*.png"))),
        "<h2>Classes</h2>",
        _classes(evaluation / "per_class.csv"),
        "<h2>Detections</h2>",
        *(picture(path.read_bytes()) for path in evaluation.glob("detections.png")),
        "<details><summary>All figures</summary>"
        + table(["", ""], [[text(name), _percent(value)] for name, value in figures.items()])
        + "</details>",
    ]
    for name in ("config.yaml", "env.json"):
        content = text((folder / name).read_text(encoding="utf-8"))
        parts.append(f"<details><summary>{name}</summary><pre>{content}</pre></details>")
    title = f"{folder.parent.name} {folder.name}"
    write_durably(folder / "report.html", page(title, parts).encode())


def _losses(folder: Path) -> str:
    """Plots losses, precisions and the learning rate over steps."""
    path = folder / "losses.png"
    try:
        loss_curves(folder / "metrics.jsonl", path)
    except EnvironmentFault as error:
        return f"<p>{text(error)}</p>"
    return picture(path.read_bytes(), width="60%")


def _classes(path: Path) -> str:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name in ("objects", *_MAIN)] if rows else []
    body = [
        [text(row["class"]), *(row[name] if name == "objects" else _percent(row[name] or None) for name in names)]
        for row in rows
    ]
    return table(["class", *names], body)


def _percent(value: float | str | None) -> str:
    return "–" if value is None else f"{100 * float(value):.1f}"
