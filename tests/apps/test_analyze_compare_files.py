"""Result files as other detectors write them, and the code in docs/compare.md that writes them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import documented
import numpy as np
import pytest
import torch
from coco_made import document, each, write
from torchvision.models import detection
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from grcn.data import coco
from grcn.data.annotations import Annotations
from grcn.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
BOX, SCORE = [4.257, 5.5, 20.125, 10.0], 0.87512
NAMES = ("person", "bicycle", "car", "toothbrush")


def table_of(root: Path, ids: tuple[int, ...] = (1, 2, 3, 90), files: tuple[str, ...] = ()) -> Annotations:
    """Two images, of ids 139 and 285 and COCO's names of files, with an object of each class in each."""
    names = files or ("000000000139.jpg", "000000000285.jpg")
    images = [dict(id=n, file_name=name, width=64, height=48) for n, name in zip((139, 285), names, strict=True)]
    annotations = [
        dict(id=4 * n + place, image_id=image["id"], category_id=category, bbox=[4, 5, 20, 10], area=200, iscrowd=0)
        for n, image in enumerate(images, start=1)
        for place, category in enumerate(ids)
    ]
    categories = [dict(id=n, name=name) for n, name in zip(ids, NAMES, strict=True)]
    write(root, document(images=images, annotations=annotations, categories=categories))
    return coco.load(root, ["train"])


def read(root: Path, table: Annotations, records: list[dict[str, Any]], strict: bool = False) -> dict[str, np.ndarray]:
    (root / "found.json").write_text(json.dumps(records))
    return coco.read_detections(root / "found.json", table, strict)


