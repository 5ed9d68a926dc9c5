"""Reports a study: the paper's figures beside ours, differences in pairs of equal seed, and their sources."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from grcn import build
from grcn.apps.reproduce.checks import read_json
from grcn.apps.reproduce.markdown import page
from grcn.apps.reproduce.rows import METRICS, Measured, Table
from grcn.apps.reproduce.runs import Trial
from grcn.apps.reproduce.statistics import Difference, compare
from grcn.config.schema import DataConfig, EvalConfig
from grcn.data import coco as coco_files
from grcn.data.annotations import Annotations
from grcn.engine.environment import read_environment
from grcn.errors import ConfigError, EnvironmentFault
from grcn.evaluation import bootstrap, coco, voc
from grcn.fileio import write_durably
from grcn.progress import progress_bar
from grcn.vis.charts import difference_dots

logger = logging.getLogger("grcn")

# The keys of a run's env.json that a report quotes.
_FACTS = ("device", "instruction_sets", "threads", "torch", "torchvision", "revision")
_TORCHVISION = (
    "torchvision's FasterRCNN has the same network, head, anchors, initial values, data and loop, and its own losses "
    "(smooth L1 with beta 1/9 for boxes), proposals (no minimum size), anchors (those across the border count) and "
    "RoIAlign (half a pixel off), and no dropout."
)

# Indices of a figure among the ten IoU thresholds of COCO's AP; those of objects of one size are not resampled.
_COCO_OVERLAPS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}


def measure(runs: Sequence[Trial], metrics: Sequence[str], draws: int) -> dict[str, Measured]:
    """Reads the results of the finished runs, by their names, and scores their detections on resampled images.

    Results that are kept without their detections are not resampled.

    Args:
        metrics: the paper's names of the figures.
        draws: resamples of the test images; 0 for none.
    """
    finished = [(run, read_json(run.results)) for run in runs if run.is_done()]
    kept = [(run, read_json(run.kept)) for run in runs if run.kept and run.is_kept() and not run.is_done()]
    drawn_images = cache(partial(_draw_images, count=draws))  # runs of one data section share them
    total = len(finished) * draws
    resampled = {}
    with progress_bar(desc="bootstrap", total=total, unit="draw", disable=not total) as bar:
        for run, of in finished if draws else ():
            if not run.detections.exists():
                logger.warning("%s: missing; no interval over images of this run", run.detections)
                continue
            own_metrics = [name for name in metrics if METRICS[name] in of["metrics"]]
            resampled[run.folder] = _resample(run, own_metrics, drawn_images, bar)
    found = {}
    for trained in dict.fromkeys(run.name for run in runs):
        own = [(run, results) for run, results in (*finished, *kept) if run.name == trained]
        values: dict[str, dict[int, float]] = {name: {} for name in metrics}
        per_class: dict[str, list[float]] = {}
        for run, results in own:
            for name in metrics:
                if (value := results["metrics"].get(METRICS[name])) is not None:
                    values[name][run.seed] = 100 * value
            for name, figures in results["per_class"].items():
                if (value := figures.get(METRICS["AP70"])) is not None:
                    per_class.setdefault(name, []).append(100 * value)
        drawn = {
            name: {run.seed: resampled[run.folder][name] for run, _ in own if name in resampled.get(run.folder, {})}
            for name in metrics
        }
        places = {run.seed: run.kept if run.kept and run.is_kept() else run.folder for run, _ in own}
        found[trained] = Measured(values, per_class, drawn, places)
    return found


def _draw_images(data: DataConfig, evaluation: EvalConfig, count: int) -> tuple[Annotations, np.ndarray]:
    """Returns the test images that are scored, and how often each of them is in each of ``count`` resamples."""
    images = build.limit_images(evaluation, build.build_test_split(data, build.class_names(data)).table)
    return images, bootstrap.draws(len(images), count)[1:]


def _resample(
    run: Trial,
    metrics: Sequence[str],
    drawn_images: Callable[[DataConfig, EvalConfig], tuple[Annotations, np.ndarray]],
    bar: tqdm,
) -> dict[str, np.ndarray]:
    """Returns the figures of a run, in percent, on resamples of its test images."""
    table, times = drawn_images(run.settings.data, run.settings.eval)
    found = coco_files.read_detections(run.detections, table)
    drawn = {}
    if overlaps := [name for name in metrics if name in _COCO_OVERLAPS]:
        values = bootstrap.resampled(coco.matches(table, found), times, advance=bar.update)
        drawn = {name: 100 * values[:, _COCO_OVERLAPS[name]].mean(axis=1) for name in overlaps}
    if "AP70" in metrics:
        advance = bar.update if not overlaps else lambda: None
        matched = voc.matches(table, found, 0.7)
        drawn["AP70"] = 100 * bootstrap.resampled(matched, times, bootstrap.VOC07_RECALLS, advance)[:, 0]
    return drawn


def keep(runs: Sequence[Trial]) -> None:
    """Copies the results of finished runs to where they are kept, with seed, settings and machine; once.

    Raises:
        ConfigError: another result is kept there.
    """
    for run in runs:
        if not run.is_done() or run.kept is None:
            continue
        found = read_json(run.results)
        if run.kept.exists():  # the same may have been measured before, on another machine or revision
            before = {key: value for key, value in read_json(run.kept).items() if key != "run"}
            if before != found:
                raise ConfigError(f"{run.kept}: holds another result; choose another --results, or remove it")
            continue
        known = read_environment(run.folder)
        own = (run.folder / "config.yaml").read_text(encoding="utf-8")  # recorded whole, in case defaults change
        source = {"seed": run.seed, "steps": run.settings.train.steps, "config": own}
        source |= {key: known.get(key) for key in _FACTS}
        run.kept.parent.mkdir(parents=True, exist_ok=True)
        write_durably(run.kept, (json.dumps({**found, "run": source}, indent=1) + "\n").encode())


def differences(
    table: Table, found: Mapping[str, Measured], before: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Difference]]:
    """Compares each row with its baseline: label -> figure -> difference.

    Args:
        before: an earlier report of the same runs, as ``<name>.json``. Where detections are missing, its intervals over
            test images are used, if its values are the same.
    """
    known = {row["row"]: row["difference"] for row in (before or {}).get("rows", [])}
    rows = {row.label: row for row in table.rows}
    compared: dict[str, dict[str, Difference]] = {}
    for row in table.rows:
        if row.baseline is None:
            continue
        ours, base = found[row.name], found[rows[row.baseline].name]
        for name in table.metrics:
            difference = compare(ours.values[name], base.values[name], ours.draws[name], base.draws[name])
            if difference is not None and difference.images is None:
                difference = _with_interval(difference, known.get(row.label, {}).get(name))
            if difference is not None:
                compared.setdefault(row.label, {})[name] = difference
    return compared


def _with_interval(difference: Difference, known: Mapping[str, Any] | None) -> Difference:
    """Takes the interval over test images from a report, if it is of the same values."""
    if not known or {int(seed): value for seed, value in known["values"].items()} != dict(difference.values):
        return difference
    images = known["images"]
    return difference if images is None else replace(difference, images=(images[0], images[1]))


def read_report(folder: Path, name: str) -> dict[str, Any]:
    """Reads the report ``<name>.json`` that a folder holds; an empty dict for none.

    Raises:
        DataError: it is damaged.
    """
    path = folder / f"{name}.json"
    return read_json(path) if path.exists() else {}


def write(table: Table, found: Mapping[str, Measured], folder: Path, facts: Sequence[str], name: str) -> str:
    """Writes ``<name>.md``, ``.csv`` (a line for each run), ``.json`` and ``.png`` into ``folder``.

    Args:
        facts: sentences about how it was measured: command, data, machine.

    Returns:
        The Markdown.
    """
    table = replace(table, metrics=_with_values(table, found))
    compared = differences(table, found, read_report(folder, name))
    folder.mkdir(parents=True, exist_ok=True)
    text = page(table, found, compared, facts)
    record = json.dumps(_record(table, found, compared, facts), indent=1) + "\n"
    for suffix, content in {"md": text, "csv": _lines(table, found), "json": record}.items():
        write_durably(folder / f"{name}.{suffix}", content.encode())
    _draw(_panels(table, compared), folder / f"{name}.png", table.title)
    return text


def _with_values(table: Table, found: Mapping[str, Measured]) -> Sequence[str]:
    """Returns the figures that a row or the paper has; all, where nothing has been measured yet."""
    known = {name for row in table.rows for name in row.paper}
    known |= {name for measured in found.values() for name, values in measured.values.items() if values}
    return [name for name in table.metrics if name in known] or table.metrics


def _lines(table: Table, found: Mapping[str, Measured]) -> str:
    """Writes a line for each row and seed, with the folder that its figures come from."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["row", "config", "seed", "folder", *table.metrics, *(f"{name} paper" for name in table.metrics)])
    for row in table.rows:
        measured = found[row.name]
        paper = [row.paper.get(name, "") for name in table.metrics]
        for seed, folder in measured.folders.items():
            values = [measured.values[name].get(seed, "") for name in table.metrics]
            writer.writerow([row.label, row.config, seed, folder, *values, *paper])
        if not measured.folders:
            writer.writerow([row.label, row.config, "", "not run", *[""] * len(table.metrics), *paper])
    return text.getvalue()


