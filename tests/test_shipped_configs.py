"""Every shipped config trains and evaluates, made small by overrides; the page about them is current."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from generate_config_table import as_json, entries, page
from PIL import Image

from grcn.catalog import COCO_CLASSES, RESNET_UNITS, VGG16_BLOCKS
from grcn.config.files import load_config
from grcn.run import train as run

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "configs").glob("[!_]*/*.yaml"))
SMALL = [
    "model.weights=null", "model.image={short: 48, max: 64}", "model.rpn.channels=8",
    "model.rpn.pre_nms_train=50", "model.rpn.post_nms_train=10", "model.rpn.post_nms_test=10", "model.roi.batch=8",
    "model.context.size=4", "model.roi.score_thresh=0", "model.roi.detections=20", "train.steps=2", "train.batch=2",
    "train.lr=0.0001", "train.warmup=0", "eval.limit=2", "eval.pictures=0", "run.workers=0", "run.device=cpu",
    "run.threads=1",
]  # fmt: skip
BOX = (8, 6, 40, 36)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same four images as a VOC folder and as a COCO folder."""
    root = tmp_path_factory.mktemp("data")
    voc, coco = root / "VOC2007", root / "coco"
    for folder in (voc / "Annotations", voc / "JPEGImages", voc / "ImageSets/Main", coco / "annotations"):
        folder.mkdir(parents=True)
    x1, y1, x2, y2 = BOX
    stems = [f"{i:06d}" for i in range(4)]
    for i, stem in enumerate(stems):
        pixels = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(voc / "JPEGImages" / f"{stem}.jpg")
        (voc / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><filename>{stem}.jpg</filename><size><width>64</width><height>48</height></size>"
            f"<object><name>cat</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object></annotation>"
        )
    for split in ("trainval", "test"):
        (voc / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    document = {
        "images": [{"id": i, "file_name": f"{stem}.jpg", "width": 64, "height": 48} for i, stem in enumerate(stems)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 17,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": 960,
                "iscrowd": 0,
            }
            for i in range(4)
        ],
        "categories": [{"id": 17, "name": "cat"}],
    }
    for split in ("train2014", "val2014", "train2017", "val2017"):
        (coco / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
        (coco / split).symlink_to(voc / "JPEGImages")
    assert "cat" in COCO_CLASSES
    return {
        "voc": [f"data.root={root}", "data.train=[VOC2007/trainval]"],
        "own": [f"data.root={root}", "data.test=[VOC2007/test]", "data.train=[VOC2007/trainval]"],
        "coco": [f"data.root={coco}"],
        "shapes": ["data.size=64", "data.train_images=4", "data.test_images=2"],
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_config_trains_and_evaluates(path, data, tmp_path, caplog, monkeypatch):
    full = load_config(path)
    # Thin networks: their layers are the same, and there are many of these configs.
    monkeypatch.setattr("grcn.build.model.RESNET_WIDTH", 8)
    monkeypatch.setattr("grcn.build.model.VGG16_BLOCKS", [[width // 16 for width in block] for block in VGG16_BLOCKS])
    if full.model.has_pyramid:
        monkeypatch.setitem(RESNET_UNITS, full.model.network, (1, 1, 1, 1))
    narrow = [] if full.model.head.kind == "conv5" else ["model.head.dim=8", "model.head.residual_dim=8"]
    with_tiny = ["model.width=8"] if full.model.is_tiny else []
    small_grid = [f"model.roi.size={min(4, full.model.roi.size)}", "train.accumulate=1"]
    sizes = "[[16], [32], [32], [64], [64]]" if full.model.has_pyramid else "[16, 32]"
    small = [*SMALL, f"model.anchors.sizes={sizes}", *narrow, *with_tiny, *small_grid]
    cfg = load_config(path, [*small, *data[path.parent.name]])
    try:
        metrics = run.train(cfg, tmp_path / "run")
        lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    finally:
        shutil.rmtree(tmp_path / "run")  # checkpoints of hundreds of megabytes
    losses = {name: value for name, value in lines[0].items() if name.startswith("loss")}
    assert lines[0]["step"] == 2 and len(losses) >= 4
    assert all(torch.isfinite(torch.tensor(list(losses.values()))))
    assert metrics["coco_ap"] is not None and metrics["voc07_ap70"] is not None
    # Without weights, layers that are never trained stay random: that is said.
    assert ("at random values" in caplog.text) == (not full.model.is_tiny)


def test_the_page_of_all_configs_is_current():
    found = entries(ROOT / "configs")
    current = page(ROOT / "configs", ROOT / "results", found)
    assert (ROOT / "configs/README.md").read_text() == current, "run: make generated"
    assert (ROOT / "configs/catalogue.json").read_text() == as_json(found), "run: make generated"


def test_the_page_shows_what_was_measured(tmp_path):
    """Means over seeds in percent; a metric that one file lacks is not shown as 0."""
    folder = tmp_path / "shapes/grcn_tiny"
    folder.mkdir(parents=True)
    for seed, ap75 in ((0, None), (1, 0.7)):
        metrics = {"coco_ap": 0.5 + 0.1 * seed, "coco_ap50": 0.25, "coco_ap75": ap75}
        (folder / f"seed{seed}.json").write_text(json.dumps({"metrics": metrics}))
    configs = tmp_path / "configs"
    (configs / "shapes").mkdir(parents=True)
    for name in ("grcn_tiny.yaml", "detect_f_tiny.yaml"):
        text = (ROOT / "configs/shapes" / name).read_text().replace("../_base", str(ROOT / "configs/_base"))
        (configs / "shapes" / name).write_text(text)
    shutil.copy(ROOT / "configs/paper_tables.yaml", configs)
    written = page(configs, tmp_path, entries(configs))
    assert "| 55.0 / 25.0 / – (2 seeds) |" in written and "| not run |" in written


def test_every_row_of_every_table_has_a_config_for_its_data():
    tables = yaml.safe_load((ROOT / "configs/paper_tables.yaml").read_text())
    expected = {(t, row["id"]) for t in range(1, 6) for row in tables[f"table{t}"]["rows"]}
    shipped = {name: set() for name in ("coco", "voc", "shapes", "own")}
    for path in SHIPPED:
        shipped[path.parent.name] |= {(ref.table, ref.row) for ref in load_config(path).paper}
    assert shipped["voc"] == {row for row in expected if row[0] == 4}
    assert shipped["coco"] == {row for row in expected if row[0] != 4}
    assert shipped["shapes"] == expected
