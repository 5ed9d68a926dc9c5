"""Draws a comparison of detectors. Needs matplotlib (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grcn.vis.curves import LINE_COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = (*LINE_COLORS[1:], LINE_COLORS[0])
MOST_DRAWN = len(_COLORS)  # detectors that have a color each
# Panels of bars: title, and the label of each figure.
_PANELS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "average precision; correlation × 100 (higher is better)",
        {
            "ap": "AP",
            "ap50": "AP50",
            "ap75": "AP75",
            "right_class": "AP with\nright class",
            "right_box": "AP with\nright box",
            "spearman": "score-IoU\ncorrelation",
        },
    ),
    (
        "AP50 lost to each kind of error, TIDE (lower is better)",
        {f"tide_{error.lower()}": error for error in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")},
    ),
    (
        "oLRP, its parts, and calibration (lower is better)",
        {
            "olrp": "oLRP",
            "olrp_localization": "localization",
            "olrp_false_positives": "false\npositives",
            "olrp_false_negatives": "false\nnegatives",
            "calibration_error": "calibration\nerror",
        },
    ),
)
_MOST_LABELLED = 4  # files whose bars are wide enough for a number


def comparison_panels(compared: Mapping[str, Any], path: str | Path) -> None:
    """Draws the figures of each detector as bars and, of several, the differences to the first with their intervals.

    Args:
        compared: of :func:`grcn.apps.analyze.compare.compare`.
        path: its suffix sets the format, ``.png`` or ``.pdf``.

    Raises:
        EnvironmentFault: matplotlib is not installed.
        ValueError: there are more than ``MOST_DRAWN`` detectors.
    """
    names = [file["name"] for file in compared["files"]]
    if len(names) > MOST_DRAWN:
        raise ValueError(f"at most {MOST_DRAWN} detectors can be drawn (got {len(names)})")
    several = len(names) > 1
    figure = new_figure(max(10.0, 1.8 + 0.13 * len(compared["figures"]) * len(names)), 15.0 if several else 8.0)
    figure.set_layout_engine("constrained")
    from matplotlib.patches import Patch

    grid = figure.add_gridspec(len(_PANELS), 2 if several else 1, width_ratios=(1.25, 1) if several else (1,))
    colors = _COLORS[: len(names)]
    for row, (title, labels) in enumerate(_PANELS):
        _bars(figure.add_subplot(grid[row, 0]), title, labels, compared["figures"], colors)
    if several:
        _differences(figure.add_subplot(grid[:, 1]), compared, colors)
    handles = [Patch(color=color, label=name) for color, name in zip(colors, names, strict=True)]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 3), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    title = f"{compared['data']}: {compared['images']:,} images, {compared['objects']:,} objects"
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120)


def _bars(
    axes: Axes, title: str, labels: Mapping[str, str], figures: Mapping[str, Mapping[str, Any]], colors: Sequence[str]
) -> None:
    width = 0.8 / len(colors)
    places = np.arange(len(labels))
    ends = [0.0]
    for number, color in enumerate(colors):
        values = 100 * np.array([_or_nan(figures[key]["values"][number]) for key in labels])
        at = places + (number - (len(colors) - 1) / 2) * width
        axes.bar(at, values, 0.92 * width, color=color)
        intervals = [figures[key]["intervals"][number] for key in labels]
        low, high = 100 * np.array([(np.nan, np.nan) if one is None else one for one in intervals]).T
        axes.vlines(at, low, high, color="#444444", linewidth=1)
        tops = np.fmax(np.fmax(values, high), 0)
        ends += [*tops[np.isfinite(tops)], *np.fmin(values, low)[np.isfinite(values)]]
        if len(colors) <= _MOST_LABELLED:
            for x, top, value in zip(at, tops, values, strict=True):
                shown = "-" if np.isnan(value) else f"{value:.1f}"
                axes.annotate(
                    shown, (x, 0 if np.isnan(top) else top), (0, 2), textcoords="offset points", ha="center", fontsize=7
                )
    lowest, highest = min(ends), max(*ends, 1.0)
    axes.set(title=title, ylabel="percent", ylim=(1.1 * lowest, lowest + 1.15 * (highest - lowest)))
    axes.axhline(0, color="#707070", linewidth=0.8)
    axes.set_xticks(places, list(labels.values()), fontsize=9)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _differences(axes: Axes, compared: Mapping[str, Any], colors: Sequence[str]) -> None:
    """Draws a row per figure; a dot is filled where the interval excludes 0."""
    figures = compared["figures"]
    others = range(1, len(colors))
    for row, of in enumerate(figures.values()):
        for number in others:
            difference, interval = of["differences"][number], of["intervals_of_differences"][number]
            if difference is None:
                continue
            y = row + 0.7 * ((number - 0.5) / len(others) - 0.5)
            clear = interval is not None and (interval[0] > 0 or interval[1] < 0)
            if interval is not None:
                axes.plot([100 * end for end in interval], [y, y], "-", color=colors[number], linewidth=1.6)
            fill = colors[number] if clear else "white"
            axes.plot(100 * difference, y, "o", color=colors[number], markerfacecolor=fill, markersize=5)
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", zorder=0)
    axes.axvline(0, color="#707070", linewidth=0.8)
    titles = [f"{of['title']} {'↑' if of['higher_is_better'] else '↓'}" for of in figures.values()]
    axes.set_yticks(range(len(titles)), titles, fontsize=9)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    bars = "; bars: 95 % over images, filled dots: 0 is outside" if compared["draws"] else ""
    axes.set_title(f"difference to {compared['files'][0]['name']}", parse_math=False)
    axes.set_xlabel(f"percentage points{bars}")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value