def _record(
    table: Table,
    found: Mapping[str, Measured],
    compared: Mapping[str, Mapping[str, Difference]],
    facts: Sequence[str],
) -> dict[str, Any]:
    rows = []
    for row in table.rows:
        measured = found[row.name]
        gaps = {
            name: {**asdict(gap), "mean": gap.mean, "shown": gap.is_shown}
            for name, gap in compared.get(row.label, {}).items()
        }
        rows.append(
            {
                "row": row.label,
                "config": str(row.config),
                "baseline": row.baseline,
                "paper": dict(row.paper),
                "measured": {name: dict(values) for name, values in measured.values.items()},
                "folders": {seed: str(path) for seed, path in measured.folders.items()},
                "difference": gaps,
            }
        )
    return {"table": table.title, "facts": list(facts), "rows": rows}


def draw_together(tables: Iterable[Table], found: Mapping[str, Measured], path: Path) -> None:
    """Draws the differences of several tables below each other; skips those that share no figure with the first."""
    tables = list(tables)
    alike = [table for table in tables if set(table.metrics) & set(tables[0].metrics)]
    for table in tables:
        if table not in alike:
            logger.info("%s: not in the picture of all tables, it has other figures", table.title.partition(".")[0])
    tables = alike
    shared = [name for name in METRICS if all(name in table.metrics for table in tables)]
    panels: dict[str, list[dict[str, Any]]] = {name: [] for name in shared}
    for table in tables:
        for name, points in _panels(table, differences(table, found)).items():
            if name in shared:
                first = table.title.partition(".")[0]
                panels[name] += [{**point, "label": f"{first}: {point['label']}"} for point in points]
    _draw(panels, path, f"Differences to the row's baseline; {tables[0].title.rpartition('; ')[2]}")


