"""The data check: it finds every kind of fault, made on disk, and none in a clean data set."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from bad_data import noise
from PIL import Image
from torchvision.ops import box_iou

from grcn.apps.check_data.check import as_text, check_data
from grcn.apps.check_data.html import settings
from grcn.apps.check_data.pictures import _surroundings
from grcn.config.files import load_config
from grcn.data import coco, voc
from grcn.data import findings as check
from grcn.data.faults import Fault
from grcn.data.validate import pack
from grcn.errors import DataError
from grcn.models.anchors import AnchorGenerator
from grcn.run import checks_before_training as check_images
from grcn.run.anchor_fit import AnchorSet, Objects, findings_of, fit, objects_alone, objects_of

CONFIG = """
model: {{backbone: tiny, width: 8, image: {{short: 96, max: 128}}, anchors: {{sizes: [60], ratios: [1]}},
  head: {{dim: 16}},
  rpn: {{straddling: true}}}}
data: {{format: {0}, root: data, train: [{1}train], test: [{1}test]{2}}}
train: {{steps: 2, batch: 2, log_every: 1}}
eval: {{pictures: 0, protocols: [coco]}}
run: {{workers: 0, device: cpu, threads: 1}}
"""
# The objects of clean images of 64 x 48, as VOC's corners: a cup and a nut.
BOXES = {"cup": (2, 4, 31, 33), "nut": (31, 10, 60, 39)}
NOTHING: dict[str, list] = {"rows": [], "boxes": [], "labels": []}
VOC = "VOC2007/"
SPLITS = {"train": range(12), "test": range(12, 16)}


def annotation(objects, size=(64, 48)):
    """Returns VOC's XML for (class, corners) pairs."""
    tags = ("xmin", "ymin", "xmax", "ymax")
    parts = [
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    ]
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(parts)}</annotation>"


def write_voc(root):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / VOC / folder).mkdir(parents=True)
    for split, numbers in SPLITS.items():
        (root / VOC / f"ImageSets/Main/{split}.txt").write_text("".join(f"{number}\n" for number in numbers))
        for number in numbers:
            noise(seed=number).save(root / VOC / f"JPEGImages/{number}.jpg")
            (root / VOC / f"Annotations/{number}.xml").write_text(annotation(BOXES.items()))


def write_coco(root):
    (root / "annotations").mkdir(parents=True)
    for split, numbers in SPLITS.items():
        (root / split).mkdir()
        for number in numbers:
            noise(seed=number).save(root / split / f"{number}.jpg")
        document = {
            "images": [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in numbers],
            "annotations": [
                {"id": 2 * n + k, "image_id": n, "category_id": k + 1, "bbox": [1 + 29 * k, 3 + 6 * k, 30, 30]}
                for n in numbers
                for k in range(2)
            ],
            "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "nut"}],
        }
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(document))


