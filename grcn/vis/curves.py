"""Plots curves: precision over recall, losses over steps, cost over size. Needs matplotlib (extra ``plot``)."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grcn.errors import EnvironmentFault

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

# Okabe and Ito's, which colour-blind readers can distinguish, black first; without yellow, which is faint on white.
LINE_COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINE_STYLES = ("-", "--", ":", "-.")
_COCO_PRECISIONS = ("coco_ap", "coco_ap50", "coco_ap75")


def pr_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | Path, title: str = "") -> None:
    """Plots precision over recall, a line per class, and saves it as a picture.

    Args:
        curves: ``{class: (recall, precision)}``, one of those that :func:`grcn.evaluation.voc.curves` returns.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    figure = new_figure(4.8)
    axes = figure.subplots()
    lines = {
        # From recall 0, so that a class with a single detection has a line too.
        name: (np.append(0.0, recall), np.append(precision[:1], precision))
        if np.any(np.asarray(recall) > 0)
        else (np.zeros(0), np.zeros(0))
        for name, (recall, precision) in curves.items()
    }
    if any(len(line[0]) for line in lines.values()):
        lines = {name if len(line[0]) else f"{name} (no correct detection)": line for name, line in lines.items()}
    else:
        lines = {}
        axes.text(0.5, 0.5, "no correct detection in any class", ha="center", transform=axes.transAxes)
    _plot(axes, lines, "recall", "precision")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), title=title)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def loss_curves(metrics_file: str | Path, path: str | Path, title: str = "") -> None:
    """Plots the losses of a run, its learning rate and, where it was evaluated, its average precisions over steps.

    The precisions are COCO's AP, AP50 and AP75 or, without its protocol, VOC's under the whole curve.

    Args:
        metrics_file: a run's ``metrics.jsonl``.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in Path(metrics_file).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in (entry | entry.get("metrics", {})).items():
            percent = name in _COCO_PRECISIONS or name.startswith("voc_area_ap")
            if value is not None and (percent or name == "lr" or name.startswith("loss")):
                steps, values = found.setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(100 * value if percent else value)
    coco = {name: found[name] for name in _COCO_PRECISIONS if name in found}
    panels = {
        "loss": {name: series for name, series in found.items() if name.startswith("loss")},
        "average precision, %": coco or {name: found[name] for name in found if name.startswith("voc_area_ap")},
        "learning rate": {name: found[name] for name in found if name == "lr"},
    }
    drawn = {quantity: series for quantity, series in panels.items() if series or quantity == "loss"}
    figure = new_figure(3.2 * len(drawn))
    rows = figure.subplots(len(drawn), squeeze=False, sharex=True)[:, 0]
    for axes, (quantity, series) in zip(rows, drawn.items(), strict=True):
        _plot(axes, series, "step", quantity)
        if quantity == "learning rate":
            axes.get_legend().remove()  # the axis has the name
        axes.set_ylim(bottom=0)
    rows[0].set_title(title)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def scaling_curves(found: Mapping[str, Mapping[str, list[float]]], path: str | Path, title: str = "") -> None:
    """Plots the cost of a step and a detection over each quantity that was varied, and, grey, proportional growth.

    Args:
        found: ``{quantity: {"values", "step_ms", "infer_ms"}}``.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    figure = new_figure(2.6 * max(1, len(found)))
    from matplotlib.ticker import LogLocator

    rows = figure.subplots(max(1, len(found)), squeeze=False)[:, 0]
    for axes, (quantity, series) in zip(rows, found.items(), strict=bool(found)):
        values, names = np.asarray(series["values"]), {"step_ms": "training step", "infer_ms": "detection"}
        _plot(axes, {shown: (values, series[name]) for name, shown in names.items()}, quantity, "ms")
        for name in names:
            axes.plot(values, series[name][0] * values / values[0], color="#bbbbbb", linewidth=0.8, zorder=0)
        costs = [*series["step_ms"], *series["infer_ms"]]
        axes.set(xscale="log", yscale="log", ylim=(0.7 * min(costs), 1.4 * max(costs)))
        axes.set_xticks(values, [f"{value:.3g}" if value < 1 else f"{value:g}" for value in values])
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    rows[0].set_title(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def new_figure(height: float, width: float = 7.0) -> Figure:
    """Makes a matplotlib figure that belongs to no window and to no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EnvironmentFault("curves need matplotlib, which is not installed; pip install 'grcn[plot]'") from error
    return Figure(figsize=(width, height))


def _plot(axes: Axes, lines: Mapping[str, tuple[ArrayLike, ArrayLike]], x: str, y: str) -> None:
    """Draws lines that differ in colour, then in style; beyond 28 of them they repeat."""
    looks = itertools.cycle(itertools.product(_LINE_STYLES, LINE_COLORS))
    for (name, (across, up)), (style, color) in zip(lines.items(), looks, strict=False):
        marker = "." if np.size(across) <= 20 else ""
        axes.plot(across, up, style, color=color, marker=marker, label=name, linewidth=1.4)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        columns = math.ceil(len(lines) / 20)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), ncols=columns, fontsize=8, frameon=False)
