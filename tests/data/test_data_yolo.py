"""YOLO's layout as Ultralytics, Roboflow and labelme2yolo write it, and what is wrong with what they did not write."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grcn.data import voc_folders, yolo
from grcn.data.dataset import DetectionDataset
from grcn.data.faults import Fault, Notes
from grcn.errors import LONGEST_LINE, PREFIX, DataError

# Of an image of 40 x 32 pixels: from 10 to 30 across and from 4 to 28 down; from 0 to 10 and from 0 to 16.
LABELS = "1 0.5 0.5 0.5 0.75\n0 0.125 0.25 0.25 0.5\n"
UNLABELLED = "images without a label file, which have no objects"
BOXES = [[10, 4, 30, 28], [0, 0, 10, 16]]

# What the programs write beside the images and labels, and where these are.
DIALECTS = {
    "ultralytics": (
        "path: ../datasets/mine # dataset root dir\ntrain: images/train # train images\nval: images/val\n"
        "test: # test images (optional)\n\n# Classes\nnames:\n  0: cup\n  1: nut\n",
        "images/{0}/{1}.jpg", "labels/{0}/{1}.txt", "val", "values of path that do not exist, taken for data.root",
    ),
    "roboflow": (
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cup', 'nut']\n\n"
        "roboflow:\n  workspace: w\n  version: 1\n  url: https://universe.roboflow.com/w/p/dataset/1\n",
        "{0}/images/{1}.jpg", "{0}/labels/{1}.txt", "valid", "paths written for another place, found below data.root",
    ),
    "labelme2yolo": (
        "path: {root}\ntrain: images/train\nval: images/val\ntest:\n\nnames:\n  0: cup\n  1: nut\n",
        "images/{0}/{1}.jpg", "labels/{0}/{1}.txt", "val", None,
    ),
}  # fmt: skip


def write_image(path: Path, labels: Path | None = None, text: str = LABELS, size: tuple[int, int] = (40, 32)) -> None:
    for file in (path, labels or path):
        file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    if labels is not None:
        labels.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images to train on, of which the second has no objects, and one to test on."""
    folder = tmp_path / "mine"
    write_image(folder / "images/train/a.jpg", folder / "labels/train/a.txt")
    write_image(folder / "images/train/b.png", folder / "labels/train/b.txt", "")
    write_image(folder / "images/val/c.jpg", folder / "labels/val/c.txt")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cup, nut]\n")
    return folder


def label(root: Path, text: str) -> Path:
    path = root / "labels/train/a.txt"
    path.write_text(text)
    return path


def describe(root: Path, text: str) -> None:
    (root / "data.yaml").write_text(text)


def message(root: Path, splits: tuple[str, ...] = ("train",), **options: object) -> str:
    with pytest.raises(DataError) as caught:
        yolo.load(root, splits, **options)
    text = str(caught.value)
    assert len(PREFIX + text) <= LONGEST_LINE and "\n" not in text
    return text.replace(str(root), "R")


def test_reads_a_split(root: Path) -> None:
    table = yolo.load(root, ["train"])
    assert table.name == "train" and table.classes == ("cup", "nut")
    assert table.image_ids.tolist() == [b"a", b"b"]
    assert table.files.tolist() == [b"images/train/a.jpg", b"images/train/b.png"]
    assert table.sizes.tolist() == [[32, 40], [32, 40]] and table.offsets.tolist() == [0, 2, 2]
    assert table.boxes.tolist() == BOXES and table.boxes.dtype == np.float64 and table.labels.tolist() == [2, 1]
    assert table.area.tolist() == [480, 160] and not table.difficult.any() and not table.iscrowd.any()
    image, target = DetectionDataset.yolo(root, ["train"])[0]
    assert image.shape == (3, 32, 40) and target["boxes"].tolist() == BOXES


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_export_is_read_as_it_is(tmp_path: Path, dialect: str) -> None:
    text, image, labels, second, counted = DIALECTS[dialect]
    for split, name in (("train", "a_jpg.rf.0f"), ("train", "b"), (second, "c")):
        write_image(tmp_path / image.format(split, name), tmp_path / labels.format(split, name))
    (tmp_path / "data.yaml").write_text(text.replace("{root}", str(tmp_path)))
    notes = Notes()
    table = yolo.load(tmp_path, ["train"], notes=notes)
    assert table.result_ids() == ["a_jpg.rf.0f", "b"] and table.classes == ("cup", "nut")
    assert table.boxes.tolist() == 2 * BOXES and all(Path(table.path(row)).is_file() for row in range(2))
    assert list(notes.counts) == ([counted] if counted else [])
    test = yolo.load(tmp_path, ["val"], table.classes)
    assert test.result_ids() == ["c"] and test.boxes.tolist() == BOXES
    if counted:
        with pytest.raises(DataError, match=r"data\.yaml:1: .* are refused .*data\.strict=false"):
            yolo.load(tmp_path, ["train"], notes=Notes(strict=True))