def write_yolo(root):
    for split, numbers in SPLITS.items():
        for number in numbers:
            for folder in ("images", "labels"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            noise(seed=number).save(root / f"images/{split}/{number}.jpg")
            lines = [f"{k} {(16 + 29 * k) / 64} {(18 + 6 * k) / 48} {30 / 64} {30 / 48}\n" for k in range(2)]
            (root / f"labels/{split}/{number}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text("train: images/train\ntest: images/test\nnames: {0: cup, 1: nut}\n")


def config(folder, layout, more=""):
    (folder / "c.yaml").write_text(CONFIG.format(layout, VOC if layout == "voc" else "", more))
    return folder / "c.yaml"


def checked(folder, monkeypatch, layout="voc", more="", fast=False):
    """Checks ``folder/data`` in this process; returns the report with findings by kind and split."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    report = check_data(load_config(config(folder, layout, more), []), folder / "out", fast=fast)
    assert json.loads((folder / "out/check.json").read_text()) == report
    return report | {"by": {(one["kind"], one["split"]): one for one in report["findings"]}}


# Damages to the clean VOC folder.


def objects(number, *extra, only=False):
    """Adds objects to those of an image, or puts them in their place."""
    return lambda root: (root / VOC / f"Annotations/{number}.xml").write_text(
        annotation([*([] if only else BOXES.items()), *extra])
    )


def picture(number, image, form="PNG", **options):
    return lambda root: image.save(root / VOC / f"JPEGImages/{number}.jpg", form, **options)


def text(name, change):
    def damage(root):
        (root / VOC / name).write_text(change((root / VOC / name).read_text()))

    return damage


def all_of(*damages):
    return lambda root: [damage(root) for damage in damages]


def gone(*numbers):
    return lambda root: [(root / VOC / f"JPEGImages/{number}.jpg").unlink() for number in numbers]


def copied(source, target):
    names = [f"JPEGImages/{number}.jpg" for number in (source, target)]
    return lambda root: (root / VOC / names[1]).write_bytes((root / VOC / names[0]).read_bytes())


def resaved(source, target):
    """Stores the pixels of an image in a file of other bytes."""

    def damage(root):
        with Image.open(root / VOC / f"JPEGImages/{source}.jpg") as image:
            picture(target, image)(root)

    return damage


def sized(number, width, height):
    scaled = [(name, tuple(np.minimum(box, (width, height) * 2))) for name, box in BOXES.items()]
    return all_of(
        picture(number, noise(width, height)),
        lambda root: (root / VOC / f"Annotations/{number}.xml").write_text(annotation(scaled, (width, height))),
    )


def turned(number, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(number, noise(), "JPEG", exif=exif)


def sixteen(largest, seed):
    values = np.random.default_rng(seed).integers(0, largest, (48, 64), endpoint=True)
    values[0, 0] = largest
    return Image.fromarray(values.astype(np.uint16))


SOME, XML = "ImageSets/Main/train.txt", "Annotations/3.xml"
WHOLE, AT = ("cup", (1, 1, 64, 48)), "VOC2007/JPEGImages/3.jpg"
# The kind, the split, what makes it, how many, what the first example says, and which other findings come with it.
CASES = [
    ("list", "train", text(SOME, lambda t: t + "3\n\n../x\na b c\n"),
     3, "train.txt:13: listed before (got '3' as in line 4)"),
    ("annotation", "train", text(XML, lambda t: t[:-20]), 1, "3.xml:1: broken XML"),
    ("annotation", "train", text(XML, lambda t: t.replace("<xmin>", "<xmin>x", 2)),
     2, "3.xml: object 1: <bndbox/xmin> is no", "image-empty"),
    ("annotation", "train", lambda root: (root / VOC / XML).unlink(), 1, "3.xml: no such file"),
    ("annotation", "test", lambda root: (root / VOC / "ImageSets/Main/test.txt").unlink(), 1, "test.txt: no such file"),
    ("annotation", "train", lambda root: (root / VOC / SOME).unlink(), 1, "train.txt: no such file"),
    ("class-unknown", "test", objects(13, ("cow", BOXES["cup"])), 1, "13.xml: object 3: unknown class (got 'cow'"),
    ("box-not-finite", "train", objects(3, ("cup", ("nan", 4, 31, 33)), ("cup", (1,
     4, "inf", 33))), 2, "object 3: box is not"),
    ("box-reversed", "train", objects(3, ("cup", (30, 4, 20, 33)), ("nut", (3, 40, 33, 20))),
     2, "object 3: box is reversed"),
    ("box-outside", "train", objects(3, ("cup", (70, 4, 90, 33))), 1, "object 3: box lies outside"),
    ("box-empty", "train", objects(3, ("cup", (21, 4, 20, 33))), 1, "object 3: box has no width"),
    ("box-clipped", "train", objects(3, ("cup", (41, 4, 70, 33)), ("nut", (-4, 3, 29, 33))),
     2, "object 3: box sticks out"),
    ("box-one-off", "train", objects(3, ("cup", (0, 4, 29, 33)), ("nut", (36, 3, 65, 33))),
     2, "object 3: box sticks out"),
    ("box-duplicate", "train", objects(3, ("cup", BOXES["cup"]), ("cup", BOXES["cup"]), ("cup", BOXES["nut"])),
     2, f"{AT}: object 3, cup"),
    ("box-small", "train", objects(3, ("cup", (5, 5, 7, 7))), 1, f"{AT}: object 3, cup"),
    ("box-whole", "train", objects(3, WHOLE), 1, f"{AT}: object 3, cup"),
    ("image-missing", "train", gone(3, 7), 2, AT),
    ("image-broken", "train", lambda root: os.truncate(root / VOC / "JPEGImages/3.jpg", 900),
     1, "image cannot be decoded"),
    ("image-broken", "test", lambda root: (root / VOC / "JPEGImages/14.jpg").write_text("<html>"),
     1, "14.jpg: not an image"),
    ("image-size", "train", picture(3, noise(60, 48)), 1, "(got 60 x 48) is not the annotated 64 x 48; fix it"),
    ("image-size", "train", turned(3, 6), 1, "mind EXIF orientation", "image-rotated"),
    ("image-rotated", "train", turned(3, 3), 1, AT),
    ("image-mode", "train", all_of(picture(3, noise().convert("L")), picture(4, noise(seed=4).convert("RGBA"))), 2, AT),
    ("image-dark", "train", picture(3, sixteen(4095, 3)), 1, AT, "image-mode"),
    ("image-dark", "train", picture(3, noise().point(lambda value: value // 20)), 1, AT),
    ("image-duplicate", "train", copied(2, 3), 1, f"{AT} is VOC2007/JPEGImages/2.jpg"),
    ("image-duplicate", "train", resaved(2, 3), 1, f"{AT} is VOC2007/JPEGImages/2.jpg"),
    ("image-leak", "test", copied(3, 13), 1, f"VOC2007/JPEGImages/13.jpg is {AT}"),
    ("image-leak", "test", resaved(3, 13), 1, f"VOC2007/JPEGImages/13.jpg is {AT}"),
    ("image-small", "train", sized(3, 64, 31), 1, AT),
    ("image-empty", "train", objects(3, only=True), 1, AT),
    ("difficult", "train", text(XML, lambda t: t.replace("<name>", "<difficult>1</difficult><name>", 1)),
     1, f"{AT}: object 1, cup"),
    ("normalised", "train", text(XML, lambda t: t.replace("<width>64", "<width>0")), 1, "3.xml: '0 x 48'"),
    ("normalised", "test", text("ImageSets/Main/test.txt", lambda t: t.replace("13\n", "JPEGImages/13.jpg\n")),
     1, "test.txt:2: 'JPEGImages/13.jpg'"),
    ("class-rare", "train", objects(3, ("owl", BOXES["nut"])), 1, "owl 1"),
    ("class-similar", "train", all_of(*(objects(k, ("Nut", BOXES["cup"])) for k in SPLITS["train"])), 1, "Nut, nut"),
]  # fmt: skip


def test_a_clean_data_set_has_no_findings(tmp_path, monkeypatch):
    for layout, write in (("voc", write_voc), ("coco", write_coco), ("yolo", write_yolo)):
        folder = tmp_path / layout
        write(folder / "data")
        report = checked(folder, monkeypatch, layout)
        assert report["findings"] == [], layout
        sides = report["data"]
        assert (sides["train"]["images"], sides["train"]["objects"], sides["test"]["objects"]) == (12, 24, 8)
        assert report["classes"] == [{"name": "cup", "train": 12, "test": 4}, {"name": "nut", "train": 12, "test": 4}]


@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}-{number}" for number, case in enumerate(CASES)])
def test_every_fault_is_found_and_nothing_else(tmp_path, monkeypatch, case):
    kind, split, damage, count, place, *others = case
    write_voc(tmp_path / "data")
    damage(tmp_path / "data")
    report = checked(tmp_path, monkeypatch)
    found = report["by"][kind, split]
    assert found["count"] == count and len(found["examples"]) == count, found
    assert place in found["examples"][0]["place"] and found["severity"] == check.KINDS[kind][0]
    assert {name for name, _ in report["by"]} == {kind, *others}
    assert found["text"] in as_text(report)


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_an_image_of_two_splits_is_found(tmp_path, monkeypatch, layout):
    if layout == "voc":
        write_voc(tmp_path / "data")
        (tmp_path / "data/VOC2007/ImageSets/Main/more.txt").write_text("3\n")
    else:
        write_coco(tmp_path / "data")
        lists = tmp_path / "data/annotations"
        (lists / "instances_more.json").write_bytes((lists / "instances_train.json").read_bytes())
    monkeypatch.chdir(tmp_path)
    train = {"voc": "[VOC2007/train, VOC2007/more]", "coco": "[train, more]"}[layout]
    report = check_data(load_config(config(tmp_path, layout), [f"data.train={train}"]), tmp_path / "out", fast=True)
    errors = [one for one in report["findings"] if one["severity"] == "error"]
    assert [(one["kind"], one["split"]) for one in errors] == [("annotation", "train")]
    assert "listed twice" in errors[0]["examples"][0]["place"]


def change(**lists):
    """Changes the JSON of the training split: each list by a function."""

    def damage(root):
        path = root / "annotations/instances_train.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps({key: lists.get(key, list)(records) for key, records in document.items()}))

    return damage


def with_fields(**fields):
    """Sets fields of some records, as ``bbox={3: [0, 0, 1, 1]}``."""

    def changed(records):
        for key, values in fields.items():
            for number, value in values.items():
                records[number][key] = value
        return records

    return changed


COCO = {
    "records": (
        change(
            annotations=lambda records: [
                *with_fields(
                    bbox={0: [1, 2, 3], 1: "x", 2: [1e30, 0, 1, 1]}, category_id={4: 9}, image_id={6: 99},
                    id={8: 1, 10: "x"}, iscrowd={12: 2}, area={14: -5},
                )(records),
                "no record",
            ],
        ),
        # Of the ids one is repeated and one is no number, which are counted apart.
        {("annotation", "train"): 8, ("normalised", "train"): 1, ("class-rare", "train"): 1,
         ("image-empty", "train"): 1}, 24 - 7,
    ),
    "images": (
        change(images=with_fields(file_name={0: "../a.jpg"}, height={1: -9}, id={2: 1})),
        # The third image takes the id of the second; its annotations have no image then.
        {("annotation", "train"): 5, ("class-rare", "train"): 2}, 24 - 6,
    ),
    "boxes": (
        change(
            annotations=with_fields(
                bbox={0: [9, 9, -3, 5], 2: [70, 9, 5, 5], 4: [9, 9, 0, 5], 6: [40, 9, 30, 30], 8: [35, 9, 30, 30]}
            ),
        ),
        {("box-reversed", "train"): 1, ("box-outside", "train"): 1, ("box-empty", "train"): 1,
         ("box-clipped", "train"): 1, ("box-one-off", "train"): 1, ("class-rare", "train"): 1}, 24 - 3,
    ),
    "crowd": (change(annotations=with_fields(iscrowd={0: 1})), {("crowd", "train"): 1}, 24),
    "no image": (
        change(categories=lambda records: [*records, {"id": 3, "name": "owl"}]),
        {("normalised", "test"): 1, ("class-unused", "train"): 1}, 24,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COCO)
def test_every_record_of_cocos_json_is_looked_at(tmp_path, monkeypatch, name):
    damage, counts, left = COCO[name]
    write_coco(tmp_path / "data")
    damage(tmp_path / "data")
    report = checked(tmp_path, monkeypatch, "coco")
    assert {key: one["count"] for key, one in report["by"].items()} == counts, report["findings"]
    assert report["data"]["train"]["objects"] == left
    # What the check collects is what ends a training run: the first of it does.
    errors = [one for one in report["findings"] if one["severity"] == "error" and one["split"] == "train"]
    if errors:
        with pytest.raises(DataError) as raised:
            coco.load("data", ["train"])
        assert str(raised.value) in {example["place"] for one in errors for example in one["examples"]}


def test_unlisted_classes_of_cocos_json(tmp_path, monkeypatch):
    write_coco(tmp_path / "data")
    report = checked(tmp_path, monkeypatch, "coco", ", classes: [cup]")
    assert {key: one["count"] for key, one in report["by"].items()} == {
        ("class-unknown", "train"): 1, ("class-unknown", "test"): 1
    }  # fmt: skip
    assert [(one["name"], one["train"]) for one in report["classes"]] == [("cup", 12)]


def table(classes, labels, boxes=None, width=100, **flags):
    """A table of one image of height 100 with objects of these labels, in no file."""
    boxes = [(k % 90, k // 90, k % 90 + 10, k // 90 + 10) for k in range(len(labels))] if boxes is None else boxes
    rows = [0] * len(labels)
    return pack("made", classes, image_ids=["a"], sizes=[(100, width)], rows=rows, boxes=boxes, labels=labels, **flags)


UNITS = {
    "class-balance": ([1] * 1010 + [2] * 10, [1], {}, 2),
    "class-test-only": ([1] * 10, [1, 2], {}, 1),
    "class-unused": ([1] * 10, [1], {}, 1),
    "objects-none": ([1] * 10, [1], {"difficult": [True] * 10}, 0),
    "box-relative": ([1] * 10, [1], {"boxes": [(0.1, 0.2, 0.5 + k / 100, 0.9) for k in range(10)]}, 10),
}


@pytest.mark.parametrize("kind", UNITS)
def test_findings_of_a_table_alone(kind):
    labels, tested, options, count = UNITS[kind]
    found = check.check_tables(
        table(("a", "b"), labels, **options), table(("a", "b"), tested), short=100, longest=100, stride=16
    )
    assert [(one.split, one.count) for one in found if one.kind == kind] == [("train", count)]
    plain = check.check_tables(table(("a", "b"), [1] * 10 + [2] * 10), None, short=100, longest=100, stride=16)
    assert plain == []


def test_the_remedy_for_small_boxes_names_every_setting_that_keeps_them_so():
    for longest, hint in ((1000, "raise model.image.short"), (400, "raise model.image.short and model.image.max, ")):
        small = table(("a",), [1] * 10, [(k, 0, k + 5, 5) for k in range(10)], width=200)
        (found,) = check.check_boxes(small, "train", 300, longest, 64)
        assert found.kind == "box-small" and hint in found.text
        assert ("model.image.max" in found.text) == (longest == 400)


def test_images_over_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("grcn.data.images.MOST_PIXELS", 64 * 48 - 1)
    write_voc(tmp_path / "data")
    report = checked(tmp_path, monkeypatch)
    assert {key: one["count"] for key, one in report["by"].items()} == {
        ("image-large", "train"): 12, ("image-large", "test"): 4
    }  # fmt: skip


def test_every_kind_is_tested():
    made = {case[0] for case in CASES} | {kind for _, counts, _ in COCO.values() for kind, _ in counts} | set(UNITS)
    assert made | {"image-large", "anchors", "anchors-none", "anchors-half", "cell-half"} == set(check.KINDS)


def test_examples_are_few_and_say_which_object(tmp_path, monkeypatch):
    write_voc(tmp_path / "data")
    copies = [("cup", BOXES["cup"])] * 30
    objects(3, *copies)(tmp_path / "data")
    found = checked(tmp_path, monkeypatch)["by"]["box-duplicate", "train"]
    assert found["count"] == 30 and len(found["examples"]) == check.MOST_EXAMPLES
    first = found["examples"][0]
    assert (first["object"], first["row"], first["box"]) == (3, 3, [1.0, 3.0, 31.0, 33.0])


def test_collecting_faults_changes_nothing_for_what_is_sound(tmp_path):
    """The table of a damaged set is that of the sound rest; that of a sound set is the same, to the bit."""
    for write, load, split in ((write_voc, voc.load, "VOC2007/train"), (write_coco, coco.load, "train")):
        root = tmp_path / split.replace("/", "-")
        write(root)
        faults: list = []
        assert load(root, [split], None, faults.append).fingerprint() == load(root, [split]).fingerprint()
        assert faults == []
    (tmp_path / "VOC2007-train" / VOC / "Annotations/11.xml").unlink()
    rest = voc.load(tmp_path / "VOC2007-train", ["VOC2007/train"], None, faults.append)
    assert len(faults) == 1
    whole = voc.load(tmp_path / "VOC2007-train", ["VOC2007/test"])
    text(SOME, lambda lines: lines.replace("11\n", ""))(tmp_path / "VOC2007-train")
    assert rest.fingerprint() == voc.load(tmp_path / "VOC2007-train", ["VOC2007/train"]).fingerprint()
    assert whole.fingerprint() != rest.fingerprint()


ODD = [None, True, 0, -1, 2**63, 1e30, "", "a/../b", [], [1, 2, 3, 4], ["a"] * 4, [None] * 4, {}, "\0"]


def test_what_ends_training_is_always_among_what_is_collected(tmp_path, monkeypatch):
    """For any JSON: the collecting reader does not fail, and finds a fault if the strict one does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_train.json"
    sound = path.read_text()
    refused = 0
    for seed in range(120):
        random = np.random.default_rng(seed)
        document = json.loads(sound)
        for _ in range(random.integers(1, 5)):
            records = document[("images", "annotations", "categories")[random.integers(3)]]
            number, key = random.integers(len(records)), sorted(records[0])[random.integers(len(records[0]))]
            records[number][key] = ODD[random.integers(len(ODD))]
        path.write_text(json.dumps(document))
        counter, strict = check.FaultCounter(), None
        try:
            coco.load(tmp_path, ["train"], None, counter)
        except Fault as fault:
            counter(fault)
        try:
            coco.load(tmp_path, ["train"])
        except DataError as error:
            strict = str(error)
        repaired = ("box-clipped", "box-one-off", "box-empty")
        places = [one.place for kind, found in counter.examples.items() if kind not in repaired for one in found]
        assert strict in places if strict else not places, (seed, strict, places)
        refused += strict is not None
    assert 60 < refused < 120


def all_sixteen(largest):
    return all_of(*(picture(number, sixteen(largest, number)) for numbers in SPLITS.values() for number in numbers))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("largest", "more", "said"),
    [
        (65535, "", None),
        (16383, "", "grey ones use 14 of 16 bits: data.bits=14"),
        (4095, "", "grey ones use 12 of 16 bits: data.bits=12"),
        (700, "", "grey ones use 10 of 16 bits: data.bits=10"),
        (100, "", "grey ones use 8 of 16 bits: data.bits=8"),
        (4095, ", bits: 12", None),
        (500, ", bits: 14", "grey ones use 9 of 16 bits: data.bits=9"),
    ],
)
def test_bits_that_images_do_not_use_are_found(tmp_path, monkeypatch, fast, largest, more, said):
    write_voc(tmp_path / "data")
    all_sixteen(largest)(tmp_path / "data")
    found = checked(tmp_path, monkeypatch, more=more, fast=fast)["by"]
    assert {split for kind, split in found if kind == "image-dark"} == ({"train", "test"} if said else set())
    if said:
        one = found["image-dark", "train"]
        assert one["severity"] == "warning" and said in one["text"] and "set data.bits" in one["text"]
        assert one["count"] == (4 if fast else 12)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_training_warns_at_its_start_of_what_makes_it_worthless(tmp_path, orientation):
    write_voc(tmp_path / "data")
    all_sixteen(3000)(tmp_path / "data")
    turned(5, orientation)(tmp_path / "data")
    args = ["--config", config(tmp_path, "voc"), "--output-dir"]
    large = ["model.rpn.straddling=false", "model.anchors.sizes=[128]", "train.steps=1"]
    result = programs.call("tools/train.py", *args, "run", *large, folder=tmp_path)
    assert result.code == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("grcn: t")]
    assert "(100 % of 24); set model.rpn.straddling=true, or smaller model.anchors.sizes" in lines[0]
    assert f"orientation: 1 (tag {orientation}: 1, of 12 looked at); make sure that boxes are of the turned" in lines[1]
    assert "grey ones use 12 of 16 bits: data.bits=12, 4 looked at); set data.bits" in lines[2]
    assert lines[3].startswith("grcn: test: images that are dark when read: 4")
    again = [*args, "other", "train.steps=1", "data.bits=12"]
    picture(5, noise())(tmp_path / "data")
    good = programs.call("tools/train.py", *again, folder=tmp_path)
    assert good.code == 0 and "; set" not in good.stderr and "looked at" not in good.stderr, good.stderr


