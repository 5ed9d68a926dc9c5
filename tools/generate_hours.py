"""Writes the table of GPU hours in docs/reproducing.md: the time of each table of the paper on one GPU and on eight.

Step times were measured for some rows; those of the others are scaled from the row of their backbone by the
multiply-accumulates in configs/README.md.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import yaml

from grcn.config.files import load_config

# Milliseconds of a training step with one image of 600x1000 pixels in float32 on an H100, see RESULTS.md.
STEP_MS = {
    "faster_rcnn_vgg16": 26,
    "grcn_vgg16": 29,
    "faster_rcnn_resnet50": 34,
    "grcn_resnet50": 44,
    "faster_rcnn_resnet101": 41,
    "grcn_resnet101": 77,
    "faster_rcnn_resnet50_det": 31,
}
DETECT_MS = 25  # of an image, Faster R-CNN on VGG16, with the same
IMAGES = {"coco": 40_504, "voc": 4_952}
PRICE = 2.5  # dollars for an hour of the GPU: an assumption
SEEDS, GPUS = 3, 8
_BLOCK = re.compile(r"(<!-- hours -->\n)(.*?)(<!-- end of hours -->)", re.DOTALL)


def with_hours(page: str, configs: Path) -> str:
    """Returns a page with its table of hours updated."""
    return _BLOCK.sub(lambda match: match[1] + _table(configs) + match[3], page)


def _table(configs: Path) -> str:
    gmac = _gmac(configs / "README.md")
    lines = [
        f"| table | rows | one GPU, a seed | one GPU, {SEEDS} seeds | {GPUS} GPUs, {SEEDS} seeds | cost | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, data in ((1, "coco"), (2, "coco"), (3, "coco"), (4, "voc"), (5, "coco")):
        hours = [_hours(path, gmac[data]) for path in _rows(configs, number, data)]
        total, wall = SEEDS * sum(hours), _wall(SEEDS * hours)
        lines.append(
            f"| {number} | {len(hours)} | {sum(hours):.0f} h | {total:.0f} h | {wall:.0f} h | {PRICE * total:.0f} $ | "
            f"`--table {number} --data {data}` |"
        )
    return "\n".join(lines) + "\n"


def _wall(hours: list[float]) -> float:
    """Returns when the last run ends, with each on one of the GPUs, longest first."""
    busy = [0.0] * GPUS
    for run in sorted(hours, reverse=True):
        busy[busy.index(min(busy))] += run
    return max(busy)


def _rows(configs: Path, number: int, data: str) -> list[Path]:
    """Returns the configs of a table's rows."""
    rows = {row["id"] for row in yaml.safe_load((configs / "paper_tables.yaml").read_text())[f"table{number}"]["rows"]}
    paths = sorted((configs / data).glob("*.yaml"))
    return [path for path in paths if any(ref.table == number and ref.row in rows for ref in load_config(path).paper)]


def _hours(path: Path, gmac: dict[str, float]) -> float:
    """Returns the GPU hours of a run: its steps, and one evaluation."""
    cfg = load_config(path)
    base = f"faster_rcnn_{cfg.model.backbone}"
    step = STEP_MS.get(path.stem) or STEP_MS[base] * gmac[path.stem] / gmac[base]
    detect = DETECT_MS * gmac[path.stem] / gmac["faster_rcnn_vgg16"]
    return (cfg.train.steps * step + IMAGES[path.parent.name] * detect) / 3.6e6


def _gmac(page: Path) -> dict[str, dict[str, float]]:
    """Returns the multiply-accumulates of each config by data set, from the page of configs."""
    found: dict[str, dict[str, float]] = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        if match := re.search(r"\]\((coco|voc)/(\w+)\.yaml\) \|", line):
            found.setdefault(match[1], {})[match[2]] = float(line.split("|")[5])
    return found


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    root = Path(__file__).resolve().parents[1]
    place = root / "docs/reproducing.md"
    place.write_text(with_hours(place.read_text(encoding="utf-8"), root / "configs"), encoding="utf-8")
