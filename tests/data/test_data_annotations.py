from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grcn.data.annotations import Annotations, concatenate
from grcn.data.validate import ROUNDING, THINNEST, pack, pack_detections
from grcn.errors import DataError


def two_images(name: str = "some", first_id: int = 10) -> Annotations:
    """Image 0 is 40 wide and 30 high with one object, image 1 is 8 x 9 with two."""
    return pack(
        name,
        ["cat", "dog"],
        image_ids=[first_id, first_id + 1],
        files=[f"{first_id}.jpg", f"{first_id + 1}.jpg"],
        sizes=[(30, 40), (9, 8)],
        rows=[1, 0, 1],
        boxes=[[0, 0, 2, 3], [5, 5, 40, 30], [1, 1, 8, 9]],
        labels=[1, 2, 2],
        area=[np.nan, 7.0, np.nan],
        difficult=[True, False, False],
    )


def one_box(box: list[float], **changes: object) -> Annotations:
    arguments = {"image_ids": [3], "sizes": [(30, 40)], "rows": [0], "labels": [1]} | changes
    return pack("some", ["cat"], boxes=[box], **arguments)  # type: ignore[arg-type]


def test_pack_sorts_objects_by_image_and_keeps_their_order():
    table = two_images()
    assert len(table) == 2
    assert table.offsets.tolist() == [0, 1, 3]
    assert table.boxes[table.objects(0)].tolist() == [[5, 5, 40, 30]]
    assert table.boxes[table.objects(1)].tolist() == [[0, 0, 2, 3], [1, 1, 8, 9]]
    assert table.labels.tolist() == [2, 1, 2]
    assert table.area.tolist() == [7, 6, 56]
    assert table.difficult.tolist() == [False, True, False]
    assert not table.iscrowd.any()
    assert table.category_ids.tolist() == [1, 2]
    kinds = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    assert {name: array.dtype.str for name, array in kinds.items() if hasattr(array, "dtype")} == {
        "image_ids": "<i8",
        "files": "|S6",
        "sizes": "<i4",
        "offsets": "<i8",
        "boxes": "<f8",
        "labels": "<i4",
        "area": "<f4",
        "iscrowd": "|b1",
        "difficult": "|b1",
        "category_ids": "<i8",
    }


def test_the_order_of_an_images_objects_survives_any_number_of_them():
    random = np.random.default_rng(0)
    rows = random.integers(0, 3, 500)
    x = np.arange(500) / 20
    table = pack(
        "many",
        ["cat"],
        image_ids=[1, 2, 3],
        sizes=[(30, 40)] * 3,
        rows=rows,
        boxes=np.stack([x, x, x + 5, x + 3], 1),
        labels=np.ones(500),
    )
    for row in range(3):
        assert np.array_equal(table.boxes[table.objects(row), 0], x[rows == row])


def test_arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        two_images().boxes[0, 0] = 3


def test_a_table_without_objects_has_the_same_shapes(caplog):
    table = pack("none", ["cat"], image_ids=["a"], sizes=[(3, 4)], rows=[], boxes=[], labels=[])
    assert table.boxes.shape == (0, 4)
    assert table.offsets.tolist() == [0, 0]
    assert table.image_ids.tolist() == [b"a"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("box", "changes", "message"),
    [
        ([0, 0, np.nan, 5], {}, "not finite"),
        ([0, 0, np.inf, 5], {}, "not finite"),
        ([9, 0, 5, 5], {}, "reversed"),
        ([0, 9, 5, 5], {}, "reversed"),
        ([40, 0, 41, 5], {}, "outside"),
        ([-5, 0, 0, 5], {}, "outside"),
        ([0, 30, 5, 1e30], {}, "outside"),
        ([0, 0, 5, 5], {"labels": [0]}, r"label \(got 0\)"),
        ([0, 0, 5, 5], {"labels": [2]}, r"label \(got 2\)"),
        ([0, 0, 5, 5], {"sizes": [(0, 40)]}, r"no valid size \(got 40 x 0\)"),
        ([0, 0, 5, 5], {"area": [-1.0]}, "area"),
        ([0, 0, 5, 5], {"area": [np.inf]}, "area"),
        ([0, 0, 5, 5], {"area": [1e39]}, "area"),
        ([np.inf, 0, np.inf, 5], {}, "not finite"),
        ([0, 0, 5, 5], {"image_ids": [3, 3], "sizes": [(30, 40)] * 2}, "twice"),
    ],
)
def test_what_is_wrong_is_one_line(box, changes, message):
    with pytest.raises(DataError, match=message) as error:
        one_box(box, **changes)
    assert str(error.value).startswith("some: ")
    assert len(str(error.value)) <= 300


