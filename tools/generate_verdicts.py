"""Makes tables of differences: a study's hypotheses with a verdict on each, and claims on several data sets.

Differences are of paired seeds, with their 95 % interval over seeds. A verdict is by the rule that results/PLAN.md set
before the runs. Student's t test of the mean difference over paired seeds, with Holm's correction within the family,
and at least half a point of AP: *shown*, or *contradicted* where the difference has the other sign. *Not shown*: the
interval, uncorrected, lies within one point of zero. Else *undecided*. A hypothesis without results takes its place in
the correction, as one that is not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grcn.apps.reproduce.statistics import Difference, Interval, compare, holm, student_p

ALPHA = 0.05
SMALLEST = 0.5  # AP, the least that the paper counts as a gain
NEGLIGIBLE = 1.0  # AP


def verdict_table(spec: Mapping[str, Any], root: Path) -> str:
    """Returns the table of the hypotheses of a study, as Markdown.

    Args:
        spec: ``results``, the folder with <row>/seed<k>.json; ``metric``; ``families``, by name a mapping of each
            hypothesis to its ``difference``, as "a - b" or "(a - b) - (c - d)" of rows, the ``paper``'s, if any, and
            the difference that was ``planned``, where it is another one; it gets no verdict.
        root: the folder that ``results`` is in.
    """
    lines = ["| | hypothesis | the paper | difference, AP | seeds | p, Holm | |", "|---|---|---|---|---|---|---|"]
    number = 0
    for family, hypotheses in spec["families"].items():
        found = [_difference(root / spec["results"], one["difference"], spec["metric"]) for one in hypotheses.values()]
        corrected = holm([student_p([*gap.values.values()]) if gap and gap.seeds else 1.0 for gap in found])
        for (text, one), gap, p in zip(hypotheses.items(), found, corrected, strict=True):
            number += 1
            judged = [f"{p:.3f}", verdict(gap.mean, gap.seeds, p)] if gap and gap.seeds else ["", ""]
            lines.append(_row(str(number), f"{family}: {text}", one.get("paper", "–"), *_figures(gap), *judged))
            if "planned" in one:
                planned = _difference(root / spec["results"], one["planned"], spec["metric"])
                lines.append(_row("", "… as planned", "", *_figures(planned), "", ""))
    return "\n".join(lines) + "\n"


def claims_table(spec: Mapping[str, Any], root: Path) -> str:
    """Returns a table of claims, with the difference on each data set, as Markdown.

    Bold: the interval excludes zero.

    Args:
        spec: ``metric``; ``data``, by title the ``results`` of a data set, a folder with <row>/seed<k>.json, and the
            ``ending`` of its rows; ``claims``, by text the ``difference``, as "a{} - b{}" or "(a{} - b{}) - (c{} -
            d{})" of rows without that ending, what the ``paper`` has, if anything, and the ``verdict``.
        root: the folder that each ``results`` is in.
    """
    lines = [f"| | the paper | {' | '.join(spec['data'])} | |", "|" + "---|" * (3 + len(spec["data"]))]
    for text, claim in spec["claims"].items():
        cells = []
        for data in spec["data"].values():
            expression = claim["difference"].replace("{}", data["ending"])
            cells.append(_figures(_difference(root / data["results"], expression, spec["metric"]))[0])
        lines.append(_row(text, claim.get("paper", "–"), *cells, claim["verdict"]))
    return "\n".join(lines) + "\n"


def with_interval(gap: Difference) -> str:
    """Writes a difference with its interval over seeds, if it has one, in bold where that excludes zero."""
    if gap.seeds is None:
        return f"{gap.mean:+.1f}"
    low, high = gap.seeds
    mark = "**" if low > 0 or high < 0 else ""
    return f"{mark}{gap.mean:+.1f}{mark} ({low:+.1f} to {high:+.1f})"


def _figures(gap: Difference | None) -> tuple[str, str]:
    """Writes a difference with its interval, and the number of its seeds."""
    if gap is None:
        return "not run", ""
    return with_interval(gap) + " (one seed)" * (gap.seeds is None), str(len(gap.values))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def verdict(mean: float, seeds: Interval, p: float) -> str:
    """Says what a difference shows.

    Args:
        mean: of the differences, in points of AP.
        seeds: its 95 % interval over seeds.
        p: of its t test, corrected.
    """
    if p < ALPHA and abs(mean) >= SMALLEST:
        return "shown" if mean > 0 else "contradicted"
    low, high = seeds
    return "not shown" if -NEGLIGIBLE <= low and high <= NEGLIGIBLE else "undecided"


def values_of(folder: Path, metric: str, seeds: list[int] | None = None) -> dict[int, float]:
    """Returns a figure of each seed in percent, from the files of a row."""
    found = {int(path.stem.removeprefix("seed")): path for path in folder.glob("seed*.json")}
    chosen = [seed for seed in sorted(found) if seeds is None or seed in seeds]
    return {seed: 100 * json.loads(found[seed].read_text())["metrics"][metric] for seed in chosen}


def _difference(results: Path, expression: str, metric: str) -> Difference | None:
    """Computes "a - b" or "(a - b) - (c - d)" for the seeds that all rows have."""
    row, baseline, *others = (values_of(results / name, metric) for name in re.findall(r"\w+", expression))
    gap = compare(row, baseline)
    if not others:
        return gap
    other = compare(others[0], others[1])
    return gap and other and compare(gap.values, other.values)
