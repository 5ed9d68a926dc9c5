"""The code in docs/own_detector.md runs, made short, and that in docs/data.md writes what our readers read."""

import json
import re
import sys
from pathlib import Path

import documented
import pytest
import stand_ins
import torch
import yaml
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from grcn.data import coco, voc, yolo
from grcn.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
SHORT = {
    "steps, device, folder = 20": "steps, device, folder = 1",
    '"configs/': f'"{ROOT}/configs/',
    "steps, folder, device = 20": "steps, folder, device = 1",
    '"data.test_images=20"': '"data.size=64", "data.train_images=8", "data.test_images=2"',
    "min_size=128": "min_size=64",
    "num_classes=91)": "num_classes=91, min_size=64)",
}
BLOCKS = [
    (page.name, section.partition("\n")[0], code)
    for page in (ROOT / "docs/own_detector.md", ROOT / "docs/pyramid.md")
    for section in page.read_text().split("\n## ")
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
]
# The settings beside a block.
SETTINGS = {
    heading: yaml.safe_load(found[1])
    for heading, _, text in (s.partition("\n") for s in (ROOT / "docs/own_detector.md").read_text().split("\n## "))
    if (found := re.search(r"```yaml\n(.*?)```", text, re.DOTALL))
}
DATA = {
    language: code
    for language, code in re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
}
# Python blocks of each page that a test runs: here, in test_readme.py (README, evaluation), test_other_tools.py,
# test_walkthrough.py, apps/test_export.py and apps/test_analyze_compare_files.py.
TESTED = {
    "README.md": 1, "compare.md": 3, "evaluation.md": 1, "export.md": 3, "other_tools.md": 7, "own_detector.md": 9,
    "pyramid.md": 1, "the_split.md": 1,
}  # fmt: skip


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
            and {task: (spec.channels, spec.strides) for task, spec in names["specs"].items()}
            == {"cls": (512, (16,)), "loc": (512, (8,))}
        ),
        "Your backbone under our RPN and RoI heads": lambda: len(names["losses"]) == 4,
        "Your loss or context in a detector from a config": lambda: (
            names["state"]["step"] == 1 and names["again"].roi_heads.box_loss.func is names["giou"]
        ),
        "Our training and evaluation with torchvision's detector": lambda: names["metrics"]["coco_ap"] is not None,
        "Your data set and your augmentation in our loader": lambda: (
            len(names["images"]) == 4 and names["targets"][0]["boxes"].shape == (1, 4)
        ),
        "In Python": lambda: names["specs"]["loc"].strides == (4, 8, 16, 32, 64),
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
    counts = [(page.name, page.read_text(encoding="utf-8").count("```python")) for page in documented.PAGES]
    assert {name: count for name, count in counts if count} == TESTED
    assert len(BLOCKS) == TESTED["own_detector.md"] + TESTED["pyramid.md"]


def load_examples(root, document, xml):
    """Reads the JSON and the XML of docs/data.md, or what was made of them."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations/instances_train.json").write_text(json.dumps(document))
    for folder in ("Annotations", "ImageSets/Main"):
        (root / "mine" / folder).mkdir(parents=True, exist_ok=True)
    (root / "mine/ImageSets/Main/trainval.txt").write_text("a\n")
    (root / "mine/Annotations/a.xml").write_text(xml)
    return coco.load(root, ["train"]), voc.load(root, ["mine/trainval"])


def test_the_example_files_are_one_box(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    document, xml = json.loads(DATA["json"]), DATA["xml"]
    tables = load_examples(tmp_path, document, xml)
    assert all(table.boxes.tolist() == [[100, 50, 300, 200]] and table.classes == ("cup",) for table in tables)
    optional = ("area", "iscrowd")
    for key, (record,) in document.items():
        for field in record:
            rest = document | {key: [{name: value for name, value in record.items() if name != field}]}
            if field in optional or (key, field) == ("annotations", "id"):  # which is missed in a warning
                assert load_examples(tmp_path, rest, xml)[0].fingerprint() == tables[0].fingerprint()
            else:
                with pytest.raises(DataError):
                    load_examples(tmp_path, rest, xml)
    for tag in set(re.findall(r"<(\w+)>\w+</", xml)):
        rest = re.sub(f"<{tag}>.*</{tag}>", "", xml)
        if tag == "difficult":
            assert load_examples(tmp_path, document, rest)[1].fingerprint() == tables[1].fingerprint()
        else:
            with pytest.raises(DataError):
                load_examples(tmp_path, document, rest)


def test_the_example_of_yolos_layout_is_the_same_box(tmp_path):
    (example,) = re.findall(r"```yaml\n(path: .*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    (tmp_path / "data.yaml").write_text(example)
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", (640, 480)).save(tmp_path / f"images/{split}/a.jpg")
        (tmp_path / f"labels/{split}/a.txt").write_text(DATA["text"])
        table = yolo.load(tmp_path, [split])
        assert table.boxes.round(3).tolist() == [[100, 50, 300, 200]] and table.classes == ("cup", "nut")
