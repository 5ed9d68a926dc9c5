"""Exported detectors compute what the detector computes: a folder of safetensors, a program of torch, an ONNX file."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch.testing import assert_close

import grcn
from grcn.apps.benchmark.scene import make_scene, spread_scores
from grcn.apps.export.export import export
from grcn.build import build_training
from grcn.config.files import load_config
from grcn.engine import checkpoint
from grcn.errors import CheckpointError, ConfigError, EnvironmentFault
from grcn.run.onnx_detector import fitted

ROOT = Path(__file__).resolve().parents[2]
SIZE = (96, 128)
SMALL = [
    "model.image={short: 96, max: 128}", "model.rpn.post_nms_test=30", "model.roi.score_thresh=0.3", "run.device=cpu",
    "data={train_images: 2, test_images: 2, size: 64}",
]  # fmt: skip
THIN = [*SMALL, "model.width=8", "model.head.dim=32"]
# RoIAlign's rows; the ResNet has 300 proposals of 14 x 14 cells otherwise.
CASES = {
    "shapes/grcn_tiny": THIN,
    "shapes/grcn_light_tiny_resnet_fpn": [*THIN, "model.anchors.sizes=[[8], [16], [32], [64], [64]]"],
    "shapes/cascade_grcn_tiny": THIN,
    "shapes/double_head_grcn_tiny": THIN,
    "coco/grcn_resnet50": SMALL[:-1],
}


def save_untrained(folder: Path, name: str, overrides: list[str]) -> Path:
    """Saves a checkpoint of random weights whose scores differ, as of the fifth step."""
    shapes = load_config(ROOT / "configs/shapes/grcn_tiny.yaml", THIN).data
    cfg = load_config(ROOT / f"configs/{name}.yaml", [*overrides, "model.weights=null"])
    cfg = cfg.model_copy(update={"data": shapes})
    training = build_training(cfg)
    spread_scores(training.model, make_scene(SIZE, 8, torch.device("cpu"))[0])
    state = {"format": checkpoint.FORMAT, "step": 5, "losses": [], "optimizer": {}}
    state |= {"model": training.model.state_dict()} | training.record
    return checkpoint.save(folder / "run/checkpoints", state, keep=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny G-RCN, and the three forms of it in folders of their names."""
    folder = tmp_path_factory.mktemp("exported")
    weights = save_untrained(folder, "shapes/grcn_tiny", THIN)
    for form in ("safetensors", "torch", "onnx"):
        export(weights, form, folder / form, None if form == "safetensors" else SIZE)
    return folder


@pytest.fixture(scope="module")
def graphs(made: Path):
    """Calls both graphs."""
    return runners(made)


def runners(folder: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(folder / "torch/model.pt2").module()
    return program, lambda image: tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))


def assert_same(detector, run, image, expected):
    boxes, labels, scores = run(image)
    count = len(expected["boxes"])
    assert detector.model.roi_heads.detecting.detections == len(boxes) > count > 5
    assert torch.equal(labels[:count], expected["labels"]) and labels.dtype == torch.int64
    assert_close(boxes[:count], expected["boxes"], atol=1e-3, rtol=0)
    assert_close(scores[:count], expected["scores"], atol=1e-5, rtol=0)
    assert not boxes[count:].any() and not labels[count:].any() and not scores[count:].any()


def check_parity(folder: Path, graphs) -> None:
    detector = grcn.load(folder / "run", "cpu")
    images, _ = make_scene(SIZE, 8, torch.device("cpu"), 5, seed=1)
    for run in graphs:
        for image in images:
            assert_same(detector, run, image, detector.model.eval()([image])[0])


def test_both_graphs_detect_what_the_detector_does(made, graphs):
    with torch.no_grad():
        check_parity(made, graphs)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[1:])
def test_both_graphs_of_other_families_detect_what_the_detector_does(name, tmp_path):
    weights = save_untrained(tmp_path, name, CASES[name])
    for form in ("torch", "onnx"):
        export(weights, form, tmp_path / form)
    with torch.no_grad():
        check_parity(tmp_path, runners(tmp_path))


