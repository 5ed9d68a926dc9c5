"""Writes configs/README.md, every config with its rows in the paper, its cost and our results, and the same without
figures of the paper and of results as configs/catalogue.json, which the command ``grcn configs`` shows."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from grcn.apps.benchmark.describe import costs
from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.models.features import TASKS, strides_as_text

_FOLDERS = {
    "coco": (
        "COCO",
        "Train on train2014, test on val2014; pyramids (`*_fpn`): train2017, val2017. AP / AP50 / AP75. VGG16 rows "
        "have RoIPool, `*_align` RoIAlign.",
        ("AP", "AP50", "AP75"),
    ),
    "voc": ("PASCAL VOC", "Train on VOC07 and VOC12 trainval, test on VOC07 test. AP70, 11-point.", ("AP70",)),
    "shapes": (
        "Built-in images",
        "The rows in miniature; the paper has no such numbers. AP / AP50 / AP75. With RoIAlign, `*_pool` with RoIPool.",
        ("AP", "AP50", "AP75"),
    ),
    "own": (
        "Data of one's own",
        "In VOC layout: a small network from scratch, or a pyramid (`*_fpn`) that starts from torchvision's detector "
        "trained on COCO. What was measured with them on which data is in RESULTS.md.",
        ("AP", "AP50", "AP75"),
    ),
}
_OURS = {"AP": "coco_ap", "AP50": "coco_ap50", "AP75": "coco_ap75", "AP70": "voc07_ap70"}

_HEAD = """\
# Configs

One file for each row of the paper's tables, and a few beyond them. This page is generated: `make generated`.

*Parameters* in millions count convolutions, linear layers, biases and norms, frozen ones too. *Strides* are those of
the classification and the localization map. *GMAC* are 10^9 multiply-accumulates of one detection at the config's
largest image size, with all test RoIs in both passes and the usual number of classes;
`grcn benchmark --config C --describe` lists them by part. With `caffe:` weights a ResNet is strided earlier
and costs a little less. *Paper* are the paper's numbers, in percent, from [paper_tables.yaml](paper_tables.yaml).
*Ours* were measured with this code, mean over seeds, from the files in [results](../results).
"""


@dataclass(frozen=True)
class Entry:
    """A config and its facts."""

    path: Path
    cfg: Config
    facts: dict[str, Any]


def entries(configs: Path) -> list[Entry]:
    """Describes all configs, those of a data set together, in the order of the paper's tables.

    Args:
        configs: the folder with one folder for each data set.
    """
    labels = _labels(configs)
    found = []
    for folder in _FOLDERS:
        loaded = [(path, load_config(path)) for path in sorted((configs / folder).glob("*.yaml"))]
        for path, cfg in sorted(loaded, key=lambda pair: _place(pair[1], labels)):
            rows = "; ".join(f"{ref.table}: {labels[ref.table, ref.row]['label']}" for ref in cfg.paper)
            facts = {"name": f"{folder}/{path.stem}", "what": rows or _purpose(path), **_cost(cfg)}
            found.append(Entry(path, cfg, facts))
    return found


def page(configs: Path, results: Path, found: list[Entry]) -> str:
    """Writes the page.

    Args:
        configs: the folder with one folder for each data set.
        results: ``<data>/<config>/seed<k>.json``, each with ``metrics``.
        found: of :func:`entries`.
    """
    labels = _labels(configs)
    lines = [_HEAD]
    for folder, (title, text, metrics) in _FOLDERS.items():
        lines += [f"## {title}\n", f"{text}\n"]
        for beyond in (False, True):
            listed = [one for one in found if one.path.parent.name == folder and (one.cfg.paper == ()) == beyond]
            if not listed:
                continue
            lines += ["Beyond the tables:\n"] * beyond
            lines += [f"| {'what' if beyond else 'table: row'} | config | parameters | strides | GMAC | paper | ours |"]
            lines += ["|---|---|---|---|---|---|---|"]
            for one in listed:
                rows = [labels[ref.table, ref.row] for ref in one.cfg.paper]
                paper = " / ".join(str(rows[-1][name]) for name in metrics) if rows and folder != "shapes" else "–"
                # Results on data of one's own belong to the data, not to the config.
                seeds = sorted((results / folder / one.path.stem).glob("seed*.json"))
                ours = "–" if folder == "own" else _ours(seeds, metrics)
                named = f"[{one.path.stem}]({folder}/{one.path.name})"
                costs = [f"{one.facts['parameters']:.2f}", one.facts["strides"], f"{one.facts['gmac']:.3g}"]
                lines.append("| " + " | ".join([one.facts["what"], named, *costs, paper, ours]) + " |")
            lines.append("")
    return "\n".join(lines)


def as_json(found: list[Entry]) -> str:
    """Writes the entries, one on each line."""
    return "[\n" + ",\n".join(json.dumps(one.facts, ensure_ascii=False) for one in found) + "\n]\n"


def _labels(configs: Path) -> dict[tuple[int, str], Any]:
    tables = yaml.safe_load((configs / "paper_tables.yaml").read_text(encoding="utf-8"))
    return {(number, row["id"]): row for number in range(1, 6) for row in tables[f"table{number}"]["rows"]}


def _purpose(path: Path) -> str:
    """Returns the first sentence of a config's comment."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return re.split(r"(?<!et al)\. ", " ".join(line.lstrip("# ") for line in comment), maxsplit=1)[0]


def _place(cfg: Config, labels: dict[tuple[int, str], Any]) -> tuple[int, str]:
    """Returns the sort key of a config: its first row in the tables; those without one come last."""
    order = list(labels)
    return min((order.index((ref.table, ref.row)) for ref in cfg.paper), default=len(order)), cfg.model.backbone


def _cost(cfg: Config) -> dict[str, Any]:
    parts, strides = costs(cfg)
    gmac = sum(part.gmac for part in parts)
    return {
        "parameters": round(sum(part.parameters for part in parts) / 1e6, 2),
        "strides": " / ".join(strides_as_text(strides[task]) for task in TASKS),
        "gmac": round(gmac) if gmac >= 10 else round(gmac, 2),
    }


def _ours(paths: list[Path], metrics: tuple[str, ...]) -> str:
    """Returns the means over the result files, in percent; a dash for a metric that a file does not have."""
    if not paths:
        return "not run"
    found = [json.loads(path.read_text())["metrics"] for path in paths]
    cells = []
    for name in metrics:
        values = [metrics_.get(_OURS[name]) for metrics_ in found]
        cells.append("–" if None in values else f"{100 * statistics.mean(values):.1f}")
    return f"{' / '.join(cells)} ({len(paths)} seed{'s' * (len(paths) > 1)})"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    root = Path(__file__).resolve().parents[1]
    described = entries(root / "configs")
    (root / "configs/README.md").write_text(page(root / "configs", root / "results", described), encoding="utf-8")
    (root / "configs/catalogue.json").write_text(as_json(described), encoding="utf-8")
