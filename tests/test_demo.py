"""The demo: figures in percent, and the next steps."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import documented
import numpy as np
import programs
from PIL import Image


def test_the_demo_shows_what_was_measured(tmp_path: Path) -> None:
    settings = [*documented.settings("tools/demo.py"), "eval.protocols=[coco]"]
    done = programs.call("tools/demo.py", *settings, folder=tmp_path)
    assert done.code == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1].removeprefix("demo: "))
    assert list(figures["grcn"]) == ["coco_ap"] and "voc_area_ap50" not in done.stdout


def test_the_demo_shows_percent_and_names_what_it_left_and_the_next_step(tmp_path: Path) -> None:
    arguments = ["--output-dir", "runs/my demo", *documented.settings("tools/demo.py")]
    done = programs.call("tools/demo.py", *arguments, "model.roi.score_thresh=0.0", folder=tmp_path)
    assert done.code == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    figures = json.loads(last.removeprefix("demo: "))
    for method, row in {"faster_rcnn": "Faster R-CNN", "grcn": "G-RCN"}.items():
        (results,) = (tmp_path / "runs/my demo" / method).glob("eval/step_2/results.json")
        metrics = json.loads(results.read_text())["metrics"]
        shown = ("voc_area_ap50", "voc_area_ap70", "coco_ap")
        assert figures[method] == {key: round(metrics[key], 4) for key in shown}
        (line,) = [line for line in lines if line.strip().startswith(row)]
        assert line.split()[-3:] == [f"{100 * metrics[key]:.1f}" for key in shown]
        page = f"runs/my demo/{method}/report.html"
        assert f"  {page}" in lines and (tmp_path / page).exists()
    (command,) = [shlex.split(line) for line in lines if line.strip().startswith("grcn predict ")]
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photos/black.png")
    predicted = programs.call("tools/predict.py", *command[2:], folder=tmp_path)
    assert predicted.code == 0 and "1 of 1 images read" in predicted.stderr
