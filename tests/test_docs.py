"""The code in docs/own_detector.md runs, made short."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHORT = {
    "steps, device = 1000": "steps, device = 1",
    '"configs/shapes/faster_rcnn_tiny.yaml"': f'"{ROOT}/configs/shapes/faster_rcnn_tiny.yaml", '
    '["data.size=64", "data.train_images=4", "data.test_images=2"]',
    "min_size=128": "min_size=64",
}
BLOCKS = [
    (page.name, section.partition("\n")[0], code)
    for page in [ROOT / "docs/own_detector.md"]
    for section in page.read_text().split("\n## ")
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
]


@pytest.mark.parametrize("page,heading,code", BLOCKS, ids=[f"{page}: {heading}" for page, heading, _ in BLOCKS])
def test_an_example_runs(page, heading, code, tmp_path, monkeypatch):
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 30
    monkeypatch.chdir(tmp_path)
    for long, short in SHORT.items():
        code = code.replace(long, short)
    torch.manual_seed(0)
    names = {}
    exec(compile(code, page, "exec"), names)
    shown = {
        "Global context in torchvision's detector": lambda: "boxes" in names["detections"][0],
        "The split backbone under your own heads": lambda: (
            (names["scores"].shape, names["deltas"].shape) == ((1, 21), (1, 4))
            and {task: (spec.channels, spec.stride) for task, spec in names["specs"].items()}
            == {"cls": (512, 16), "loc": (512, 8)}
        ),
        "Your backbone under our RPN and RoI heads": lambda: len(names["losses"]) == 4,
        "Our training and evaluation with torchvision's detector": lambda: names["metrics"]["coco_ap"] is not None,
    }
    assert shown[heading]()


def test_every_example_is_found():
    assert len(BLOCKS) == (ROOT / "docs/own_detector.md").read_text().count("```python") == 4
