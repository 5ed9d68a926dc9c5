"""Prints and writes figures of the context attention, and a picture of them, for ``grcn analyze context``."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from grcn import build
from grcn.apps.analyze.context import FIGURES, measure_context
from grcn.config.schema import Config
from grcn.engine import distributed
from grcn.engine.evaluate import move_images
from grcn.engine.signals import StopSignals
from grcn.errors import ConfigError, DataError, EnvironmentFault, named
from grcn.fileio import write_durably
from grcn.progress import progress_bar
from grcn.run.backend import prepare
from grcn.run.start import start_from
from grcn.vis.charts import context_panels

logger = logging.getLogger("grcn")


def report_context(
    cfg: Config,
    folder: Path,
    *,
    weights: Path | None = None,
    images: int = 32,
    allow_changes: bool = False,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Measures the context attention over the first images of the test splits; writes into ``folder``.

    Writes ``context.json`` and, if matplotlib is installed, ``context.png``.

    Args:
        weights: a checkpoint; None for the weights that training starts from.
        images: maximum number of images.
        allow_changes: continue even if settings of the model differ from those of the checkpoint.
        stop: signals that end it early.

    Returns:
        ``data``, ``weights`` and ``tasks``, of :func:`grcn.apps.analyze.context.measure_context`; ``context.json`` too.

    Raises:
        UserError: whatever is wrong with config, data, checkpoint or machine.
        Stopped: a signal came.
    """
    if cfg.model.context.on == "none":
        raise ConfigError("model.context.on: none: there is no context to measure; set it to cls, loc or both")
    stop = stop or StopSignals()
    device = distributed.local_device(cfg.run.device)
    prepare(cfg, device)
    test = build.build_test_split(cfg.data, build.class_names(cfg.data)).first(images)
    start = start_from(cfg, test.table.classes, weights, device, allow_changes)

    def pictures() -> Iterator[Tensor]:
        for row in progress_bar(range(len(test)), "context", len(test), leave=False):
            stop.check()
            yield move_images([test.read_image(row)], device)[0]

    tasks = measure_context(start.model, pictures())
    settings = cfg.model.context.model_dump()
    found = {"data": test.table.name, "weights": start.name, "context": settings, "tasks": tasks}
    if not any(of["images"] for of in tasks.values()):
        raise DataError(f"{test.table.name}: no image has a proposal; raise model.image.short, or use other weights")
    with named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / "context.json", (json.dumps(found, indent=1) + "\n").encode())
        try:
            context_panels(tasks, folder / "context.png", f"{test.table.name}: {start.name}")
        except EnvironmentFault as error:
            logger.info("no picture drawn: %s", error)
    logger.info("figures and a picture are in %s", folder)
    return found


def as_text(found: Mapping[str, Any]) -> str:
    """Formats the result of :func:`report_context` as text."""
    lines = [f"{found['data']}: {found['weights']}"]
    for task, of in found["tasks"].items():
        rois = sum(row["rois"] for row in of["images"])
        lines += ["", f"context/{task}: {len(of['images'])} images, {rois:,} RoIs; mean (range over images)"]
        for name in FIGURES:
            values = [row[name] for row in of["images"] if row[name] is not None]
            shown = f"{of['mean'][name]:.3g} ({min(values):.3g} to {max(values):.3g})" if values else "-"
            lines.append(f"  {shown:<34}{_meaning(name, of['cells'])}")
        across = of["between_images"]
        shown = "-" if across is None else f"{across:.3g}"
        lines.append(f"  {shown:<34}difference between images, relative to the size")
    return "\n".join(lines)


def _meaning(name: str, cells: int) -> str:
    return {
        "size": "size of the context, relative to the RoI's features",
        "largest_share": f"largest share of a cell, relative to an even one (1: even; {cells}: all on one)",
        "entropy": "entropy of the attention, relative to an even one (1: even; 0: all on one)",
        "between_rois": "difference between the RoIs of an image, relative to the size",
    }[name]
