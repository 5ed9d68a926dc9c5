"""Folders without a split get one: the printed settings read it, it is the same again, and nothing is overwritten."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import programs
import pytest
from PIL import Image

from grcn import build
from grcn.apps.prepare_data.split import assign, split
from grcn.config.schema import FilesDataConfig
from grcn.config.yaml_nodes import Place, read_value
from grcn.data import yolo
from grcn.errors import ConfigError, DataError

TOOL = "tools/prepare_data.py"
COUNT = 20
XML = (
    "<annotation><size><width>40</width><height>32</height></size><object><name>cup</name><bndbox><xmin>1</xmin>"
    "<ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


def images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(COUNT):
        Image.new("RGB", (40, 32)).save(folder / f"{number}.jpg")


def write_voc(root: Path) -> None:
    images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for number in range(COUNT):
        (root / f"Annotations/{number}.xml").write_text(XML)


def write_yolo(root: Path) -> None:
    images(root / "images")
    (root / "labels").mkdir()
    for number in range(COUNT):
        (root / f"labels/{number}.txt").write_text("1 0.5 0.5 0.5 0.5\n")


def write_coco(root: Path) -> None:
    images(root / "images")
    document = {
        "info": {"year": 2024},
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 32} for n in range(COUNT)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 8, 8], "segmentation": [[1, 1, 9, 1, 9, 9]]}
            for n in range(COUNT)
        ],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (root / "all.json").write_text(json.dumps(document))


WRITERS = {"voc": write_voc, "yolo": write_yolo, "coco": write_coco}


def read(settings: list[str]) -> dict[str, list[str]]:
    """Reads the two sides of a data set as printed settings say; returns their images."""
    pairs = [setting.removeprefix("data.").split("=", 1) for setting in settings]
    values = {key: read_value(text, key, Place("command line"), []).plain() for key, text in pairs}
    cfg = FilesDataConfig.model_validate(values)
    train = build.build_train_split(cfg)
    test = build.build_test_split(cfg, train.classes)
    assert len(train.table.boxes) == len(train) and train.read_image(0).shape == (3, 32, 40)
    return {
        side: sorted(Path(table.path(row)).stem for row in range(len(table)))
        for side, table in (("train", train.table), ("test", test.table))
    }


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("name", ["mine", "my, set"])
def test_the_printed_settings_read_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    WRITERS[form](tmp_path / name)
    result = programs.call(TOOL, "split", "--root", name, "--test", "0.25", "--val", "0.1", folder=tmp_path)
    assert result.code == 0, result.stderr
    *_, last = result.stdout.splitlines()
    found = read(shlex.split(last.removeprefix("settings: ")))
    assert len(found["train"]) == 13 and len(found["test"]) == 5
    validation = [line for line in result.stdout.splitlines() if f"{name}/" in line and "val." in line]
    assert len(validation) == 1 and ": 2 images" in validation[0]
    # Again it is refused in a line, whatever is left of the first time.
    again = programs.call(TOOL, "split", "--root", name, "--test", "0.25", "--format", form, folder=tmp_path)
    expected = {
        "voc": "train.txt: exists already; use that split, or remove it",
        "yolo": "data.yaml:1: has a split 'train' already; use it, or remove the line",
        "coco": "not one JSON file (got 'all.json, test.json, train.json, ",
    }
    programs.assert_contract(again, 3, expected[form])


@pytest.mark.parametrize("form", WRITERS)
def test_a_file_that_is_there_stays(tmp_path: Path, form: str) -> None:
    WRITERS[form](tmp_path)
    path = tmp_path / {"voc": "ImageSets/Main/test.txt", "yolo": "test.txt", "coco": "test.json"}[form]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("kept")
    root = tmp_path / "all.json" if form == "coco" else tmp_path
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"test\.\w+: exists already; use that split, or remove it"):
        split(root, {"test": 0.25})
    assert path.read_text() == "kept" and {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_split_is_that_of_its_seed_and_moves_few_images_when_some_are_added() -> None:
    names = [f"{number}.jpg" for number in range(1000)]
    first = assign(names, {"test": 0.2, "val": 0.1}, 0, "here")
    assert [len(part) for part in first.values()] == [700, 200, 100] and list(first) == ["train", "test", "val"]
    assert sorted(sum(first.values(), [])) == sorted(names)
    assert assign(names[::-1], {"test": 0.2, "val": 0.1}, 0, "here")["test"] == first["test"][::-1]
    assert assign(names, {"test": 0.2, "val": 0.1}, 1, "here")["test"] != first["test"]
    more = assign([*names, *(f"new{number}.jpg" for number in range(100))], {"test": 0.2, "val": 0.1}, 0, "here")
    assert len(set(first["test"]) - set(more["test"])) < 20
    assert [len(part) for part in assign(names[:3], {"test": 0.9, "val": 0.05}, 0, "here").values()] == [1, 1, 1]
    with pytest.raises(DataError, match=r"here: too few images to split \(got 2\)"):
        assign(names[:2], {"test": 0.2, "val": 0.1}, 0, "here")


def test_what_has_no_pair_is_left_out_and_named(tmp_path: Path) -> None:
    write_voc(tmp_path / "mine")
    (tmp_path / "mine/JPEGImages/0.jpg").unlink()
    (tmp_path / "mine/Annotations/1.xml").unlink()
    written = split(tmp_path / "mine", {"test": 0.25})
    assert written.remarks == [
        "left out: 1 annotations without an image (first: 0)",
        "left out: 1 images without an annotation (first: 1)",
    ]
    assert sum(map(len, read(written.settings).values())) == COUNT - 2


@pytest.mark.parametrize("folders", [("", ""), ("annotations", "images"), ("Annotations", "JPEGImages")])
def test_files_of_voc_are_found_as_the_reader_finds_them(tmp_path: Path, folders: tuple[str, str]) -> None:
    root = tmp_path / "mine"
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        (root / folders[0] / f"{number}.XML").write_text(XML)
        Image.new("RGB", (40, 32)).save(root / folders[1] / f"{number}.{('WebP', 'TIF', 'Jpg')[number % 3]}")
    written = split(root, {"test": 0.25})
    assert not written.remarks and len(read(written.settings)["test"]) == 5


def test_the_current_folder_has_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert len(read(split(Path("."), {"test": 0.25}).settings)["test"]) == 5


def test_names_of_classes_are_those_that_programs_leave(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    written = split(tmp_path, {"test": 0.25})
    assert written.remarks == [f"names of classes: none found; write them into {tmp_path / 'data.yaml'}"]
    assert yolo.load(tmp_path, ["train"]).classes == ("class 0", "class 1")
    for name in ("data.yaml", "train.txt", "test.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "classes.txt").write_text("no\nno: 1\n")
    assert split(tmp_path, {"test": 0.25}).remarks == [f"names of classes: those of {tmp_path / 'classes.txt'}"]
    assert yolo.load(tmp_path, ["train"]).classes == ("no", "no: 1")
    # A description that is there stays as it is, and decides where the lists go.
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).unlink()
    (tmp_path / "data.yaml").write_text("names: [a, b]\n")
    assert len(read(split(tmp_path, {"test": 0.25}).settings)["test"]) == 5
    assert (tmp_path / "data.yaml").read_text() == "names: [a, b]\n"
    (tmp_path / "data.yaml").write_text("names: [a, b]\ntest: images\n")
    with pytest.raises(DataError, match=r"data\.yaml:2: has a split 'test' already; use it, or remove the line"):
        split(tmp_path, {"test": 0.25})


def test_everything_of_a_json_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_coco(tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "all.json").rename(tmp_path / "annotations/all.json")
    written = split(tmp_path, {"test": 0.25})
    assert len(read(written.settings)["test"]) == 5
    document = json.loads((tmp_path / "annotations/test.json").read_text())
    assert document["info"] == {"year": 2024} and document["annotations"][0]["segmentation"]
    assert {one["image_id"] for one in document["annotations"]} == {one["id"] for one in document["images"]}
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    for name in ("train", "test"):
        (tmp_path / f"annotations/{name}.json").unlink()
    (tmp_path / "elsewhere").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    written = split(tmp_path, {"test": 0.25})
    assert "was not found near" in written.remarks[0] and "IMAGES:test.json" in written.settings[-1]


def test_a_folder_of_images_is_never_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_coco(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.jpg").write_bytes(b"of something else")
    assert len(read(split(tmp_path, {"test": 0.25}).settings)["test"]) == 5, "all of the images are in images/"

    def remark() -> str:
        for name in ("train", "test"):
            (tmp_path / f"{name}.json").unlink()
        written = split(tmp_path, {"test": 0.25})
        assert "IMAGES:test.json" in written.settings[-1]
        return written.remarks[0].replace(str(tmp_path), "R")

    for number in range(COUNT):
        (tmp_path / f"a/{number}.jpg").write_bytes(b"a small one")
    several = "several folders have images of R/all.json (a, images): put the right one in place of IMAGES"
    assert remark() == several
    for number in range(COUNT):
        (tmp_path / ("a" if number % 3 else "images") / f"{number}.jpg").unlink()
    assert remark() == several, "a part of them in each"


def test_names_and_texts_that_no_disk_takes(tmp_path: Path) -> None:
    write_coco(tmp_path)
    document = json.loads((tmp_path / "all.json").read_text())
    document["info"]["description"] = "\ud83d \u00e9"
    for image in document["images"]:
        image["file_name"] = f"{image['id']}{'a' * 300}.jpg"
    (tmp_path / "all.json").write_text(json.dumps(document))
    assert "was not found near" in split(tmp_path, {"test": 0.25}).remarks[0]
    assert json.loads((tmp_path / "test.json").read_text())["info"] == document["info"]


@pytest.mark.parametrize(
    ("image_id", "reference"),
    [(int, str), (str, int), (float, "{}.0".format), (int, "{}.jpg".format), ("img{}".format, "images/{}".format)],
)
def test_ids_may_be_written_as_the_reader_takes_them(tmp_path: Path, monkeypatch, image_id, reference) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_coco(tmp_path)
    document = json.loads((tmp_path / "all.json").read_text())
    for image, annotation in zip(document["images"], document["annotations"], strict=True):
        image["id"], annotation["image_id"] = image_id(image["id"]), reference(image["id"])
        image["file_name"] = f"images/{image['file_name']}"
    (tmp_path / "all.json").write_text(json.dumps(document))
    written = split(tmp_path, {"test": 0.25})
    assert len(read(written.settings)["test"]) == 5 and len(json.loads((tmp_path / "test.json").read_text())) == 4


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda document: document.pop("images"), "all.json: no list of 'images' in it; use COCO's format"),
        (lambda document: document["images"][1].pop("id"), "all.json#/images/1: no 'id' in it; add it"),
        (lambda document: document["images"][1].update(file_name="/a"), "all.json#/images/1: file_name is no path"),
        (lambda document: document["images"][1].update(file_name="0.jpg"), "all.json#/images/1: an image is listed"),
        (lambda document: document["images"][2].update(id=1), "all.json#/images/2/id: used before (got 1); fix it"),
        (lambda document: document["images"][2].update(id="1"), "all.json#/images/2/id: used before (got '1')"),
        (lambda document: document["images"][2].update(id=True), "all.json#/images/2: no 'id' in it; add it"),
        (
            lambda document: (document["images"][0].update(id=77), document["images"][1].update(id=0)),
            "all.json#/annotations/1: no image has",
        ),
        (
            lambda document: (
                [image.update(id=19 - image["id"]) for image in document["images"]],
                document["annotations"][3].update(image_id="3"),
            ),
            "all.json#/annotations/3: may be any of 2 images (got '3'); use their ids",
        ),
        (lambda document: document["annotations"][0].update(image_id=99), "all.json#/annotations/0: no image has"),
    ],
)
def test_broken_documents_are_named(tmp_path: Path, change, expected: str) -> None:
    write_coco(tmp_path)
    document = json.loads((tmp_path / "all.json").read_text())
    change(document)
    (tmp_path / "all.json").write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        split(tmp_path, {"test": 0.25})
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(expected)
    (tmp_path / "all.json").write_text("{")
    with pytest.raises(DataError, match="broken JSON"):
        split(tmp_path / "all.json", {"test": 0.25})


def test_mistakes_are_reported_in_one_line(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/0.xml").write_text(XML)
    for code, named, *args in (
        (2, "required: --test", "--root", "voc"),
        (2, "invalid choice: 'x'", "--root", "voc", "--test", "0.2", "--format", "x"),
        (2, "shares must lie between 0 and 1, and leave some for train (got test 0.5, val 0.5)",
         "--root", "voc", "--test", "0.5", "--val", "0.5"),
        (3, "nowhere: no such file or folder", "--root", "nowhere", "--test", "0.2"),
        (3, "empty: neither Annotations/, nor labels/, nor a JSON file in it", "--root", "empty", "--test", "0.2"),
        (3, "mixed: no XML files or no images in it; move them to", "--root", "mixed", "--test", "0.2"),
    ):  # fmt: skip
        result = programs.call(TOOL, "split", *args, folder=tmp_path)
        programs.assert_contract(result, code, named)
    (tmp_path / "voc/labels").mkdir()
    with pytest.raises(DataError, match=r"several layouts \(got 'voc, yolo'\); give --format"):
        split(tmp_path / "voc", {"test": 0.2})
    with pytest.raises(ConfigError, match="leave some for train"):
        split(tmp_path / "voc", {"test": float("nan")})
