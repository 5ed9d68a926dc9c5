"""COCO's average precision: pycocotools run by hand, the published figures, and VOC's flags."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from grcn.data.validate import pack
from grcn.errors import DataError, EnvironmentFault
from grcn.evaluation import coco
from grcn.evaluation.detections import check

NAMES = [
    *("coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "coco_ap_medium", "coco_ap_large"),
    *("coco_ar1", "coco_ar10", "coco_ar100", "coco_ar_small", "coco_ar_medium", "coco_ar_large"),
]
# Of the detections that the COCO API ships (see README.md of this folder).
PUBLISHED = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
PRINTED_IN_FULL = [
    *(0.5045806987249628, 0.6969727247299577, 0.5729816669904824),
    *(0.5856257209410443, 0.5193996948036719, 0.5013978986347466),
    *(0.38681277964578054, 0.5936795762842003, 0.595352982877607),
    *(0.6398109626113442, 0.5664205978994309, 0.5642905982905982),
]
BOX = (10, 10, 50, 50)


def corners(xywh):
    return np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)


def table_of(truth):
    """Packs a COCO data set; labels follow the order in which it lists its categories."""
    image_ids = [image["id"] for image in truth["images"]]
    category_ids = [category["id"] for category in truth["categories"]]
    objects = truth["annotations"]
    return pack(
        "made",
        [category["name"] for category in truth["categories"]],
        image_ids=image_ids,
        sizes=[(image["height"], image["width"]) for image in truth["images"]],
        rows=[image_ids.index(one["image_id"]) for one in objects],
        labels=[category_ids.index(one["category_id"]) + 1 for one in objects],
        boxes=corners(np.array([one["bbox"] for one in objects])),
        area=[one["area"] for one in objects],
        iscrowd=[one["iscrowd"] for one in objects],
        category_ids=category_ids,
    )


def arrays_of(truth, results):
    image_ids = [image["id"] for image in truth["images"]]
    category_ids = [category["id"] for category in truth["categories"]]
    boxes = np.array([one["bbox"] for one in results], dtype=np.float64).reshape(-1, 4)
    return {
        "rows": np.array([image_ids.index(one["image_id"]) for one in results], np.int64),
        "labels": np.array([category_ids.index(one["category_id"]) + 1 for one in results], np.int64),
        "scores": np.array([one["score"] for one in results]),
        "boxes": corners(boxes),
    }


def random_set(seed):
    """Makes a COCO data set and results: gaps in ids, crowds, equal scores, empty images."""
    rng = np.random.default_rng(seed)
    images = [{"id": int(i), "height": 300, "width": 400} for i in rng.choice(1000, rng.integers(1, 6), replace=False)]
    categories = [{"id": i, "name": f"class {i}"} for i in (18, 3, 44, 7)]
    objects, results = [], []
    for image in images[: max(1, len(images) - 1)]:
        for _ in range(rng.integers(1, 12)):
            width, height = np.round(np.exp(rng.uniform(1, 5, 2)), 2)
            if rng.random() < 0.2:
                width, height = rng.choice([32.0, 96.0], 2)
            place = np.round(rng.uniform(0, 1, 2) * (400 - width, 300 - height), 2)
            box = [*place.tolist(), float(width), float(height)]
            crowd = int(rng.random() < 0.15)
            category = int(rng.choice([18, 3, 44]))
            area = round(box[2] * box[3] * rng.choice([1.0, 0.7]), 2)
            one = {"image_id": image["id"], "category_id": category, "bbox": box}
            objects.append(one | {"id": len(objects) + 1, "area": area, "iscrowd": crowd})
            for _ in range(rng.integers(0, 4)):
                near = np.round(np.array(box) + rng.normal(0, 0.1, 4) * np.tile(box[2:], 2), 2)
                near[2:] = np.maximum(near[2:], 1.0)
                if rng.random() < 0.3:
                    near = np.array(box)
                score = round(float(rng.random()), 1)
                results.append(one | {"bbox": near.tolist(), "score": score})
    if seed % 4 == 0:  # more than 100 of one class in one image
        one = {"image_id": images[0]["id"], "category_id": 3, "bbox": [1.0, 2.0, 30.5, 40.25]}
        results += [one | {"score": round(float(rng.random()), 3)} for _ in range(130)]
    truth = {"images": images, "categories": categories, "annotations": objects}
    return truth, [results[i] for i in rng.permutation(len(results))]


def run_pycocotools(folder: Path, truth, results):
    """Scores two JSON files as its users do; returns the 12 figures and AP by category id."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO(str(folder / "truth.json"))
        evaluator = COCOeval(objects, objects.loadRes(str(folder / "results.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, 2]
    classes = {}
    for place, category in enumerate(evaluator.params.catIds):
        own = precision[:, :, place][precision[:, :, place] > -1]
        classes[category] = float(own.mean()) if own.size else None
    return [None if value == -1 else value for value in evaluator.stats.tolist()], classes


@pytest.fixture(params=["pycocotools", "hotcoco"])
def backend(request):
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")
    return request.param


@pytest.mark.parametrize("seed", range(40))
def test_equals_pycocotools_on_files(tmp_path, backend, seed):
    truth, results = random_set(seed)
    figures, classes = run_pycocotools(tmp_path, truth, results)
    result = coco.evaluate(table_of(truth), arrays_of(truth, results), backend)
    assert result["metrics"] == dict(zip(NAMES, figures, strict=True))
    for category in truth["categories"]:
        assert result["per_class"][category["name"]]["coco_ap"] == classes[category["id"]]
    assert result["backend"] == backend
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_backends_agree_to_the_bit(first):
    """Precision and recall at every threshold, of random sets with ties, crowds and difficult objects."""
    pytest.importorskip("hotcoco")
    for seed in range(first, first + 40):
        truth, results = random_set(seed)
        found = arrays_of(truth, results)
        rng = np.random.default_rng(seed)
        if seed % 2:  # as a detector gives them
            found |= {name: found[name].astype(np.float32) for name in ("boxes", "scores")}
        table = table_of(truth)
        table = replace(table, difficult=rng.random(len(table.boxes)) < rng.choice([0, 0.3, 1.0], p=[0.4, 0.5, 0.1]))
        arrays = []
        for score in (coco._score_with_hotcoco, coco._score_with_pycocotools):
            image_ids = coco._image_ids(table)
            packed = coco._results(table, check(table, found), image_ids)
            arrays.append(score(coco._ground_truth(table, image_ids), packed))
        for ours, theirs in zip(*arrays, strict=True):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float64
            assert ours.tobytes() == theirs.tobytes(), seed
        ours, theirs = (coco.evaluate(table, found, name) for name in ("hotcoco", "pycocotools"))
        assert ours | {"backend": "pycocotools"} == theirs, seed


def test_published_figures(backend):
    with np.load(Path(__file__).parent / "coco_val2014_fake100.npz") as data:
        ids = {name: data[name].tolist() for name in data.files}
        images, category_ids = data["images"], ids["category_ids"]
        row_of = {image: row for row, image in enumerate(images[:, 0].tolist())}
        label_of = {category: label for label, category in enumerate(category_ids, start=1)}
        table = pack(
            "COCO val2014, 100 images",
            [str(category) for category in category_ids],
            image_ids=images[:, 0].tolist(),
            sizes=images[:, 1:],
            rows=[row_of[image] for image in ids["object_images"]],
            labels=[label_of[category] for category in ids["object_categories"]],
            boxes=corners(data["object_boxes"]),
            area=data["object_areas"],
            iscrowd=data["object_crowds"],
            category_ids=category_ids,
        )
        found = {
            "rows": np.array([row_of[image] for image in ids["detection_images"]]),
            "labels": np.array([label_of[category] for category in ids["detection_categories"]]),
            "scores": data["detection_scores"],
            "boxes": corners(data["detection_boxes"]),
        }
    figures = list(coco.evaluate(table, found, backend)["metrics"].values())
    assert figures == PRINTED_IN_FULL
    assert [round(value, 3) for value in figures] == PUBLISHED


def test_no_detections_score_zero(make_table, make_detections, backend):
    result = coco.evaluate(make_table([(0, 1, BOX)]), make_detections([]), backend)
    assert [result["metrics"][name] for name in ("coco_ap", "coco_ap50", "coco_ar100")] == [0, 0, 0]
    assert result["metrics"]["coco_ap_small"] is None
    assert result["per_class"]["cat"] | {"coco_ap75": 0.0, "objects": 1} == result["per_class"]["cat"]
    assert result["per_class"]["dog"]["coco_ap"] is None


def test_difficult_objects_are_neither_found_nor_missed(make_table, make_detections, backend):
    table = make_table([(0, 1, (60, 60, 160, 160)), (0, 1, BOX)], difficult=[0])
    hit = (0, 1, 0.5, BOX)
    on_difficult = (0, 1, 0.9, (60, 60, 160, 165))
    inside_difficult = (0, 1, 0.9, (70, 70, 100, 100))
    assert table.difficult.tolist() == [True, False]
    for found, expected in (([hit, on_difficult], 1.0), ([hit, inside_difficult], 0.5)):
        result = coco.evaluate(table, make_detections(found), backend)
        assert result["metrics"]["coco_ap"] == pytest.approx(expected, abs=1e-12)
        assert result["per_class"]["cat"]["objects"] == 1


def test_crowds_excuse_what_lies_inside_them(make_table, make_detections, backend):
    table = make_table([(0, 1, (60, 60, 160, 160)), (0, 1, BOX)], crowd=[0])
    found = make_detections([(0, 1, 0.5, BOX), (0, 1, 0.9, (70, 70, 100, 100))])
    assert coco.evaluate(table, found, backend)["metrics"]["coco_ap"] == pytest.approx(1.0)


def test_nothing_is_printed(make_table, make_detections, backend, capfd):
    coco.evaluate(make_table([(0, 1, BOX)]), make_detections([(0, 1, 0.9, BOX)]), backend)
    assert capfd.readouterr().out == ""


def test_detections_are_checked(make_table, make_detections):
    found = make_detections([(1, 1, float("nan"), BOX)])
    with pytest.raises(DataError, match="^000001.jpg: a detection's score"):
        coco.evaluate(make_table([(0, 1, BOX)]), found)


def test_without_hotcoco(make_table, make_detections, monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    table, found = make_table([(0, 1, BOX)]), make_detections([])
    assert coco.evaluate(table, found)["backend"] == "pycocotools"
    with pytest.raises(EnvironmentFault, match=r"pip install 'grcn\[fast\]'"):
        coco.evaluate(table, found, "hotcoco")
    with pytest.raises(ValueError, match="'fastcoco'"):
        coco.evaluate(table, found, "fastcoco")


hundredths = st.integers(0, 200_000).map(lambda value: value / 100)


@given(st.tuples(hundredths, hundredths, hundredths, hundredths))
def test_boxes_of_a_file_come_back_bit_by_bit(xywh):
    box = np.array([xywh])
    assert coco.to_xywh(corners(box)).tolist() == box.tolist()