@pytest.mark.parametrize("size", [(60, 128), (96, 80)])
def test_padding_is_that_of_a_small_image_in_a_batch(made, graphs, size):
    detector = grcn.load(made / "run", "cpu")
    (large,), _ = make_scene(SIZE, 8, torch.device("cpu"), seed=3)
    small = large[:, : size[0], : size[1]]
    padded, factors = fitted(small, SIZE)
    assert factors == (1.0, 1.0) and padded.shape == large.shape
    model, missing = detector.model, (0, SIZE[1] - size[1], 0, SIZE[0] - size[0])
    model.transform.shorts, model.transform.max_size = (min(size),), max(size)  # or it would be enlarged
    with torch.no_grad():
        batch, _ = model.transform([small])
        batch.tensors = torch.nn.functional.pad(batch.tensors, missing)
        features = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        (expected,), _ = model.roi_heads(features, proposals, [size])
        for run in graphs:
            assert_same(detector, run, padded, expected)
            assert (run(torch.where(padded < 0, 0, padded))[2] - run(padded)[2]).abs().max() > 1e-3


def test_an_image_of_another_size_gets_boxes_in_its_own_pixels(made):
    detector, exported = grcn.load(made / "run", "cpu"), grcn.load(made / "onnx/model.onnx")
    assert exported.classes == detector.classes and exported.step == 5
    (image,), _ = make_scene((48, 64), 8, torch.device("cpu"), seed=4)
    found, expected = exported.predict(image), detector.predict(image)
    assert len(expected.boxes) > 5 and found.names == expected.names
    assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)
    assert found.boxes[:, 2].max() > 48 and found.boxes.max() <= 64
    tall = exported.predict(make_scene((120, 40), 8, torch.device("cpu"))[0][0])
    assert len(tall.boxes) and (tall.boxes <= torch.tensor([40.0, 120, 40, 120]) + 1e-4).all()
    assert tall.boxes[:, 3].max() > 60


def test_a_threshold_below_that_of_the_file_is_warned_of_once(made, caplog):
    exported = grcn.load(made / "onnx/model.onnx")
    image = torch.rand(3, *SIZE)
    usual, low = exported.predict(image), exported.predict(image, 0.01)
    assert len(usual.boxes) == len(low.boxes) and usual.scores.min() > 0.3
    exported.predict(image, 0.01)
    assert caplog.text.count("no detections with scores below its own threshold, 0.3") == 1


def test_nothing_of_this_machine_is_in_the_files(made):
    for path in (made / "torch/model.pt2", made / "onnx/model.onnx"):
        contents = path.read_bytes()
        assert str(ROOT).encode() not in contents and b"site-packages" not in contents


def test_the_folder_is_the_same_detector(made):
    ours, theirs = (grcn.load(made / name, "cpu") for name in ("run", "safetensors"))
    assert_close(theirs.model.state_dict(), ours.model.state_dict(), atol=0, rtol=0)
    assert (theirs.classes, theirs.step, theirs.bits) == (ours.classes, ours.step, ours.bits)
    image = torch.rand(3, *SIZE)
    assert torch.equal(ours.predict(image).boxes, theirs.predict(image).boxes)
    assert (made / "safetensors/config.yaml").read_text() == checkpoint.newest(made / "run/checkpoints")[1]["config"]


def test_the_average_is_what_is_exported(tmp_path):
    weights = save_untrained(tmp_path, "shapes/grcn_tiny", THIN)
    state = checkpoint.load(weights)
    average = {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in state["model"].items()}
    state["ema"] = {"model": average, "steps": 5}
    weights = checkpoint.save(tmp_path / "averaged", state, keep=1)
    export(weights, "safetensors", tmp_path / "out")
    assert_close(grcn.load(tmp_path / "out", "cpu").model.state_dict(), average, atol=0, rtol=0)


