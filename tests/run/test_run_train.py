"""Whole runs under settings that change what is trained, or what is kept of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.engine import checkpoint
from grcn.errors import CheckpointError, ConfigError
from grcn.run.evaluate import evaluate
from grcn.run.load_detector import load_detector
from grcn.run.train import train

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.width=4", "model.head.dim=16", "model.image={short: 64, max: 64}", "data.size=64", "data.train_images=8",
    "data.test_images=2", "train.batch=2", "train.warmup=0", "train.steps=2", "train.log_every=1", "run.workers=0",
    "train.schedule=step", "run.threads=1", "run.device=cpu", "eval.protocols=[coco]", "eval.pictures=0",
]  # fmt: skip


def config(*changes: str, name: str = "faster_rcnn_tiny") -> Config:
    return load_config(ROOT / f"configs/shapes/{name}.yaml", [*SMALL, *changes])


def newest(folder: Path) -> tuple[Path, dict[str, Any]]:
    return checkpoint.newest(folder / "checkpoints") or pytest.fail("no checkpoint")


def test_a_run_of_sgd_is_not_continued_with_adamw(tmp_path: Path) -> None:
    train(config(), tmp_path)
    before = newest(tmp_path)[0].read_bytes()
    adamw = config("train.optimizer=adamw", "train.lr=0.001", "train.steps=4")
    with pytest.raises(ConfigError, match="train.optimizer: sgd -> adamw"):
        train(adamw, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="another optimizer .*use the config it was trained with") as caught:
        train(adamw, tmp_path, resume=True, allow_changes=True)
    assert "\n" not in str(caught.value)
    assert newest(tmp_path)[0].read_bytes() == before


def test_adamw_learns_and_resumes(tmp_path: Path) -> None:
    settings = ("train.optimizer=adamw", "train.lr=0.001")
    for folder, stages in (("straight", [3]), ("parts", [1, 3])):
        for steps in stages:
            train(config(*settings, f"train.steps={steps}"), tmp_path / folder, resume=True, allow_changes=True)
    straight, parts = (newest(tmp_path / folder)[0] for folder in ("straight", "parts"))
    assert straight.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 3), (5, 1)])
def test_a_checkpoint_is_used_with_other_stages_frozen(tmp_path: Path, before: int, after: int) -> None:
    trained, other = config(f"model.freeze={before}"), config(f"model.freeze={after}")
    metrics = train(trained, tmp_path / "run")
    path, _ = newest(tmp_path / "run")
    assert evaluate(other, tmp_path / "eval", weights=path) == metrics, "detections do not depend on it"
    assert evaluate(trained, tmp_path / "eval2", weights=path) == metrics
    with pytest.raises(ConfigError, match=f"model.freeze: {before} -> {after}"):
        train(other, tmp_path / "run", resume=True)
    longer = config(f"model.freeze={after}", "train.steps=4")
    with pytest.raises(CheckpointError, match=r"another model: \d+ weights missing.*use its own config"):
        train(longer, tmp_path / "run", resume=True, allow_changes=True)

    train(config(f"model.freeze={after}", "train.lr=1e-30"), tmp_path / "next", init=path)
    detectors = [load_detector(one, "cpu").model for one in (path, newest(tmp_path / "next")[0])]
    images = [torch.rand(3, 64, 64)]
    one, two = (detector(images, score_thresh=0.0)[0] for detector in detectors)
    assert len(one["boxes"]) and all(torch.equal(one[key], two[key]) for key in one)


def test_initial_weights_of_truly_another_model_are_refused(tmp_path: Path) -> None:
    train(config("model.freeze=1"), tmp_path / "run")
    path, _ = newest(tmp_path / "run")
    split = config("model.freeze=0", "model.split=conv5", "model.loc.last_pool=none")
    with pytest.raises(CheckpointError, match="another model: 3 weights missing, 0 unexpected .*loc.conv5_1"):
        train(split, tmp_path / "next", init=path)


@pytest.mark.parametrize(("freeze", "warned"), [(0, False), (1, True)])
def test_stages_frozen_at_random_values_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, freeze: int, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING, "grcn"):
        train(config(f"model.freeze={freeze}"), tmp_path, dry_run=True)
    assert ("at random values; use --init, or leave model.freeze out" in caplog.text) == warned
