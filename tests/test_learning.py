"""A detector learns: two images by heart, box and class, with the evaluation that users get."""

from pathlib import Path

import pytest
import torch
from boards import write_boards

from grcn.build import build_model, build_optimizer, build_train_split
from grcn.config.files import load_config
from grcn.data.loader import eval_batches, train_batches
from grcn.engine.evaluate import detect
from grcn.engine.recorder import Recorder
from grcn.engine.train import learning_rate, train
from grcn.evaluation import coco, voc
from grcn.run import train as run

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "data.level=flat", "data.train_images=2", "train.batch=2", "train.steps=250", "train.warmup=10", "train.lr=0.04",
    "data.flip=0",
]  # fmt: skip


@pytest.mark.parametrize("row", ["faster_rcnn", "grcn"])
def test_two_images_are_learnt_by_heart(row, tmp_path):
    cfg = load_config(ROOT / f"configs/shapes/{row}_tiny.yaml", SMALL)
    data = build_train_split(cfg.data)
    model = build_model(cfg.model, len(data.table.classes) + 1)
    batches = train_batches(data, seed=0, batch=2, steps=cfg.train.steps, augment=())
    train(
        model,
        batches,
        build_optimizer(cfg.train, model),
        Recorder(tmp_path),
        steps=cfg.train.steps,
        lr_at=lambda step: learning_rate(step, lr=cfg.train.lr, steps=cfg.train.steps, schedule="cosine", warmup=10),
        clip_grad_norm=cfg.train.clip_grad_norm,
    )
    found = detect(model, eval_batches(data), torch.device("cpu"), progress=False)
    assert voc.evaluate(data.table, found)["metrics"]["voc_area_ap75"] == 1.0
    assert coco.evaluate(data.table, found)["metrics"]["coco_ap50"] == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["faster_rcnn", "grcn"])
def test_the_built_in_images_are_learnt(row, tmp_path):
    """The recipe of the demonstration: most objects are found in images not trained on."""
    settings = ["data.level=flat", "train.steps=1000", "train.lr=0.06", "eval.protocols=[voc]", "eval.pictures=0"]
    cfg = load_config(ROOT / f"configs/shapes/{row}_tiny.yaml", [*settings, "run.device=cpu", "run.threads=1"])
    metrics = run.train(cfg, tmp_path / "run")
    assert metrics["voc_area_ap50"] > 0.75


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "least", "most"), [("group", 0.6, 1.0), ("layer", 0.0, 0.02)])
def test_a_small_network_learns_black_and_white_images(norm, least, most, tmp_path):
    """300 steps of 8 images: with norms over groups most objects are found, with norms over channels none is."""
    write_boards(tmp_path, {"train": 600, "test": 100}, side=320)
    settings = ["model.image={short: 320, max: 320}", f"model.norm={norm}", "train.steps=300", "eval.protocols=[voc]"]
    where = [f"data.root={tmp_path}", "data.train=[boards/train]", "data.test=[boards/test]"]
    machine = ["run.device=cpu", "run.threads=1", "run.workers=0", "eval.pictures=0"]
    cfg = load_config(ROOT / "configs/own/faster_rcnn_tiny.yaml", [*settings, *where, *machine])
    assert least <= run.train(cfg, tmp_path / "run")["voc_area_ap50"] <= most


@pytest.mark.slow
def test_a_detector_of_other_classes_is_a_better_start(tmp_path):
    """A pyramid learns half of the built-in classes; the other half is then learnt faster than from scratch."""
    settings = ["eval.protocols=[coco]", "eval.pictures=0", "run.device=cpu", "run.threads=1", "run.workers=0"]
    path = ROOT / "configs/shapes/faster_rcnn_tiny_resnet_fpn.yaml"
    first = load_config(path, [*settings, "data.classes=[sun, moon, lark, owl]", "train.steps=500"])
    other = load_config(path, [*settings, "data.classes=[boat, cart, beetle, crate]", "train.steps=150"])
    run.train(first, tmp_path / "first")
    (saved,) = (tmp_path / "first/checkpoints").glob("step_00000500*")
    scratch = run.train(other, tmp_path / "scratch")
    transferred = run.train(other, tmp_path / "transferred", init=saved, new_classes="by-name")
    assert transferred["coco_ap50"] > scratch["coco_ap50"] + 0.05
