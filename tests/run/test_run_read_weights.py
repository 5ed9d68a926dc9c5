"""Inputs of ``--checkpoint`` and ``--init``: folders of runs, and exported folders, whole, damaged and foreign."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from pathlib import Path

import programs
import pytest
import torch
from PIL import Image

import grcn
from grcn.apps.export.export import export
from grcn.engine import checkpoint
from grcn.errors import CheckpointError
from grcn.run.evaluate import folder_beside
from grcn.run.read_weights import read_weights

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/shapes/grcn_tiny.yaml"
SMALL = [
    "model.width=4", "model.head.dim=8", "model.image={short: 64, max: 64}", "model.rpn.post_nms_test=20",
    "model.context.size=4", "data.size=64", "data.train_images=4", "data.test_images=2", "train.batch=2",
    "train.warmup=0", "train.steps=4", "train.checkpoint_every=2", "train.eval_every=2", "eval.pictures=0",
    "eval.protocols=[coco]", "run.workers=0", "run.threads=1", "run.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of four steps, ``run``, whose best is step 2, and its export, ``exported``."""
    folder = tmp_path_factory.mktemp("trained")
    done = programs.call("tools/train.py", "--config", CONFIG, "--output-dir", folder / "run", *SMALL, folder=folder)
    assert done.code == 0, done.stderr
    export(folder / "run", "safetensors", folder / "exported")
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    for name in ("run", "exported"):
        shutil.copytree(trained / name, tmp_path / name)
    return tmp_path


def test_of_a_run_the_best_checkpoint_is_taken_else_the_newest(copy, caplog):
    caplog.set_level(logging.INFO, "grcn")
    run = copy / "run"
    (best,) = run.glob("best-*.pt")
    assert "step_00000002" in best.name, "the first of equals"
    assert grcn.load(run, "cpu").step == 2 and f"taking its best checkpoint, {best.name}, of step 2" in caplog.text
    assert folder_beside(run, "eval") == run / f"eval/{best.stem}-eval"
    best.unlink()
    (newest,) = run.glob("checkpoints/step_00000004-*.pt")
    assert grcn.load(run, "cpu").step == 4 and f"taking its newest checkpoint, {newest.name}, of step 4" in caplog.text
    assert folder_beside(run, "eval") == run / f"eval/{newest.stem}-eval"
    assert read_weights(run / "checkpoints")[0] == newest


def test_a_run_whose_best_is_damaged_or_that_has_none_is_one_line(copy):
    run = copy / "run"
    (best,) = run.glob("best-*.pt")
    best.write_bytes(best.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"best-step_00000002.*: damaged"):
        grcn.load(run)
    for path in run.rglob("*.pt"):
        path.unlink()
    for folder in (run, copy):
        with pytest.raises(CheckpointError, match="a folder without a checkpoint; pass a checkpoint, a run's folder"):
            grcn.load(folder)


def test_the_commands_take_both_folders(copy):
    short = ["--device", "cpu", "--no-pictures", "--score-threshold", 0]
    Image.effect_noise((64, 64), 90).convert("RGB").save(copy / "photo.png")
    found = []
    for name in ("run", "exported"):
        done = programs.call(
            "tools/predict.py", "--checkpoint", name, "photo.png", "--output-dir", f"{name}-found", *short, folder=copy
        )
        assert done.code == 0, done.stderr
        found.append(json.loads((copy / f"{name}-found/predictions.json").read_text())["images"])
        done = programs.call("tools/eval.py", "--config", copy / "run/config.yaml", "--checkpoint", name, folder=copy)
        assert done.code == 0 and "coco_ap" in json.loads(done.stdout), done.stderr
    assert found[0] == found[1]
    assert list((copy / "run/eval").glob("best-step_00000002-*-eval")) and (copy / "exported-eval").is_dir()
    done = programs.call(
        "tools/train.py", "--config", CONFIG, "--init", "exported", "--output-dir", "on", *SMALL, "train.lr=0.001",
        folder=copy,
    )  # fmt: skip
    assert done.code == 0 and "initial weights from exported" in done.stderr, done.stderr
    before = read_weights(copy / "exported")[1]["model"]
    after = checkpoint.newest(copy / "on/checkpoints")[1]["model"]
    assert 0 < max((after[name] - before[name]).abs().max() for name in before) < 0.01


def test_an_exported_folder_is_read_without_pickle(trained, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    assert grcn.load(trained / "exported", "cpu").step == 2


def test_damaged_and_foreign_folders_are_one_line(copy):
    folder = copy / "exported"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    weights, facts = whole["model.safetensors"], whole["detector.json"]
    flipped = bytearray(weights)
    flipped[-5] ^= 1
    foreign = json.dumps({"architectures": ["Other"]}).encode()
    newer = json.dumps(json.loads(facts) | {"format": 2}).encode()
    cases = [
        ("model.safetensors", weights[:-8], "model.safetensors: damaged or changed: its SHA-256"),
        ("model.safetensors", bytes(flipped), "model.safetensors: damaged or changed: its SHA-256"),
        ("model.safetensors", b"", "model.safetensors: damaged or changed: its SHA-256"),
        ("model.safetensors", None, "model.safetensors: no such file"),
        ("config.yaml", whole["config.yaml"] + b"#", "config.yaml: damaged or changed: its SHA-256"),
        ("config.yaml", None, "config.yaml: no such file"),
        ("detector.json", facts[:-9], "detector.json: damaged"),
        ("detector.json", b"\xff\xfe", "detector.json: damaged"),
        ("detector.json", b"[]", "detector.json: not written by grcn export"),
        ("detector.json", foreign, "detector.json: not written by grcn export"),
        ("detector.json", newer, "detector.json: written in another format"),
        ("detector.json", None, "detector.json: no such file; pass a folder of grcn export"),
    ]
    for name, contents, message in cases:
        if contents is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(contents)
        with pytest.raises(CheckpointError, match=f"exported/{message}") as stopped:
            grcn.load(folder)
        assert "\n" not in str(stopped.value) and "; " in str(stopped.value)
        (folder / name).write_bytes(whole[name])
    assert grcn.load(folder, "cpu").step == 2


def test_the_command_exports_and_refuses_what_it_cannot(trained, tmp_path):
    what = ["--checkpoint", trained / "run", "--output-dir", "out", "--format"]
    done = programs.call("tools/export.py", *what, "safetensors", folder=tmp_path)
    assert done.code == 0 and grcn.load(tmp_path / "out", "cpu").step == 2, done.stderr
    again = programs.call("tools/export.py", *what, "safetensors", folder=tmp_path)
    programs.assert_contract(again, 2, "out/model.safetensors: exists already")
    for words, code, named in (
        (["onnx", "--size", "600"], 2, "--size: must be HxW"),
        (["onnx", "--size", "0x600"], 2, "--size: must be HxW"),
        (["safetensors", "--size", "64x64"], 2, "--size: not allowed with --format safetensors"),
        (["onnx", "--device", "cuda"], 2, "--device: only with --format torch"),
        (["torchscript"], 2, "invalid choice"),
    ):
        programs.assert_contract(programs.call("tools/export.py", *what, *words, folder=tmp_path), code, named)
    nothing = programs.call("tools/export.py", "--checkpoint", "no", *what[2:], "onnx", folder=tmp_path)
    programs.assert_contract(nothing, 4, "no: no such file")
