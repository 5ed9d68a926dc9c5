"""Draws charts of analyses and studies. Needs matplotlib (extra ``plot``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grcn.vis.curves import LINE_COLORS, new_figure

_MOST_BANDS = 8  # maximum number of overlapping bands that can be distinguished


def error_curves(
    figures: Mapping[str, Any], scores: np.ndarray, ious: np.ndarray, path: str | Path, title: str = ""
) -> None:
    """Plots where AP is lost: the cost of each kind of error, AP over IoU, and the agreement of score and IoU.

    Args:
        figures: of :func:`grcn.evaluation.ap_loss.analyse`; None is not drawn.
        scores: ``[A]``, of the same.
        ious: ``[A]``, of the same.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    figure = new_figure(3.8, 14.0)
    from matplotlib.ticker import LogLocator

    bars, line, cloud = figure.subplots(1, 3)
    gains = {name: 100 * (figures["gains"][name] or 0.0) for name in figures["counts"]}
    drawn = bars.bar(list(gains), list(gains.values()), color=LINE_COLORS[1])
    bars.bar_label(drawn, [f"{gain:.1f}\n{figures['counts'][name]:,} ×" for name, gain in gains.items()])
    highest = 1.25 * max(*gains.values(), 1.0)
    bars.set(title="AP50 gained if one error is fixed", ylabel="AP50, percent", ylim=(0, highest))
    known = {float(iou): 100 * ap for iou, ap in figures["ap_by_iou"].items() if ap is not None}
    line.plot(list(known), list(known.values()), ".-", color=LINE_COLORS[1])
    line.set(title="AP at each IoU", xlabel="IoU", ylabel="AP, percent", xlim=(0.48, 0.97), ylim=(0, 100))
    extent = (min([0.0, *scores]), max([1.0, *scores]), 0.0, 1.0)
    agreement = {name: figures["agreement"][name] for name in ("spearman", "pearson")}
    values = ", ".join(f"{name.title()} {'undefined' if r is None else f'{r:.2f}'}" for name, r in agreement.items())
    if len(scores):
        counts = cloud.hexbin(scores, ious, gridsize=28, extent=extent, bins="log", mincnt=1, cmap="viridis_r")
        legend = figure.colorbar(counts, label="detections")
        legend.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        legend.ax.yaxis.set_major_formatter("{x:g}")
        legend.minorticks_off()
    cloud.set(title=f"score and IoU: {values}", xlabel="score", ylabel="IoU", xlim=extent[:2], ylim=extent[2:])
    for axes in (bars, line, cloud):
        axes.grid(color="#dddddd", linewidth=0.6, axis="y" if axes is bars else "both")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, parse_math=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def confusion_map(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: str | Path, title: str = "") -> None:
    """Draws which class is confused with which: colours are shares of a row, numbers are counts, up to 20 classes.

    Of more classes, rows and columns without an entry are left out.

    Args:
        matrix: ``[C + 1, C + 1]``, of :func:`grcn.evaluation.ap_loss.confusion`.
        classes: the C names.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    counts, many = np.asarray(matrix), len(classes) > 20
    rows, columns = [*classes, "(background)"], [*classes, "(missed)"]
    if many and counts.any():
        used = [np.flatnonzero(counts.any(axis=axis)) for axis in (1, 0)]
        rows, columns = [rows[row] for row in used[0]], [columns[column] for column in used[1]]
        counts = counts[np.ix_(*used)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.0 + (0.17 if many else 0.5) * max(counts.shape)
    figure = new_figure(side, side + 1.0)
    axes = figure.subplots()
    colors = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(colors, label="share of the row", fraction=0.04, pad=0.02)
    size = 6 if many else 9
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=size, parse_math=False)
    axes.set(xlabel="detected class", ylabel="true class")
    axes.set_title(title, parse_math=False)
    if not many:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7, color=ink)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def cosine_curves(
    steps: Sequence[int],
    layers: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]],
    path: str | Path,
    title: str = "",
) -> None:
    """Plots the cosine between two gradients over steps, a line per layer, and below it that of the last step.

    Colours go from dark, the first layer, to light, the last. The standard error is a bar below and, for few layers, a
    band above.

    Args:
        steps: at which the cosine is known.
        layers: ``{layer: (cosines, their standard errors)}``, one for each step, None where there is none.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    heights = 3.6, 0.6 + 0.2 * len(layers)
    figure = new_figure(sum(heights))
    from matplotlib import colormaps

    over, last = figure.subplots(2, height_ratios=heights)
    for depth, (name, series) in enumerate(layers.items()):
        # Without the light end of the map, which is faint on white.
        color = colormaps["plasma"](0.88 * depth / max(1, len(layers) - 1))
        cosines, errors = (np.array([np.nan if value is None else value for value in values]) for values in series)
        over.plot(steps, cosines, color=color, marker=".", label=name, linewidth=1.4)
        if len(layers) <= _MOST_BANDS:
            over.fill_between(steps, cosines - errors, cosines + errors, color=color, alpha=0.1, linewidth=0)
        last.errorbar(cosines[-1], depth, xerr=errors[-1], color=color, marker="o", markersize=4, capsize=2)
    over.set(xlabel="step", ylabel="cosine")
    over.set_title(title, fontsize=10)
    last.set(xlabel=f"cosine at step {steps[-1]}, \N{PLUS-MINUS SIGN} standard error")
    last.set_yticks(range(len(layers)), list(layers), fontsize=8)
    last.invert_yaxis()
    over.axhline(0, color="#000000", linewidth=0.8)
    last.axvline(0, color="#000000", linewidth=0.8)
    for axes in (over, last):
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()  # before the legend is added, which would take its width from the panels
    over.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1.0), ncols=math.ceil(len(layers) / 20), fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=120, bbox_inches="tight")


