"""``tools/analyze.py`` as a user runs it: real processes, the built-in images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import programs
import pytest
from PIL import Image

from grcn.build import build_test_split
from grcn.config.files import load_config
from grcn.data.coco import write_detections
from grcn.evaluation.tide import ERRORS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/shapes/grcn_tiny.yaml"
SMALL = [
    "data.size=64", "model.image={short: 64, max: 64}", "model.width=8", "model.head.dim=16", "data.train_images=2",
    "data.test_images=6", "eval.pictures=2", "train.steps=1", "train.batch=2", "train.warmup=0", "run.workers=0",
    "run.threads=1", "run.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def detections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of detections: the objects of the built-in test images, every third under another class."""
    table = build_test_split(load_config(CONFIG, SMALL).data, None).table
    count = len(table.boxes)
    labels = np.where(np.arange(count) % 3, table.labels, table.labels % len(table.classes) + 1)
    found = {
        "rows": np.repeat(np.arange(len(table)), np.diff(table.offsets)),
        "boxes": table.boxes,
        "labels": labels,
        "scores": np.linspace(0.9, 0.4, count),
    }
    path = tmp_path_factory.mktemp("detections") / "found.json"
    write_detections(path, table, found)
    return path


def analyze(folder: Path, *args: object, **options: Any) -> programs.Outcome:
    return programs.call("tools/analyze.py", *args, folder=folder, **options)


def without_matplotlib() -> None:
    import sys

    sys.modules["matplotlib.figure"] = None  # type: ignore[assignment]


def test_a_file_of_detections(detections: Path, tmp_path: Path) -> None:
    args = ("errors", "--config", CONFIG, "--detections", detections, *SMALL)
    result = analyze(tmp_path, *args)
    assert result.code == 0 and "Traceback" not in result.stderr, result.stderr
    first = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line}
    folder = detections.parent / "found-errors"
    figures = json.loads((folder / "errors.json").read_text())
    for name in ERRORS:
        gain = f"{100 * figures['gains'][name]:.1f}"
        assert first[name][-5] == str(figures["counts"][name]) and first[name][-1] == gain
    wrong = -(-figures["objects"] // 3)
    assert figures["counts"] == dict.fromkeys(ERRORS, 0) | {"Cls": wrong}, "boxes are right, every third class is not"
    assert figures["oracles"]["right_class"] == pytest.approx(1) and figures["oracles"]["measured"] < 0.9
    assert sum(map(sum, figures["confusion"]["matrix"])) == figures["objects"]
    names = {path.name for path in folder.iterdir()}
    assert {"errors.json", "worst.png"} <= names
    if {"errors.png", "confusion.png"} <= names:
        assert all(min(Image.open(folder / name).size) > 300 for name in ("errors.png", "confusion.png"))
    else:
        assert "no curves drawn" in result.stderr


def test_without_detections_gains_are_not_explained_as_such(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    result = analyze(tmp_path, "errors", "--config", CONFIG, "--detections", "none.json", *SMALL, "eval.pictures=0")
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "no detections: the gains mean nothing" in lines and "if all errors" not in result.stdout


def test_json_is_all_there_is_on_stdout(detections: Path, tmp_path: Path) -> None:
    """Settings may come before flags, and neither matplotlib nor pictures are needed."""
    rest = ["--json", "--detections", detections, "--output-dir", "out", "--score-threshold", "0.8", "eval.limit=4"]
    args = ("errors", "--config", CONFIG, *SMALL, *rest, "eval.pictures=0")
    result = analyze(tmp_path, *args, patch=without_matplotlib)
    assert result.code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    figures = json.loads(line)
    assert figures == json.loads((tmp_path / "out/errors.json").read_text())
    assert (figures["images"], figures["confusion"]["score_threshold"]) == (4, 0.8)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["errors.json"]
    assert "no curves drawn: curves need matplotlib" in result.stderr


def test_a_checkpoint(tmp_path: Path) -> None:
    """It is detected with, and its results lie beside its evaluations."""
    run = programs.call("tools/train.py", "--config", CONFIG, "--output-dir", "run", *SMALL, folder=tmp_path)
    assert run.code == 0, run.stderr
    (weights,) = (tmp_path / "run").glob("best-*.pt")
    assert [path.read_bytes() for path in (tmp_path / "run/checkpoints").iterdir()] == [weights.read_bytes()]
    args = ("errors", "--config", "run/config.yaml", "--checkpoint", weights, "--json")
    result = analyze(tmp_path, *args, patch=without_matplotlib)
    assert result.code == 0, result.stderr
    figures = json.loads(result.stdout)
    written = tmp_path / f"run/eval/{weights.stem}-errors/errors.json"
    assert json.loads(written.read_text()) == figures
    results = json.loads((tmp_path / "run/eval/step_1/results.json").read_text())
    assert figures["detections"] == results["detections"]
    assert figures["oracles"]["measured"] == results["metrics"]["coco_ap"]
    changed = analyze(tmp_path, *args, "model.image.short=32")
    programs.assert_contract(changed, 2, "model.image.short: 64 -> 32", "--allow-changes")


@pytest.mark.parametrize(
    "args, code, named",
    [
        ((), 2, "required: COMMAND"),
        (("errors",), 2, "required: --config"),
        (("errors", "--config", CONFIG), 2, "--checkpoint --detections is required"),
        (("errors", "--config", CONFIG, "--detections", "d.json", "--jsn"), 2, "unrecognized arguments: --jsn"),
        (("errors", "--config", CONFIG, "--detections", "d.json", "--score-threshold", "nan"), 2, "--score-threshold"),
        (("errors", "--config", CONFIG, "--detections", "d.json", "eval.limt=3"), 2, "unknown key 'eval.limt'"),
        (("errors", "--config", CONFIG, "--detections", "d.json", "run.device=cpu"), 3, "d.json"),
        (("errors", "--config", CONFIG, "--checkpoint", "w.pt", "run.device=cpu"), 4, "w.pt"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_have_their_code(
    tmp_path: Path, args: tuple[object, ...], code: int, named: str
) -> None:
    programs.assert_contract(analyze(tmp_path, *args), code, named)


def test_a_broken_file_of_detections_is_named(detections: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_bytes(detections.read_bytes()[:200])
    result = analyze(tmp_path, "errors", "--config", CONFIG, "--detections", "cut.json", *SMALL)
    programs.assert_contract(result, 3, "cut.json")
    assert not (tmp_path / "cut-errors").exists()


def test_no_detections_at_all(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    args = ("errors", "--config", CONFIG, "--detections", "none.json", *SMALL)
    result = analyze(tmp_path, *args, patch=without_matplotlib)
    assert result.code == 0 and "Spearman -, Pearson -" in result.stdout, result.stderr
    figures = json.loads((tmp_path / "none-errors/errors.json").read_text())
    assert figures["counts"] == dict.fromkeys(ERRORS, 0) | {"Miss": figures["objects"]}
    assert (tmp_path / "none-errors/worst.png").exists()
