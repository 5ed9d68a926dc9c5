"""Images as COCO's JSON of annotation tools names them, and a small export of each tool."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from coco_made import document, each, read, write

from grcn.config.schema import FilesDataConfig
from grcn.data import coco
from grcn.data.faults import Notes
from grcn.data.images import FileImages
from grcn.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


NAMES = {
    "backslashes": ("a\\im{}.jpg", "a/im{}.jpg", "with backslashes"),
    "escapes": ("im%20%23{}.jpg", "im #{}.jpg", "with percent escapes"),
    "the folder": ("train/im{}.jpg", "im{}.jpg", "with the folder of the split in front"),
    "two folders": ("data/train/im{}.jpg", "im{}.jpg", "with the folder of the split in front"),
    "a whole path": ("/home/me/im{}.jpg", "a/im{}.jpg", "that are whole paths or URLs"),
    "a path of Windows": ("C:\\me\\im{}.jpg", "im{}.jpg", "that are whole paths or URLs"),
    "a share": ("\\\\disk\\me\\im{}.jpg", "im{}.jpg", "that are whole paths or URLs"),
    "a URL": ("https://host/a/im%20{}.jpg?key=1#2", "im {}.jpg", "that are whole paths or URLs"),
    "a URL of local files": ("/data/local-files/?d=me/im{}.jpg", "im{}.jpg", "that are whole paths or URLs"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(tmp_path, name):
    written, real, kind = NAMES[name]
    images = [record | {"file_name": written.format(record["id"])} for record in document()["images"]]
    root = tmp_path / "data"
    write(root, document(images=images), *(f"train/{real.format(n)}" for n in (5, 6)))
    table, counts = read(root)
    assert [file.decode() for file in table.files] == [f"train/{real.format(n)}" for n in (5, 6)]
    assert counts == {f"names of files {kind}": 2}
    FileImages(table)


def test_a_name_that_is_a_file_stays_and_one_that_may_be_two_is_refused(tmp_path):
    names = ["a%20b.jpg", "train/c.jpg"]
    images = [record | {"file_name": name} for record, name in zip(document()["images"], names, strict=True)]
    exist = ("train/a%20b.jpg", "train/a b.jpg", "train/train/c.jpg", "train/c.jpg")
    write(tmp_path, document(images=images), *exist)
    table, counts = read(tmp_path)
    assert [file.decode() for file in table.files] == ["train/a%20b.jpg", "train/train/c.jpg"] and not counts
    write(tmp_path, document(images=each(images, file_name="/me/c.jpg")))
    with pytest.raises(DataError, match="images/0/file_name: names 2 images below 'train/' .got '/me/c.jpg'"):
        coco.load(tmp_path, ["train"])


def test_whole_paths_are_distinguished_by_their_folders(tmp_path):
    pairs = zip(document()["images"], ("dog", "cat"), strict=True)
    images = [record | {"file_name": f"/up/{pet}/1.jpg"} for record, pet in pairs]
    write(tmp_path, document(images=images), "train/cat/1.jpg", "train/dog/1.jpg")
    assert [file.decode() for file in read(tmp_path)[0].files] == ["train/dog/1.jpg", "train/cat/1.jpg"]


def test_the_work_for_whole_paths_grows_with_their_number(tmp_path):
    calls = {}
    for count in (20, 80):
        root = tmp_path / str(count)
        names = [f"s{n}/image.jpg" for n in range(count)]
        images = [document()["images"][0] | {"id": n + 5, "file_name": f"/me/{name}"} for n, name in enumerate(names)]
        write(root, document(images=images), *(f"train/{name}" for name in names))
        sys.setprofile(lambda *_, count=count: calls.update({count: calls.get(count, 0) + 1}))
        try:
            table = coco.load(root, ["train"], notes=Notes())
        finally:
            sys.setprofile(None)
        assert len(table) == count
    assert calls[80] < 5 * calls[20]


@pytest.mark.parametrize(
    ("names", "exist", "rest"),
    [
        (["/up/dog/1.jpg", "/up/cat/1.jpg"], ["cat/1.jpg"], [6]),
        (["/up/dog/1.jpg", "cat/1.jpg"], ["cat/1.jpg"], [6]),
        (["/up/dog/2.jpg", "/up/cat/1.jpg"], ["cat/1.jpg", "cat/2.jpg"], [6]),
        (["/up/dog/1.jpg", "/up/cat/1.jpg", "/up/cow/2.jpg"], ["1.jpg", "2.jpg"], [7]),
    ],
)
def test_two_names_never_share_an_image(tmp_path, names, exist, rest):
    images = [document()["images"][0] | {"id": n, "file_name": name} for n, name in enumerate(names, start=5)]
    write(tmp_path, document(images=images), *(f"train/{file}" for file in exist))
    with pytest.raises(DataError) as error:
        coco.load(tmp_path, ["train"])
    assert f"which '{names[1]}' contradicts (got '{names[0]}'); add" in str(error.value)
    assert "images/0/file_name" in str(error.value)
    faults: list[DataError] = []
    assert coco.load(tmp_path, ["train"], report=faults.append).result_ids() == rest
    assert len(faults) == len(names) - len(rest)


def test_one_whole_path_under_two_ids_is_allowed(tmp_path):
    write(tmp_path, document(images=each(document()["images"], file_name="/up/dog/1.jpg")), "train/a/1.jpg")
    assert [file.decode() for file in read(tmp_path)[0].files] == ["train/a/1.jpg"] * 2


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.jpg", "..\\x.jpg", "/me/../x.jpg", "%2e%2e/x.jpg", "http://h/x\n",
                                  "C:\\..\\x.jpg", "/" + "x" * 2000, "//", "%2Fetc%2Fpasswd"])  # fmt: skip
def test_names_that_lead_out_stay_refused(tmp_path, name):
    write(tmp_path, document(images=each(document()["images"], file_name=name)), "x.jpg", "train/im5.jpg")
    with pytest.raises(DataError, match="file_name: not a path below 'train/'|no such image"):
        FileImages(coco.load(tmp_path, ["train"]))


# ---------------------------------------------------------------- one small export of each tool, as docs/data.md says


def label_studio(root: Path) -> str:
    images = [{"width": 64, "height": 48, "id": n, "file_name": f"images\\3f2a{n}-im {n}.jpg"} for n in (5, 6)]
    write(root, document(images=images), *(f"images/3f2a{n}-im {n}.jpg" for n in (5, 6)), name="result.json")
    return ".:result.json"


def roboflow(root: Path) -> str:
    content = document()
    parts = [{"id": 0, "name": "parts", "supercategory": "none"}, *each(content["categories"], supercategory="parts")]
    images = each(content["images"], file_name=lambda name: name.replace(".jpg", "_jpg.rf.0a1b.jpg"), license=1)
    files = [f"train/{record['file_name']}" for record in images]
    write(root, document(images=images, categories=parts), *files, name="train/_annotations.coco.json")
    return "train:train/_annotations.coco.json"


def via(root: Path) -> str:
    content = document(images=each(document()["images"], width=-1, height=-1))
    content["annotations"] = each(content["annotations"], id=str, image_id=str, segmentation=[[1, 2, 3]])
    write(root, content, "pics/im5.jpg", "pics/im6.jpg", name="via_export_coco.json")
    return "pics:via_export_coco.json"


def coco_annotator(root: Path) -> str:
    images = each(document()["images"], path=lambda _: "/datasets/mine/im.jpg", category_ids=[], milliseconds=3)
    annotations = each(document()["annotations"], iscrowd=False, isbbox=True, color="#ff0000")
    write(root, document(images=images, annotations=annotations), "mine/im5.jpg", "mine/im6.jpg", name="mine.json")
    return "mine:mine.json"


def cvat(root: Path) -> str:
    content = document(licenses=[], info={})
    content["images"] = each(content["images"], file_name=lambda name: f"train/{name}", license=0, date_captured=0)
    content["annotations"] = each(content["annotations"], attributes={"occluded": False}, segmentation=[])
    write(root, content, "images/train/im5.jpg", "images/train/im6.jpg", name="annotations/instances_default.json")
    return "images:annotations/instances_default.json"


TOOLS = {label_studio: 2, roboflow: 1, via: 6, coco_annotator: 2, cvat: 0}


@pytest.mark.parametrize("tool", TOOLS)
def test_exports_are_read(tmp_path, tool):
    split = tool(tmp_path)
    assert FilesDataConfig(format="coco", root=".", train=(split,), test=(split,)).check
    table, counts = read(tmp_path, split)
    assert table.classes == ("cup", "nut") and table.labels.tolist() == [2, 1]
    assert table.sizes.tolist() == [[48, 64]] * 2
    assert FileImages(table)(1).shape == (3, 48, 64)
    assert sum(counts.values()) == TOOLS[tool]