@pytest.mark.parametrize("form", ["images/{}", "{}/images", "list"])
def test_a_folder_without_a_description_needs_classes(tmp_path: Path, form: str) -> None:
    folder = "images" if form == "list" else form.format("train")
    write_image(tmp_path / folder / "a.jpg", tmp_path / folder.replace("images", "labels") / "a.txt")
    if form == "list":
        (tmp_path / "train.txt").write_text("./images/a.jpg\n")
    table = yolo.load(tmp_path, ["train"], ["cup", "nut"])
    assert table.boxes.tolist() == BOXES and table.labels.tolist() == [2, 1]
    assert message(tmp_path) == "R: no data.yaml with names of classes; add one or list them in data.classes"
    assert "a.txt:1: unknown class (got 1, known: 0 to 0)" in message(tmp_path, classes=["cup"])


def test_a_list_of_folders_and_lists_of_images(root: Path) -> None:
    describe(root, "names: [cup, nut]\nall: [images/train, images/val]\nsome: lists/some.txt\nval: images/val\n")
    assert yolo.load(root, ["all"]).result_ids() == ["a", "b", "c"]
    assert yolo.load(root, ["val"]).result_ids() == ["c"], "the name of a split goes first"
    (root / "lists").mkdir()
    lines = f"images/val/c.jpg\r\n\n{root}/images/train/b.png\r\n./../images/train/a.jpg\n"
    (root / "lists/some.txt").write_text(lines, newline="")
    assert yolo.load(root, ["some"]).result_ids() == ["c", "b", "a"]
    (root / "lists/some.txt").write_text("images\\val\\c.jpg\n../elsewhere/images/train/a.jpg\n")
    notes = Notes()
    assert yolo.load(root, ["some"], notes=notes).result_ids() == ["c", "a"]
    assert set(notes.counts) == {"paths with backslashes", "paths written for another place, found below data.root"}


def test_folders_are_read_with_those_in_them_and_links(root: Path, tmp_path: Path) -> None:
    describe(root, "names: [cup, nut]\ntrain: images\n")
    write_image(tmp_path / "elsewhere/d.jpg", root / "labels/more/d.txt", "")
    (root / "images/more").symlink_to(tmp_path / "elsewhere")
    (root / "images/more/loop").symlink_to(root / "images")
    (root / "images/readme.md").write_text("no image")
    (root / "images/train/._a.jpg").write_text("of a Mac")
    notes = Notes()
    table = yolo.load(root, ["train"], notes=notes)
    assert table.result_ids() == ["d", "a", "b", "c"] and table.offsets.tolist() == [0, 0, 2, 2, 4]
    assert notes.counts == {"hidden files among the images, left out": 1}


def test_images_that_share_a_name_are_called_by_their_paths(root: Path) -> None:
    write_image(root / "images/val/a.jpg", root / "labels/val/a.txt")
    table = yolo.load(root, ["train", "val"])
    assert table.result_ids() == [
        *("images/train/a.jpg", "images/train/b.png", "images/val/a.jpg", "images/val/c.jpg"),
    ]
    (root / "twice.txt").write_text("images/train/a.jpg\n")
    assert "an image is listed twice (got 'images/train/a.jpg')" in message(root, ("train", "twice"))


def test_images_that_share_a_label_file_are_counted(root: Path) -> None:
    write_image(root / "images/train/a.png")
    notes = Notes()
    assert yolo.load(root, ["train"], notes=notes).boxes.tolist() == 2 * BOXES
    shared = "images that share a label file with another one"
    assert notes.places == {shared: [f"{root}/images/train/a.png: 'as images/train/a.jpg'"]}
    faults: list[Fault] = []
    table = yolo.load(root, ["train"], report=faults.append, notes=Notes(strict=True))
    assert table.result_ids() == ["a", "b"] and [found.image for found in faults] == ["images/train/a.png"]


def test_labels_beside_images_and_the_last_folder_of_the_name(tmp_path: Path) -> None:
    write_image(tmp_path / "train/a.jpg", tmp_path / "train/a.txt")
    write_image(tmp_path / "images/x/images/b.jpg", tmp_path / "images/x/labels/b.txt")
    describe(tmp_path, "names: [cup, nut]\ntrain: train\nval: images/x/images\n")
    assert yolo.load(tmp_path, ["train"]).boxes.tolist() == yolo.load(tmp_path, ["val"]).boxes.tolist() == BOXES


