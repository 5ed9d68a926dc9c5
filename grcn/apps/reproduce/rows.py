"""Defines the rows of a table: their configs, the paper's figures for them, and their baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from grcn.config.files import load_config
from grcn.errors import ConfigError

# The paper's names of the figures, and ours. The paper does not say which of VOC's two APs its AP70 is; VOC07 suggests
# the 11-point one.
METRICS = {
    "AP": "coco_ap",
    "AP50": "coco_ap50",
    "AP75": "coco_ap75",
    "APs": "coco_ap_small",
    "APm": "coco_ap_medium",
    "APl": "coco_ap_large",
    "AP70": "voc07_ap70",
}
_DATA = {"coco": "COCO", "voc": "PASCAL VOC", "shapes": "built-in images with small networks"}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: as the table prints it.
        config: the file that describes the model and its training.
        baseline: label of the row that it is compared with; None for that row itself.
        paper: the paper's figures in percent, by the paper's names; empty where it has none.
        per_class: the paper's AP70 of each class in percent.
        torchvision: whether torchvision's FasterRCNN takes the place of our detector.
    """

    label: str
    config: Path
    baseline: str | None = None
    paper: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, float] = field(default_factory=dict)
    torchvision: bool = False

    @property
    def name(self) -> str:
        """Name of the model that is trained; rows of one name share their runs."""
        return self.config.stem + "_torchvision" * self.torchvision


@dataclass(frozen=True)
class Table:
    """Rows, and the figures that are reported of each, by the paper's names."""

    title: str
    rows: Sequence[Row]
    metrics: Sequence[str]

    def with_torchvision(self) -> Table:
        """Returns the table with torchvision's FasterRCNN as second row, compared with the first, its counterpart."""
        ours = self.rows[0]
        theirs = Row(f"{ours.label}, torchvision's", ours.config, ours.label, torchvision=True)
        return replace(self, rows=(ours, theirs, *self.rows[1:]))


@dataclass(frozen=True)
class Measured:
    """Figures of one config over its seeds, in percent.

    Attributes:
        values: figure -> seed -> value; seeds without a finished run are missing.
        per_class: class -> AP70 of each seed.
        draws: figure -> seed -> values ``[B]`` on resampled images.
        folders: seed -> run folder.
    """

    values: Mapping[str, Mapping[int, float]]
    per_class: Mapping[str, Sequence[float]]
    draws: Mapping[str, Mapping[int, np.ndarray]]
    folders: Mapping[int, Path]


def paper_table(configs: Path, number: int, data: str) -> Table:
    """Returns a table of the paper on a data set.

    Args:
        configs: the folder with ``paper_tables.yaml`` and a folder of configs for each data set.
        number: 1 to 5.
        data: the folder with the configs of the rows: ``coco``, ``voc`` or ``shapes``.

    Raises:
        ConfigError: no config of that folder is a row of this table.
    """
    tables = yaml.safe_load((configs / "paper_tables.yaml").read_text(encoding="utf-8"))
    printed = tables[f"table{number}"]
    files = {
        ref.row: path
        for path in sorted((configs / data).glob("*.yaml"))
        for ref in load_config(path).paper
        if ref.table == number
    }
    if not files:
        others = [name for name in ("coco", "voc", "shapes") if name != data]
        raise ConfigError(
            f"table {number}: not on {data}, no config there has its rows; use --data {' or '.join(others)}"
        )
    labels = {row["id"]: row["label"] for row in printed["rows"]}
    rows = [_row(row, printed, labels, files[row["id"]]) for row in printed["rows"]]
    metrics = [name for name in METRICS if name in printed["rows"][0]]
    return Table(f"Table {number}. {printed['caption']}; measured on {_DATA[data]}", rows, metrics)


def _row(row: Mapping[str, Any], printed: Mapping[str, Any], labels: Mapping[str, str], config: Path) -> Row:
    baseline = row.get("baseline", printed.get("baseline"))
    return Row(
        row["label"],
        config,
        None if baseline in (None, row["id"]) else labels[baseline],
        {name: row[name] for name in METRICS if name in row},
        row.get("per_class", {}),
    )


def config_table(paths: Iterable[Path]) -> Table:
    """Returns a table of configs, all of which are compared with the first."""
    files = list(dict.fromkeys(paths))
    labels = [path.stem for path in files]
    if len(set(labels)) < len(labels):
        repeated = next(label for label in labels if labels.count(label) > 1)
        raise ConfigError(f"--config: two files are called {repeated}, and so would their runs be; rename one")
    rows = [
        Row(label, path, None if path == files[0] else labels[0]) for label, path in zip(labels, files, strict=True)
    ]
    return Table(f"Differences are to {labels[0]}", rows, ("AP", "AP50", "AP75", "AP70"))
