"""The code in docs/own_detector.md runs, made short."""

import json
import re
import sys
from pathlib import Path

import documented
import pytest
import stand_ins
import torch
import yaml
from torchvision.models.detection import fasterrcnn_resnet50_fpn

ROOT = Path(__file__).resolve().parents[1]
SHORT = {
    "steps, device, folder = 20": "steps, device, folder = 1",
    '"configs/shapes/faster_rcnn_tiny.yaml"': f'"{ROOT}/configs/shapes/faster_rcnn_tiny.yaml"',
    '["data.test_images=20"]': '["data.size=64", "data.train_images=4", "data.test_images=2"]',
    "min_size=128": "min_size=64",
    "num_classes=91)": "num_classes=91, min_size=64)",
}
BLOCKS = [
    (page.name, section.partition("\n")[0], code)
    for page in [ROOT / "docs/own_detector.md"]
    for section in page.read_text().split("\n## ")
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
]
# The settings beside a block.
SETTINGS = {
    heading: yaml.safe_load(found[1])
    for heading, _, text in (s.partition("\n") for s in (ROOT / "docs/own_detector.md").read_text().split("\n## "))
    if (found := re.search(r"```yaml\n(.*?)```", text, re.DOTALL))
}
# Python blocks of each page that a test runs: here, in test_readme.py (README, evaluation) and test_walkthrough.py.
TESTED = {"README.md": 1, "evaluation.md": 1, "own_detector.md": 7, "the_split.md": 1}


def make_files(folder: Path) -> None:
    """Two images of COCO's layout and category ids, and a state dict of torchvision's detector, of few megabytes."""
    (folder / "data/coco/annotations").mkdir(parents=True)
    (folder / "data/coco/val2017").mkdir()
    for number in (1, 2):
        (folder / f"data/coco/val2017/{number}.jpg").write_bytes(documented.picture(str(number)))
    document = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "width": 64, "height": 48} for k in (1, 2)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 90, "bbox": [4, 5, 40, 30], "area": 1200, "iscrowd": 0}
            for k in (1, 2)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}, {"id": 90, "name": "toothbrush"}],
    }
    (folder / "data/coco/annotations/instances_val2017.json").write_text(json.dumps(document))
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[[13, 83, 90]] = 4.0  # 83 is the id of nothing
    large = {
        key: torch.zeros(1).expand(value.shape) for key, value in model.state_dict().items() if value.numel() > 1e5
    }
    torch.save(model.state_dict() | large, folder / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")


@pytest.mark.parametrize("page,heading,code", BLOCKS, ids=[f"{page}: {heading}" for page, heading, _ in BLOCKS])
def test_an_example_runs(page, heading, code, tmp_path, monkeypatch):
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 30
    monkeypatch.chdir(tmp_path)
    if heading == "Torchvision's trained detector on COCO":
        make_files(tmp_path)
    for name, module in stand_ins.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
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
        "Our backbone in detectron2": lambda: stand_ins.run_in_detectron2(names, SETTINGS[heading]) is None,
        "Our backbone in mmdetection": lambda: stand_ins.run_in_mmdetection(names, SETTINGS[heading]) is None,
        "Torchvision's trained detector on COCO": lambda: (
            {2, 3} >= set(names["found"]["labels"].tolist()) > set()
            and len(names["found"]["boxes"]) == len(names["found"]["labels"])
            and names["metrics"]["coco_ap"] is not None
        ),
    }
    assert shown[heading]()
    if heading == "Our training and evaluation with torchvision's detector":
        code = code.replace("folder = 1", "folder = 2")
        exec(compile(code, page, "exec"), names)
        lines = (tmp_path / "runs/fpn/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2] and names["start"] == 1


def test_every_example_is_found():
    found = {page.name: page.read_text(encoding="utf-8").count("```python") for page in documented.PAGES}
    assert {page: count for page, count in found.items() if count} == TESTED
    assert len(BLOCKS) == TESTED["own_detector.md"]
