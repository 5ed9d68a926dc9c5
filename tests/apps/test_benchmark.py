"""The benchmark: complete and finite figures of the work that it claims to time."""

import json
from pathlib import Path

import pytest
import torch

from grcn.apps.benchmark.measure import measure
from grcn.apps.benchmark.scene import make_scene
from grcn.apps.benchmark.text import times_as_text
from grcn.config.files import load_config
from grcn.models.box_heads import TaskHeads

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CPU = torch.device("cpu")
SMALL = ["model.image.short=64", "model.image.max=96"]


def both(*names):
    """Names of the figures of steps and of detections."""
    return {prefix + name for prefix in ("", "infer_") for name in names}


@pytest.mark.parametrize("row", ["grcn_tiny", "faster_rcnn_tiny_resnet", "faster_rcnn_tiny_resnet_det"])
def test_a_measurement_is_complete_and_finite(row):
    cfg = load_config(CONFIGS / f"shapes/{row}.yaml", SMALL)
    found = json.loads(json.dumps(measure(cfg, CPU, repeats=2, images=2, objects=3)))
    others = ["floor", "torchvision", *(["baseline"] if row.startswith("grcn") else [])]
    assert found["times_ms"].keys() == {"step", "infer"} | both(*others)
    ratios = both(*(f"ratio_to_{other}" for other in others))
    assert found["ratios"].keys() == ratios
    assert all(len(times) == 2 and found[f"{name}_ms"] > 0 for name, times in found["times_ms"].items())
    assert all(found[name] > 0 for name in ratios)
    assert found["cpu_ms"].keys() == found["times_ms"].keys() and found["cpu_ratios"].keys() == ratios
    assert all(value > 0 for name in found["cpu_ms"] for value in found["cpu_ms"][name])
    assert found["device"] and isinstance(found["instruction_sets"], list)
    assert {"backbone", "RPN", "RoI heads", "RoI pooling", "backward and update"} <= found["breakdown_ms"].keys()
    assert all(0 <= value < 100 for value in found["losses"].values()) and len(found["losses"]) == 4
    assert found["data_wait_ms"] >= 0
    assert found["peak_mb"] > 50 and found["saved_mb"] > 0.1 and found["images"] == 2
    counts = found["counts"]
    assert counts["step"]["waits"] == 2 < counts["torchvision"]["waits"]
    assert counts["infer"]["waits"] == 4 < counts["infer_torchvision"]["waits"]
    assert counts["step"]["uploads"] < counts["torchvision"]["uploads"]


@pytest.mark.parametrize("row", ["grcn_tiny", "nopool_loc_tiny_pool"])
def test_all_is_compared_in_bfloat16_too(row):
    found = measure(load_config(CONFIGS / f"shapes/{row}.yaml", [*SMALL, "run.amp=bf16"]), CPU, repeats=1)
    assert found["times_ms"].keys() == {"step", "infer"} | both("floor", "torchvision", "baseline")
    assert found["not_compared"] == []


def test_a_part_that_a_device_lacks_is_left_out_and_named(monkeypatch):
    def lacking(*args, **kwargs):
        raise NotImplementedError("no kernel\nof that kind")

    monkeypatch.setattr(
        "grcn.apps.benchmark.measure.compile_parts", lambda model, mode: model.register_forward_pre_hook(lacking)
    )
    monkeypatch.setattr("torchvision.models.detection.transform.GeneralizedRCNNTransform.forward", lacking)
    found = measure(
        load_config(CONFIGS / "shapes/faster_rcnn_tiny.yaml", [*SMALL, "run.compile=default"]), CPU, repeats=1
    )
    assert found["times_ms"].keys() == {"step", "infer"} | both("floor")
    assert found["not_compared"] == [
        f"{name}: not available (no kernel\\nof that kind)" for name in ("compiled", "torchvision")
    ]
    assert found["counts"].keys() == {"step", "infer"}


@pytest.mark.slow
def test_a_compiled_model_is_compared():
    found = measure(
        load_config(CONFIGS / "shapes/faster_rcnn_tiny.yaml", [*SMALL, "run.compile=default"]), CPU, repeats=1
    )
    assert both("ratio_to_compiled") <= found["ratios"].keys() and found["not_compared"] == []


def test_without_a_baseline_torchvision_is_left_out_and_the_reason_reported():
    """ResNets with weights of Caffe's layout are strided elsewhere, at another cost."""
    small = [
        *SMALL,
        "model.weights=caffe:none.npz",
        "model.roi.batch=4",
        "model.rpn.post_nms_test=4",
        "model.rpn.channels=8",
    ]
    cfg = load_config(CONFIGS / "voc/faster_rcnn_resnet50.yaml", small)
    found = measure(cfg, CPU, repeats=1)
    assert found["times_ms"].keys() == {"step", "infer"} | both("floor")
    found |= {"reference_cpu_ms": None, "loader_img_s": 1, "loader_cpu_ms": 1}
    found["evaluation"] = {"images": 1, "coco_s": 1, "voc_s": 1, "backend": "x"}
    text = times_as_text(found)
    assert "not compared with torchvision: model.weights: torchvision's detector takes RGB" in text
    assert text.count("torchvision") == 3  # all in that line


def test_a_measurement_does_the_work_of_both_passes_and_of_a_step(monkeypatch):
    """All RoIs are localized, though their scores are those of random weights; and a step has gradients to apply."""
    cfg = load_config(CONFIGS / "shapes/grcn_tiny.yaml", SMALL)
    seen = {"steps": [], "passes": []}
    hidden, plain_step = TaskHeads.hidden, torch.optim.SGD.step

    def spy(self, task, x, keys=None):
        if not self.training:
            seen["passes"].append((task, len(x)))
        return hidden(self, task, x, keys)

    def step(self):
        seen["steps"].append(all(p.grad is not None for group in self.param_groups for p in group["params"]))
        return plain_step(self)

    monkeypatch.setattr(TaskHeads, "hidden", spy)
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    found = measure(cfg, CPU, repeats=2, compare=False)
    assert len(seen["steps"]) > 3 and all(seen["steps"])
    *_, (first, rois), (second, localized) = seen["passes"]
    assert (first, second) == ("cls", "loc") and rois == 100 and localized == found["localized_rois"] > 50
    assert found["ratios"] == {} and found["times_ms"].keys() == {"step", "infer"}


def test_a_scene_is_as_asked_for():
    images, targets = make_scene((30, 50), 4, CPU, images=3, objects=7, seed=1)
    assert [image.shape for image in images] == [(3, 30, 50)] * 3
    for target in targets:
        boxes = target["boxes"]
        assert boxes.shape == (7, 4) and (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
        assert (boxes[:, 2] <= 50).all() and (boxes[:, 3] <= 30).all()
        assert target["labels"].min() >= 1 and target["labels"].max() <= 4
    assert len({target["rng_key"] for target in targets}) == 3
