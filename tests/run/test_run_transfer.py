"""Starting from a detector of other classes: rows by name, aliases, fresh ones; evaluating the initial weights."""

from __future__ import annotations

import logging
from pathlib import Path

import programs
import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from grcn import build_model
from grcn.catalog import RESNET_UNITS
from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.engine import checkpoint
from grcn.errors import CheckpointError, ConfigError
from grcn.models.class_rows import place_rows
from grcn.run.evaluate import evaluate
from grcn.run.load_detector import load_initial_weights
from grcn.run.train import train

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.width=4", "model.head.dim=16", "model.image={short: 64, max: 64}", "model.rpn.post_nms_train=20",
    "data.size=64", "data.train_images=8", "data.test_images=8", "train.batch=2", "train.steps=2", "train.warmup=0",
    "run.workers=0", "run.threads=1", "run.device=cpu", "eval.pictures=0",
]  # fmt: skip
THEIRS, OURS = ("sun", "moon", "lark"), ("lark", "boat", "sun")
CONFIG = ROOT / "configs/shapes/faster_rcnn_tiny_resnet_fpn.yaml"


def of(classes: tuple[str, ...], *changes: str) -> Config:
    return load_config(CONFIG, [*SMALL, f"data.classes=[{','.join(classes)}]", *changes])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(of(THEIRS), folder)
    (saved,) = folder.glob("checkpoints/*.pt")
    return saved


def predictors(model: torch.nn.Module) -> list[torch.Tensor]:
    """The weights of both predictors, a row of values for each class, background first."""
    heads = model.roi_heads.heads
    tensors = (*heads.cls_score.parameters(), *heads.bbox_pred.parameters())
    return [tensor.detach().reshape(heads.cls_score.out_features, -1) for tensor in tensors]


@pytest.mark.parametrize(
    ("how", "same_as", "rows"),
    [
        ("by-name", {}, [0, 3, None, 1]),
        ("by-name", {"boat": "moon"}, [0, 3, 2, 1]),
        ("by-name", {"sun": "nothing"}, [0, 3, None, 1]),
        ("by-name", {"boat": "ship"}, [0, 3, None, 1]),
        ("fresh", {}, [None] * 4),
    ],
)
def test_rows_go_to_the_classes_of_their_names(trained, how, same_as, rows, caplog) -> None:
    caplog.set_level(logging.INFO)
    cfg = of(OURS)
    model, fresh = build_model(cfg.model, 4, seed=5), build_model(cfg.model, 4, seed=5)
    load_initial_weights(model, cfg.model, trained, OURS, same_as, how)
    state = torch.load(trained, weights_only=True)["model"]
    theirs = build_model(cfg.model, 4)
    theirs.load_state_dict(state)
    for ours, kept, new in zip(predictors(model), predictors(theirs), predictors(fresh), strict=True):
        assert torch.equal(ours, torch.stack([new[k] if row is None else kept[row] for k, row in enumerate(rows)]))
    others = [name for name in state if "cls_score" not in name and "bbox_pred" not in name or name.startswith("rpn.")]
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in others)
    names = [name for name, row in zip(("background", *OURS), rows, strict=True) if row is not None]
    assert f"rows of {len(names)} of 4 classes kept by name ({', '.join(names[:3]) or 'none'}" in caplog.text


def test_rows_go_to_the_classes_of_their_names_in_every_stage_of_a_cascade(tmp_path) -> None:
    cascade = ("model.cascade=[0.5, 0.6]", "model.head.class_agnostic=true")
    train(of(THEIRS, *cascade), tmp_path)
    (saved,) = tmp_path.glob("checkpoints/*.pt")
    cfg, state = of(OURS, *cascade), torch.load(saved, weights_only=True)["model"]
    model, fresh = build_model(cfg.model, 4, seed=5), build_model(cfg.model, 4, seed=5)
    load_initial_weights(model, cfg.model, saved, OURS, None, "by-name")
    for name, value in model.state_dict().items():
        if "cls_score" not in name:  # boxes are of all classes
            assert torch.equal(value, state[name]), name
            continue
        rows = [state[name][0], state[name][3], fresh.state_dict()[name][2], state[name][1]]
        assert torch.equal(value, torch.stack(rows)), name


@pytest.mark.parametrize(("theirs", "ours"), [(True, False), (False, True)])
def test_boxes_for_all_classes_are_no_start_for_boxes_of_each(tmp_path, theirs, ours) -> None:
    train(of(THEIRS, f"model.head.class_agnostic={str(theirs).lower()}"), tmp_path)
    (saved,) = tmp_path.glob("checkpoints/*.pt")
    cfg = of(OURS, f"model.head.class_agnostic={str(ours).lower()}")
    with pytest.raises(CheckpointError, match="bbox_pred.weight has another shape") as caught:
        load_initial_weights(build_model(cfg.model, 4), cfg.model, saved, OURS, None, "by-name")
    assert "\n" not in str(caught.value)


