"""Reads, prints and writes a comparison, for ``grcn analyze compare`` and ``runs``: a table, and a picture of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grcn import build
from grcn.apps.analyze.compare import compare, unique_names
from grcn.config.files import load_config
from grcn.config.schema import Config, DataConfig, ShapesDataConfig
from grcn.data.annotations import Annotations
from grcn.engine.signals import StopSignals
from grcn.errors import ConfigError, DataError, EnvironmentFault, named
from grcn.fileio import write_durably
from grcn.run.evaluate import read_detections
from grcn.vis.comparison import MOST_DRAWN, comparison_panels

logger = logging.getLogger("grcn")

_NOTE = (
    "Differences are to the first, with 95 % intervals over images (bootstrap, the same {draws:,} draws for all); "
    "{mark} none of the interval is 0. AP and errors in percent."
)


def report_files(
    cfg: Config,
    files: Sequence[Path],
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    draws: int = 1000,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Compares files of detections in the test splits of a config; writes ``compare.json``, ``.md``, ``.png``.

    Args:
        files: COCO result JSON, or folders of VOC devkit files.
        folder: where the results are written.
        names: names of the files in the table; None for their own names.
        draws: resamples of the images; 0 for no intervals.
        stop: signals that end it early.

    Returns:
        what :func:`grcn.apps.analyze.compare.compare` returns, and of each file its ``path``.

    Raises:
        UserError: whatever is wrong with config, data, files or machine.
        Stopped: a signal came.
    """
    table = _test_table(cfg.data)
    found = [read_detections(cfg, table, path) for path in files]
    return _report(build.limit_images(cfg.eval, table), found, files, folder, names, draws, stop)


def report_runs(
    runs: Sequence[Path],
    overrides: Sequence[str],
    folder: Path,
    *,
    names: Sequence[str] | None = None,
    draws: int = 1000,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Compares the newest evaluations of runs, which have the same test data; otherwise as :func:`report_files`.

    Args:
        runs: folders of grcn train.
        overrides: settings that replace those of every run, such as ``eval.limit=100``.
    """
    tables: list[Annotations] = []
    found = []
    for run in runs:
        cfg = load_config(run / "config.yaml", overrides)
        table = _test_table(cfg.data)
        tables.append(build.limit_images(cfg.eval, table))
        if tables[-1].fingerprint() != tables[0].fingerprint():
            what = f"tested on {_size(tables[-1])}, and {runs[0]} on {_size(tables[0])}"
            raise DataError(f"{run}: other test data ({what}); compare runs of the same, or use compare --config")
        found.append(read_detections(cfg, table, newest_detections(run)))
    return _report(tables[0], found, runs, folder, names, draws, stop)


def newest_detections(run: Path) -> Path:
    """Returns the detections of the last evaluation of a run."""
    found = {
        int(step): path
        for path in run.glob("eval/step_*/detections.json")
        if (step := path.parent.name.removeprefix("step_")).isdecimal()
    }
    if not found:
        raise ConfigError(f"{run}: no eval/step_*/detections.json; finish the run with grcn train --resume")
    return found[max(found)]


def _test_table(cfg: DataConfig) -> Annotations:
    """Reads the annotations of the test split; its images are not read and need not exist."""
    if isinstance(cfg, ShapesDataConfig):
        return build.build_test_split(cfg, None).table
    return build.read_annotations(cfg, "test", build.class_names(cfg))


def _size(table: Annotations) -> str:
    return f"{len(table):,} images, {len(table.boxes):,} objects of {table.name}"


def _report(
    table: Annotations,
    found: Sequence[Mapping[str, np.ndarray]],
    paths: Sequence[Path],
    folder: Path,
    names: Sequence[str] | None,
    draws: int,
    stop: StopSignals | None,
) -> dict[str, Any]:
    if names is not None and (len(set(names)) != len(names) or len(names) != len(paths)):
        raise ConfigError(f"--names: not one for each of {len(paths)} (got {list(names)}); give each its own name")
    with named(folder):  # before minutes are spent
        folder.mkdir(parents=True, exist_ok=True)
    compared = compare(table, dict(zip(names or unique_names(paths), found, strict=True)), draws, stop)
    for file, path in zip(compared["files"], paths, strict=True):
        file["path"] = str(path)
        if file["diagnosis"]:
            logger.warning("%s: %s", path, file["diagnosis"])
    with named(folder):
        write_durably(folder / "compare.json", (json.dumps(compared, indent=1) + "\n").encode())
        write_durably(folder / "compare.md", as_markdown(compared).encode())
        _draw(compared, folder / "compare.png")
    return compared


def _draw(compared: Mapping[str, Any], path: Path) -> None:
    """Draws the comparison, where it can be read; removes a picture of an earlier one."""
    path.unlink(missing_ok=True)
    if len(compared["files"]) > MOST_DRAWN:
        logger.info("the table is in %s; no picture, which is drawn of %d detectors at most", path.parent, MOST_DRAWN)
        return
    try:
        comparison_panels(compared, path)
    except EnvironmentFault as error:
        logger.info("the table is in %s; no picture drawn: %s", path.parent, error)
    else:
        logger.info("the table and a picture are in %s", path.parent)


def as_text(compared: Mapping[str, Any]) -> str:
    """Formats the result of :func:`report_files` for a terminal."""
    header = ["", "best", *(file["name"] for file in compared["files"])]
    rows = [[of["title"], _best(of), *_cells(key, of, "*", "")] for key, of in compared["figures"].items()]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([_heading(compared), "", *lines, *_note(compared, "*:")])


def as_markdown(compared: Mapping[str, Any]) -> str:
    """Formats the same result as a page of Markdown."""
    names = [file["name"].replace("|", r"\|") for file in compared["files"]]
    rows = [[of["title"], _best(of), *_cells(key, of, "**", "**")] for key, of in compared["figures"].items()]
    table = [["figure", "best", *names], ["---", "---", *["---"] * len(names)], *rows]
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([_heading(compared), "", *lines, *_note(compared, "**bold**:"), ""])


def _heading(compared: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{file['name']} {file['detections']:,}" for file in compared["files"])
    return f"{compared['data']}: {compared['images']:,} images, {compared['objects']:,} objects; detections: {counts}"


def _note(compared: Mapping[str, Any], mark: str) -> list[str]:
    if len(compared["files"]) < 2 or not compared["draws"]:
        return ["", "AP and errors in percent."]
    return ["", _NOTE.format(draws=compared["draws"], mark=mark)]


def _best(of: Mapping[str, Any]) -> str:
    return "high" if of["higher_is_better"] else "low"


def _cells(key: str, of: Mapping[str, Any], before: str, after: str) -> list[str]:
    """Returns the text of each file; a difference whose interval excludes 0 is put between marks."""
    cells = []
    columns = of["values"], of["differences"], of["intervals_of_differences"]
    for value, difference, interval in zip(*columns, strict=True):
        shown = _number(key, value)
        if difference is not None:
            text = _number(key, difference, "+")
            if interval is not None:
                text += f" [{_number(key, interval[0], '+')}, {_number(key, interval[1], '+')}]"
                if interval[0] > 0 or interval[1] < 0:
                    text = f"{before}{text}{after}" if after else text + before
            shown += f"  {text}"
        cells.append(shown)
    return cells


def _number(key: str, value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" if key == "spearman" else f"{100 * value:{sign}.1f}"