@pytest.mark.parametrize(("size", "tag", "warned"), [((64, 64), 6, 1), ((64, 64), 1, 0), ((48, 64), 6, 0)])
def test_images_whose_size_does_not_show_that_they_are_turned_are_found(tmp_path, size, tag, warned):
    exif = Image.Exif()
    exif[0x0112] = tag
    noise(64, size[0]).save(tmp_path / "a.jpg", exif=exif)
    shown = size[::-1] if tag > 4 else size
    made = pack("made", ["a"], image_ids=[1], files=["a.jpg"], sizes=[shown], root=str(tmp_path), **NOTHING)
    sample = check_images.read_headers(made, np.arange(1), 9)
    assert list(check_images.odd_images(made, sample)) == []
    assert len(check_images.odd_headers(made, "train", sample, None)) == warned


# The fast check.


def test_the_fast_check_reads_headers_only(tmp_path, monkeypatch):
    write_voc(tmp_path / "data")
    all_of(copied(1, 2), gone(3, 7))(tmp_path / "data")
    os.truncate(tmp_path / "data" / VOC / "JPEGImages/5.jpg", 900)
    report = checked(tmp_path, monkeypatch, fast=True)
    # Image 5 is cut behind its header and 2 is a copy, which only decoding shows.
    assert {key: one["count"] for key, one in report["by"].items()} == {("image-missing", "train"): 2}
    assert not report["complete"]
    picture(4, noise(60, 48))(tmp_path / "data")
    assert ("image-size", "train") in checked(tmp_path, monkeypatch, fast=True)["by"]


