"""The walk through a detector follows the detector itself, for models with and without a split and context."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import programs
import pytest
import torch
from PIL import Image
from support import CLASSES, SMALL, small_batch, small_detector
from torch.testing import assert_close

from grcn.apps.walkthrough.picture import WIDTH, Window, draw
from grcn.apps.walkthrough.walkthrough import as_text, walk
from grcn.build import build_model
from grcn.config.files import dump_config, load_config
from grcn.config.model_schema import ModelConfig
from grcn.engine import checkpoint
from grcn.errors import DataError
from grcn.models.context import ContextAttention

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sun", "moon", "lark", "owl")


@pytest.mark.parametrize("heads,value", [(1, False), (2, True)])
def test_attention_is_what_the_forward_pass_adds(heads, value):
    torch.manual_seed(0)
    module = ContextAttention(8, dim=4, heads=heads, value=value).double()
    rois, images = torch.rand(6, 8, 3, 3).double() * 5, torch.rand(2, 8, 4, 4).double() * 5
    weights = module.attention(rois, images)
    assert weights.shape == (6, heads, 9, 16)
    assert_close(weights.sum(-1), torch.ones(6, heads, 9).double())
    rows = images.flatten(2).mT if module.value is None else module.value(images.flatten(2).mT)
    values = rows.unflatten(-1, (heads, -1)).transpose(1, 2).repeat_interleave(3, 0)
    added = (weights @ values).transpose(1, 2).flatten(2).mT.reshape_as(rois)
    assert_close(module(rois, images), rois + added)


MODELS = {
    "plain": {},
    "split": {"split": "conv5", "loc_pool": "none"},
    "context": {"context": ("loc",), "op": "pool"},
    "all": {"split": "conv4", "loc_pool": "none", "context": ("cls", "loc"), "tasks": "separate"},
    "resnet": {"split": 2, "loc_stride": 8, "resnet": True, "context": ("cls",)},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_walk_is_the_detectors_own_way(name):
    model = small_detector(**MODELS[name]).eval()
    picture = small_batch()[0][0]
    walked = walk(model, picture)
    with torch.no_grad():
        expected = model([picture])[0]
    for key, value in expected.items():
        assert_close(walked.detections[key], value)
    assert_close(walked.scores.sum(), torch.tensor(1.0))
    assert_close(walked.scores[1:].max(), expected["scores"][0])
    assert_close(walked.box, expected["boxes"][0])  # the picture is not resized

    text = as_text(walked, NAMES)
    assert [line[0] for line in text.splitlines()] == list("123456789")
    assert ("none in this model" in text) == (not MODELS[name].get("context"))
    assert ("No split" in text) == ("split" not in MODELS[name])
    assert f"{list(walked.features['loc'].shape)}, stride {model.backbone.feature_specs['loc'].strides[0]}" in text
    assert draw(walked, NAMES).size[0] >= 3 * WIDTH


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"cascade": [0.5, 0.6, 0.7]},
            "That is the first stage; 2 more refine it, and the scores are the mean of all.",
        ),
        ({"head": {"dim": 8, "dropout": 0.0, "class_agnostic": True}}, "no pass of its own"),
        ({"context": {"on": "cls", "size": 4, "gate": "zero"}}, "The context is multiplied by the learned gate, 0."),
        ({"loc": {"roi_scale": 1.5}}, "One RoI on the loc map. It is pooled from a box 1.5 times as wide and high."),
    ],
)
def test_a_walk_through_other_heads(changes, text):
    model = build_model(ModelConfig.model_validate(SMALL | changes), CLASSES, seed=3).eval()
    picture = small_batch()[0][0]
    walked = walk(model, picture)
    with torch.no_grad():
        assert_close(walked.detections, model([picture])[0])
    assert text in as_text(walked, NAMES) and draw(walked, NAMES).size[0] >= 3 * WIDTH


def test_a_walk_on_a_pyramid_follows_the_roi_to_its_map():
    changes = ["model.width=8", "model.head.dim=16", "model.rpn.min_size=0"]
    cfg = load_config(ROOT / "configs/shapes/grcn_tiny_resnet_fpn.yaml", [*changes, "model.loc.level=1"])
    model = build_model(cfg.model, 5).eval()
    walked = walk(model, torch.rand(3, 100, 160))
    with torch.no_grad():
        batch, _ = model.transform([torch.rand(3, 100, 160)])
        shapes = {task: [map_.shape[1:] for map_ in maps] for task, maps in model.backbone(batch.tensors).items()}
    for task, spec in model.backbone.feature_specs.items():
        place = int(model.roi_heads.pools[task].level_of(walked.roi))
        assert (
            walked.strides[task] == spec.strides[place] and walked.features[task].shape[1:] == shapes[task][place][1:]
        )
    text = as_text(walked, NAMES)
    assert walked.tensor.shape == (3, 128, 204) and "then normalised and padded to [128, 224]" in text
    assert "5 maps for cls, strides 4/8/16/32/64." in text and "5 maps for loc, strides 4/8/16/16/32." in text
    assert f"stride {walked.strides['loc']}: a cell" in text and "The RPN reads these maps" in text
    assert draw(walked, NAMES).size[0] >= 3 * WIDTH


@pytest.mark.parametrize("size,panel", [((90, 60), 267), ((60, 90), 560), ((60, 6), 200)])
def test_panels_have_the_shape_of_the_picture(size, panel):
    model = small_detector()
    walked = walk(model, torch.full((3, size[1], size[0]), 0.5))
    sheet = draw(walked, NAMES)
    assert sheet.size == (3 * WIDTH + 24, 3 * (panel + 20) + 24)


def test_a_closer_look_stays_within_the_picture_where_it_can():
    whole = Window.of_all(torch.zeros(3, 60, 90))
    boxes = torch.tensor([[0.0, 0.0, 20.0, 10.0], [75.0, 40.0, 90.0, 60.0], [30.0, 20.0, 50.0, 40.0]])
    for box in boxes:
        window = whole.around(box)
        x, y = window.corner.tolist()
        width, height = (window.panel / window.zoom).tolist()
        assert x >= 0 and y >= 0 and x + width <= 90.1 and y + height <= 60.1
        assert window.place(box[None]).min() >= 0 and (window.place(box[None])[0, 2:] <= window.panel + 1e-3).all()
    # All of a high box is more than the picture has room for.
    assert whole.around(torch.tensor([40.0, 0.0, 50.0, 60.0])).zoom < whole.zoom


def test_a_picture_without_proposals_is_reported():
    model = small_detector()
    model.rpn.test_settings = replace(model.rpn.test_settings, min_size=1e4)
    with pytest.raises(DataError, match=r"too small for any proposal \(got 96 x 64 pixels\); use a larger one"):
        walk(model, small_batch()[0][0])


def save(config: str, folder: Path) -> Path:
    """Saves a checkpoint of a config with random weights."""
    cfg = load_config(ROOT / f"configs/shapes/{config}.yaml", ["model.width=8", "model.head.dim=16"])
    state = {"format": checkpoint.FORMAT, "step": 0, "optimizer": {}, "losses": [], "data_fingerprint": ""}
    state |= {"model": build_model(cfg.model, 5).state_dict(), "classes": list(NAMES), "config": dump_config(cfg)}
    checkpoint.save(folder, state, keep=1)
    return next(folder.glob("*.pt"))


def test_the_example_in_the_docs_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/the_split.md").read_text(), re.DOTALL)
    (name,) = re.findall(r'"(runs/.*?pt)"', code)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (60, 50), "#804020").save("photo.jpg")
    names: dict = {}
    exec(compile(code.replace(name, str(save("grcn_tiny", tmp_path))), "the_split.md", "exec"), names)
    assert names["walked"].attention["cls"].shape == (1, 49, 14, 14) and Path("walk.png").exists()


def test_the_tool_walks_and_reports_mistakes(tmp_path):
    done = programs.call("tools/walkthrough.py", folder=tmp_path)
    assert done.code == 0 and "stride 16" in done.stdout and "stride 8" in done.stdout, done.stderr
    assert min(Image.open(tmp_path / "walkthrough.png").size) >= 3 * WIDTH

    weights = save("faster_rcnn_tiny", tmp_path)
    Image.new("RGB", (60, 50), "#804020").save(tmp_path / "photo.jpg")
    args = ["--checkpoint", weights, "--image", "photo.jpg", "--output", "new/walk.jpg"]
    done = programs.call("tools/walkthrough.py", *args, folder=tmp_path)
    assert done.code == 0 and "none in this model" in done.stdout and "60 x 50 pixels" in done.stdout, done.stderr
    assert Image.open(tmp_path / "new/walk.jpg").format == "JPEG"

    (tmp_path / "folder.png").mkdir()
    mistakes = {
        ("--image", weights): (3, "not an image"),
        ("--image", "none.jpg"): (3, "none.jpg"),
        ("--checkpoint", "photo.jpg"): (4, "photo.jpg"),
        ("--output", "walk.txt"): (2, "--output walk.txt: not a picture's name"),
        ("--output", "folder.png"): (2, "--output folder.png: is a folder"),
        ("--output", "photo.jpg/walk.png"): (5, "photo.jpg"),
    }
    for args, (code, named) in mistakes.items():
        programs.assert_contract(programs.call("tools/walkthrough.py", *args, folder=tmp_path), code, named)