def _draw(panels: Mapping[str, list[dict[str, Any]]], path: Path, title: str) -> None:
    try:
        difference_dots(panels, path, title)
    except EnvironmentFault as error:
        logger.info("nothing drawn: %s", error)


def _panels(table: Table, compared: Mapping[str, Mapping[str, Difference]]) -> dict[str, list[dict[str, Any]]]:
    """Returns, for each figure, the points of each row's difference, as :func:`difference_dots` draws them."""
    rows = {row.label: row for row in table.rows}
    panels: dict[str, list[dict[str, Any]]] = {}
    for name in table.metrics:
        for row in table.rows:
            if row.baseline is None:
                continue
            base = rows[row.baseline].paper
            gap = compared.get(row.label, {}).get(name)
            panels.setdefault(name, []).append(
                {
                    "label": row.label,
                    "paper": row.paper[name] - base[name] if name in row.paper and name in base else None,
                    "values": [] if gap is None else list(gap.values.values()),
                    "interval": None if gap is None else gap.seeds,
                }
            )
    return panels


def facts_of(runs: Sequence[Trial], command: str) -> list[str]:
    """Returns sentences about how the runs were done: the command, and the machines and revisions recorded."""
    facts = [f"`{command}`", ""]
    machines: dict[str, list[str]] = {}
    for run in runs:
        if run.is_done() or run.is_kept():
            known = read_json(run.kept)["run"] if run.kept and run.is_kept() else read_environment(run.folder)
            machine = ", ".join(f"{key} {_text(known[key])}" for key in _FACTS if known.get(key))
            machines.setdefault(machine, []).append(f"{run.name}/seed{run.seed}")
    if len(machines) == 1:
        facts += [f"All runs: {machine}." for machine in machines]
    elif machines:
        facts += ["The runs differ in more than their rows:", ""]
        facts += [f"- {machine}: {', '.join(names)}" for machine, names in machines.items()]
    if any(run.row.torchvision for run in runs):
        facts += ["", _TORCHVISION]
    return facts


def _text(fact: object) -> str:
    return " ".join(fact) if isinstance(fact, list) else str(fact)