def record(image_id: Any, category_id: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": BOX, "score": SCORE, **more}


MASK = {"size": [48, 64], "counts": "PPYo1"}
WRITTEN = {
    # Numbers of files, three and five decimals; newer ones write file_name too.
    "ultralytics": [record(139, 1), record(285, 90)],
    "ultralytics, with names": [
        record(139, 1, file_name="000000000139.jpg"),
        record(285, 90, file_name="000000000285.jpg"),
    ],
    "rfdetr, by the page": [record("000000000139.jpg", 1), record("000000000285.jpg", 90)],
    "dfine": [record(139, 1, bbox=[4.257000923156738, 5.5, 20.125, 10.0]), record(285, 90)],
    "detectron2, with masks": [record(139, 1, segmentation=MASK), record(285, 90, segmentation=MASK)],
    "torchvision": [record(139, 1), record(285, 90)],
    "mmdetection": [dict(reversed(one.items())) for one in (record(139, 1), record(285, 90))],
    "ids as text": [record("139", "1"), record("285", "90")],
    "stems": [record("000000000139", 1), record("000000000285", 90)],
    "decimals": [record(139.0, 1.0), record(285.0, 90.0)],
    # Places among the classes.
    "from 0": [record(139, 0), record(285, 3)],
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_each_format_is_read(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = table_of(tmp_path)
    found = read(tmp_path, table, WRITTEN[kind])
    assert found["rows"].tolist() == [0, 1] and found["labels"].tolist() == [1, 4]
    x, y, width, height = BOX
    assert found["boxes"][1] == pytest.approx([x, y, x + width, y + height]) and found["scores"][0] == SCORE
    otherwise = kind in ("rfdetr, by the page", "ids as text", "stems", "decimals", "from 0")
    assert bool(caplog.messages) == otherwise
    if otherwise:
        assert "2 values of" in caplog.text
        with pytest.raises(DataError, match="are refused"):
            read(tmp_path, table, WRITTEN[kind], strict=True)


def test_numbers_in_names_of_files_are_read_where_they_are_no_ids(tmp_path: Path) -> None:
    table = table_of(tmp_path, files=("train/000007.jpg", "train/000285.jpg"))
    found = read(tmp_path, table, [record(7, 1), record(285, 2)])
    assert found["rows"].tolist() == [0, 1]
    # 139 is an id and no number of a file, so 7 is an image that the data lack.
    assert read(tmp_path, table, [record(7, 1), record(139, 2)])["rows"].tolist() == [0]
    assert read(tmp_path, table, [record(7, 1), record(139, 2)])["labels"].tolist() == [2]


def test_the_name_counts_where_a_number_is_of_another_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ultralytics takes 285 from the name of a file whose id is 139."""
    table = table_of(tmp_path, files=("285.jpg", "000.jpg"))
    records = [
        record(285, 1, file_name="285.jpg"),
        record(0, 2, file_name="000.jpg"),
        record(139, 3, file_name="139.jpg"),  # which is not there
    ]
    assert read(tmp_path, table, records)["rows"].tolist() == [0, 1]
    for text in ("1 values of image_id of another image", "1 values of image_id that are no ids", "1 detections left"):
        assert text in caplog.text
    # Names that are of no image say nothing.
    assert read(tmp_path, table, [record(139, 1, file_name="a.jpg")])["rows"].tolist() == [0]


def test_images_called_by_names_are_found_by_numbers(tmp_path: Path) -> None:
    content = document()
    names = {5: "000012", 6: "b"}
    content["images"] = each(content["images"], id=names.get, file_name=lambda _: None)
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.jpg"
    content["annotations"] = each(content["annotations"], image_id=names.get)
    write(tmp_path, content)
    table = coco.load(tmp_path, ["train"])
    assert read(tmp_path, table, [record(12, 1), record("b", 2), record(13, 2)])["rows"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("ids", "categories", "labels"),
    [
        ((0, 1, 2, 3), (1, 2, 4), [1, 2, 4]),  # from 1, as there is a 4
        ((0, 1, 2, 3), (0, 3), [1, 4]),
        ((0, 1, 2, 3), (1, 2), [2, 3]),  # the data's own
        ((1, 2, 3, 4), (0, 1, 3), [1, 2, 4]),
        ((1, 2, 3, 90), (1, 3), [1, 3]),
        ((1, 2, 3, 90), (1, 50, 90), [1, 4]),  # another class is left out
        ((2, 5, 7, 9), (0, 2), [1, 3]),
        ((2, 5, 7, 9), (1, 2), None),
        ((2, 5, 7, 9), (1, 4), None),
    ],
)
def test_categories(
    ids: tuple[int, ...], categories: tuple[int, ...], labels: list[int] | None, tmp_path: Path
) -> None:
    table = table_of(tmp_path, ids)
    records = [record(139, category) for category in categories]
    if labels is None:
        with pytest.raises(DataError, match=r"found.json#/\*/category_id: neither the data's ids .* write the data's"):
            read(tmp_path, table, records)
        return
    assert read(tmp_path, table, records)["labels"].tolist() == labels


# ---------------------------------------------------------------- the page's code


def detections_by_rfdetr() -> ModuleType:
    class Detector:
        def predict(self, image: Any, threshold: float) -> Any:
            assert image.mode == "RGB" and threshold == 0.001
            x, y, width, height = BOX
            boxes = np.array([[x, y, x + width, y + height]], np.float32)
            return SimpleNamespace(xyxy=boxes, class_id=np.array([90]), confidence=np.array([SCORE], np.float32))

    module = ModuleType("rfdetr")
    module.RFDETRBase = Detector  # type: ignore[attr-defined]
    return module


def untrained_by_torchvision(weights: str, box_score_thresh: float) -> torch.nn.Module:
    """A detector that takes everything for a toothbrush."""
    assert weights == "COCO_V1"
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, min_size=64, box_score_thresh=box_score_thresh
    )
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[90] = 9.0
    return model


def evaluator_of_dfine() -> ModuleType:
    class CocoEvaluator:
        def prepare(self, predictions: Any, iou_type: str) -> list[dict[str, Any]]:
            assert iou_type == "bbox"
            return [record(image_id, 90) for image_id in predictions]

    module = ModuleType("src.data.dataset.coco_eval")
    module.CocoEvaluator = CocoEvaluator  # type: ignore[attr-defined]
    return module


TRAIN = """
from src.data.dataset.coco_eval import CocoEvaluator
if __name__ == "__main__":
    for image in (139, 285):
        assert CocoEvaluator().prepare({image: None}, "bbox")
"""


@pytest.mark.parametrize("name", ["rfdetr", "dfine", "torchvision"])
def test_the_code_of_the_page_writes_what_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path)
    images = tmp_path / "data/coco/val2017"
    images.mkdir(parents=True)
    for file in ("000000000139.jpg", "000000000285.jpg"):
        (images / file).write_bytes(documented.picture(file))
    (tmp_path / "data/coco/annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "data/coco/annotations/instances_val2017.json")
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.chdir(tmp_path)
    modules = {"rfdetr": detections_by_rfdetr(), "src.data.dataset.coco_eval": evaluator_of_dfine()}
    modules |= {parent: ModuleType(parent) for parent in ("src", "src.data", "src.data.dataset")}
    for module in modules.items():
        monkeypatch.setitem(sys.modules, *module)
    (code,) = [block for block in CODE if f'"{name}.json"' in block]
    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn", untrained_by_torchvision)
    exec(compile(code, "compare.md", "exec"), {})
    found = coco.read_detections(tmp_path / f"{name}.json", table)
    assert set(found["rows"].tolist()) == {0, 1}
    assert set(found["labels"].tolist()) == {4}
    assert name == "torchvision" or found["scores"][0] == pytest.approx(SCORE)
