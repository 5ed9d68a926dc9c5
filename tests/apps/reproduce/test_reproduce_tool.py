"""tools/reproduce.py as a user runs it: killed once in the middle, started again, every figure from a run folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import programs
import pytest
from waiting import wait_for

from grcn.errors import EnvironmentFault
from grcn.fileio import run_lock

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = [ROOT / f"configs/shapes/{name}_tiny.yaml" for name in ("faster_rcnn", "detect_f")]
SMALL = [
    "model.width=8", "model.head.dim=16", "data.train_images=16", "data.test_images=4", "data.size=64",
    "train.batch=2", "train.warmup=0", "train.steps=30", "train.log_every=2", "train.checkpoint_every=4",
    "eval.pictures=0", "run.workers=0", "run.threads=1", "run.device=cpu",
]  # fmt: skip


def reproduce(folder, *args):
    return programs.call("tools/reproduce.py", *args, folder=folder)


def is_free(folder):
    """Whether no process trains in a folder."""
    try:
        with run_lock(folder):
            return True
    except EnvironmentFault:
        return False


def test_a_study_killed_in_the_middle_continues_and_its_figures_are_those_of_the_runs(tmp_path):
    what = ["--config", *CONFIGS, *SMALL, "--seeds", 0, "--draws", 20]
    killed = programs.start("tools/reproduce.py", *what, folder=tmp_path)
    folders = [tmp_path / "runs/shapes" / path.stem / "seed0" for path in CONFIGS]
    wait_for(lambda: any(folders[0].glob("checkpoints/step_*.pt")), killed)
    killed.kill()
    killed.join()
    assert not any(list(folder.glob("eval/step_30/results.json")) for folder in folders)
    wait_for(lambda: is_free(folders[0]))  # its run was asked to stop, and saves its step

    result = reproduce(tmp_path, *what)
    assert result.code == 0, result.stderr
    assert "resuming from" in (folders[0] / "train.log").read_text()
    reports = tmp_path / "runs/shapes/reports"
    assert (reports / "comparison.png").stat().st_size > 1000
    assert (reports / "comparison.md").read_text() == result.stdout
    lines = list(csv.DictReader((reports / "comparison.csv").open()))
    assert [Path(line["folder"]) for line in lines] == [folder.relative_to(tmp_path) for folder in folders]
    for line, folder in zip(lines, folders, strict=True):
        metrics = json.loads((folder / "eval/step_30/results.json").read_text())["metrics"]
        assert float(line["AP"]) == 100 * metrics["coco_ap"] and float(line["AP70"]) == 100 * metrics["voc07_ap70"]

    again = reproduce(tmp_path, *what)  # nothing is left to do
    assert "2 runs, 0 to do" in again.stderr and again.stdout == result.stdout
    detections = folders[1] / "eval/step_30/detections.json"  # the largest file, which may have been removed
    aside = detections.rename(tmp_path / "aside.json")
    without = reproduce(tmp_path, *what, "--report-only")
    assert without.code == 0 and "detections.json: missing; no interval over images" in without.stderr
    aside.rename(detections)
    other = reproduce(tmp_path, *[word for word in what if word != "data.test_images=4"])
    programs.assert_contract(other, 2, "seed0: holds a run under other settings")
    more = ["--report-only", "--seeds", 0, 7, "--name", "more", "--results", "kept"]
    partly = reproduce(tmp_path, *what, *more)
    assert partly.code == 0 and "4 runs, 2 to do" in partly.stderr and not (folders[0].parent / "seed7").exists()
    kept = tmp_path / "kept/detect_f_tiny/seed0.json"
    own = json.loads(kept.read_text())
    assert own["run"]["steps"] == 30 and "split: conv5" in own["run"]["config"]
    assert own["metrics"] == json.loads((folders[1] / "eval/step_30/results.json").read_text())["metrics"]
    settings = folders[1] / "config.yaml"  # as a version without this setting wrote it
    settings.write_text("".join(line for line in settings.open() if not line.startswith("  tensorboard:")))
    kept.write_text(json.dumps(own | {"run": own["run"] | {"config": settings.read_text()}}, indent=1) + "\n")
    assert reproduce(tmp_path, *what, *more).code == 0
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"detections": -1}, indent=1) + "\n")
    programs.assert_contract(reproduce(tmp_path, *what, *more), 2, "seed0.json: holds another result")
    assert len(list(tmp_path.glob("kept/*/seed*.json"))) == 2 and (tmp_path / "kept/reports/more.md").exists()


@pytest.mark.parametrize(
    "args,code,named",
    [
        (["--table", 4, "--data", "coco"], 2, "table 4: not on coco"),
        (["--table", 6], 2, "--table"),
        (["--table", 1, "--config", "x.yaml"], 2, "not allowed with"),
        (["--table", 1, "--scale", 0], 2, "--scale: above 0"),
        (["--table", 1, "--jobs", 0], 2, "--jobs: at least 1"),
        (["--table", 1, "--slurm", "timeout_min:5"], 2, "--slurm: goes with --submit"),
        (["--table", 1, "--submit", "local", "--slurm", "timeout_min"], 2, "expected name:value"),
        (["--table", 1, "--name", "a/b"], 2, "--name: the beginning"),
        (["--table", 3, "--torchvision"], 2, "is not torchvision's FasterRCNN; set model.split=none"),
        (["--table", 1, "--results", "/dev/null"], 2, "--results: not a folder"),
        (["--table", 1, "run.seed=3"], 2, "run.seed is set by it"),
        (["--table", 1, "train.stepz=3"], 2, "did you mean 'train.steps'"),
        (["--config", "nowhere.yaml"], 2, "nowhere.yaml"),
    ],
    ids=str,
)
def test_a_mistake_is_reported_before_anything_runs(args, code, named, tmp_path):
    programs.assert_contract(reproduce(tmp_path, *args), code, named)
    assert not (tmp_path / "runs").exists()


def test_a_table_nobody_has_run_says_so(tmp_path):
    result = reproduce(tmp_path, "--table", 4, "--data", "voc", "--report-only")
    assert result.code == 0 and "| ResNet101(G-RCN) | 63.0 | not run |" in result.stdout
    assert "| ResNet50-det(Baseline), measured | not run |" in result.stdout


def test_runs_that_fail_are_reported_with_their_exit_code(tmp_path):
    missing = ["--table", 2, "--data", "voc", "--seeds", 0, "data.root=nowhere"]
    programs.assert_contract(reproduce(tmp_path, *missing), 2, "table 2: not on voc")
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"base: {ROOT}/configs/_base/tiny.yaml\ndata: {{format: voc, root: nowhere, train: [a], test: [a]}}\n"
    )
    result = reproduce(tmp_path, "--config", config, "--seeds", 0, "run.device=cpu")
    assert result.code == 3 and "nowhere" in result.stderr and "| mine | not run |" in result.stdout