def test_training_warns_of_odd_data_and_refuses_broken_images_at_its_start(tmp_path):
    write_voc(tmp_path / "data")
    owls = [objects(k, (f"owl{k}", BOXES["nut"])) for k in range(2)]
    all_of(objects(3, ("cup", BOXES["cup"])), *owls, objects(13, ("cup", BOXES["cup"])))(tmp_path / "data")
    args = ["--config", config(tmp_path, "voc"), "--output-dir", "run"]
    result = programs.call("tools/train.py", *args, folder=tmp_path)
    assert result.code == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if line.startswith("grcn: t") and "; " in line]
    assert len(warnings) == 3 and "train: objects with class and box of another one in their image: 1" in result.stderr
    assert "test: objects with class and box of another" in result.stderr and "(owl0 1, owl1 1)" in result.stderr
    again = programs.call("tools/train.py", *args, "--resume", folder=tmp_path)
    assert again.code == 0 and "another one" not in again.stderr
    picture(7, noise(60, 48))(tmp_path / "data")
    args[-1] = "other"
    result = programs.call("tools/train.py", *args, folder=tmp_path)
    programs.assert_contract(result, 3, "data/VOC2007/JPEGImages/7.jpg: image size (got 60 x 48)")
    assert not (tmp_path / "other/metrics.jsonl").exists()


def test_the_start_of_training_looks_at_a_spread_sample(tmp_path, monkeypatch):
    write_voc(tmp_path / "data")
    train = voc.load(tmp_path / "data", ["VOC2007/train"])
    monkeypatch.setattr(check_images, "SAMPLE", 3)
    read = []
    monkeypatch.setattr(check_images, "read_header", lambda path: read.append(Path(path).stem))
    monkeypatch.setattr(check_images, "read_row", lambda table, row: None)
    check_images.check_before_training(train, train.first(2), short=48, longest=64, stride=16, drop_empty=True)
    assert read == ["0", "5", "11", "0", "1"]