def test_names_are_texts_by_number_in_any_order(root: Path) -> None:
    describe(root, "names: {1: no, 0: 007}\ntrain: images/train\nnc: 3\n")
    notes = Notes()
    table = yolo.load(root, ["train"], notes=notes)
    assert table.classes == ("007", "no") and table.labels.tolist() == [2, 1]
    assert notes.counts == {
        "names of classes that YAML takes for something else than text": 2,
        "values of nc that are not the number of names": 1,
    }
    describe(root, "names: ['no', \"007\"]\ntrain: images/train\n")
    assert yolo.load(root, ["train"], notes=Notes(strict=True)).classes == ("no", "007")


def test_classes_that_are_given_decide_the_order(root: Path) -> None:
    table = yolo.load(root, ["train"], ["nut", "cup", "bolt"])
    assert table.classes == ("nut", "cup", "bolt") and table.labels.tolist() == [1, 2]
    expected = "R/labels/train/a.txt:1: unknown class (got 1, 'nut'); add it to data.classes"
    assert message(root, classes=["cup"]) == expected


def test_boxes_that_rounding_puts_outside_are_cut_off(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(root / "images/train/a.jpg", size=(4000, 3000))
    label(root, "0 0.5005 0.5 1 1\n1 0.5 0.5 0.2 0.2\n")
    assert yolo.load(root, ["train"]).boxes[0] == pytest.approx([2, 0, 4000, 3000])
    assert not caplog.records
    label(root, "0 0.51 0.5 1 1\n1 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.1 0.1\n")
    assert yolo.load(root, ["train"]).boxes[0] == pytest.approx([40, 0, 4000, 3000])
    assert "1 boxes stick out of their image, clipped" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 0.5 0.5 0.5 0.75 0.9\n", ":1: a sixth number, such as a confidence: predictions are no labels"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2\n", ":1: 7 numbers: outlines, turned boxes and key points are not read; convert"),
        ("\n1 0.5 0.5 0.5\n", ":2: not five numbers (got '1 0.5 0.5 0.5'); write class x y width height"),
        ("1,0.5,0.5,0.5,0.5\n", ":1: not five numbers"),
        ("1 0.5 0.5 0_5 0.5\n", ":1: not five numbers"),
        ("cup 0.5 0.5 0.5 0.5\n", ":1: not five numbers (got 'cup 0.5 0.5 0.5 0.5')"),
        ("2 0.5 0.5 0.5 0.5\n", ":1: unknown class (got 2, known: 0 to 1); fix it"),
        ("-1 0.5 0.5 0.5 0.5\n", ":1: unknown class (got -1, known: 0 to 1)"),
        ("0.5 0.5 0.5 0.5 0.5\n", ":1: the class is no whole number (got '0.5')"),
        ("nan 0.5 0.5 0.5 0.5\n", ":1: the class is no whole number (got 'nan')"),
        ("0 nan 0.5 0.5 0.5\n", ":1: box is not finite"),
        ("0 0.5 0.5 inf 0.5\n", ":1: box is not finite"),
        ("0 0.5 0.5 -0.5 0.5\n", ":1: box is reversed"),
        ("0 1.5 0.5 0.5 0.5\n", ":1: box lies outside its image"),
        ("0 20 15 10 10\n", ":1: no shares of an image (got '0 20 15 10 10'); divide pixels by its width and height"),
    ],
)
def test_wrong_lines_are_named(root: Path, text: str, expected: str) -> None:
    label(root, text)
    assert message(root).startswith(f"R/labels/train/a.txt{expected}")


def test_a_class_with_a_point_is_read_and_counted(root: Path) -> None:
    label(root, "1.0 0.5 0.5 0.5 0.75\n")
    notes = Notes()
    assert yolo.load(root, ["train"], notes=notes).labels.tolist() == [2]
    assert notes.places == {
        "numbers of classes that are not written as whole ones": [f"{root}/labels/train/a.txt:1: '1.0'"]
    }


