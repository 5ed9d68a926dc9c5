from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_data import set_field
from pycocotools.coco import COCO

from grcn.catalog import COCO_CLASSES
from grcn.data import coco
from grcn.data.coco_result_ids import MADE_UP
from grcn.data.faults import Notes
from grcn.errors import DataError

OFFICIAL_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})


def document() -> dict[str, Any]:
    """Three images; categories 7 and 3 in this order; a crowd and an image without objects."""
    return {
        "info": {},
        "images": [
            {"id": 30, "file_name": "c.jpg", "width": 40, "height": 30},
            {"id": 10, "file_name": "a.jpg", "width": 20, "height": 50},
            {"id": 20, "file_name": "sub/b.jpg", "width": 64, "height": 48},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            annotation(0, 30, 7, [0.5, 1, 10.25, 20]),
            annotation(5, 10, 3, [1, 1, 5, 5]) | {"iscrowd": 1, "segmentation": {"counts": "~"}},
            annotation(2, 30, 3, [3, 4, 5, 6]) | {"segmentation": [[1e999, None]]},
        ],
    }


def annotation(number: int, image: int, category: int, bbox: list[float]) -> dict[str, Any]:
    area = 0.5 * bbox[2] * bbox[3]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
    }


def write(root: Path, content: object, split: str = "train") -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    path = root / "annotations" / f"instances_{split}.json"
    # json writes 1e999 as Infinity, which JSON does not know; the number itself is legal there.
    path.write_text(json.dumps(content).replace("Infinity", "1e999"))
    return path


def test_reads_a_split(tmp_path):
    write(tmp_path, document())
    table = coco.load(tmp_path, ["train"])
    assert table.name == "train"
    assert table.classes == ("dog", "cat")
    assert table.category_ids.tolist() == [3, 7]
    assert table.image_ids.tolist() == [30, 10, 20]
    assert table.path(2) == str(tmp_path / "train/sub/b.jpg")
    assert table.sizes.tolist() == [[30, 40], [50, 20], [48, 64]]
    assert table.offsets.tolist() == [0, 2, 3, 3]
    assert table.boxes.tolist() == [[0.5, 1, 10.75, 21], [3, 4, 8, 10], [1, 1, 6, 6]]
    assert table.labels.tolist() == [2, 1, 1]
    assert table.area.tolist() == [102.5, 15, 12.5]
    assert table.iscrowd.tolist() == [False, False, True]
    assert not table.difficult.any()


def test_reads_what_pycocotools_reads(tmp_path):
    random = np.random.default_rng(0)
    content = document()
    content["images"] = [
        {"id": int(number), "file_name": f"{number}.jpg", "width": 90, "height": 80}
        for number in random.permutation(50)
    ]
    content["categories"] = [{"id": int(k), "name": f"c{k}"} for k in random.permutation(30)]
    corner, size = random.uniform(0, 40, (2, 400, 2)).round(2)
    content["annotations"] = [
        annotation(k + 1, int(random.integers(50)), int(random.integers(30)), [*corner[k], *size[k]])
        for k in range(400)
    ]
    path = write(tmp_path, content)
    table = coco.load(tmp_path, ["train"])
    reference = COCO(str(path))
    categories = reference.loadCats(reference.getCatIds())
    assert {cat["id"]: cat["name"] for cat in categories} == dict(
        zip(table.category_ids.tolist(), table.classes, strict=True)
    )
    for row, image_id in enumerate(table.image_ids.tolist()):
        objects = table.objects(row)
        theirs = reference.loadAnns(reference.getAnnIds(imgIds=[image_id]))
        boxes = np.array([ann["bbox"] for ann in theirs], float).reshape(-1, 4)
        ours = table.boxes[objects]
        assert np.array_equal(ours[:, :2], boxes[:, :2])
        assert np.allclose(ours[:, 2:] - ours[:, :2], boxes[:, 2:], rtol=1e-12)
        ids = table.category_ids[table.labels[objects] - 1]
        assert ids.tolist() == [ann["category_id"] for ann in theirs]
        assert np.allclose(table.area[objects], [ann["area"] for ann in theirs])


