"""Lists and folders as annotation tools export them, read as they are meant and counted; else refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from voc_files import listed, pair, picture, read, text

from grcn.data import voc
from grcn.data.faults import Notes
from grcn.data.images import FORMATS, FileImages
from grcn.data.voc_folders import IMAGE_SUFFIXES
from grcn.errors import DataError

LISTED = "names in lists with quotes, folders or suffixes"
FOLDER = "splits read from a folder without a list"
RENAMED = "folders with other names than in VOC"


@pytest.mark.parametrize(
    ("line", "name", "counted"),
    [
        ("a", "a", False),
        ("a  1", "a", False),
        ("a -1", "a", False),
        ("my photo_00", "my photo_00", False),
        ("  my photo_00 \t", "my photo_00", False),
        ("my photo_00 -1", "my photo_00", False),
        ("photo 1", "photo 1", False),
        ("photo", "photo", False),
        ("photo 0", "photo", False),
        ("photo 1 0", "photo 1", False),
        ("photo 1.jpg", "photo 1", True),
        ("JPEGImages/photo 1", "photo 1", True),
        ("JPEGImages/photo 1.jpg -1", "photo 1", True),
        ("a.jpg", "a", True),
        ("a.JPG", "a", True),
        ("a.xml", "a", True),
        ("a.jpg 1", "a", True),
        ("a.jpg -1", "a", True),
        ("b.c", "b.c", False),
        ("b.c.jpg", "b.c", True),
        ("b.jpg", "b.jpg", False),
        ("b.jpg.jpg", "b.jpg", True),
        ("./a", "a", True),
        ("JPEGImages/a.jpg", "a", True),
        ("mine/JPEGImages/a.jpg", "a", True),
        ("JPEGImages\\a.jpg", "a", True),
        ("C:\\Users\\me\\mine\\JPEGImages\\a.jpg", "a", True),
        ("/home/me/mine/JPEGImages/my photo_00.jpg", "my photo_00", True),
        ("/elsewhere/a", "a", True),
        ("sub/d", "sub/d", False),
        ("JPEGImages/sub/d.jpg", "sub/d", True),
        ('"my photo_00"', "my photo_00", True),
        ('"my photo_00.jpg"', "my photo_00", True),
        ('"my photo_00" -1', "my photo_00", True),
        ('"photo 1" 0', "photo 1", True),
        ('"sub/d"', "sub/d", True),
        ('"JPEGImages\\\\a.jpg"', "a", True),
        ("'my photo_00.jpg'", "my photo_00", True),
        ('"6\\" nail"', '6" nail', True),
        ("犬 №1.jpg", "犬 №1", True),
    ],
)
def test_a_line_names_one_image(tmp_path, line, name, counted):
    stems = ("a", "my photo_00", "photo", "photo 1", "b.c", "b.jpg", "b", "sub/d", "d", '6" nail', "犬 №1")
    pair(tmp_path / "mine", *stems)
    assert listed(tmp_path, f"{line}\n") == ([name], {LISTED: 1} if counted else {})


def test_an_image_is_never_read_in_place_of_another(tmp_path):
    mine = tmp_path / "mine"
    pair(mine, "photo", "a")
    picture(mine / "JPEGImages/photo 1.jpg")  # which nobody annotated
    with pytest.raises(DataError, match=r"photo 1\.xml: no such file"):
        listed(tmp_path, "photo 1\n")
    picture(mine / "val/a.jpg")
    picture(mine / "JPEGImages/other/a.png")
    for line in ("val/a.jpg", "val/a", "mine/val/a.jpg", "other/a.png", "val\\a.jpg", '"val/a.jpg" 1'):
        with pytest.raises(DataError, match=r"train\.txt:1: a path to another image than 'JPEGImages/a.jpg'|other/a\."):
            listed(tmp_path, f"{line}\n")
    with pytest.raises(DataError, match=r"train\.txt:2: listed before \(got 'a' as in line 1\)"):
        listed(tmp_path, "a\nJPEGImages/a.jpg\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../a", "train.txt:1: not an image name"),
        ("JPEGImages/../../mine/JPEGImages/a.jpg", "train.txt:1: not an image name"),
        ("..\\a.jpg", "train.txt:1: not an image name"),
        ("/etc/passwd", "train.txt:1: not an image name"),
        ("no photo", "train.txt:1: not an image name (got 'no photo') and no XML is called so"),
        ("a dog", "train.txt:1: not an image name"),
        ("a\x1b", "train.txt:1: not an image name"),
        ("a 2", "train.txt:1: not an image name"),
        ("none.jpg", "Annotations/none.xml: no such file"),
        ("none.jpg 1", "Annotations/none.xml: no such file"),
        ('"none"', 'Annotations/"none".xml: no such file'),
    ],
)
def test_a_line_that_names_none(tmp_path, line, message):
    pair(tmp_path / "mine", "a")
    with pytest.raises(DataError) as error:
        listed(tmp_path, f"{line}\n")
    assert message in str(error.value)


def test_lists_in_other_encodings(tmp_path):
    pair(tmp_path / "mine", "a", "é")
    for codec, kind in (("utf-16", "lists in UTF-16"), ("utf-32", "lists in UTF-32")):
        assert listed(tmp_path, "a\r\né\r\n".encode(codec)) == (["a", "é"], {kind: 1})
    big = b"\xfe\xff" + "a\né\n".encode("utf-16-be")
    assert listed(tmp_path, big) == (["a", "é"], {"lists in UTF-16": 1})
    assert listed(tmp_path, "a\né\n".encode("utf-8-sig")) == (["a", "é"], {})
    for data, message in (("a\né\n".encode("latin-1"), "2: not UTF-8 text"), (big[:-1], "2: not UTF-16 text")):
        with pytest.raises(DataError, match=rf"train\.txt:{message}; convert the file"):
            listed(tmp_path, data)


def test_images_of_every_suffix_that_the_program_reads(tmp_path):
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert set(IMAGE_SUFFIXES) == known
    mine, stems = tmp_path / "mine", []
    for suffix in sorted(known - {".pfm"}):  # it has 32 bits per channel
        for written in (suffix, suffix.upper()):
            stem = f"x{written[1:]}"
            pair(mine, stem)
            (mine / f"JPEGImages/{stem}.jpg").unlink()
            picture(mine / f"JPEGImages/{stem}{written}")
            stems.append(stem)
    names, counts = listed(tmp_path, "\n".join(stems))
    assert names == stems and counts == {}
    images = FileImages(voc.load(tmp_path, ["mine/train"]))
    assert {images(row).shape for row in range(len(stems))} == {(3, 30, 40)}


def test_of_several_images_of_a_name_one_is_read(tmp_path):
    pair(tmp_path / "mine", "a")
    for suffix in (".JPG", ".png", ".jpeg", ".webp"):
        picture(tmp_path / f"mine/JPEGImages/a{suffix}")
    found = []
    for suffix in (".jpg", ".JPG", ".jpeg", ".png"):
        assert listed(tmp_path, "a\n")[1] == {"images in several files, of which one is read": 1}
        found += voc.load(tmp_path, ["mine/train"]).files.tolist()
        (tmp_path / f"mine/JPEGImages/a{suffix}").unlink()
    assert found == [b"mine/JPEGImages/a" + end for end in (b".jpg", b".JPG", b".jpeg", b".png")]


@pytest.mark.parametrize(
    ("images", "annotations"),
    [(".", "."), ("JPEGImages", "Annotations"), ("images", "annotations"), ("images", "."), (".", "Annotations")],
)
def test_folders_without_lists(tmp_path, images, annotations):
    stems = ["10", "2", "my photo", "a.b"]
    for split in ("train", "parts/valid"):
        pair(tmp_path / split, *stems, images=images, annotations=annotations)
        picture(tmp_path / split / images / "not annotated.jpg")
        text(tmp_path / split / annotations / "._2.xml", b"\0\x05\x16\x07")
        text(tmp_path / split / "README.roboflow.txt", "...")
    expected = {FOLDER: 1, "images without an XML, left out": 1}
    assert read(tmp_path, "train") == (sorted(stems), expected)
    assert read(tmp_path, "train/") == (sorted(stems), expected)
    assert read(tmp_path / "train", ".") == (sorted(stems), expected)
    assert voc.load(tmp_path / "train", ["."]).name == "train"
    names, counts = read(tmp_path, "train", "parts/valid")
    assert names == [f"{split}/{stem}" for split in ("train", "parts/valid") for stem in sorted(stems)]
    assert counts == {kind: 2 * count for kind, count in expected.items()}


def test_a_list_beside_folders_of_other_names(tmp_path):
    pair(tmp_path / "mine", "a", "b", images="images")
    assert listed(tmp_path, "a\nb\n") == (["a", "b"], {RENAMED: 1})
    (tmp_path / "mine/Annotations").rename(tmp_path / "mine/annotations")
    (tmp_path / "mine/JPEGImages").mkdir()  # empty
    assert listed(tmp_path, "images/a.jpg\n") == (["a"], {RENAMED: 2, LISTED: 1})
    pair(tmp_path / "mine", "c")
    with pytest.raises(DataError, match=r"mine/Annotations/b\.xml: no such file"):
        listed(tmp_path, "c\nb\n")


def test_a_list_above_images_beside_their_xml(tmp_path):
    pair(tmp_path / "mine", "a", "b", "photo 1", images=".", annotations=".")
    assert listed(tmp_path, "b\nphoto 1\n") == (["b", "photo 1"], {RENAMED: 2})


def test_a_list_goes_before_a_folder(tmp_path):
    pair(tmp_path / "train", "a", images=".", annotations=".")
    pair(tmp_path, "b", "c")
    text(tmp_path / "ImageSets/Main/train.txt", "b\n")
    assert read(tmp_path, "train") == (["b"], {})
    (tmp_path / "ImageSets/Main/train.txt").unlink()
    assert read(tmp_path, "train") == (["a"], {FOLDER: 1})


def test_a_folder_with_names_that_do_harm(tmp_path):
    pair(tmp_path / "train", "a", "b\x1b[2J", images=".", annotations=".")
    with pytest.raises(DataError, match=r"train: not an image name \(got 'b\\x1b\[2J'\); rename the file"):
        voc.load(tmp_path, ["train"])
    faults: list[DataError] = []
    assert len(voc.load(tmp_path, ["train"], report=faults.append)) == 1 and len(faults) == 1


def label_img(root: Path) -> None:
    for split, stems in (("train", "abc"), ("val", "de")):
        pair(root / split, *stems, images=".", annotations=".")
        text(root / split / "classes.txt", "cup\n")


def cvat(root: Path) -> None:
    for split, stems in (("train", ("my photo", "sub/b", "c")), ("val", ("d", "e f"))):
        pair(root, *stems)
        lines = [f'"{stem}"' if " " in stem else stem for stem in stems]
        text(root / f"ImageSets/Main/{split}.txt", "".join(f"{line}\n" for line in lines))
        text(root / f"ImageSets/Main/cup_{split}.txt", "".join(f"{line}  1\n" for line in lines))
    text(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncup:128,0,0::\n")


def roboflow(root: Path) -> None:
    for split, stems in (("train", ("a_jpg.rf.01", "b_png.rf.02")), ("valid", ("c_jpg.rf.03",))):
        pair(root / split, *stems, images=".", annotations=".")
    text(root / "README.dataset.txt", "...")


def label_studio(root: Path) -> None:
    for split, stems in (("train", "abc"), ("val", "de")):
        pair(root / split, *(f"0f{stem}-photo" for stem in stems), images="images")


def vott(root: Path) -> None:
    for split, stems in (("train", "abc"), ("val", "de")):
        pair(root, *stems)
        text(
            root / f"ImageSets/Main/cup_{split}.txt",
            "".join(f"{stem}.jpg {k % 3 - 1}\n" for k, stem in enumerate(stems)),
        )
    text(root / "pascal_label_map.pbtxt", "item {\n id: 1\n name: 'cup'\n}\n")


# The recipes of docs/data.md: how many images each side has, and what is counted in both.
@pytest.mark.parametrize(
    ("export", "splits", "images", "counted"),
    [
        (label_img, ("train", "val"), (3, 2), {FOLDER: 2}),
        (cvat, ("train", "val"), (3, 2), {LISTED: 2}),
        (cvat, ("cup_train", "cup_val"), (3, 2), {LISTED: 2}),
        (roboflow, ("train", "valid"), (2, 1), {FOLDER: 2}),
        (label_studio, ("train", "val"), (3, 2), {FOLDER: 2}),
        (vott, ("cup_train", "cup_val"), (3, 2), {LISTED: 5}),
    ],
)
def test_the_exports_of_annotation_tools(tmp_path, export, splits, images, counted):
    export(tmp_path)
    found = [read(tmp_path, split) for split in splits]
    assert tuple(len(names) for names, _ in found) == images
    assert {kind: sum(counts.get(kind, 0) for _, counts in found) for _, c in found for kind in c} == counted


def test_xml_in_other_places_of_a_folder_is_counted(tmp_path):
    write_xml(tmp_path / "train/Annotations/a.xml")
    write_xml(tmp_path / "train/Annotations/cam1/b.xml")
    write_xml(tmp_path / "train/c.xml")
    notes = Notes()
    table = voc.load(tmp_path, ["train"], notes=notes)
    assert table.result_ids() == ["a"]
    assert notes.counts["XML files in other places of the folder, left out"] == 2


@pytest.mark.parametrize("split", ["../out/train", "/out/train", "train/../../out"])
def test_a_split_that_leads_out_is_refused(tmp_path, split):
    write_xml(tmp_path / "out/train/a.xml")
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="a split leads out of it"):
        voc.load(tmp_path / "root", [split])


@pytest.mark.parametrize(
    "text",
    [
        "<annotation>{size}<objects><object><name>cup</name>{box}</object></objects></annotation>",
        "<annotation>{size}<Object><name>cup</name>{box}</Object></annotation>",
        "<annotation>{size}<item><name>cup</name>{box}</item></annotation>",
        "<other>{size}<object><name>cup</name>{box}</object></other>",
    ],
)
def test_objects_that_would_not_be_found_are_an_error(tmp_path, text):
    (tmp_path / "train").mkdir()
    size = "<size><width>60</width><height>40</height></size>"
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (tmp_path / "train/a.xml").write_text(text.format(size=size, box=box))
    with pytest.raises(DataError, match="is not in an <object>|not an annotation"):
        voc.load(tmp_path, ["train"])


def write_xml(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    size = "<size><width>60</width><height>40</height></size>"
    path.write_text(f"<annotation>{size}</annotation>")