def context_panels(tasks: Mapping[str, Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Plots the context attention of each task: four figures, a dot for each image and their mean.

    Args:
        tasks: of :func:`grcn.apps.analyze.context.measure_context`.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    figure = new_figure(3.4, 13.0)
    cells = max(of["cells"] for of in tasks.values())
    panels: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("size", "size of the context, relative to\nthe RoI's features", {}),
        ("largest_share", f"largest share of a cell, relative\nto an even one (maximum: {cells})", {"yscale": "log"}),
        ("entropy", "entropy of the attention,\nrelative to an even one", {"ylim": (-0.03, 1.03)}),
        ("between_rois", "difference of the context\nbetween RoIs (line: images)", {}),
    )
    for axes, (name, label, options) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for place, of in enumerate(tasks.values()):
            values = np.array([np.nan if row[name] is None else row[name] for row in of["images"]])
            color = LINE_COLORS[1 + place]
            axes.plot(place + np.linspace(-0.25, 0.25, len(values)), values, ".", color=color, alpha=0.6)
            if of["mean"][name] is not None:
                axes.hlines(of["mean"][name], place - 0.35, place + 0.35, color=color, linewidth=2)
            if name == "between_rois" and of["between_images"] is not None:
                axes.hlines(of["between_images"], place - 0.35, place + 0.35, color="black", linestyle="--")
        axes.set_title(label, fontsize=9)
        axes.set_xticks(range(len(tasks)), [f"context/{task}" for task in tasks])
        axes.set_xlim(-0.6, len(tasks) - 0.4)
        axes.set(**options)
        if name in ("size", "between_rois"):
            top = axes.dataLim.y1 if np.isfinite(axes.dataLim.y1) and axes.dataLim.y1 > 0 else 1.0
            axes.set_ylim(-0.03 * top, 1.1 * top)
        if name == "largest_share":
            axes.set_ylim(0.9, 1.1 * cells)
            axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color="#dddddd", linewidth=0.6, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, parse_math=False, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def difference_dots(panels: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path, title: str = "") -> None:
    """Plots, for each figure, how far rows lie from their baselines.

    A dot is a seed, a bar the mean with its 95 % interval over seeds, a hollow diamond the paper's difference.

    Args:
        panels: figure -> rows from the top, each with ``label``, ``values`` (one per seed), ``interval`` (two ends or
            None) and ``paper`` (or None), in percent.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    rows = max((len(points) for points in panels.values()), default=0)
    figure = new_figure(1.3 + 0.42 * rows, 2.2 + 2.4 * len(panels))
    figure.set_layout_engine("constrained")
    for axes, (quantity, points) in zip(
        np.ravel(figure.subplots(1, max(1, len(panels)), sharey=True)), panels.items(), strict=bool(panels)
    ):
        places = np.arange(len(points))
        for place, point in zip(places, points, strict=True):
            values, interval = point["values"], point["interval"]
            axes.plot(values, [place] * len(values), "o", color="#56B4E9", markersize=4, alpha=0.8, label="one seed")
            if values:
                axes.plot(np.mean(values), place, "|", color="#000000", markersize=14, markeredgewidth=2, label="mean")
            if interval:
                axes.plot(interval, [place] * 2, "-", color="#000000", linewidth=1.4, label="95 % over seeds")
            if point["paper"] is not None:
                axes.plot(
                    point["paper"], place, "D", color="#D55E00", fillstyle="none", markersize=8, label="the paper"
                )
        axes.axvline(0, color="#707070", linewidth=0.8)
        axes.set(xlabel=f"difference in {quantity}, percent", ylim=(len(points) - 0.5, -0.5))
        axes.set_yticks(places, [point["label"] for point in points])
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    named = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=120, bbox_inches="tight")