def test_the_eighty_classes_come_in_the_order_of_cocos_ids(tmp_path):
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == len(OFFICIAL_IDS) == 80
    by_id = dict(zip(OFFICIAL_IDS, COCO_CLASSES, strict=True))
    # Anchors of the published list, whose ids run to 90 with gaps.
    anchors = {1: "person", 13: "stop sign", 27: "backpack", 44: "bottle", 62: "chair"}
    anchors |= {67: "dining table", 70: "toilet", 72: "tv", 84: "book", 90: "toothbrush"}
    assert {number: by_id[number] for number in anchors} == anchors
    content = document() | {"annotations": []}
    content["categories"] = [{"id": k, "name": name} for k, name in reversed(by_id.items())]
    write(tmp_path, content)
    table = coco.load(tmp_path, ["train"])
    assert table.classes == COCO_CLASSES
    assert table.category_ids.tolist() == OFFICIAL_IDS


def test_splits_are_joined_and_repeated_images_refused(tmp_path):
    write(tmp_path, document())
    other = document()
    for image in other["images"]:
        image["id"] += 100
    for ann in other["annotations"]:
        ann["image_id"] += 100
    write(tmp_path, other, "more")
    table = coco.load(tmp_path, ["train", "more"])
    assert table.name == "train+more"
    assert table.image_ids.tolist() == [30, 10, 20, 130, 110, 120]
    assert table.files[3] == b"more/c.jpg"
    assert table.offsets.tolist() == [0, 2, 3, 3, 5, 6, 6]
    write(tmp_path, document(), "more")
    with pytest.raises(DataError, match=r"train\+more: an image id is listed twice \(got 10\); remove .* or number"):
        coco.load(tmp_path, ["train", "more"])


def test_many_annotations_without_image_are_reported_in_seconds(tmp_path):
    ids = np.random.default_rng(0).permutation(20_000).tolist()
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 64, "height": 48} for k in ids]
    annotations = [
        {"id": k, "image_id": 0 if k == 0 else 10**6 + k, "category_id": 1, "bbox": [1, 2, 3, 4]} for k in range(3000)
    ]
    write(tmp_path, {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]})
    faults = []
    table = coco.load(tmp_path, ["train"], report=faults.append)
    assert len(faults) == 2999 and len(table.boxes) == 1
    assert "unknown (got 1000001, the file has [0, 1, 2," in str(faults[0])


def test_given_classes_set_the_labels(tmp_path):
    path = write(tmp_path, document())
    table = coco.load(tmp_path, ["train"], ["cat", "dog"])
    assert table.labels.tolist() == [1, 2, 2]
    assert table.category_ids.tolist() == [7, 3]
    with pytest.raises(DataError, match=r"unknown class \(got 'cat'\)") as error:
        coco.load(tmp_path, ["train"], ["dog"])
    assert str(path) in str(error.value)
    notes = Notes()
    table = coco.load(tmp_path, ["train"], ["cow", "cat", "dog"], notes=notes)
    assert table.labels.tolist() == [2, 3, 3] and table.category_ids.tolist() == [MADE_UP, 7, 3]
    assert list(notes.counts.values()) == [1] and "does not list" in next(iter(notes.counts))
    unused = document()
    unused["categories"].append({"id": 1, "name": "everything"})
    write(tmp_path, unused)
    assert coco.load(tmp_path, ["train"], ["cat", "dog"]).labels.tolist() == [1, 2, 2]


def test_unset_fields_are_filled_in(tmp_path):
    content = document()
    for ann in content["annotations"]:
        del ann["area"], ann["iscrowd"]
    write(tmp_path, content)
    table = coco.load(tmp_path, ["train"])
    assert table.area.tolist() == [205, 30, 25]
    assert not table.iscrowd.any()


def test_a_file_under_two_ids_is_allowed_and_said(tmp_path, caplog):
    path = write(tmp_path, changed("images", 1, "file_name", to="c.jpg"))
    assert len(coco.load(tmp_path, ["train"])) == 3
    assert f"{path}: 1 files are listed again, under other ids" in caplog.text


