"""Formats the report of a study as a page of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from grcn.apps.reproduce.rows import Measured, Row, Table
from grcn.apps.reproduce.statistics import Difference, Interval


def page(
    table: Table,
    found: Mapping[str, Measured],
    compared: Mapping[str, Mapping[str, Difference]],
    facts: Sequence[str],
) -> str:
    """Formats a study as Markdown: figures, differences, classes where the paper has them, and the run folders.

    Args:
        found: the figures of each row, by its name.
        compared: label -> figure -> difference to the row's baseline.
        facts: sentences about how it was measured.
    """
    printed = any(row.paper for row in table.rows)
    lines = [f"# {table.title}", "", *facts, "", "In percent; mean ± standard deviation (seeds).", ""]
    head = [f"{name}, {whose}" for name in table.metrics for whose in (["paper"] * printed + ["measured"])]
    body = []
    for row in table.rows:
        cells = [row.label]
        for name in table.metrics:
            cells += [_number(row.paper.get(name))] * printed + [_spread(found[row.name], name)]
        body.append(cells)
    lines += [*_markdown(["", *head], body), ""]

    lines += [
        "Differences to the baseline: the mean over pairs of equal seed, its 95 % interval over seeds (Student)",
        "and over test images (bootstrap, not for objects of one size), and the number of pairs. **Bold**: both",
        "intervals exclude zero. Nothing corrects for the number of comparisons.",
        "",
    ]  # fmt: skip
    body = []
    rows = {row.label: row for row in table.rows}
    for row in table.rows:
        if row.baseline is None:
            continue
        cells = [f"{row.label} − {row.baseline}"]
        for name in table.metrics:
            paper, base = row.paper.get(name), rows[row.baseline].paper.get(name)
            gap = None if paper is None or base is None else paper - base
            cells += [_number(gap, sign=True)] * printed + [
                _interval(compared.get(row.label, {}).get(name), _both_ran(row, rows, found))
            ]
        body.append(cells)
    lines += [*_markdown(["", *head], body), ""]
    if any(row.per_class for row in table.rows):
        lines += _per_class(table, found)
    lines += ["Runs:", ""]
    labels: dict[str, list[str]] = {}
    for row in table.rows:
        labels.setdefault(row.name, []).append(row.label)
    for shared in (own for own in labels.values() if len(own) > 1):
        lines.append(f"- {' and '.join(shared)} are the same runs here.")
    for name, config in {row.name: row.config for row in table.rows}.items():
        folders = ", ".join(str(path) for path in found[name].folders.values())
        lines.append(f"- {name} ({config}): {folders or 'not run'}")
    return "\n".join(lines) + "\n"


def _per_class(table: Table, found: Mapping[str, Measured]) -> list[str]:
    """Writes AP70 of each class: the paper's columns, or those of other data, which the paper has no figures for."""
    measured = [found[row.name].per_class for row in table.rows]
    printed = list(dict.fromkeys(name for row in table.rows for name in row.per_class))
    other = [name for name in dict.fromkeys(name for figures in measured for name in figures) if name not in printed]
    same = not other
    names = printed if same else other
    body = []
    for row, figures in zip(table.rows, measured, strict=True):
        if same:
            body.append([f"{row.label}, paper", *(_number(row.per_class.get(name)) for name in names)])
        missing = "–" if found[row.name].folders else "not run"
        cells = [_number(statistics.fmean(figures[name])) if name in figures else missing for name in names]
        body.append([f"{row.label}{', measured' * same}", *cells])
    return ["AP70 of each class, mean over seeds:", "", *_markdown(["", *names], body), ""]


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *body)]


def _number(value: float | None, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''}.1f}"


def _spread(measured: Measured, name: str) -> str:
    values = list(measured.values[name].values())
    if not values:
        return "–" if measured.folders else "not run"  # evaluated, but there are no objects of this size
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread} ({len(values)})"


def _both_ran(row: Row, rows: Mapping[str, Row], found: Mapping[str, Measured]) -> bool:
    return all(found[one.name].folders for one in (row, rows[row.baseline or row.label]))


def _interval(difference: Difference | None, ran: bool) -> str:
    if difference is None:
        return "–" if ran else "not run"
    mean = f"{difference.mean:+.1f}"
    ends = [_ends(interval) for interval in (difference.seeds, difference.images)]
    return f"{f'**{mean}**' if difference.is_shown else mean} ({'; '.join(ends)}; {len(difference.values)})"


def _ends(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval[0]:+.1f} to {interval[1]:+.1f}"
