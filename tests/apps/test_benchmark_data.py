"""The figures of the data path exist, are plausible, and leave nothing behind."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

import grcn.apps.benchmark.data as benchmark
from grcn.config.files import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["voc/grcn_vgg16.yaml", "coco/grcn_vgg16.yaml"])
def test_loading_of_files(tmp_path, monkeypatch, name, workers):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cfg = load_config(CONFIGS / name, ["data.root=/nowhere", f"run.workers={workers}"])
    threads = torch.get_num_threads()
    figures = benchmark.loader_rate(cfg, images=4)
    assert set(figures) == {"loader_img_s", "loader_cpu_ms", "reference_cpu_ms"}
    assert figures["loader_img_s"] > 1
    # Even on a machine that is busy with other things, decoding is less than decoding and all the rest.
    assert 0 < figures["loader_cpu_ms"] < figures["reference_cpu_ms"]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert list(tmp_path.iterdir()) == []
    assert multiprocessing.active_children() == [] and torch.get_num_threads() == threads


def test_loading_of_shapes():
    cfg = load_config(CONFIGS / "shapes/grcn_tiny.yaml", ["train.batch=3", "run.workers=1"])
    figures = benchmark.loader_rate(cfg, images=8)
    assert figures["loader_img_s"] > 1 and figures["loader_cpu_ms"] > 0 and figures["reference_cpu_ms"] is None


def test_made_up_files_are_as_large_as_photographs_and_differ(tmp_path):
    cfg = load_config(CONFIGS / "coco/grcn_vgg16.yaml", ["data.root=/nowhere"])
    data = benchmark._data(cfg, 3, str(tmp_path))
    table, images = data.table, [data.read_image(row) for row in range(3)]
    assert {tuple(image.shape) for image in images} == {(3, 480, 640)}
    assert not torch.equal(images[0], images[1])
    for row in range(3):
        assert 50_000 < Path(table.path(row)).stat().st_size < 300_000
        assert len(table.boxes[table.objects(row)]) == 7


def test_evaluation():
    figures = benchmark.evaluation_seconds(20, per_image=10, classes=5)
    assert set(figures) == {"coco_s", "voc_s", "backend"}
    assert figures["coco_s"] > 0 and figures["voc_s"] > 0
    assert figures["backend"] in ("hotcoco", "pycocotools")


def test_made_up_detections_have_work_for_the_evaluators():
    table, found = benchmark._scored(np.random.default_rng(0), 30, 100, 5)
    assert len(table) == 30 and len(table.boxes) == 210
    assert np.bincount(found["rows"]).tolist() == [100] * 30
    metrics = benchmark.voc.evaluate(table, found)["metrics"]
    assert 0.05 < metrics["voc_area_ap50"] < 0.95
    assert metrics["voc_area_ap75"] < metrics["voc_area_ap50"]
