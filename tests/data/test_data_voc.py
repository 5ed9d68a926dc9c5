from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grcn.catalog import VOC_CLASSES
from grcn.data import coco, voc, voc_results
from grcn.errors import DataError

OBJECT = """
  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
  </object>"""


def write_image(
    root: Path,
    stem: str,
    *objects: tuple[str, tuple[float, ...]],
    difficult: str = "0",
    suffix: str = ".jpg",
) -> Path:
    """Writes an image of 40 x 30 pixels with its annotation; returns the annotation's path."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / "VOC2007" / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "VOC2007/JPEGImages" / (stem + suffix))
    body = "".join(OBJECT.format(*box, name=name, difficult=difficult) for name, box in objects)
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    path = root / "VOC2007/Annotations" / f"{stem}.xml"
    path.write_text(f"<annotation>\n{size}{body}\n</annotation>\n")
    return path


def write_list(root: Path, split: str, text: str) -> None:
    (root / "VOC2007/ImageSets/Main" / f"{split}.txt").write_text(text, newline="")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_image(tmp_path, "a", ("dog", (1, 1, 40, 30)), ("cat", (3, 4, 5, 6)))
    write_image(tmp_path, "b", ("person", (2.5, 3, 10, 12)), difficult="1", suffix=".png")
    write_image(tmp_path, "c")
    write_list(tmp_path, "trainval", "a\nb\n")
    write_list(tmp_path, "test", "c\r\n\r\na  \r\n")
    return tmp_path


def test_reads_a_split(root):
    table = voc.load(root, ["VOC2007/trainval"])
    assert table.name == "VOC2007/trainval"
    assert table.classes == VOC_CLASSES
    assert table.image_ids.tolist() == [b"a", b"b"]
    assert table.files.tolist() == [b"VOC2007/JPEGImages/a.jpg", b"VOC2007/JPEGImages/b.png"]
    assert Path(table.path(1)).is_file()
    assert table.sizes.tolist() == [[30, 40], [30, 40]]
    assert table.boxes.tolist() == [[0, 0, 40, 30], [2, 3, 5, 6], [1.5, 2, 10, 12]]
    assert [table.classes[label - 1] for label in table.labels] == ["dog", "cat", "person"]
    assert table.area.tolist() == [1200, 9, 85]
    assert table.difficult.tolist() == [False, False, True]
    assert table.category_ids.tolist() == list(range(1, 21))


def test_several_splits_are_joined_and_images_without_objects_stay(root):
    write_list(root, "rest", "c\n")
    table = voc.load(root, ["VOC2007/trainval", "VOC2007/rest"])
    assert table.name == "VOC2007/trainval+VOC2007/rest"
    assert table.offsets.tolist() == [0, 2, 3, 3]
    with pytest.raises(DataError, match="an image is listed twice"):
        voc.load(root, ["VOC2007/trainval", "VOC2007/test"])


def test_the_twenty_classes_are_the_official_ones_in_order():
    assert len(VOC_CLASSES) == 20
    assert sorted(VOC_CLASSES) == list(VOC_CLASSES)


def test_classes_are_those_found_unless_all_are_of_voc(root):
    write_image(root, "d", ("zebra", (1, 1, 5, 5)), ("ant", (1, 1, 5, 5)))
    write_list(root, "own", "d\nb\n")
    assert voc.load(root, ["VOC2007/own"]).classes == ("ant", "person", "zebra")
    given = voc.load(root, ["VOC2007/own"], ["zebra", "person", "ant"])
    assert given.labels.tolist() == [1, 3, 2]


def test_an_unknown_class_names_file_and_class(root):
    write_image(root, "d", ("Person", (1, 1, 5, 5)))
    write_list(root, "own", "d\n")
    with pytest.raises(DataError, match=r"d\.xml: object 1: unknown class \(got 'Person', .*'person"):
        voc.load(root, ["VOC2007/own"], VOC_CLASSES)


def test_lists_per_class_have_a_second_column(root):
    write_list(root, "dog_train", "a  1\nb -1\nc  0\n")
    assert voc.load(root, ["VOC2007/dog_train"]).image_ids.tolist() == [b"a", b"b", b"c"]


def test_images_of_two_folders_that_share_names(root, tmp_path):
    (root / "my set").symlink_to("VOC2007")
    table = voc.load(root, ["VOC2007/trainval", "my set/trainval"])
    ids = ["VOC2007/a", "VOC2007/b", "my set/a", "my set/b"]
    assert table.result_ids() == ids and table.first(1).result_ids() == ids[:1]
    written = detections(300, np.float64, images=4)
    coco.write_detections(tmp_path / "d.json", table, written)
    read = coco.read_detections(tmp_path / "d.json", table)
    assert all(np.array_equal(read[key], written[key]) for key in ("rows", "labels", "scores"))
    voc_results.write_detections(tmp_path / "devkit", "trainval", table, written)
    read = voc_results.read_detections(tmp_path / "devkit", table)
    assert np.array_equal(read["rows"], written["rows"][np.argsort(written["labels"], kind="stable")])
    with pytest.raises(DataError, match=r"an image is listed twice \(got 'my set/a'\); remove one"):
        voc.load(root, ["VOC2007/trainval", "my set/trainval", "my set/test"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no image"),
        ("a\nb 2\n", r"trainval\.txt:2: not an image name"),
        ("a\n\na\n", r"trainval\.txt:3: listed before \(got 'a' as in line 1\)"),
        ("../a\n", r"trainval\.txt:1: not an image name"),
        ("/etc/passwd\n", r"trainval\.txt:1: not an image name"),
        ("a\nmissing\n", r"missing\.xml: no such file"),
    ],
)
def test_broken_lists(root, text, message):
    write_list(root, "trainval", text)
    with pytest.raises(DataError, match=message):
        voc.load(root, ["VOC2007/trainval"])


def test_a_missing_list_is_named(root):
    with pytest.raises(DataError, match=r"/Main/val\.txt: no such file, nor XML in 'VOC2007/val/'; set "):
        voc.load(root, ["VOC2007/val"])


def test_a_list_that_is_no_text(root):
    (root / "VOC2007/ImageSets/Main/trainval.txt").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"trainval\.txt:2: not UTF-8"):
        voc.load(root, ["VOC2007/trainval"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", r"a\.xml:1[0-9]: broken XML \(got 'no element found'\)"),
        ("<part>", "<x>", r"a\.xml:7: broken XML \(got 'mismatched tag'\)"),
        ("<annotation>", "<!DOCTYPE a><annotation>", r"a\.xml: DOCTYPE is not allowed"),
        ("<annotation>", "<?xml version='1.0' encoding='none'?><annotation>", "unknown encoding"),
        ("<width>40</width>", "<width>x</width>", r"<size/width> is no number \(got 'x'\)"),
        ("<width>40</width>", "<width>4.5</width>", r"size \(got '4.5' as width\)"),
        ("<width>40</width>", "<width>nan</width>", "<size> is no image size"),
        ("<width>40</width>", "<width>1e300</width>", r"a\.xml: <size> is no image size"),
        ("<name>dog</name>", "<name>do\ng</name>", r"object 1: <name>: not a class name .got 'do\\ng'"),
        ("<name>dog</name>", "", "object 1: <name> is missing"),
        ("<ymin>4</ymin>", "", "object 2: <bndbox/ymin> is missing"),
        ("<ymin>4</ymin>", "<ymin>four</ymin>", r"<bndbox/ymin> is no number \(got 'four'\)"),
        ("<ymin>4</ymin>", "<ymin>inf</ymin>", "object 2: box is not finite"),
        ("<ymin>4</ymin>", "<ymin>9</ymin>", "object 2: box is reversed"),
        ("<xmin>3</xmin>", "<xmin>300</xmin>", "object 2: box is reversed"),
        ("<difficult>0", "<difficult>maybe", r"<difficult> is neither 0 nor 1 \(got 'maybe'\)"),
    ],
)
def test_broken_annotations_are_one_line(root, old, new, message):
    path = root / "VOC2007/Annotations/a.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message) as error:
        voc.load(root, ["VOC2007/trainval"])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_unset_difficult_spaces_and_encodings(root):
    path = root / "VOC2007/Annotations/a.xml"
    text = path.read_text().replace("<difficult>0</difficult>", "")
    text = text.replace("<xmin>3</xmin>", "<xmin>\n 3.0 </xmin>")
    expected = voc.load(root, ["VOC2007/trainval"]).fingerprint()
    latin = "<?xml version='1.0' encoding='ISO-8859-1'?><!-- é -->" + text
    for data in (text.encode(), text.encode("utf-8-sig"), latin.encode("latin-1")):
        path.write_bytes(data)
        assert voc.load(root, ["VOC2007/trainval"]).fingerprint() == expected


def test_entities_are_refused_before_they_grow(root):
    lines = [f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 12)]
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "ha">{"".join(lines)}]><a>&e11;</a>'
    for data in (bomb.encode(), bomb.encode("utf-16")):
        (root / "VOC2007/Annotations/a.xml").write_bytes(data)
        with pytest.raises(DataError, match="DOCTYPE is not allowed"):
            voc.load(root, ["VOC2007/trainval"])


def test_counting_from_zero_is_clipped_and_said(root, caplog):
    write_image(root, "d", ("dog", (0, 0, 39, 29)))
    write_list(root, "own", "d\n")
    assert voc.load(root, ["VOC2007/own"]).boxes.tolist() == [[0, 0, 39, 29]]
    assert "stick out of their image, clipped" in caplog.text


def test_coordinate_functions_are_inverse_and_keep_the_devkits_areas():
    devkit = np.array([[1, 1, 1, 1], [10, 20, 30, 44], [3.25, 1, 500, 375]], float)
    continuous = voc.to_continuous(devkit)
    assert np.array_equal(voc_results.to_devkit(continuous), devkit)
    assert np.array_equal(voc.to_continuous(voc_results.to_devkit(continuous)), continuous)
    sides = continuous[:, 2:] - continuous[:, :2]
    assert np.array_equal(sides, devkit[:, 2:] - devkit[:, :2] + 1)


def detections(count: int, dtype: type, images: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    corner, side = random.uniform(0, 20, (2, count, 2))
    return {
        "rows": random.integers(0, images, count),
        "boxes": np.concatenate([corner, corner + side], 1).astype(dtype),
        "scores": random.uniform(0, 1, count).astype(dtype),
        "labels": random.integers(1, 21, count),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_result_files_survive_a_round_trip(root, tmp_path, dtype):
    table = voc.load(root, ["VOC2007/trainval"])
    written = detections(300, dtype)
    voc_results.write_detections(tmp_path / "results", "trainval", table, written)
    read = voc_results.read_detections(tmp_path / "results", table)
    order = np.argsort(written["labels"], kind="stable")
    for key in ("rows", "labels", "scores"):
        assert np.array_equal(read[key], written[key][order])
    assert np.abs(read["boxes"] - written["boxes"][order]).max() < 1e-14
    if dtype == np.float32:
        assert np.array_equal(read["boxes"].astype(dtype), written["boxes"][order])


@pytest.mark.parametrize("module", [coco, voc_results])
def test_result_files_are_written_part_by_part(root, tmp_path, monkeypatch, module):
    table = voc.load(root, ["VOC2007/trainval"])
    many = detections(20_000, np.float32)
    args = (tmp_path / "whole", "trainval")[: 1 + (module is voc_results)]
    module.write_detections(*args, table, many)
    monkeypatch.setattr(module, "PART", 999, raising=False)
    tracemalloc.start()
    try:
        module.write_detections(tmp_path / "parts", *args[1:], table, many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2e6, "all detections as Python's numbers take 5 MB"
    whole, parts = ([tmp_path / name, *sorted((tmp_path / name).glob("*"))] for name in ("whole", "parts"))
    files = [(a, b) for a, b in zip(whole, parts, strict=True) if a.is_file()]
    assert len(files) == (20 if module is voc_results else 1)
    assert all(a.read_bytes() == b.read_bytes() for a, b in files)


def test_result_files_are_the_devkits(root, tmp_path):
    table = voc.load(root, ["VOC2007/trainval"])
    one = {
        "rows": np.array([1]),
        "boxes": np.array([[0, 4, 10.5, 30]], np.float32),
        "scores": np.array([0.75], np.float32),
        "labels": np.array([12]),
    }
    voc_results.write_detections(tmp_path / "results", "trainval", table, one)
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {f"comp4_det_trainval_{name}.txt" for name in VOC_CLASSES}
    dog = (tmp_path / "results/comp4_det_trainval_dog.txt").read_text()
    assert dog == "b 0.75 1.0 5.0 10.5 30.0\n"
    assert (tmp_path / "results/comp4_det_trainval_cat.txt").read_text() == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("comp4_det_test_dog.txt", "a 0.5 1 1 5 5\nz 0.5 1 1 5 5\n", r"dog\.txt:2: image is not"),
        ("comp4_det_test_dog.txt", "a 0.5 1 1 5\n", r"dog\.txt:1: broken line"),
        ("comp4_det_test_dog.txt", "\na 0.5 1 1 5 x\n", r"dog\.txt:2: broken line"),
        ("comp4_det_test_dog.txt", "a nan 1 1 5 5\n", r"dog\.txt:1: not a box and a score"),
        ("comp4_det_test_dog.txt", "a 0.5 9 1 5 5\n", r"dog\.txt:1: not a box and a score"),
        ("comp4_det_test_dragon.txt", "", "ends in no class"),
        ("comp4_det_val_dog.txt", "", "several splits"),
        ("results.txt", "", None),
    ],
)
def test_broken_result_files(root, tmp_path, name, text, message):
    table = voc.load(root, ["VOC2007/trainval"])
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(DataError, match="no file comp4_det_"):
        voc_results.read_detections(folder, table)
    (folder / "comp4_det_test_cat.txt").write_text("b 0.5 1 1 5 5\n")
    (folder / name).write_text(text)
    if message is None:
        assert voc_results.read_detections(folder, table)["rows"].tolist() == [1]
        return
    with pytest.raises(DataError, match=message):
        voc_results.read_detections(folder, table)


def test_a_class_without_a_result_file_is_said(root, tmp_path, caplog):
    (tmp_path / "comp4_det_test_big_cat.txt").write_text("a 0.5 1 1 5 5\n")
    table = voc.load(root, ["VOC2007/test"], ["cat", "big_cat", "dog", "person"])
    read = voc_results.read_detections(tmp_path, table)
    assert read["labels"].tolist() == [2]
    assert read["boxes"].tolist() == [[0, 0, 5, 5]]
    assert "no file of class cat" in caplog.text
    assert "no file of class big_cat" not in caplog.text