def test_boxes_without_a_size_are_dropped_and_counted(tmp_path, caplog):
    content = document()
    content["annotations"][0]["bbox"][3] = 0
    write(tmp_path, content)
    assert len(coco.load(tmp_path, ["train"]).boxes) == 2
    assert "1 boxes have no width or height, dropped" in caplog.text
    assert "instances_train.json: annotation 0" in caplog.text


def changed(*keys: Any, to: object) -> dict[str, Any]:
    return set_field(document(), *keys, to=to)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"not an object \(got 'list'\)"),
        (changed("images", to=KeyError), r"#/images: not a list \(got 'NoneType'\)"),
        (changed("images", to=[]), "#/images: an empty list"),
        (changed("annotations", to=None), "#/annotations: not a list"),
        (changed("annotations", 1, to=3), r"#/annotations/1: not an object \(got 3\)"),
        (changed("images", 1, "id", to=30), r"#/images/1/id: used before \(got 30\)"),
        (changed("images", 1, "id", to=""), "#/images/1/id: missing or not of type int"),
        (changed("images", 1, "id", to=2**63), "#/images/1/id: too large"),
        (changed("images", 1, "width", to=0), r"#/images/1: no size \(got 0 x 50\)"),
        (changed("images", 1, "width", to=2**31), r"#/images/1: no size of an image \(got 2147483648 x"),
        (changed("categories", to=[]), "#/categories: an empty list"),
        (changed("categories", 1, "name", to="a\nb"), r"#/categories/1/name: not a class name \(got 'a\\nb'"),
        (changed("images", 1, "height", to=KeyError), r"#/images/1: no size \(got 20 x 0\), and no image"),
        (changed("images", 2, "file_name", to="../x.jpg"), "#/images/2/file_name: not a path below"),
        (changed("images", 2, "file_name", to="/x.jpg"), "#/images/2/file_name: not a path below"),
        (changed("images", 2, "file_name", to="\x1b]0;"), r"got '\\x1b\]0;'"),
        (changed("categories", 1, "id", to=7), "#/categories/1/id: used before"),
        (changed("categories", 1, "name", to="cat"), "#/categories/1/name: used before"),
        (changed("annotations", 2, "id", to=2**63), "#/annotations/2/id: too large"),
        (changed("annotations", 1, "image_id", to=11), r"image_id: unknown .got 11, .*\[10, 20, 30\]"),
        (changed("annotations", 1, "category_id", to=4), r"category_id: unknown .got 4, .*\[3, 7\]"),
        (changed("annotations", 1, "category_id", to=True), "category_id: missing or not of type"),
        (changed("annotations", 1, "iscrowd", to=2), "#/annotations/1/iscrowd: unknown"),
        (changed("annotations", 1, "area", to="nine"), "#/annotations/1/area: missing or not"),
        (changed("annotations", 1, "area", to=-1), "annotation 5: area is no area"),
        (changed("annotations", 1, "bbox", to=KeyError), "#/annotations/1/bbox: missing; compute boxes"),
        (changed("annotations", 1, "bbox", to=[1, 2, 3]), "#/annotations/1/bbox: not four numbers"),
        (changed("annotations", 1, "bbox", to=[1, 2, 3, "4"]), "/1/bbox: not four numbers"),
        (changed("annotations", 1, "bbox", to=[1, 2, 3, True]), "/1/bbox: not four numbers"),
        (changed("annotations", 1, "bbox", to=[[1, 2, 3, 4]]), "/1/bbox: not four numbers"),
        (changed("annotations", 1, "bbox", 0, to=10**400), "/1/bbox: too large"),
        (changed("annotations", 1, "bbox", 0, to=float("inf")), "/1/bbox: too large"),
        (changed("annotations", 1, "bbox", 2, to=-3), "annotation 5: box is reversed"),
        (changed("annotations", 1, "bbox", 0, to=900), "annotation 5: box lies outside"),
    ],
)
def test_broken_files_are_one_line(tmp_path, content, message):
    path = write(tmp_path, copy.deepcopy(content))
    with pytest.raises(DataError, match=message) as error:
        coco.load(tmp_path, ["train"])
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) - len(str(path)) < 200


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"train\.json:1:1: broken JSON"),
        (b'{"images": [\n{"id": 1,}]}', r"train\.json:2:\d+: broken JSON"),
        (b'{"images": [], "images": []}', "a key twice in an object with keys images, images"),
        (b'{"images": [NaN]}', r"images/0: not an object .got nan"),
        (b"[" * 100_000, "bad JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "bad JSON"),
        ("é".encode("latin-1"), "not UTF-8"),
        (b"\xff\xfe{", "not UTF-16"),
    ],
)
def test_files_that_are_no_json(tmp_path, data, message):
    write(tmp_path, None).write_bytes(data)
    with pytest.raises(DataError, match=message):
        coco.load(tmp_path, ["train"])


