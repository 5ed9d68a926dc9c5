"""Values, records and files of COCO's JSON that deviate from the format: each is read and counted."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_made import FILE, document, each, read, write
from PIL import Image

from grcn.config.schema import FilesDataConfig
from grcn.data import coco, coco_json
from grcn.data.annotations import Annotations
from grcn.data.images import FileImages
from grcn.errors import DataError


def plain(tmp_path: Path) -> Annotations:
    write(tmp_path / "plain", document(), "plain/train/im5.jpg")
    table, counts = read(tmp_path / "plain")
    assert counts == {}
    return table


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


IDS: dict[str, Callable[[Any], Any]] = {"text": str, "decimals": float, "text of decimals": lambda n: f"{n}.0"}


@pytest.mark.parametrize("name", IDS)
def test_numbers_that_are_written_otherwise_are_the_same_table(tmp_path, name):
    change, content = IDS[name], document()
    written = document(
        images=each(content["images"], id=change, width=change, height=change),
        annotations=each(content["annotations"], id=change, image_id=change, category_id=change, area=str),
        categories=each(content["categories"], id=change),
    )
    write(tmp_path, written)
    table, counts = read(tmp_path)
    assert table.fingerprint() == plain(tmp_path).fingerprint()
    columns = ("images/id", "images/width", "images/height", "annotations/id", "annotations/image_id",
               "annotations/category_id", "annotations/area", "categories/id")  # fmt: skip
    assert counts == {f"values of {column} written as text or decimals": 2 for column in columns}


@pytest.mark.parametrize(("value", "crowd"), [(False, False), (None, False), (0.0, False), ("0", False), ("", False),
                                              (True, True), (1.0, True), ("1", True), ("true", True)])  # fmt: skip
def test_flags(tmp_path, value, crowd):
    write(tmp_path, document(annotations=each(document()["annotations"], iscrowd=value)))
    table, counts = read(tmp_path)
    assert table.iscrowd.tolist() == [crowd, crowd]
    assert counts == {"values of annotations/iscrowd other than 0 and 1": 2}


@pytest.mark.parametrize("value", [None, math.nan, ""])
def test_areas_that_are_none_are_those_of_the_boxes(tmp_path, value):
    write(tmp_path, document(annotations=each(document()["annotations"], area=value)))
    table, counts = read(tmp_path)
    assert table.area.tolist() == [200, 200]
    assert counts == {"values of annotations/area that are null or NaN": 2}


def test_nobody_needs_the_ids_of_annotations(tmp_path, caplog):
    annotations = document()["annotations"]
    annotations[1]["bbox"] = [4, 5, 0, 10]
    for change, kind in (({"id": 7}, "1 annotations with the id of an"), ({"id": None}, "2 annotations without a")):
        write(tmp_path, document(annotations=each(annotations, **change)))
        assert len(coco.load(tmp_path, ["train"]).boxes) == 1
        assert kind in caplog.text and f"{FILE}#/annotations/1)" in caplog.text
        caplog.clear()


def test_images_may_be_called_by_names(tmp_path):
    names = {5: "3f2a-9b", 6: "000123"}
    content = document(
        images=each(document()["images"], id=names.get),
        annotations=each(document()["annotations"], image_id=names.get),
    )
    write(tmp_path, content)
    table, counts = read(tmp_path)
    assert table.result_ids() == ["3f2a-9b", "000123"] and table.labels.tolist() == [2, 1]
    assert counts == {"values of images/id that are names": 2}
    found = {"rows": np.array([0, 1]), "boxes": np.array([[1.0, 2, 3, 4]] * 2), "scores": np.array([0.5, 0.6]),
             "labels": np.array([1, 2])}  # fmt: skip
    coco.write_detections(tmp_path / "d.json", table, found)
    assert coco.read_detections(tmp_path / "d.json", table)["rows"].tolist() == [0, 1]
    write(tmp_path, document(), name="annotations/instances_more.json")
    assert read(tmp_path, "train", "more")[0].result_ids() == ["3f2a-9b", "000123", "5", "6"]
    content["images"][1]["id"] = "3f2a-9b"
    write(tmp_path, content)
    with pytest.raises(DataError, match="images/1/id: used before"):
        coco.load(tmp_path, ["train"])


@pytest.mark.parametrize("form", ["im{}", "im{}.jpg", "a/im{}.jpg", "a/im{}"])
def test_annotations_may_name_the_file(tmp_path, form):
    content = document(
        images=each(document()["images"], file_name=lambda name: f"a/{name}"),
        annotations=each(document()["annotations"], image_id=form.format),
    )
    path = write(tmp_path, content)
    table, counts = read(tmp_path)
    assert table.labels.tolist() == [2, 1]
    assert counts == {"values of annotations/image_id that are names of files": 2}
    content["images"] = each(content["images"], file_name="a/im5.jpg")
    write(tmp_path, content)
    with pytest.raises(DataError, match="annotations/0/image_id: may be any of 2 images") as error:
        coco.load(tmp_path, ["train"])
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("sizes", [{"width": 0, "height": 0}, {"width": -1, "height": -1}, {"width": None}, {}])
def test_sizes_that_are_missing_are_those_of_the_image_as_displayed(tmp_path, sizes):
    images = [{key: record[key] for key in ("id", "file_name")} | sizes for record in document()["images"]]
    write(tmp_path, document(images=images), "train/im5.jpg", "train/im6.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "train/im6.jpg", exif=exif)
    table, counts = read(tmp_path)
    assert table.sizes.tolist() == [[48, 64], [64, 48]] and FileImages(table)(1).shape == (3, 64, 48)
    assert counts == {"images whose size is that of the file": 2}
    (tmp_path / "train/im5.jpg").unlink()
    with pytest.raises(DataError, match=r"#/images/0: no size .* and no image 'train/im5.jpg'"):
        coco.load(tmp_path, ["train"])
    faults: list[DataError] = []
    assert coco.load(tmp_path, ["train"], report=faults.append).result_ids() == [6] and len(faults) == 1


def test_one_side_of_a_size_must_be_that_of_the_image(tmp_path):
    images = each(document()["images"], width=None)
    write(tmp_path, document(images=images), "train/im5.jpg", "train/im6.jpg")
    table, counts = read(tmp_path)
    assert table.sizes.tolist() == [[48, 64]] * 2 and counts == {"images whose size is that of the file": 2}
    images[0]["height"] = 200
    write(tmp_path, document(images=images))
    with pytest.raises(DataError, match=r"#/images/0: no size of the image .got 0 x 200, not 64 x 48.; fix it"):
        coco.load(tmp_path, ["train"])
    faults: list[DataError] = []
    assert coco.load(tmp_path, ["train"], report=faults.append).result_ids() == [6] and len(faults) == 1


def test_headings_of_categories_are_left_out(tmp_path):
    for root_name in ("parts", "cup"):
        categories = [
            {"id": 0, "name": root_name, "supercategory": "none"},
            *each(document()["categories"], supercategory=root_name),
        ]
        write(tmp_path, document(categories=categories))
        table, counts = read(tmp_path)
        assert table.classes == ("cup", "nut") and table.labels.tolist() == [2, 1]
        assert counts == {coco_json.HEADINGS: 1}
        assert read(tmp_path, classes=["nut", "cup"])[0].category_ids.tolist() == [2, 1]
    used = [*document()["annotations"], document()["annotations"][0] | {"id": 9, "category_id": 0}]
    write(tmp_path, document(categories=categories, annotations=used))
    with pytest.raises(DataError, match="categories/1/name: used before .got 'cup'"):
        coco.load(tmp_path, ["train"])
    itself = [{"id": 1, "name": "cup", "supercategory": "cup"}, {"id": 2, "name": "nut", "supercategory": "cup"}]
    write(tmp_path, document(categories=itself, annotations=document()["annotations"][:1]))
    table, counts = read(tmp_path)
    assert table.classes == ("cup", "nut") and not counts


def test_a_split_need_not_list_all_classes(tmp_path):
    write(tmp_path, document())
    annotations = [record for record in document()["annotations"] if record["category_id"] == 1]
    content = document(categories=document()["categories"][:1], annotations=annotations)
    write(tmp_path, content, name="annotations/instances_val.json")
    table, counts = read(tmp_path, "val", classes=["bird", "cup", "nut"])
    assert table.labels.tolist() == [2] and len(set(table.category_ids.tolist())) == 3
    assert counts == {"classes that the split does not list": 2}
    # Nut is 2 in the training file, which other tools number by: it must not be taken for a bird.
    results = [{"image_id": 5, "category_id": number, "bbox": [1, 1, 5, 5], "score": 0.5} for number in (1, 2)]
    (tmp_path / "d.json").write_text(json.dumps(results))
    assert coco.read_detections(tmp_path / "d.json", table)["labels"].tolist() == [2]
    content["images"] = each(content["images"], id=lambda n: n + 10)
    content["annotations"] = each(content["annotations"], image_id=lambda n: n + 10)
    write(tmp_path, content, name="annotations/instances_val.json")
    assert read(tmp_path, "train", "val")[0].category_ids.tolist() == [1, 2]


def test_splits_that_number_their_own_classes_share_no_category_id(tmp_path):
    for number, name in ((1, "cup"), (2, "nut")):
        images = each(document()["images"], id=lambda n, number=number: n + 10 * number)
        annotations = each(document()["annotations"][:1], image_id=images[0]["id"], category_id=1)
        content = document(images=images, annotations=annotations, categories=[{"id": 1, "name": name}])
        write(tmp_path, content, name=f"annotations/instances_{name}.json")
    table, counts = read(tmp_path, "cup", "nut", classes=["cup", "nut"])
    assert table.category_ids.tolist() == [1, 2] and table.labels.tolist() == [1, 2]
    assert counts["classes numbered anew, as two splits have one category id for two of them"] == 2
    found = {"rows": np.array([0, 2]), "boxes": np.array([[1.0, 2, 3, 4]] * 2), "scores": np.array([0.5, 0.6]),
             "labels": np.array([1, 2])}  # fmt: skip
    coco.write_detections(tmp_path / "d.json", table, found)
    assert coco.read_detections(tmp_path / "d.json", table)["labels"].tolist() == [1, 2]


def test_packed_files_are_found(tmp_path):
    path = write(tmp_path, document())
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    for split, name in (("train", "train"), (f"train:{FILE}.gz", FILE.removesuffix(".json"))):
        table, counts = read(tmp_path, split)
        assert table.name == name and table.labels.tolist() == [2, 1] and not counts
        assert FilesDataConfig(format="coco", root=".", train=(split,), test=(split,)).train == (split,)
    packed.write_bytes(gzip.compress(b" " * 10**6))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="expands to over 20"):
        patch.setattr(coco_json, "_LARGE", 1)
        coco.load(tmp_path, ["train"])
    with pytest.raises(DataError, match="train.json.gz:1:1000001: broken JSON"):
        coco.load(tmp_path, ["train"])