def test_the_start_of_training_looks_for_classes_in_all_test_images_and_at_the_files_of_those_that_count(tmp_path):
    write_voc(tmp_path / "data")
    objects(12, ("cup", BOXES["cup"]), only=True)(tmp_path / "data")
    objects(15, ("owl", BOXES["nut"]))(tmp_path / "data")
    picture(15, noise(60, 48))(tmp_path / "data")
    args = ["--config", config(tmp_path, "voc", ", classes: [cup, nut, owl, yak]"), "eval.limit=1"]
    result = programs.call("tools/train.py", *args, "--output-dir", "run", folder=tmp_path)
    assert result.code == 0, result.stderr
    assert "classes that only the test splits have: 1 (owl 1)" in result.stderr
    unused = "classes without any object: 1 (yak 0); let data.classes name those that occur in any split"
    assert unused in result.stderr
    result = programs.call("tools/check_data.py", *args, "--fast", folder=tmp_path)
    assert unused in result.stdout and "(owl 1)" in result.stdout
    result = programs.call("tools/train.py", *args, "eval.limit=4", "--output-dir", "more", folder=tmp_path)
    programs.assert_contract(result, 3, "15.jpg: image size (got 60 x 48)")


def test_the_start_of_training_reads_few_of_many_images(tmp_path, monkeypatch):
    """For as many images as VOC's 2007 and 2012 have."""
    count = 16551
    boxes = np.random.default_rng(0).uniform(0, 200, (3 * count, 4)).round()
    boxes[:, 2:] += boxes[:, :2] + 20
    noise().resize((500, 400)).save(tmp_path / "a.jpg")
    large = pack(
        "large", [f"c{k}" for k in range(20)], image_ids=[str(k) for k in range(count)], sizes=[(400, 500)] * count,
        rows=np.arange(3 * count) // 3, boxes=boxes, labels=np.arange(3 * count) % 20 + 1,
        files=["a.jpg"] * count, root=str(tmp_path),
    )  # fmt: skip
    read = []
    real = check_images.read_header
    monkeypatch.setattr(check_images, "read_header", lambda path: read.append(path) or real(path))
    check_images.check_before_training(large, large.first(5000), short=600, longest=1000, stride=16, drop_empty=True)
    assert len(read) == 2 * check_images.SAMPLE


# Anchors.


@pytest.mark.parametrize("straddling", [True, False])
@pytest.mark.parametrize(
    ("sizes", "strides"), [(((16.0, 40.0, 90.0),), (16,)), (((12.0, 16.0), (30.0, 40.0), (70.0, 90.0)), (4, 8, 16))]
)
def test_the_best_anchor_is_that_of_all_positions(straddling, sizes, strides):
    ratios = (0.5, 1.0, 2.0)
    generator = AnchorGenerator(sizes, ratios, strides)
    random = np.random.default_rng(0)
    images = [(96, 128), (65, 50), (40, 200), (33, 33)]
    boxes, of, best = [], [], []
    for height, width in images:
        corners = random.uniform(0, 1, (60, 2, 2)) * (width, height)
        chosen = torch.from_numpy(np.concatenate([corners.min(1), corners.max(1)], axis=1))
        cells = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in strides]
        grid = generator(tuple(torch.zeros(1, 1, *of_map) for of_map in cells), (height, width)).double()
        if not straddling:
            grid = grid[(grid[:, :2] >= 0).all(1) & (grid[:, 2] <= width) & (grid[:, 3] <= height)]
        best.append(box_iou(chosen, grid).amax(1) if len(grid) else torch.zeros(60))
        boxes.append(chosen.numpy())
        of += [(height, width)] * 60
    objects = Objects(np.concatenate(boxes), np.array(of))
    found = AnchorSet(sizes, ratios, strides, straddling).best_iou(objects)
    assert np.allclose(found, torch.cat(best), atol=1e-5) and 0 < found.mean() < 1
    figures = fit(objects, AnchorSet(sizes, ratios, strides, straddling))
    assert figures["sizes"] == (list(sizes[0]) if len(sizes) == 1 else [list(of_map) for of_map in sizes])
    assert figures["recall50"] == (torch.cat(best) >= 0.5).double().mean()
    counts = [one["count"] for one in figures["buckets"]]
    assert sum(counts) == 240 and sum(one["count"] for one in figures["aspects"]) == 240
    assert sum(one["count"] * (one["recall50"] or 0) for one in figures["buckets"]) == pytest.approx(
        240 * figures["recall50"]
    )


STRIPS = AnchorSet(((128.0, 256.0),), (0.5, 1.0, 2.0), (16,))


def strips(count, of=100, sizes=(50, 1000)):
    """A table with an object on each of ``of`` images, ``count`` of which are strips."""
    return pack(
        "made", ["a"], image_ids=list(range(of)), sizes=[sizes] * count + [(800, 800)] * (of - count),
        rows=range(of), boxes=[(300, 10, 400, 40)] * of, labels=[1] * of,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("count", "straddling", "warned", "share"), [(100, False, 1, "100 %"), (3, False, 1, "3 %"), (0, False, 0, ""),
     (100, True, 0, "")],
)  # fmt: skip
def test_objects_without_any_anchor_are_found(count, straddling, warned, share):
    anchors = replace(STRIPS, straddling=straddling)
    for sizes in ((50, 1000), (50, 4000)):
        made = strips(count, sizes=sizes)
        found = objects_alone(made, 600, 1000, anchors)
        assert len(found) == warned and all(f"({share} of 100)" in one.text for one in found)
        of_all = findings_of(fit(objects_of(made, 600, 1000), anchors), 600, 1000)
        assert found == [one for one in of_all if one.kind == "anchors-none"]


def test_few_objects_without_an_anchor_are_a_note_of_the_check_alone():
    made = strips(1, of=200)
    assert objects_alone(made, 600, 1000, STRIPS) == []
    of_all = findings_of(fit(objects_of(made, 600, 1000), STRIPS), 600, 1000)
    (found,) = [one for one in of_all if one.kind == "anchors-none"]
    assert (found.severity, found.count) == ("note", 1)


