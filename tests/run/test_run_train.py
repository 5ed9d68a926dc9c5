"""Whole runs under settings that change the trained weights, or the files kept."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.engine import checkpoint
from grcn.engine.environment import commands_of, flags_of, read_environment, write_environment
from grcn.errors import CheckpointError, ConfigError, NonFiniteError
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
    with pytest.raises(CheckpointError, match=r"another model: \d+ weights missing.*use its own config and parts"):
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


def test_initial_weights_behind_other_norms_are_refused(tmp_path: Path) -> None:
    """Norms over channels and over groups have the same weights by name and shape, and do not mean the same."""
    train(config("model.norm=layer"), tmp_path / "run")
    path, _ = newest(tmp_path / "run")
    with pytest.raises(ConfigError, match="trained with other norms; set model.norm=layer"):
        train(config("model.norm=group"), tmp_path / "next", init=path)


@pytest.mark.parametrize(("freeze", "warned"), [(0, False), (1, True)])
def test_stages_frozen_at_random_values_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, freeze: int, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING, "grcn"):
        train(config(f"model.freeze={freeze}"), tmp_path, dry_run=True)
    assert ("at random values; use --init, or leave model.freeze out" in caplog.text) == warned


AVERAGE = ("train.ema=0.5", "train.lr=0.02", "train.steps=5")


def test_the_average_is_evaluated_and_detected_with(tmp_path: Path) -> None:
    cfg = config(*AVERAGE)
    metrics = train(cfg, tmp_path / "run")
    path, state = newest(tmp_path / "run")
    assert state["ema"]["steps"] == 5
    plain = {key: value for key, value in state.items() if key != "ema"}
    raw = checkpoint.save(tmp_path / "raw", plain, keep=1)
    averaged = checkpoint.save(tmp_path / "averaged", plain | {"model": state["ema"]["model"]}, keep=1)

    for one in (path, averaged):
        assert evaluate(cfg, tmp_path / f"eval_{one.stem}", weights=one) == metrics
    detectors = {one: load_detector(one, "cpu") for one in (path, raw, averaged)}
    for one, key in ((path, "ema"), (averaged, "ema"), (raw, None)):
        weights = state["model"] if key is None else state[key]["model"]
        assert all(torch.equal(value, weights[name]) for name, value in detectors[one].model.state_dict().items())
    image = torch.rand(3, 64, 64)
    scores = {one: detector.predict(image, 0.0).scores for one, detector in detectors.items()}
    assert torch.equal(scores[path], scores[averaged]) and not torch.equal(scores[path], scores[raw])

    train(config("train.lr=1e-30"), tmp_path / "next", init=path)
    started = newest(tmp_path / "next")[1]["model"]
    assert all(torch.allclose(value, state["ema"]["model"][name]) for name, value in started.items())
    without = config(*AVERAGE[1:])
    train(without, tmp_path / "without")
    assert all(
        torch.equal(value, state["model"][name]) for name, value in newest(tmp_path / "without")[1]["model"].items()
    )


def test_an_average_is_continued_to_the_byte(tmp_path: Path) -> None:
    train(config(*AVERAGE, "train.eval_every=2"), tmp_path / "straight")
    for step in range(1, 5):
        for steps in (step, 5):
            cfg = config(*AVERAGE, "train.eval_every=2", f"train.steps={steps}")
            train(cfg, tmp_path / f"from_{step}", resume=True, allow_changes=True)
        assert newest(tmp_path / f"from_{step}")[0].read_bytes() == newest(tmp_path / "straight")[0].read_bytes()
    with pytest.raises(ConfigError, match="train.ema: 0.5 -> null"):
        train(config(*AVERAGE, "train.ema=null"), tmp_path / "straight", resume=True)


def test_a_dry_run_has_the_average_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "grcn"):
        for change in ("train.ema=null", "train.ema=0.5"):
            train(config(change, "model.head.dim=256"), tmp_path, dry_run=True)
    sizes = [
        int(word.split()[-2]) for record in caplog.records if "a checkpoint takes" in (word := record.getMessage())
    ]
    assert sizes[1] > 1.3 * sizes[0] > 0


def test_a_checkpoint_from_before_these_settings_is_continued(tmp_path: Path) -> None:
    """Its config lacks them, and they have their defaults."""
    train(config("train.steps=4"), tmp_path / "straight")
    train(config("train.steps=4", "train.checkpoint_every=2"), tmp_path / "whole")
    path = next((tmp_path / "whole" / "checkpoints").glob("step_00000002-*.pt"))
    state = checkpoint.load(path)
    settings, count = re.subn(r"^  (freeze|optimizer|betas|ema):.*\n", "", state["config"], flags=re.M)
    assert count == 4
    old = checkpoint.save(tmp_path / "old", state | {"config": settings}, keep=1)
    assert load_detector(old, "cpu").step == 2
    train(config("train.steps=4", "train.checkpoint_every=2"), tmp_path / "next", resume_from=old)
    straight, continued = (newest(tmp_path / folder)[1] for folder in ("straight", "next"))
    for key in ("model", "optimizer", "step"):
        torch.testing.assert_close(continued[key], straight[key], rtol=0, atol=0)


def test_a_resume_that_fails_leaves_the_files_of_the_run(tmp_path: Path) -> None:
    train(config("train.steps=2"), tmp_path)
    before = [(tmp_path / name).read_bytes() for name in ("config.yaml", "env.json", "metrics.jsonl")]
    with pytest.raises(CheckpointError, match="another shape"):
        train(config("train.steps=4", "model.width=32"), tmp_path, resume=True, allow_changes=True)
    assert [(tmp_path / name).read_bytes() for name in ("config.yaml", "env.json", "metrics.jsonl")] == before


def test_a_checkpoint_of_another_run_is_not_continued_in_a_folder_with_a_run(tmp_path: Path) -> None:
    for name in ("one", "other"):
        train(config("train.steps=2"), tmp_path / name)
    path, state = newest(tmp_path / "other")
    for step in (state["step"], state["step"] + 2):
        before = (tmp_path / "one/metrics.jsonl").read_bytes()
        refused = f"one: has checkpoints, and {path} is none of them; continue them with --resume, or choose another"
        with pytest.raises(ConfigError, match=refused):
            train(config(f"train.steps={step}"), tmp_path / "one", resume_from=path)
        assert (tmp_path / "one/metrics.jsonl").read_bytes() == before
    path, _ = newest(tmp_path / "one")
    train(config("train.steps=2"), tmp_path / "one", resume_from=path)


@pytest.mark.parametrize(("device_does", "picked"), [(True, "bf16"), (False, "none")])
def test_auto_precision_is_the_device_s_at_first_and_then_the_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device_does: bool, picked: str
) -> None:
    monkeypatch.setattr("grcn.run.backend.multiplies_bf16", lambda device: device_does)
    monkeypatch.setattr("grcn.run.backend.is_x86", lambda: False)  # no warning on a CPU that imitates it
    caplog.set_level(logging.INFO, "grcn")
    train(config(f"run.amp={picked}"), tmp_path / "stated")
    assert ("run.amp=bf16 takes about 0.9 of the time" in caplog.text) == (device_does and picked == "none")
    train(config("run.amp=auto"), tmp_path / "picked")
    files = [newest(tmp_path / run)[0] for run in ("stated", "picked")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert f"run.amp=auto: {picked}, for " in caplog.text
    assert f"\n  amp: {picked}\n" in (tmp_path / "picked/config.yaml").read_text()

    longer = ("train.steps=3", "run.amp=auto")
    monkeypatch.setattr("grcn.run.backend.multiplies_bf16", lambda device: not device_does)
    train(config(*longer), tmp_path / "picked", resume=True, allow_changes=True)
    assert f"run.amp=auto: {picked}, as the run began" in caplog.text and "run.amp:" not in caplog.text
    train(config(*longer, f"run.amp={picked}"), tmp_path / "stated", resume=True, allow_changes=True)
    files = [newest(tmp_path / run)[0] for run in ("stated", "picked")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_float32_run_says_that_its_cpu_multiplies_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "grcn")
    hint = "run.amp=bf16 takes about 0.9 of the time"
    for device_does in (False, True):
        monkeypatch.setattr("grcn.run.backend.multiplies_bf16", lambda device, answer=device_does: answer)
        train(config(), tmp_path / str(device_does))
        assert (hint in caplog.text) == device_does
    caplog.clear()
    train(config("train.steps=3"), tmp_path / "True", resume=True, allow_changes=True)
    assert hint not in caplog.text, "it cannot change on the way"


def test_replayed_kernels_are_refused_with_several_micro_batches(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reduce-overhead needs train.accumulate: 1; set run.compile=default"):
        train(config("run.compile=reduce-overhead", "train.accumulate=2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_how_it_was_started_when_it_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config(), tmp_path / "first")
    starts = [["grcn train", "--init=first"], ["grcn train", "--resume"], ["grcn train", "--resume"]]
    for steps, command in enumerate(starts, start=1):
        monkeypatch.setattr(sys, "argv", command)
        init = tmp_path / "first" if steps == 1 else None
        train(config(f"train.steps={steps}"), tmp_path / "run", init=init, resume=steps > 1, allow_changes=steps > 1)
    known = read_environment(tmp_path / "run")
    assert commands_of(known) == starts[:2] and flags_of(known) == ["--allow-changes", "--init"]


def test_what_a_run_was_started_with_counts_only_if_it_goes_on(tmp_path: Path) -> None:
    write_environment(tmp_path, torch.device("cpu"), flags=["--init"])
    train(config(), tmp_path, resume=True)
    assert flags_of(read_environment(tmp_path)) == []


def test_a_damaged_record_does_not_stop_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(config(), tmp_path)
    (tmp_path / "env.json").write_text("{")
    train(config("train.steps=3"), tmp_path, resume=True, allow_changes=True)
    assert "env.json: damaged; the command lines in it are lost" in caplog.text
    assert flags_of(read_environment(tmp_path)) == ["--allow-changes"]


def test_flags_of_an_earlier_version_are_read() -> None:
    older = {"command": ["tools/train.py", "--init", "x.pt", "--resume"]}
    assert flags_of(older) == ["--init"] and commands_of(older) == [older["command"]]


@pytest.mark.parametrize("steps", [2, 100])
def test_a_run_whose_checkpoints_were_removed_is_not_started_anew(tmp_path: Path, steps: int) -> None:
    train(config("train.checkpoint_every=1", "train.eval_every=1"), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(
        CheckpointError, match="no checkpoint left of a run that is at step 2; .* from .*best-step_"
    ) as e:
        train(config(f"train.steps={steps}"), tmp_path, resume=True, allow_changes=True)
    assert "\n" not in str(e.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    train(config("train.eval_every=1"), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    log = tmp_path / "metrics.jsonl"  # as after an evaluation in the middle
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:2]))
    assert train(config("train.eval_every=1"), tmp_path, resume=True) is not None and newest(tmp_path)[1]["step"] == 2


def test_a_rate_that_diverges_at_once_is_the_advice_of_a_dry_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="after two steps; lower train.lr"):
        train(config("train.lr=1e30", "train.clip_grad_norm=null"), tmp_path, dry_run=True)
