"""Bad boxes and annotations in both layouts, given to the real program."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad_data import (
    ANNOTATION,
    ANNOTATIONS,
    AT,
    AT_LIST,
    AT_XML,
    CLASS_AT,
    IMAGE_AT,
    JSON,
    LIST,
    OBJECT,
    XML,
    Case,
    Damage,
    Record,
    bad,
    both,
    check_all,
    check_long_path,
    check_without,
    contents,
    every_annotation,
    good,
    in_all_annotations,
    nothing,
    put,
    removed,
    replaced,
    rewritten,
    without,
    xml,
)
from sabotage import without_box_checks, without_nan_checks, without_number_checks

# In the layout of COCO: damaged are annotation 1, image 1 and category 1.

NAMED = f"{ANNOTATIONS}: annotation 1: "
DROPPED = "1 boxes have no width or height, dropped (first: " + NAMED.rstrip(": ")
CLIPPED = "1 boxes stick out of their image, clipped (first: "


def text(change: Callable[[str], str | bytes]) -> Damage:
    return rewritten(JSON, change)


def box(*numbers: object) -> Damage:
    return put("annotations", 1, "bbox", to=list(numbers))


def many_boxes(text: str) -> str:
    document = json.loads(text)
    corners = np.random.default_rng(0).uniform(0, 30, (1500, 2)).tolist()
    record = {"image_id": 1, "category_id": 1, "area": 9, "iscrowd": 0}
    document["annotations"] += [record | {"id": 10 + k, "bbox": [*c, 9, 9]} for k, c in enumerate(corners)]
    return json.dumps(document)


def second_split(change: Callable[[str], str] = str) -> Damage:
    """Adds a split ``val`` of the same images, its annotations changed."""
    return both(
        lambda root: shutil.copytree(root / "train", root / "val"),
        lambda root: (root / "annotations/instances_val.json").write_text(change((root / JSON).read_text())),
    )


BOXES = [
    good("nothing", nothing),
    bad("negative width", box(5, 6, -3, 30), NAMED + "box is reversed", "[5.0, 6.0, 2.0, 36.0]"),
    bad("negative height", box(5, 6, 3, -30), NAMED + "box is reversed"),
    good("no width", box(5, 6, 0, 30), DROPPED),
    good("no size", box(5, 6, 0, 0), DROPPED),
    good("a width that float32 loses", box(5, 6, 1e-9, 30), DROPPED),
    good("a height that clipping takes", box(5, 47.9999999999, 9, 9), DROPPED),
    good("a third of a pixel", box(5, 6, 0.3, 0.3)),
    good("outside in part", box(-5, 30, 30, 30), CLIPPED + NAMED.rstrip(": ")),
    bad("outside", box(64, 6, 30, 30), NAMED + "box lies outside"),
    bad("far outside", box(1e9, 6, 30, 30), NAMED + "box lies outside"),
    good("so far outside that its width is lost", box(1e18, 6, 30, 30), DROPPED),
    bad("corner of 1e30", box(1e30, 6, 30, 30), AT + "/bbox: too large (got 1e+30)"),
    bad("size of 1e30", box(5, 6, 1e30, 1e30), AT + "/bbox: too large"),
    bad("1e999", text(lambda t: t.replace("[5, 6,", "[5, 1e999,", 1)), "#/annotations/0/bbox", "got inf"),
    bad("nan", box(5, 6, math.nan, 30), NAMED + "box is not finite"),
    *(bad(f"{value}", box(5, 6, value, 30), AT + "/bbox: too large") for value in (math.inf, -math.inf)),
    *(
        bad(f"bbox: {value!r}", put("annotations", 1, "bbox", to=value), AT + "/bbox: not four numbers")
        for value in ([], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [1, 2, 3, None], [1, 2, 3, True], [[1, 2, 3, 4]])
    ),
    *(
        bad(f"bbox: {value!r}", put("annotations", 1, "bbox", to=value), AT + "/bbox: missing or not of type list")
        for value in ({"x": 1}, "1 2 3 4", 7)
    ),
    *(
        bad(f"bbox: {value!r}", put("annotations", 1, "bbox", to=value), AT + "/bbox: missing; compute boxes from the")
        for value in (None, KeyError)
    ),
    *(
        bad(f"category {number}", put("annotations", 1, "category_id", to=number), AT + "/category_id: unknown",
            f"got {number},", "[1, 2]")
        for number in (-1, 0, 3)
    ),
    good("category ids with gaps", both(every_annotation(category_id=90), put("categories", 1, "id", to=90))),
    bad("category id twice", put("categories", 1, "id", to=1), CLASS_AT + "/id: used before"),
    bad("category twice", put("categories", 1, "name", to="cat"), CLASS_AT + "/name: used before (got 'cat')"),
    bad("category twice but for a space", put("categories", 1, "name", to="cat "), "listed twice", "'cat '"),
    good("category twice but for case", put("categories", 1, "name", to="Cat"), "differ in case only"),
    bad("category without a name", put("categories", 1, "name", to=" "), CLASS_AT + "/name: not a class", "' '"),
    bad("image id twice", put("images", 1, "id", to=0), IMAGE_AT + "/id: used before (got 0)"),
    good("annotation id twice", put("annotations", 1, "id", to=0), "1 annotations with the id of an earlier one"),
    *(
        good(f"annotation id {value!r}", put("annotations", 1, "id", to=value), "1 annotations without a number")
        for value in (KeyError, None, True, "a1b2", [1])
    ),
    bad("annotation id of 2**63", put("annotations", 1, "id", to=2**63), AT + "/id: too large"),
    bad("image not listed", put("annotations", 1, "image_id", to=9), AT + "/image_id: unknown (got 9"),
    *(good(f"no {key}", put("annotations", 1, key, to=KeyError)) for key in ("iscrowd", "area")),
    bad("negative area", put("annotations", 1, "area", to=-4), NAMED + "area is no area (got -4"),
    good("area as text", put("annotations", 1, "area", to="800"), "1 values of annotations/area written as text"),
    *(
        good(f"area {value!r}", put("annotations", 1, "area", to=value), "1 values of annotations/area that are null")
        for value in (None, math.nan, "")
    ),
    bad("area in words", put("annotations", 1, "area", to="large"), AT + "/area", "'large'"),
    bad("area of 1e300", put("annotations", 1, "area", to=1e300), AT + "/area: too large"),
    *(
        good(f"iscrowd {value!r}", put("annotations", 1, "iscrowd", to=value), "1 values of annotations/iscrowd other")
        for value in (False, True, None, 0.0, 1.0, "0", "1", "true")
    ),
    *(
        bad(f"iscrowd {value!r}", put("annotations", 1, "iscrowd", to=value), AT + "/iscrowd: missing or not")
        for value in (0.5, "2", "yes", [0], {})
    ),
    bad("iscrowd 2", put("annotations", 1, "iscrowd", to=2), AT + "/iscrowd: unknown (got 2"),
    good("one crowd", put("annotations", 1, "iscrowd", to=1)),
    good("flags of other formats", every_annotation(ignore=1, difficult=1, score=0.5)),
    good("image without boxes", put("annotations", 1, "image_id", to=0), settings=["data.drop_empty=false"]),
    bad("crowds only", every_annotation(iscrowd=1), "train: nothing to evaluate", "4 crowd or difficult"),
    bad("dropped boxes only", every_annotation(bbox=[5, 6, 0, 0]), "train: nothing to evaluate"),
    bad("no boxes", put("annotations", to=[]), "train: nothing to evaluate", settings=["data.drop_empty=false"]),
    good("relative coordinates", every_annotation(bbox=[0.1, 0.1, 0.5, 0.5]), "are the coordinates relative?"),
    good("corners as sizes", every_annotation(bbox=[30, 20, 60, 45]), "are corners stored as sizes?"),
    good("1,500 boxes in an image", text(many_boxes)),
    good("RLE that pycocotools crashes on", every_annotation(segmentation={"counts": "~" * 99, "size": [-1, 1e9]})),
    good("segmentations of no kind", every_annotation(segmentation=[[None], [1e308] * 7, "x", {"counts": [-1] * 9}])),
    *(
        bad(f"JSON cut at {share}", text(lambda t, share=share: t[: int(len(t) * share)]),
            f"{ANNOTATIONS}:1:", "broken JSON")
        for share in (0, 0.001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999)
    ),
    good("byte order mark", text(lambda t: t.encode("utf-8-sig"))),
    *(
        good(name, text(lambda t, name=name: t.encode(name)), "1 files that are not UTF-8")
        for name in ("UTF-16", "UTF-32")
    ),
    bad("UTF-16 without a mark", text(lambda t: t.encode("utf-16-le")), f"{ANNOTATIONS}:1:2: broken JSON"),
    good("gzip", text(lambda t: gzip.compress(t.encode())), "1 gzipped files"),
    bad("gzip cut off", text(lambda t: gzip.compress(t.encode())[:-9]), f"{ANNOTATIONS}: broken gzip"),
    bad("gzip struck", text(lambda t: gzip.compress(t.encode())[:50] + bytes(99)), f"{ANNOTATIONS}: broken gzip"),
    bad("Latin-1", text(lambda t: t.replace("cat", "chât").encode("latin-1")), f"{ANNOTATIONS}: not UTF-8"),
    bad("a key twice", text(lambda t: t.replace("{", '{"id": 7, "id": 7, ', 1)), f"{ANNOTATIONS}: bad", "twice"),
    bad("5,000 digits", text(lambda t: t.replace(": 1,", f": {'1' * 5000},", 1)), f"{ANNOTATIONS}: bad JSON"),
    bad("list at the top", text(lambda t: f"[{t}]"), f"{ANNOTATIONS}: not an object (got 'list')"),
    bad("null at the top", contents(JSON, "null"), f"{ANNOTATIONS}: not an object"),
    *(
        bad(f"{key}: {value!r}", put(key, to=value), f"{ANNOTATIONS}#/{key}: not a list")
        for key in ("images", "annotations", "categories") for value in (KeyError, None, {})
    ),
    *(bad(f"no {key}", put(key, to=[]), f"{ANNOTATIONS}#/{key}: an empty list") for key in ("images", "categories")),
    bad("an annotation that is none", put("annotations", 1, to=[1]), AT + ": not an object (got [1])"),
    *(
        bad(f"image id {value!r}", put("images", 1, "id", to=value), IMAGE_AT + "/id")
        for value in (True, None, 1.5, "", 2**63, -(2**63), 1e30, str(2**63))
    ),
    *(
        good(f"image id {value!r}", put("images", 1, "id", to=value), "1 values of images/id written as text")
        for value in ("1", 1.0, " 1 ", "1.0")
    ),
    good("negative image id", both(put("images", 1, "id", to=-5), put("annotations", 1, "image_id", to=-5))),
    good("a file under two ids", put("images", 1, "file_name", to="0.jpg"), "1 files are listed again, under other"),
    *(
        bad(f"width {value!r}", put("images", 1, "width", to=value), IMAGE_AT)
        for value in (-64, 64.5, "wide", True, 2**31, 2**63)
    ),
    *(
        good(f"width {value!r}", put("images", 1, "width", to=value), "1 values of images/width written as text")
        for value in (64.0, "64")
    ),
    *(
        good(f"width {value!r}", put("images", 1, "width", to=value), "1 images whose size is that of")
        for value in (0, -1, None, KeyError, math.nan, "")
    ),
    bad("width and image missing", both(removed("train/1.jpg"), put("images", 1, "width", to=0)),
        IMAGE_AT + ": no size (got 0 x 48), and no image 'train/"),
    bad("no file", removed(JSON), f"{ANNOTATIONS}: no such file", "data.root"),
    bad("a folder for a file", replaced(JSON, Path.mkdir), f"{ANNOTATIONS}: not a file"),
    bad("a pipe for a file", replaced(JSON, os.mkfifo), f"{ANNOTATIONS}: not a file"),
    bad("another class in the test split", second_split(lambda text: text.replace("dog", "cow")),
        "data/annotations/instances_val.json: unknown class (got 'cow')", settings=["data.test=[val]"]),
    bad("an image in two splits", second_split(), "train+val: an image id is listed twice",
        settings=["data.train=[train, val]"]),
]  # fmt: skip


# In the layout of VOC: damaged are Annotations/1.xml and the list of images.

PART = "<part><name>head</name><bndbox><xmin>-9</xmin><ymin>x</ymin></bndbox></part></object>"
DOG = ANNOTATION.format("dog").encode()
CHOSEN = ["data.classes=[cat, dog]"]


VOC = [
    good("nothing", nothing),
    *(good(f"no <{tag}>", without(tag), "1 sizes taken from the image") for tag in ("size", "width", "height")),
    *(
        bad(f"no <{tag}>", without(tag), OBJECT + "<", "missing")
        for tag in ("name", "bndbox", "xmin", "ymin", "xmax", "ymax")
    ),
    *(good(f"no <{tag}>", without(tag)) for tag in ("difficult", "pose", "truncated", "depth", "object")),
    good("coordinate 12.0", xml("<xmin>6<", "<xmin>12.0<")),
    good("spaces round a coordinate", xml("<xmin>6<", "<xmin>\n  6 \t<")),
    good("counted from 0", xml("<xmin>6<", "<xmin>0<"), CLIPPED + OBJECT.rstrip(": "), in_workers=True),
    good("xmax past the width", xml("<xmax>35<", "<xmax>99<"), CLIPPED + OBJECT.rstrip(": ")),
    bad("reversed", xml("<xmax>35<", "<xmax>3<"), OBJECT + "box is reversed"),
    bad("outside", xml("<xmin>6</xmin><ymin>7</ymin><xmax>35<", "<xmin>66</xmin><ymin>7</ymin><xmax>70<"), OBJECT),
    *(
        bad(f"coordinate {value!r}", xml("<xmin>6<", f"<xmin>{value}<"), OBJECT, said)
        for value, said in [("nan", "finite"), ("inf", "finite"), ("-inf", "finite"), ("1e999", "finite"),
                            ("six", "no number"), ("6,5", "no number"), ("6 7", "no number"), ("", "missing")]
    ),
    *(
        bad(f"width {value!r}", xml("<width>64<", f"<width>{value}<"), AT_XML + "<size")
        for value in ("64.5", "nan", "inf", "1e300", "2147483648", "x")
    ),
    *(
        good(f"width {value!r}", xml("<width>64<", f"<width>{value}<"), "1 sizes taken from the image")
        for value in ("0", "-64", "None", "")
    ),
    bad("no <size> and no image", both(without("size"), removed("VOC2007/JPEGImages/1.jpg")), AT_XML + "<size> is",
        "'1.jpg'"),
    bad("no <size>, strictly", without("size"), AT_XML + "sizes taken from the image are refused",
        settings=["data.strict=true"]),
    bad("difficult 2", xml("<difficult>0", "<difficult>2"), OBJECT + "<difficult> is neither 0 nor 1 (got '2')"),
    bad("difficult objects only", in_all_annotations("<difficult>0", "<difficult>1"), "VOC2007/train: nothing",
        "0 objects to find in 4 images, 4 crowd or difficult"),
    bad("no objects", in_all_annotations("object>", "thing>"), "VOC2007/train: nothing to evaluate"),
    good("boxes of parts", xml("</object>", PART)),
    *(
        bad(f"class {name}", xml("<name>dog", f"<name>{name}"), OBJECT + f"unknown class (got '{name}', {hint})",
            settings=CHOSEN)
        for name, hint in (("cow", "known: 'cat, dog'"), ("Dog", "near 'dog'"), ("do g", "near 'dog'"))
    ),
    good("classes that differ in case", in_all_annotations("<name>cat", "<name>Dog"), "differ in case only"),
    good("a class that is nowhere", in_all_annotations("<name>cat", "<name>dog"), settings=CHOSEN),
    good("list with flags, blank lines and CRLF", contents(LIST, "0  1\r\n\r\n1 -1\r\n 2 0 \r\n3\r\n")),
    bad("list with words", contents(LIST, "0\n1 dog\n"), AT_LIST + "2: not an image name (got '1 dog')"),
    bad("image listed twice", contents(LIST, "0\n1\n2\n1\n"), AT_LIST + "4: listed before", "line 2"),
    bad("no annotation", contents(LIST, "0\n7\n"), "data/VOC2007/Annotations/7.xml: no such file"),
    bad("no image", removed("VOC2007/JPEGImages/1.jpg"), "data/VOC2007/JPEGImages/1.jpg: no such image", "1 of 4"),
    bad("empty list", contents(LIST, ""), AT_LIST + " the list names no image"),
    good("list in UTF-16", contents(LIST, "0\n1\n".encode("utf-16")), "1 lists in UTF-16"),
    bad("list in Latin-1", contents(LIST, "0\n\xe9\n".encode("latin-1")), AT_LIST + "2: not UTF-8"),
    good("list with suffixes", contents(LIST, "0.jpg\n1.jpg\n"), "2 names in lists with quotes, folders or suffixes"),
    bad("list of zeros", contents(LIST, bytes(99)), AT_LIST + "1: not an image name"),
    good("list with a byte order mark", contents(LIST, "0\n1\n2\n3\n".encode("utf-8-sig"))),
    bad("no list", removed(LIST), AT_LIST + " no such file, nor XML in 'VOC2007/train/'",
        "found 'VOC2007'"),
    good("no list, but its folder", removed(LIST), "1 splits read from a folder without a list",
         settings=["data.train=[VOC2007]", "data.test=[VOC2007]"]),
    bad("a pipe for a list", replaced(LIST, os.mkfifo), AT_LIST + " not a file"),
    bad("a folder for an annotation", replaced(XML, Path.mkdir), AT_XML + "not a file"),
    good("byte order mark", rewritten(XML, lambda text: text.encode("utf-8-sig"))),
    good("UTF-16", rewritten(XML, lambda text: f"<?xml version='1.0' encoding='utf-16'?>{text}".encode("utf-16"))),
    good("Latin-1", contents(XML, b"<?xml version='1.0' encoding='ISO-8859-1'?><!-- \xe9 -->" + DOG)),
    bad("Latin-1 that says nothing", contents(XML, b"<!-- \xe9 -->" + DOG), f"data/{XML}:1: not UTF-8 though"),
    bad("unknown encoding", contents(XML, "<?xml version='1.0' encoding='klingon'?><a/>"), AT_XML + "unknown encoding"),
    bad("empty annotation", contents(XML, ""), f"data/{XML}:1: broken XML"),
    bad("another document", contents(XML, "<html><body/></html>"), AT_XML + "not an annotation (got 'html')"),
    *(
        bad(f"XML cut at {share}", rewritten(XML, lambda t, share=share: t[: int((len(t) - 2) * share)]),
            f"data/{XML}:", "broken XML")
        for share in (0.01, 0.2, 0.4, 0.6, 0.8, 1)
    ),
    good("stems that repeat in two folders", lambda root: (root / "VOC2008").symlink_to("VOC2007"),
         settings=["data.train=[VOC2007/train, VOC2008/train]"]),
    bad("truncated image", lambda root: os.truncate(root / "VOC2007/JPEGImages/1.jpg", 900),
        "data/VOC2007/JPEGImages/1.jpg: image cannot be decoded", in_workers=True),
]  # fmt: skip


FAMILIES = {"boxes and annotations": ("coco", BOXES), "VOC": ("voc", VOC)}


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_annotations(tmp_path: Path, faults: int, record_property: Record, family: str) -> None:
    record_property("faults", check_all(family, *FAMILIES[family], tmp_path, faults))


@pytest.mark.parametrize(("layout", "cases"), FAMILIES.values(), ids=FAMILIES)
def test_a_long_path_stays_whole(tmp_path: Path, layout: str, cases: list[Case]) -> None:
    check_long_path(layout, cases, tmp_path, JSON if layout == "coco" else XML)


@pytest.mark.parametrize(
    ("family", "name", "guard"),
    [
        ("boxes and annotations", "far outside", without_box_checks),
        ("VOC", "coordinate 'nan'", without_nan_checks),
        ("VOC", "coordinate 'six'", without_number_checks),
    ],
)
def test_without_a_guard_the_check_fails(tmp_path: Path, family: str, name: str, guard: Callable[[], None]) -> None:
    layout, cases = FAMILIES[family]
    with pytest.raises(AssertionError, match="expected 3"):
        check_without(guard, cases, name, layout, tmp_path)