def of_classes(*classes: str) -> Annotations:
    return pack("some", classes, image_ids=[1], sizes=[(3, 4)], rows=[], boxes=[], labels=[])


@pytest.mark.parametrize("classes", [("a", "a"), ("hot dog", "hot  dog"), ("a", "a ")])
def test_a_class_listed_twice_is_an_error(classes):
    with pytest.raises(DataError, match="class is listed twice"):
        of_classes(*classes)


def test_classes_that_differ_in_case_are_suspected(caplog):
    assert of_classes("a", "b", "B").classes == ("a", "b", "B")
    assert "some: classes 'b' and 'B' differ in case only" in caplog.text


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[2J", "\ud800", "x" * 101])
def test_unusable_class_names_are_refused(name):
    with pytest.raises(DataError, match="some: not a class name"):
        of_classes("a", name)


def test_boxes_without_width_or_height_are_dropped_and_counted(caplog):
    table = pack(
        "some",
        ["cat"],
        image_ids=[1, 2],
        sizes=[(30, 40)] * 2,
        rows=[0, 0, 1],
        boxes=[[5, 5, 5, 9], [5, 5, 9, 9], [40, 5, 40, 5]],
        labels=[1, 1, 1],
        iscrowd=[False, True, False],
    )
    assert table.boxes.tolist() == [[5, 5, 9, 9]]
    assert table.iscrowd.tolist() == [True]
    assert table.offsets.tolist() == [0, 1, 1]
    assert "some: 2 boxes have no width or height, dropped (first: some: object 0" in caplog.text


@pytest.mark.parametrize("box", [[5, 5, 5 + 1e-9, 9], [5, 5, 9, 5.009], [5, 29.999999, 9, 40], [-9, 5, 1e-7, 9]])
def test_a_box_that_float32_may_lose_has_no_size(caplog, box):
    assert len(one_box(box).boxes) == 0
    assert "1 boxes have no width or height, dropped" in caplog.text


def test_boxes_that_stick_out_are_clipped_and_counted(caplog):
    table = one_box([-2, 3, 50, 99])
    assert table.boxes.tolist() == [[0, 3, 40, 30]]
    assert table.area.tolist() == [40 * 27]
    assert "1 boxes stick out of their image, clipped" in caplog.text
    assert one_box([30, 3, 40.75, 30.75]).boxes.tolist() == [[30, 3, 40, 30]]


def test_rounding_is_no_fault(caplog):
    assert one_box([-0.25, 0, 40.25, 30]).boxes.tolist() == [[-0.25, 0, 40.25, 30]]
    assert not caplog.records


def test_relative_coordinates_are_suspected(caplog):
    one_box([0.1, 0.1, 0.9, 0.8])
    assert "are the coordinates relative?" in caplog.text


@given(st.lists(st.floats(-100, 100), min_size=4, max_size=4))
def test_every_accepted_box_is_inside_its_image(box):
    try:
        table = one_box(box)
    except DataError:
        x1, y1, x2, y2 = box
        assert x1 > x2 or y1 > y2 or x1 >= 40 or y1 >= 30 or x2 <= 0 or y2 <= 0
        return
    for x1, y1, x2, y2 in table.boxes:
        assert -ROUNDING <= x1 <= x2 - THINNEST and x2 <= 40 + ROUNDING
        assert -ROUNDING <= y1 <= y2 - THINNEST and y2 <= 30 + ROUNDING


def test_concatenate_equals_packing_all_at_once():
    first, second = two_images("one", 10), two_images("two", 20)
    both = concatenate([first, second])
    assert both.name == "one+two"
    assert both.image_ids.tolist() == [10, 11, 20, 21]
    assert both.offsets.tolist() == [0, 1, 3, 4, 6]
    for row in range(4):
        source = (first, second)[row // 2]
        for field in ("boxes", "labels", "area", "iscrowd", "difficult"):
            theirs = getattr(source, field)[source.objects(row % 2)]
            assert np.array_equal(getattr(both, field)[both.objects(row)], theirs)
    assert concatenate([first]) is first


def test_concatenate_refuses_other_classes_and_repeated_images():
    first = two_images()
    with pytest.raises(DataError, match="listed twice"):
        concatenate([first, two_images("again")])
    other = dataclasses.replace(two_images("other", 20), classes=("dog", "cat"))
    with pytest.raises(DataError, match="other: classes differ from those of 'some'"):
        concatenate([first, other])


def test_the_first_images_are_a_table():
    table = two_images()
    assert table.first(2).fingerprint() == table.first(9).fingerprint() == table.fingerprint()
    one = table.first(1)
    assert len(one) == 1
    assert one.boxes.tolist() == [[5, 5, 40, 30]]
    assert one.offsets.tolist() == [0, 1]
    sliced = {field.name: len(getattr(one, field.name)) for field in dataclasses.fields(one)}
    assert all(sliced[name] == 1 for name in ("labels", "area", "iscrowd", "difficult", "files"))
    assert len(table.first(0)) == 0


def test_some_classes_are_a_table():
    table = dataclasses.replace(two_images(), classes=("cat", "dog", "cow"), category_ids=np.array([7, 8, 9]))
    table = dataclasses.replace(table, labels=np.arange(len(table.labels), dtype=np.int32) % 3 + 1)
    some = table.only(["cow", "cat"])
    assert some.classes == ("cow", "cat") and some.category_ids.tolist() == [9, 7] and len(some) == len(table)
    for row in range(len(table)):
        expected = [
            (table.classes[label - 1], box)
            for label, box in zip(
                table.labels[table.objects(row)], table.boxes[table.objects(row)].tolist(), strict=True
            )
        ]
        found = [
            (some.classes[label - 1], box)
            for label, box in zip(some.labels[some.objects(row)], some.boxes[some.objects(row)].tolist(), strict=True)
        ]
        assert found == [pair for pair in expected if pair[0] != "dog"]
    assert table.only(table.classes).fingerprint() == table.fingerprint()


def test_fingerprint_is_of_the_contents_alone():
    table = two_images()
    moved = dataclasses.replace(table, root="elsewhere", name="other")
    assert moved.fingerprint() == table.fingerprint()
    seen = {table.fingerprint()}
    for field in dataclasses.fields(table):
        array = getattr(table, field.name)
        if isinstance(array, np.ndarray):
            changed = array.copy()
            changed.reshape(-1).view(np.uint8)[0] ^= 1
            seen.add(dataclasses.replace(table, **{field.name: changed}).fingerprint())
    seen.add(dataclasses.replace(table, classes=("cat", "cow")).fingerprint())
    assert len(seen) == 12


def test_coco_train2014_takes_little_memory():
    images, objects = 82_783, 604_907
    sizes = np.full((images, 2), 400)
    table = pack(
        "big",
        [f"class {k}" for k in range(80)],
        image_ids=list(range(images)),
        files=[f"train2014/COCO_train2014_{k:012d}.jpg" for k in range(images)],
        sizes=sizes,
        rows=np.arange(objects) % images,
        boxes=np.tile([10.0, 20.0, 30.0, 40.0], (objects, 1)),
        labels=np.arange(objects) % 80 + 1,
    )
    arrays = [getattr(table, field.name) for field in dataclasses.fields(table)]
    assert sum(array.nbytes for array in arrays if isinstance(array, np.ndarray)) < 33e6


def test_pack_detections_checks_boxes_and_scores():
    packed = pack_detections([1, 0], [[0, 0, 1, 1], [2, 2, 2, 5]], [0.5, 0.1], [1, 2], str)
    assert {key: array.dtype.str for key, array in packed.items()} == {
        "rows": "<i8",
        "boxes": "<f8",
        "scores": "<f8",
        "labels": "<i8",
    }
    assert pack_detections([], [], [], [], str)["boxes"].shape == (0, 4)
    for box, score in (([0, 0, -1, 5], 0.5), ([0, 0, np.nan, 5], 0.5), ([0, 0, 1, 1], np.nan)):
        with pytest.raises(DataError, match=r"file\.txt:1: not a box and a score"):
            pack_detections([0], [box], [score], [1], lambda k: f"file.txt:{k + 1}")