def test_a_run_starts_from_other_classes_only_when_it_is_asked_to(trained, tmp_path, caplog) -> None:
    with pytest.raises(CheckpointError, match="has other classes .*--new-classes"):
        train(of(OURS), tmp_path / "refused", init=trained)
    metrics = train(of(OURS), tmp_path / "run", init=trained, new_classes="by-name")
    (saved,) = tmp_path.glob("run/checkpoints/*.pt")
    assert metrics["coco_ap"] is not None and checkpoint.load(saved)["classes"] == list(OURS)
    train(of(OURS, "data.same_as={oval: sun}"), tmp_path / "typo", init=trained, new_classes="by-name")
    assert "data.same_as: no class of the data: oval" in caplog.text and "without effect" not in caplog.text
    named = of(OURS, f"data.same_as={{{OURS[0]}: sun}}")
    for number, how in enumerate(({}, {"init": trained, "new_classes": "fresh"})):
        caplog.clear()
        train(named, tmp_path / f"{number}", dry_run=True, **how)
        assert "data.same_as: without effect here" in caplog.text
    wider = of(OURS, "model.head.dim=32")
    with pytest.raises(CheckpointError, match="fc6.weight has another shape") as caught:
        train(wider, tmp_path / "wider", init=trained, new_classes="by-name")
    assert "\n" not in str(caught.value)


def test_the_flag_stands_alone_or_with_a_word_and_needs_init(trained, tmp_path) -> None:
    command = ["tools/train.py", "--config", CONFIG, "--dry-run"]
    settings = [*SMALL, "data.classes=[lark, boat, sun]"]
    done = programs.call(*command, "--init", trained, "--new-classes", *settings, folder=tmp_path)
    assert done.code == 0 and "rows of 3 of 4 classes kept by name" in done.stderr, done.stderr
    done = programs.call(*command, "--init", trained, "--new-classes=fresh", *settings, folder=tmp_path)
    assert done.code == 0 and "rows of 0 of 4 classes kept by name (none), 4 new" in done.stderr, done.stderr
    done = programs.call(*command, *settings, "--new-classes", "fresh", "--init", trained, folder=tmp_path)
    assert done.code == 0 and "4 new" in done.stderr, done.stderr
    done = programs.call(*command, "--new-classes", *settings, folder=tmp_path)
    assert done.code == 2 and "argument --new-classes: only with argument --init" in done.stderr


def test_names_match_however_they_are_written() -> None:
    theirs = ("stop sign", "cat", "Cat", "dog", "big-dog")
    assert place_rows(theirs, ("Stop_Sign", "CAT", "cat", "DOG", "big dog")).source == (0, 1, None, 2, 4, 5)


def test_two_names_may_start_from_one() -> None:
    rows = place_rows(("cat", "dog"), ("wolf", "dog"), {"wolf": "dog"})
    assert rows.source == (0, 2, 2) and "kept by name (background, wolf, dog)" in str(rows)
    rows = place_rows(("cat", "dog"), ("wolf", "dog"), {"wolf": "dogg"})
    assert rows.source == (0, None, 2) and str(rows).endswith("data.same_as: none of the weights' classes is dogg")


def test_the_detector_of_a_file_is_evaluated_and_fine_tuned_on_other_data(tmp_path, monkeypatch, caplog) -> None:
    """A thin detector of torchvision's, of 91 random outputs, on the built-in images under names of COCO's classes."""
    thin = {"resnet50": (1, 1, 1, 1)}
    monkeypatch.setitem(RESNET_UNITS, *thin.popitem())
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    for stage in (theirs.backbone.body[f"layer{k}"] for k in (1, 2, 3, 4)):
        del stage[1:]
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    path = tmp_path / "c.yaml"
    path.write_text(
        f"""
model:
  backbone: resnet50_fpn
  weights: torchvision:{tmp_path / "w.pth"}
  image: {{short: 64, max: 64}}
  anchors: {{sizes: [[32], [64], [128], [256], [512]], layout: torchvision}}
  rpn: {{channels: 256, post_nms_test: 20, post_nms_train: 20, min_size: 0}}
  roi: {{op: align, score_thresh: 0}}
  head: {{dim: 1024, dropout: 0}}
data:
  {{format: shapes, size: 64, train_images: 8, test_images: 8, classes: [square, disc], same_as: {{square: stop sign}}}}
train: {{steps: 2, batch: 2}}
eval: {{pictures: 0}}
run: {{workers: 0, threads: 1, device: cpu}}
"""
    )
    caplog.set_level(logging.INFO)
    cfg = load_config(path)
    before = evaluate(cfg, tmp_path / "initial", initial=True)
    assert before["coco_ap"] is not None and (tmp_path / "initial/detections.json").exists()
    kept = "rows of 2 of 3 classes kept by name (background, square), 1 new (disc)"
    assert kept in caplog.text and "at random values" not in caplog.text
    metrics = train(cfg, tmp_path / "run")
    (saved,) = tmp_path.glob("run/checkpoints/*.pt")
    # What a detector started from is past, as long as the weights expect the same images.
    again = evaluate(load_config(path, ["model.weights=COCO_V1"]), tmp_path / "again", weights=saved)
    assert again["coco_ap"] == metrics["coco_ap"] is not None
    with pytest.raises(ConfigError, match="model.weights: null: nothing to evaluate before training"):
        evaluate(load_config(path, ["model.weights=null"]), tmp_path / "none", initial=True)
    torch.save(theirs.backbone.body.state_dict(), tmp_path / "w.pth")  # of a classifier
    with pytest.raises(ConfigError, match=r"w.pth is no detector like this model, whose rpn.conv.weight, .* random"):
        evaluate(cfg, tmp_path / "classifier", initial=True)
    done = programs.call("tools/eval.py", "--config", path, "--initial", "--checkpoint", "x", folder=tmp_path)
    assert done.code == 2 and "not allowed with argument" in done.stderr