def test_every_fault_is_reported_and_the_rest_is_read(root: Path) -> None:
    label(root, "5 0.5 0.5 0.5 0.75\n1 0.5 0.5 0.5 0.75\n0 x 1 1 1\n0 nan 0.5 0.5 0.5\n")
    (root / "images/train/b.png").write_bytes(b"no picture")
    (root / "some.txt").write_text("images/train/a.jpg\nimages/train/b.png\nimages/train/z.jpg\nimages/train/a.jpg\n")
    (root / "labels/val/c.txt").write_bytes(b"\xff")
    faults: list[Fault] = []
    table = yolo.load(root, ["some", "val"], report=faults.append)
    assert table.result_ids() == ["a", "c"] and table.boxes.tolist() == BOXES[:1]
    assert [(found.kind, found.image) for found in faults] == [
        ("list", ""), ("list", ""), ("class-unknown", "images/train/a.jpg"), ("annotation", "images/train/a.jpg"),
        ("image-broken", "images/train/b.png"), ("annotation", "images/val/c.jpg"),
        ("box-not-finite", "images/train/a.jpg"),
    ]  # fmt: skip
    for path in root.glob("images/*/*"):
        path.write_bytes(b"")
    assert len(yolo.load(root, ["val"], report=faults.append)) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: [a]\ntrain: [\n", r"R/data.yaml:3: not YAML \("),
        ("names: [a]\nnames: [b]\n", "R/data.yaml:2: a key is there twice (got 'names'); remove one"),
        ("names: {0: a, 0: b}\n", "R/data.yaml:1: a key is there twice (got '0')"),
        ("names: {a: 0}\n", "R/data.yaml:1: a class has no number (got 'a'); write NUMBER: NAME"),
        ("names: {00: a}\n", "R/data.yaml:1: a number begins with 0"),
        ("names: cup\n", "R/data.yaml:1: names is neither a list nor NUMBER: NAME"),
        ("names: []\n", "R/data.yaml:1: names is empty"),
        ("names: [[a]]\n", "R/data.yaml:1: the name of class 0 is no text"),
        ('names: ["a\\n"]\n', "R/data.yaml:1: not a class name"),
        ("names: [cup, cup]\n", "train: a class is listed twice"),
        ("names: [a]\ntrain: ../other\n", "R/data.yaml:2: leads out of data.root (got '../other'); put the data below"),
        ("names: [a]\ntrain: /etc\n", "R/data.yaml:2: leads out of data.root (got '/etc')"),
        ("names: [a]\ntrain: imgs\n", "R/data.yaml:2: no such file or folder (got 'imgs'); fix the path"),
        ('names: [a]\ntrain: "a\\0"\n', "R/data.yaml:2: not a path"),
        ("names: [a]\ntrain: labels\n", "R/data.yaml:2: no image in it (got 'labels'); add images"),
        (f"names: [a]\ntrain: {'a' * 300}\n", "R/data.yaml:2: no such file or folder (got 'aaa"),
        (f"names: [a]\npath: {'a' * 300}\ntrain: no\n", "R/data.yaml:3: no such file or folder (got 'no')"),
        ("names: [a]\npath: ..\n", "R/data.yaml:2: path leads out of data.root (got '..'); move the file there"),
        ("names: [a]\npath: [a]\n", "R/data.yaml:2: path is no path"),
        ("a: 1\n", "R: no data.yaml with names of classes"),
        ("- a\n", "R: no data.yaml with names of classes"),
        ("x: &x [*x]\n? [a]\n: b\n", "R/data.yaml:2: a key is no word"),
    ],
)
def test_broken_descriptions(root: Path, text: str, expected: str) -> None:
    (root / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    describe(root, text)
    if r"\(" in expected:
        assert message(root).startswith(expected.replace("\\", ""))
    else:
        assert message(root).startswith(expected)


@pytest.mark.parametrize("parts", [("images/none", "images/train"), ("images/train", "images/none")])
def test_a_part_of_a_split_may_be_empty(root: Path, parts: tuple[str, str]) -> None:
    (root / "images/none").mkdir()
    describe(root, f"names: [cup, nut]\ntrain: [{parts[0]}, {parts[1]}]\n")
    assert len(yolo.load(root, ["train"])) == 2


def test_every_suffix_of_a_format_that_is_read_is_an_image(root: Path) -> None:
    for number, suffix in enumerate(voc_folders.IMAGE_SUFFIXES):
        path = root / f"images/more/{number}{suffix}"
        write_image(path.with_suffix(".bmp"), root / f"labels/more/{number}.txt")
        path.with_suffix(".bmp").rename(path)
    assert len(yolo.load(root, ["more"])) == len(voc_folders.IMAGE_SUFFIXES) > 15


def test_several_descriptions_and_others(root: Path) -> None:
    (root / "args.yml").write_text("a: [\n")
    assert len(yolo.load(root, ["train"])) == 2, "an unrelated file may be broken"
    (root / "dataset.yaml").write_text("names: [a]\n")
    expected = "R: several files have names of classes (got 'data.yaml, dataset.yaml'); keep one of them here"
    assert message(root) == expected


def test_a_deep_or_large_description_is_refused(root: Path) -> None:
    describe(root, "names: " + "[" * 5000)
    assert "data.yaml" in message(root)
    describe(root, "#" * 2**21)
    assert "too large for a description" in message(root)


def test_splits_that_are_not_there(root: Path) -> None:
    usual = "set data.root and the splits to what exists (found train, val)"
    assert message(root, ("test",)) == (
        f"R/data.yaml: no split 'test' in it, nor images/NAME/, NAME/images/ or NAME.txt beside it; {usual}"
    )
    assert "no split '../x' in it" in message(root, ("../x",))
    assert "no split 'aaa" in message(root, ("a" * 300,))
    assert message(root.parent) == (
        "R: no data.yaml with names of classes; mine/ is below it: set data.root=R/mine, or add one or list them in "
        "data.classes"
    )
    (root / "data.yaml").unlink()
    forms = "neither images/NAME/, NAME/images/ nor NAME.txt of the split"
    assert message(root, ("test",), classes=["a", "b"]) == f"R: {forms} 'test'; {usual}"
    (root / "train.txt").write_text("images/train/a.jpg\n")
    assert "two things are the split 'train' (got ['images/train', 'train.txt'])" in message(root, classes=["a", "b"])


def test_a_split_without_any_label_file_is_refused(root: Path) -> None:
    (root / "labels").rename(root / "boxes")
    assert message(root).startswith("R/labels/train/a.txt: no such file, nor a label file of any other image")


def test_a_folder_of_a_split_without_any_label_file_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "a/images/a.jpg", tmp_path / "a/labels/a.txt")
    write_image(tmp_path / "b/images/b.jpg", tmp_path / "b/label/b.txt")
    describe(tmp_path, "names: [cup, nut]\ntrain: [a/images, b/images]\n")
    assert message(tmp_path) == (
        "R/b/labels/b.txt: no such file, nor a label file of any other image of the folder; add them, empty ones for "
        "no objects"
    )
    (tmp_path / "b/label").rename(tmp_path / "b/labels")
    assert yolo.load(tmp_path, ["train"]).boxes.tolist() == 2 * BOXES