def test_objects_without_an_anchor_are_looked_for_in_a_moment():
    count = 100_000
    corner = np.random.default_rng(0).uniform(0, 300, (count, 2))
    sizes = np.random.default_rng(1).integers(330, 1500, (count // 5, 2))
    made = pack(
        "made", ["a"], image_ids=list(range(count // 5)), sizes=sizes, rows=np.arange(count) // 5,
        boxes=np.hstack([corner, corner + 30]), labels=np.ones(count, int),
    )  # fmt: skip
    start = time.process_time()
    objects_alone(made, 600, 1000, STRIPS)
    assert time.process_time() - start < 1  # a third of that, alone on a machine


def test_anchors_that_miss_objects_are_found_though_no_others_are_suggested():
    fitted = fit(objects_of(strips(0), 600, 1000), STRIPS)
    for missed, kinds in ((0, []), (9, []), (10, ["anchors"]), (50, ["anchors"]), (51, ["anchors-half"])):
        found = findings_of(fitted | {"recall50": 1 - missed / 100, "suggestion": None}, 600, 1000)
        assert [one.kind for one in found] == kinds and all(one.count == missed for one in found)
    better = {"sizes": [16, 32], "ratios": [1, 4]}
    (found,) = findings_of(fitted | {"recall50": 0.4, "suggestion": better}, 600, 1000)
    assert found.severity == "warning"
    assert found.text.endswith("set 'model.anchors.sizes=[16,32]' 'model.anchors.ratios=[1,4]'")


@pytest.mark.parametrize(("side", "below"), [(7, 100), (7.9, 100), (8, 0), (30, 0)])
def test_a_set_of_objects_under_half_a_cell_is_a_warning_with_the_settings(side, below):
    """Objects of 7 pixels in images of 100, where a cell has 16: 100 x 16 / 7 pixels give them a cell."""
    made = table(("a",), [1] * 100, [(k % 50, 0, k % 50 + side, side) for k in range(100)], width=100)
    anchors = AnchorSet(((8.0, 32.0),), (1.0,), (16,), straddling=True)
    fitted = fit(objects_of(made, 100, 200), anchors)
    assert fitted["below"] == below and fitted["median"] == pytest.approx(side)
    found = [one for one in findings_of(fitted, 100, 200) if one.kind == "cell-half"]
    if not below:
        assert found == []
        return
    larger = {7: 256, 7.9: 224}[side]
    assert found[0].severity == "warning" and found[0].count == 100
    cost = round((larger / 100) ** 2)
    remedy = f"; set model.image.short={larger} model.image.max={2 * larger} ({cost} times the pixels), and check again"
    assert found[0].text.endswith(remedy)
    assert "anchors-half" not in [one.kind for one in findings_of(fitted, 100, 200)]  # of the next size, if at all
    again = objects_of(made, larger, 2 * larger)
    assert not [one for one in findings_of(fit(again, anchors), larger, 2 * larger) if one.kind == "cell-half"]


def test_objects_of_which_half_are_large_enough_are_no_warning():
    made = table(("a",), [1] * 10, [(k, 0, k + (7 if k < 5 else 30), 7 if k < 5 else 30) for k in range(10)], width=100)
    anchors = AnchorSet(((8.0, 32.0),), (1.0,), (16,), straddling=True)
    assert "cell-half" not in [one.kind for one in findings_of(fit(objects_of(made, 100, 200), anchors), 100, 200)]


def test_other_anchors_are_suggested_only_where_they_find_more(tmp_path, monkeypatch):
    flat = [("cup", (1, 11 + k, 60, 20 + k)) for k in range(9)]
    write_voc(tmp_path / "data")
    assert checked(tmp_path, monkeypatch)["anchors"]["suggestion"] is None
    for number in SPLITS["train"]:
        objects(number, *flat)(tmp_path / "data")
    report = checked(tmp_path, monkeypatch)
    found, better = report["anchors"], report["anchors"]["suggestion"]
    assert better["recall50"] > found["recall50"] + 0.1 and len(better["ratios"]) == len(found["ratios"])
    missed = round((1 - found["recall50"]) * found["objects"])
    assert report["by"]["anchors-half", "train"]["count"] == missed > 0
    text = as_text(report)
    assert f"{100 * better['recall50']:.1f} %" in text and "better: sizes" in text
    assert "\n'model.anchors.sizes=[" in text and "]' 'model.anchors.ratios=[" in text  # as a shell wants them
    source = (tmp_path / "out/check.html").read_text()
    assert "<details" not in source and '<div class="finding warning">' in source  # there is nothing to open
    assert "<pre>&#39;model.anchors.sizes=[" in source and "</span> train <span" in source


def test_anchors_of_a_pyramid_are_suggested_for_each_map():
    """Objects of two sizes, neither of which any anchor of a config has, on images that hold them."""
    side = np.tile([20.0, 90.0], 50)[:, None]
    corner = np.random.default_rng(0).uniform(0, 100, (100, 2))
    objects = Objects(np.concatenate([corner, corner + side], axis=1), np.full((100, 2), 256))
    fitted = fit(objects, AnchorSet(((8.0,), (300.0,)), (1.0,), (4, 16)))
    fine, coarse = fitted["suggestion"]["sizes"][:2]
    assert len(fitted["suggestion"]["sizes"]) == 2 and len(fine) == len(coarse) in (1, 2)
    assert all(2 <= size / 4 <= 16 or size == 8 for size in fine)
    assert all(2 <= size / 16 <= 16 or size == 300 for size in coarse)
    assert fitted["suggestion"]["recall50"] > 0.9 > fitted["recall50"] and fitted["strides"] == [4, 16]
    assert settings(fitted["suggestion"]).startswith("'model.anchors.sizes=[[")


def test_a_map_with_all_sizes_or_one_twice_gets_no_more():
    objects = Objects(np.array([[0.0, 0, 30, 30], [5, 5, 95, 99]]), np.full((2, 2), 128))
    coarse = (32.0, 45.0, 64.0, 91.0, 128.0)
    all_sizes = fit(objects, AnchorSet(((16.0, 23.0, 32.0, 45.0, 64.0), coarse), (1.0,), (4, 16)))
    twice = fit(objects, AnchorSet(((32.0,) * 5, coarse), (1.0,), (4, 16)))
    assert all_sizes["suggestion"] is None and twice["suggestion"] is None


def test_objects_are_seen_at_the_networks_scale():
    made = pack(
        "made", ["a"], image_ids=["a", "b"], sizes=[(33, 100), (40, 40)], rows=[1, 0, 0],
        boxes=[(0, 0, 20, 40), (10, 10, 20, 30), (0, 0, 9, 9)], labels=[1, 1, 1], difficult=[False, False, True],
    )  # fmt: skip
    seen = objects_of(made, 100, 160)
    assert seen.images.tolist() == [[52, 160], [100, 100]]  # 1.6 times 33 is 52.8
    assert np.allclose(seen.boxes, [(16, 10 * 52 / 33, 32, 30 * 52 / 33), (0, 0, 50, 100)])


# The page and the tool.


class Tags(HTMLParser):
    """Collects the tags, what they load, and the text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "action", "background")]
        assert not any(name.startswith("on") for name, _ in attrs), attrs

    def handle_data(self, data):
        self.text += data


def test_names_of_files_and_classes_are_text_in_the_page(tmp_path, monkeypatch):
    root = tmp_path / "data"
    write_voc(root)
    evil = "<script>alert(1)<!--\"'&"
    name = "<img src=x onerror=alert(2)>.x"
    image = name.replace(" ", "_")
    (root / VOC / f"JPEGImages/{image}.jpg").write_bytes(b"<b>no image</b>")
    escaped = evil.replace("&", "&amp;").replace("<", "&lt;")
    (root / VOC / f"Annotations/{image}.xml").write_text(annotation([(escaped, BOXES["cup"])]))
    text(SOME, lambda lines: f"{lines}{image}\n")(root)
    checked(tmp_path, monkeypatch)
    source = (tmp_path / "out/check.html").read_text()
    read = Tags(source)
    assert image in read.text and evil in read.text
    assert not read.tags & {"script", "link", "iframe", "object"}
    assert all(value.startswith("data:image/jpeg;base64,") for value in read.loads)
    assert "default-src 'none'" in source


def test_the_page_shows_faulty_boxes(tmp_path, monkeypatch):
    write_voc(tmp_path / "data")
    objects(3, ("cup", (41, 4, 70, 33)))(tmp_path / "data")
    checked(tmp_path, monkeypatch)
    picture, *sheets = re.findall(r'base64,([^"]+)"', (tmp_path / "out/check.html").read_text())
    assert len(sheets) == 2  # images of the training split and of the test split
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (240, 320, 3)
    vermilion = np.abs(pixels - (213, 94, 0)).max(axis=2) < 60
    column = vermilion[:, 5 * 40 - 1 : 5 * 40 + 3].any(axis=1)  # the left side of the box, 5 times as large
    assert column[3 * 5 + 5 : 33 * 5 - 5].mean() > 0.9


def test_small_boxes_are_shown_enlarged():
    image = torch.zeros(3, 400, 600, dtype=torch.uint8)
    image[:, 300:308, 500:510] = 255
    part, corner = _surroundings(image, torch.tensor([500.0, 300, 510, 308]))
    assert part.shape == (3, 80, 80) and part.sum() == image.sum()
    x, y = corner.tolist()
    assert torch.equal(part, image[:, y : y + 80, x : x + 80])
    for box in ([590.0, 390, 605, 395], [-3.0, -2, 4, 5]):
        part, corner = _surroundings(image, torch.tensor(box))
        assert min(part.shape[1:]) >= 64 and (corner >= 0).all()
    assert _surroundings(image, torch.tensor([0.0, 0, 300, 300]))[0] is image


def call(folder, layout, *args):
    config(folder, layout)
    return programs.call("tools/check_data.py", "--config", "c.yaml", "--output-dir", "out", *args, folder=folder)


def test_the_tool_on_clean_folders(tmp_path):
    for layout, write in (("voc", write_voc), ("coco", write_coco), ("yolo", write_yolo)):
        folder: Path = tmp_path / layout
        write(folder / "data")
        result = call(folder, layout, "--json", "run.workers=2")
        assert result.code == 0 and "Traceback" not in result.stderr, result
        assert json.loads(result.stdout)["findings"] == [] and result.stdout.count("\n") == 1
        assert {path.name for path in (folder / "out").iterdir()} == {"check.json", "check.html"}
    assert call(folder, "coco", "model.backbone=none").code == 2


def every_file(pattern, change):
    """Changes every text that the pattern finds."""
    return lambda root: [path.write_text(change(path.read_text())) for path in root.glob(pattern)]


NOTHING_TO_READ = {
    "every annotation broken": (
        "voc", every_file(VOC + "Annotations/*.xml", lambda xml: re.sub("</size>", "", xml)), "broken XML"
    ),
    "other names in the lists": (
        "voc", every_file(VOC + "ImageSets/Main/*.txt", lambda lines: lines.replace("\n", ".x\n")), "0.x.xml"
    ),
    "an empty list": ("voc", text("ImageSets/Main/test.txt", lambda _: ""), "names no image"),
    "every record broken": (
        "coco", every_file("annotations/*.json", lambda record: record.replace('"file_name"', '"f"')),
        "#/images/0/file_name",
    ),
    "no record": (
        "coco", every_file("annotations/*_test.json", lambda _: '{"images": [], "annotations": [], "categories": []}'),
        "an empty list",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING_TO_READ)
def test_the_tool_reports_a_split_of_which_nothing_can_be_read(tmp_path, name):
    layout, damage, message = NOTHING_TO_READ[name]
    {"voc": write_voc, "coco": write_coco}[layout](tmp_path / "data")
    damage(tmp_path / "data")
    result = call(tmp_path, layout)
    assert result.code == 3 and message in result.stdout and "Traceback" not in result.stderr, result.stderr
    page = (tmp_path / "out/check.html").read_text()
    of_one_side = name in ("an empty list", "no record")
    assert ("Objects by class" in page) == of_one_side == bool(re.search(r"^ +cup", result.stdout, re.M))
    assert "aeroplane" not in result.stdout


def test_the_tool_lists_what_was_read_as_it_was_meant(tmp_path):
    write_voc(tmp_path / "data")
    every_file(VOC + "Annotations/*.xml", lambda xml: re.sub("<size>.*</size>", "", xml))(tmp_path / "data")
    text("ImageSets/Main/train.txt", lambda lines: lines.replace("\n", ".jpg\n"))(tmp_path / "data")
    result = call(tmp_path, "voc", "run.workers=2")
    assert result.code == 0, result.stderr
    found = json.loads((tmp_path / "out/check.json").read_text())["findings"]
    counts = {(one["split"], one["text"].partition("(")[2].partition(")")[0]): one["count"] for one in found}
    listed, sizes = "names in lists with quotes, folders or suffixes", "sizes taken from the image"
    assert counts == {("train", listed): 12, ("train", sizes): 12, ("test", sizes): 4}
    assert "data/VOC2007/ImageSets/Main/train.txt:1: '0.jpg'" in result.stdout
    assert call(tmp_path, "voc", "data.strict=true", "--fast").code == 3


def test_the_tool_lists_all_faults_at_once(tmp_path):
    write_voc(tmp_path / "data")
    damages: list[Callable] = [
        objects(1, ("cup", (30, 4, 20, 33))), objects(2, ("cup", (70, 4, 90, 33))), objects(13, ("cow", BOXES["cup"])),
        text("Annotations/4.xml", lambda t: t[:50]), picture(5, noise(60, 48)),
        lambda root: (root / VOC / "JPEGImages/6.jpg").unlink(), picture(7, Image.new("L", (64, 48))),
    ]  # fmt: skip
    all_of(*damages)(tmp_path / "data")
    result = call(tmp_path, "voc", "run.workers=2")
    assert result.code == 3, result
    kinds = ("annotation", "box-reversed", "box-outside", "class-unknown", "image-missing", "image-size")
    found = json.loads((tmp_path / "out/check.json").read_text())["findings"]
    assert {one["kind"] for one in found} == {*kinds, "image-mode", "image-dark"}
    for kind in kinds:
        assert check.KINDS[kind][1] in result.stdout, kind
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("grcn: error: "))
    assert line.startswith("grcn: error: data: 6 errors (") and line.endswith("see out/check.html")


def test_the_built_in_data_are_checked_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(programs.ROOT / "configs/shapes/grcn_tiny.yaml")
    report = check_data(load_config(path, ["data.train_images=40", "data.test_images=4"]), tmp_path / "out")
    assert (
        report["data"]["train"]["images"] == 40 and report["anchors"]["objects"] == report["data"]["train"]["objects"]
    )
    assert not [one for one in report["findings"] if one["severity"] == "error"]
    assert sum(one["train"] for one in report["classes"]) == report["anchors"]["objects"] and len(report["classes"]) > 2


def test_annotations_of_any_name_are_checked_trained_on_and_evaluated(tmp_path):
    """The same images and boxes under their own names, in one folder of images."""
    write_coco(tmp_path / "data")
    usual = coco.load(tmp_path / "data", ["train"])
    (tmp_path / "data/pics/all").mkdir(parents=True)
    (tmp_path / "data/labels").mkdir()
    for split in SPLITS:
        (tmp_path / f"data/annotations/instances_{split}.json").rename(tmp_path / f"data/labels/{split}_boxes.json")
        for path in (tmp_path / "data" / split).iterdir():
            path.rename(tmp_path / "data/pics/all" / path.name)
    named = [f"data.{split}=[pics/all:labels/{split}_boxes.json]" for split in SPLITS]
    table = coco.load(tmp_path / "data", ["pics/all:labels/train_boxes.json"])
    assert table.name == "labels/train_boxes" and table.files[0] == b"pics/all/0.jpg"
    assert np.array_equal(table.boxes, usual.boxes)
    result = call(tmp_path, "coco", *named)
    assert result.code == 0 and "of errors: 0, of warnings: 0" in result.stdout, result
    args = ["--config", "c.yaml", "--output-dir", "run", "--resume", "--allow-changes", *named]
    for steps in (2, 4):
        result = programs.call("tools/train.py", *args, f"train.steps={steps}", folder=tmp_path)
        assert result.code == 0, result.stderr
    given = ["--config", "run/config.yaml", "--checkpoint", max((tmp_path / "run/checkpoints").iterdir())]
    result = programs.call("tools/eval.py", *given, "eval.protocols=[voc]", folder=tmp_path)
    assert result.code == 0, result.stderr
    devkit = {path.name for path in (tmp_path / "run/eval").glob("*/devkit/*")}
    assert devkit == {"comp4_det_test_boxes_cup.txt", "comp4_det_test_boxes_nut.txt"}
    assert not [path for path in (tmp_path / "run").glob("**/*") if ":" in path.name]


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
def test_a_folder_that_is_not_there_is_one_message(tmp_path, layout):
    for tool in ("check_data", "train"):
        config(tmp_path, layout)
        result = programs.call(f"tools/{tool}.py", "--config", "c.yaml", "--output-dir", "out", folder=tmp_path)
        programs.assert_contract(result, 3, "data.root: no such folder (got 'data'); set it to the folder of the data")


def test_the_faults_of_yolos_layout_are_reported_at_once(tmp_path, monkeypatch):
    write_yolo(tmp_path / "data")
    labels, images = tmp_path / "data/labels", tmp_path / "data/images"
    (labels / "train/0.txt").write_text("7 0.5 0.5 0.5 0.5\n0 0.9 0.5 0.5 0.5\n")
    (labels / "train/1.txt").write_text("0 0.5 0.5 0.5 0.5 0.9\n")
    (labels / "train/2.txt").write_text("")
    (labels / "train/3.txt").write_text("1.0 0.5 0.5 0.5 0.5\n")
    (images / "test/12.jpg").write_bytes(b"no picture")
    report = checked(tmp_path, monkeypatch, "yolo")
    found = {key: (one["count"], [case["place"] for case in one["examples"]]) for key, one in report["by"].items()}
    for kind, side, place in (
        ("class-unknown", "train", "labels/train/0.txt:1: "), ("box-clipped", "train", "labels/train/0.txt:2: "),
        ("annotation", "train", "labels/train/1.txt:1: "), ("image-empty", "train", "images/train/1.jpg"),
        ("normalised", "train", "labels/train/3.txt:1: "), ("image-broken", "test", "images/test/12.jpg: "),
    ):  # fmt: skip
        count, (first, *_) = found[kind, side]
        assert place in first and count == (2 if kind == "image-empty" else 1), (kind, found)
    # Without a description and classes, both sides say so, of the test side too where the training side is broken.
    (tmp_path / "data/data.yaml").unlink()
    report = checked(tmp_path, monkeypatch, "yolo")
    assert {one["kind"] for one in report["findings"]} == {"annotation"} and len(report["findings"]) == 2
    (labels / "train").rename(labels / "nowhere")
    report = checked(tmp_path, monkeypatch, "yolo", ", classes: [cup, nut]")
    assert set(report["by"]) == {("annotation", "train"), ("image-broken", "test")}


def test_yolos_layout_is_trained_on_and_evaluated(tmp_path):
    write_yolo(tmp_path / "data")
    config(tmp_path, "yolo")
    result = programs.call("tools/train.py", "--config", "c.yaml", "--output-dir", "run", folder=tmp_path)
    assert result.code == 0, result.stderr
    given = ["--config", "run/config.yaml", "--checkpoint", max((tmp_path / "run/checkpoints").iterdir())]
    result = programs.call("tools/eval.py", *given, folder=tmp_path)
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_checkpoint_of_other_classes_and_bad_data_are_each_named(tmp_path, layout):
    def evaluate(*settings):
        args = ["--config", "c.yaml", "--checkpoint", checkpoint, "--output-dir", "scores", *settings]
        return programs.call("tools/eval.py", *args, folder=tmp_path)

    {"voc": write_voc, "coco": write_coco}[layout](tmp_path / "data")
    config(tmp_path, layout)
    result = programs.call("tools/train.py", "--config", "c.yaml", "--output-dir", "run", folder=tmp_path)
    assert result.code == 0, result.stderr
    checkpoint = next((tmp_path / "run/checkpoints").iterdir())
    # The data's classes in another order are those of the checkpoint all the same.
    assert evaluate("data.classes=[nut, cup]").code == 0
    shutil.copytree(tmp_path / "data", tmp_path / "typo")
    annotations = VOC + "Annotations/1[2-5].xml"  # of the test split
    kind = {"voc": annotations, "coco": "annotations/instances_test.json"}[layout]
    every_file(kind, lambda text: text.replace("nut", "nuts"))(tmp_path / "typo")
    programs.assert_contract(evaluate("data.root=typo"), 3, "unknown class (got 'nuts'")
    every_file(
        {"voc": VOC + "Annotations/*.xml", "coco": "annotations/*.json"}[layout],
        lambda text: re.sub("nuts?", "person", text),
    )(tmp_path / "typo")
    message = "has other classes (got class 2 is 'nut' in it, 'person' in the data)"
    programs.assert_contract(evaluate("data.root=typo"), 4, checkpoint.name, message)
    programs.assert_contract(evaluate("data.root=typo", "data.classes=[cup, person]"), 4, checkpoint.name, message)
    programs.assert_contract(evaluate("data.root=typo", "data.classes=[cup, nut]"), 3, "unknown class (got 'person'")
    # Without the training split the test split itself has to say what its classes are.
    programs.assert_contract(evaluate("data.root=typo", f"data.train=[{VOC * (layout == 'voc')}none]"), 4, message)
    # A test split of VOC's layout need not have all classes.
    if layout == "voc":
        every_file(annotations, lambda text: re.sub("person", "cup", text))(tmp_path / "typo")
        assert evaluate("data.root=typo").code == 0
