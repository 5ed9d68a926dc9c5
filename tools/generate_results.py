"""Regenerates the tables of RESULTS.md, and the reports under results/, from the results of runs that are kept there.

A table lies between a comment that specifies it, as YAML, and <!-- end of table -->:

  results: folder with <config>/seed<k>.json
  seeds: those to use (default: all)
  over: config that differences are to
  rows: {config: label}
  columns: {title: a metric and how it is shown: nothing for mean ± deviation over seeds, "each" for every seed,
    "beside" for mean ± deviation and that of the difference, "over" for the difference and its 95 % interval over
    seeds, "images" for that over test images, of the report named by `report`, "elsewhere" for the difference in the
    folder named by `elsewhere`}

The comment of a table of a study's hypotheses has ``families``, that of a table of claims on several data sets
``claims``: tools/generate_verdicts.py.

The comment of a table of errors has ``compared``, a list of compare.json of ``grcn analyze runs`` whose runs are named
<row>/seed<k>, and as columns {title: a figure in it}; mean ± deviation over seeds, in percent.

The comment of a table of the benchmark's figures has:

  speed: folder with <row>.json, of tools/benchmark.py --json
  rows: {row: label}
  columns: {title: path of a figure in the file, as "cpu_ratios ratio_to_floor"; of several, such as rounds, the
    median is shown with the minimum and the maximum, and milliseconds are shown as seconds}
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from generate_verdicts import claims_table, values_of, verdict_table, with_interval

from grcn.apps.reproduce.rows import METRICS
from grcn.apps.reproduce.statistics import compare

_TABLE = re.compile(r"(<!-- table\n(.*?)-->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def with_tables(page: str, root: Path) -> str:
    """Returns a page with its tables regenerated.

    Args:
        root: the parent of the folders of its tables.
    """
    return _TABLE.sub(lambda match: match[1] + _table(yaml.safe_load(match[2]), root) + match[4], page)


def _table(spec: Mapping[str, Any], root: Path) -> str:
    if "families" in spec:
        return verdict_table(spec, root)
    if "claims" in spec:
        return claims_table(spec, root)
    columns = spec["columns"]
    cell = _speed_cell if "speed" in spec else _compared_cell if "compared" in spec else _cell
    lines = [f"| | {' | '.join(columns)} |", "|" + "---|" * (1 + len(columns))]
    for row, label in spec["rows"].items():
        cells = [cell(spec, row, shown, root) for shown in columns.values()]
        if any(cells):  # in a table of only differences the baseline has none
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _speed_cell(spec: Mapping[str, Any], row: str, shown: str, root: Path) -> str:
    path = root / spec["speed"] / f"{row}.json"
    if not path.exists():
        return "not run"
    found, place = json.loads(path.read_text(encoding="utf-8")), shown.split()
    for key in place:
        if key not in found:
            return ""
        found = found[key]
    if not isinstance(found, list):
        return str(found)
    if "_ms" in place[0]:
        return f"{statistics.median(found) / 1000:.2f}"
    return f"**{statistics.median(found):.2f}** ({min(found):.2f}–{max(found):.2f})"


def _compared_cell(spec: Mapping[str, Any], row: str, figure: str, root: Path) -> str:
    own = []
    for path in spec["compared"]:
        compared = json.loads((root / path).read_text(encoding="utf-8"))
        rows = [one["name"].partition("/")[0] for one in compared["files"]]
        values = compared["figures"][figure]["values"]
        own += [100 * value for name, value in zip(rows, values, strict=True) if name == row]
    return _spread(own) if own else "not run"


def _cell(spec: Mapping[str, Any], config: str, shown: str, root: Path) -> str:
    metric, _, kind = shown.partition(" ")
    seeds = spec.get("seeds")
    values = values_of(root / spec["results"] / config, metric, seeds)
    if not values:
        return "not run"
    if kind == "each":
        return " / ".join(f"{value:.1f}" for value in values.values())
    plain = _spread(list(values.values()))
    over = spec.get("over")
    if not kind or (kind == "beside" and config == over):
        return plain
    if config == over:
        return ""
    folder = root / spec["elsewhere" if kind == "elsewhere" else "results"]
    used = None if kind == "elsewhere" else seeds
    gap = compare(values_of(folder / config, metric, used), values_of(folder / str(over), metric, used))
    if gap is None:
        return {"beside": f"{plain} (no pair)", "elsewhere": "not run"}.get(kind, "no pair")
    if kind == "elsewhere":
        return f"{gap.mean:+.1f}"
    if kind == "images":
        low, high = _over_images(folder / "reports" / f"{spec['report']}.json", config, metric)
        return f"{gap.mean:+.1f} ({low:+.1f} to {high:+.1f})"
    if kind == "beside":
        mark = "**" if gap.seeds and (gap.seeds[0] > 0 or gap.seeds[1] < 0) else ""
        return f"{plain} ({mark}{_spread(list(gap.values.values()), '+')}{mark})"
    return with_interval(gap)


def _spread(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{spread}"


def _over_images(report: Path, config: str, metric: str) -> tuple[float, float]:
    name = next(name for name, key in METRICS.items() if key == metric)
    rows = json.loads(report.read_text())["rows"]
    low, high = next(row["difference"][name]["images"] for row in rows if row["row"] == config)
    return low, high


def commands(results: Path) -> dict[str, list[Path]]:
    """Returns the commands of the reports under ``results``, each with its reports."""
    found: dict[str, list[Path]] = {}
    for path in sorted(results.glob("*/reports/*.json")):
        found.setdefault(json.loads(path.read_text())["facts"][0].strip("`"), []).append(path)
    return found


def regenerate(root: Path) -> None:
    """Runs the command of each report again, without training, and regenerates the tables of RESULTS.md.

    Raises:
        ValueError: a report lies in another folder than its command names.
    """
    for command, reports in commands(root / "results").items():
        words = shlex.split(command)[2:]  # after "grcn reproduce", or "python tools/reproduce.py" of earlier ones
        folder = str(reports[0].parents[1].relative_to(root))
        if "--results" not in words or words[words.index("--results") + 1] != folder:
            raise ValueError(f"{reports[0]}: its command needs --results {folder} (got {command})")
        words += ["--report-only"] * ("--report-only" not in words)
        subprocess.run(
            [sys.executable, "-m", "grcn", "reproduce", *words], cwd=root, check=True, stdout=subprocess.DEVNULL
        )
    page = root / "RESULTS.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8"), root), encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    regenerate(Path(__file__).resolve().parents[1])