def test_a_byte_order_mark_is_skipped_and_a_missing_file_named(tmp_path):
    path = write(tmp_path, document())
    path.write_bytes(path.read_text().encode("utf-8-sig"))
    assert len(coco.load(tmp_path, ["train"])) == 3
    with pytest.raises(DataError, match=r"annotations/instances_val\.json: no such file; set"):
        coco.load(tmp_path, ["val"])


def detections(table, count: int, dtype: type) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    corner, side = random.uniform(0, 20, (2, count, 2))
    return {
        "rows": random.integers(0, len(table), count),
        "boxes": np.concatenate([corner, corner + side], 1).astype(dtype),
        "scores": random.uniform(0, 1, count).astype(dtype),
        "labels": random.integers(1, len(table.classes) + 1, count),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_result_files_survive_a_round_trip(tmp_path, dtype):
    write(tmp_path, document())
    table = coco.load(tmp_path, ["train"])
    written = detections(table, 200, dtype)
    coco.write_detections(tmp_path / "results.json", table, written)
    read = coco.read_detections(tmp_path / "results.json", table)
    for key in ("rows", "labels", "scores"):
        assert np.array_equal(read[key], written[key])
    assert np.abs(read["boxes"] - written["boxes"]).max() < 1e-14
    if dtype == np.float32:
        assert np.array_equal(read["boxes"].astype(dtype), written["boxes"])


def test_result_files_are_those_of_pycocotools(tmp_path):
    path = write(tmp_path, document())
    table = coco.load(tmp_path, ["train"])
    written = detections(table, 20, np.float32)
    coco.write_detections(tmp_path / "results.json", table, written)
    results = COCO(str(path)).loadRes(str(tmp_path / "results.json"))
    anns = results.loadAnns(range(1, 21))
    assert [ann["score"] for ann in anns] == written["scores"].tolist()
    assert [ann["image_id"] for ann in anns] == table.image_ids[written["rows"]].tolist()
    names = [results.cats[ann["category_id"]]["name"] for ann in anns]
    assert names == [table.classes[label - 1] for label in written["labels"]]
    x, y, w, h = anns[0]["bbox"]
    assert np.allclose([x, y, x + w, y + h], written["boxes"][0], atol=1e-12)


def test_no_detections_are_an_empty_list(tmp_path):
    write(tmp_path, document())
    table = coco.load(tmp_path, ["train"])
    coco.write_detections(tmp_path / "results.json", table, detections(table, 0, np.float32))
    assert json.loads((tmp_path / "results.json").read_text()) == []
    assert coco.read_detections(tmp_path / "results.json", table)["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 2**63}, r"results\.json#/1/image_id: too large"),
        ({"image_id": "\x1b"}, r"results\.json#/1/image_id: missing or not of type int"),
        ({"category_id": "cat"}, r"results\.json#/1/category_id: missing or not of type int"),
        ({"score": None}, r"results\.json#/1/score: missing or not of type float or int"),
        ({"bbox": [1, 2]}, r"results\.json#/1/bbox: not four numbers"),
        ({"bbox": [1, 2, -3, 4]}, r"results\.json#/1: not a box and a score"),
    ],
)
def test_broken_result_files(tmp_path, change, message):
    write(tmp_path, document())
    table = coco.load(tmp_path, ["train"])
    good = {"image_id": 30, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 1}
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good, good | change]))
    with pytest.raises(DataError, match=message):
        coco.read_detections(path, table)
    path.write_text(json.dumps(good))
    with pytest.raises(DataError, match="not a list"):
        coco.read_detections(path, table)
