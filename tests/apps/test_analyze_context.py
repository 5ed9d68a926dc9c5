"""Figures of the context attention: against attention that is known, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from PIL import Image
from support import CLASSES, GRCN, SMALL

from grcn.apps.analyze.context import measure_context
from grcn.build import build_model
from grcn.config.model_schema import ModelConfig
from grcn.models.detector import Detector

ROOT = Path(__file__).resolve().parents[2]
CALL = [
    "context", "--config", ROOT / "configs/shapes/grcn_tiny.yaml", "--images", "3", "model.width=8",
    "model.head.dim=16", "model.image={short: 64, max: 64}", "data.size=64", "data.test_images=4", "run.threads=1",
    "run.device=cpu",
]  # fmt: skip


def detector(**context: object) -> Detector:
    settings = SMALL | GRCN | {"context": {"on": "cls", "size": 6, **context}}
    return build_model(ModelConfig.model_validate(settings), CLASSES, seed=3).double()


def pictures(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 64, 64 + 8 * i, generator=generator).double() * (0.3 + 0.3 * i) for i in range(count)]


def test_even_attention_adds_the_mean_of_the_image() -> None:
    model = detector()
    with torch.no_grad():
        model.roi_heads.context["cls"].query.weight.zero_()
    found = measure_context(model, pictures())["cls"]
    assert len(found["images"]) == 3 and found["cells"] == 36
    for row in found["images"]:
        assert row["largest_share"] == pytest.approx(1) and row["entropy"] == pytest.approx(1)
        assert row["between_rois"] == pytest.approx(0, abs=1e-9) and row["size"] > 0 and row["rois"] > 5
    assert found["between_images"] > 0.01
    assert found["mean"]["size"] == pytest.approx(sum(row["size"] for row in found["images"]) / 3)


def test_hard_attention_looks_at_one_cell() -> None:
    """Queries and keys that are the features themselves, far apart: each RoI finds what is most like it."""
    model = detector(norm="qk")
    context = model.roi_heads.context["cls"]
    with torch.no_grad():
        for layer in (context.query, context.key):
            layer.weight.copy_(torch.eye(len(layer.weight)))
        context.temperature.fill_(1e7)
    found = measure_context(model, pictures())["cls"]["mean"]
    assert found["largest_share"] == pytest.approx(36, rel=0.01) and found["entropy"] == pytest.approx(0, abs=0.01)
    assert found["between_rois"] > 0.05


def test_what_is_added_is_measured_behind_the_gate() -> None:
    model = detector(gate="zero")
    shut = measure_context(model, pictures(2))["cls"]
    assert shut["mean"]["size"] == 0 and shut["mean"]["between_rois"] is None and shut["between_images"] is None
    with torch.no_grad():
        model.roi_heads.context["cls"].gate.fill_(2.0)
    plain = measure_context(detector(), pictures(1))["cls"]
    found = measure_context(model, pictures(1))["cls"]
    assert found["mean"]["size"] == pytest.approx(2 * plain["mean"]["size"]) and found["between_images"] is None


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    words = [*CALL, "--output-dir", tmp_path / "out", "model.context.on=both"]
    done = programs.call("tools/analyze.py", *words, folder=tmp_path)
    assert done.code == 0, done.stderr
    for text in ("context/cls: 3 images", "context/loc: 3 images", "(1: even; 196: all on one)", "between images"):
        assert text in done.stdout
    found = json.loads((tmp_path / "out/context.json").read_text())
    assert found["tasks"].keys() == {"cls", "loc"} and len(found["tasks"]["cls"]["images"]) == 3
    with Image.open(tmp_path / "out/context.png") as picture:
        assert picture.size[0] > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 50
    again = programs.call("tools/analyze.py", *words, "--json", folder=tmp_path)
    assert json.loads(again.stdout) == found


def test_behind_a_gate_of_zero_there_is_no_difference_to_report(tmp_path: Path) -> None:
    words = [*CALL, "--output-dir", tmp_path / "out", "model.context.gate=zero"]
    done = programs.call("tools/analyze.py", *words, folder=tmp_path)
    assert done.code == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if "difference between" in line] == ["-", "-"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["model.context.on=none"], 2, "model.context.on: none: there is no context to measure; set it to cls, loc"),
        (["--images", "0"], 2, "--images must be at least 1 (got 0)"),
        (["--checkpoint", "nowhere.pt"], 4, "nowhere.pt: "),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    words = [*CALL, "--output-dir", tmp_path / "out", *arguments]
    programs.assert_contract(programs.call("tools/analyze.py", *words, folder=tmp_path), code, message)