def test_the_card_has_what_hubs_and_people_read(tmp_path):
    weights = save_untrained(tmp_path, "shapes/grcn_tiny", THIN)
    run = tmp_path / "run"
    (run / "eval/step_5").mkdir(parents=True)
    results = {"images": 2, "metrics": {"coco_ap": 0.1234, "coco_ap_large": None}, "per_class": {}}
    (run / "eval/step_5/results.json").write_text(json.dumps(results))
    (run / "env.json").write_text(json.dumps({"command": ["/somewhere/tools/train.py", "--config", "a b.yaml"]}))
    export(weights, "safetensors", tmp_path / "mine")
    _, head, text = (tmp_path / "mine/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(head)
    assert (facts["license"], facts["pipeline_tag"]) == ("unknown", "object-detection")
    (result,) = facts["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "coco_ap", "value": 0.1234}]
    assert "| coco_ap | 12.3 |" in text and "python tools/train.py --config 'a b.yaml'" in text
    assert "somewhere" not in text and "Fill in: the licence" in text and "5 steps of 8 images, seed 0" in text
    assert json.loads((tmp_path / "mine/results.json").read_text()) == results
    # An exported folder is exported again with what it has.
    export(tmp_path / "mine", "safetensors", tmp_path / "again")
    assert "| coco_ap | 12.3 |" in (tmp_path / "again/README.md").read_text()


def test_the_python_of_the_page_runs(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported").mkdir()
    for name, form in (("folder", "safetensors"), ("torch", "torch"), ("onnx", "onnx")):
        (tmp_path / "exported" / name).symlink_to(made / form)
    Image.new("RGB", (64, 48)).save("photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        names: dict = {}
        exec(compile(block, "export.md", "exec"), names)
        assert capsys.readouterr().out
        assert "found" in names


def test_what_cannot_be_exported_is_one_line(made, tmp_path):
    with pytest.raises(ConfigError, match=r"onnx/model.onnx: exists already; choose another --output-dir"):
        export(made / "run", "onnx", made / "onnx")
    weights = save_untrained(tmp_path, "shapes/nopool_loc_tiny_pool", THIN)
    with pytest.raises(ConfigError, match="does not translate RoIPool; train with model.roi.op=align, or pass"):
        export(weights, "onnx", tmp_path / "out")
    with pytest.raises(CheckpointError, match="exported graph, which cannot be evaluated or trained; pass the"):
        export(made / "onnx/model.onnx", "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_extra(made, tmp_path, monkeypatch):
    for package, call in {
        "safetensors.torch": lambda: grcn.load(made / "safetensors"),
        "onnxruntime": lambda: grcn.load(made / "onnx/model.onnx"),
        "onnxscript": lambda: export(made / "run", "onnx", tmp_path / "out"),
    }.items():
        with monkeypatch.context() as without:
            without.setitem(sys.modules, package, None)
            with pytest.raises(EnvironmentFault, match=rf"{package.partition('.')[0]}.* pip install 'grcn\[export\]'"):
                call()


def test_onnx_files_of_others_and_damaged_ones_are_one_line(made, tmp_path):
    import onnx

    own = (made / "onnx/model.onnx").read_bytes()
    model = onnx.load_from_string(own)
    del model.metadata_props[:]
    other = model.SerializeToString()
    onnx.helper.set_model_props(model, {"grcn_format": "1", "classes": "[", "bits": "null"})
    files = {
        "other": (other, "not an ONNX file of grcn export"),
        "short": (own[: len(own) // 2], "ONNX Runtime cannot read it"),
        "empty": (b"", "ONNX Runtime cannot read it"),
        "text": (b"<html>", "ONNX Runtime cannot read it"),
        "facts": (model.SerializeToString(), "damaged .its metadata"),
    }
    for name, (contents, message) in files.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(contents)
        with pytest.raises(CheckpointError, match=rf"{name}.onnx: {message}.*; ") as stopped:
            grcn.load(path)
        assert "\n" not in str(stopped.value)
    with pytest.raises(CheckpointError, match="no such file"):
        grcn.load(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="is run on the CPU"):
        grcn.load(made / "onnx/model.onnx", "cuda")