def test_images_without_a_label_file_are_counted_and_legal(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "labels/train/b.txt").unlink()
    notes = Notes()
    yolo.load(root, ["train"], notes=notes)
    assert notes.places == {UNLABELLED: [f"{root}/images/train/b.png: 'no b.txt'"]}
    with caplog.at_level(logging.INFO):
        assert yolo.load(root, ["train"], notes=Notes(strict=True)).offsets.tolist() == [0, 2, 2]
    assert f"train: 1 {UNLABELLED}" in caplog.text
    (root / "images/train/a.jpg").write_bytes(b"")
    assert yolo.load(root, ["train"], report=lambda found: None).result_ids() == ["b"], "a.txt is there all the same"


def test_sizes_are_those_of_displayed_images(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 40)).save(root / "images/train/a.jpg", exif=exif)
    table = yolo.load(root, ["train"])
    assert table.sizes[0].tolist() == [32, 40] and table.boxes.tolist() == BOXES
    assert DetectionDataset.yolo(root, ["train"]).read_image(0).shape == (3, 32, 40)


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"GIF89a")])
def test_images_that_cannot_be_read(root: Path, damage: Callable[[Path], object]) -> None:
    (root / "some.txt").write_text("images/train/a.jpg\n")
    damage(root / "images/train/a.jpg")
    assert "some.txt:1: no such file" in message(root, ("some",)) or "a.jpg: " in message(root, ("some",))


def test_what_was_read_otherwise_is_reported_in_a_line(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    describe(root, "names: [cup, nut]\ntrain: ../images/train\n")
    with caplog.at_level(logging.WARNING):
        yolo.load(root, ["train"])
    assert "train: read as meant: 1 paths written for another place, found below data.root" in caplog.text


def test_thousands_of_images_load_in_seconds(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480)).save(buffer, "JPEG")
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    for number in range(1000):
        (tmp_path / f"images/train/{number}.jpg").write_bytes(buffer.getvalue())
        (tmp_path / f"labels/train/{number}.txt").write_text(LABELS)
    start = time.process_time()
    assert len(yolo.load(tmp_path, ["train"], ["cup", "nut"]).boxes) == 2000
    assert time.process_time() - start < 2
