"""Whole runs under settings that change what is trained, or what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.engine import checkpoint
from grcn.errors import CheckpointError, ConfigError
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
