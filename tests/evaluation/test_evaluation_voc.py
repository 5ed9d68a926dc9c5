"""VOC's average precision: worked examples, published ones, and a plain evaluator beside ours."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grcn.data.annotations import Annotations
from grcn.data.validate import pack
from grcn.errors import DataError
from grcn.evaluation import matching as overlaps
from grcn.evaluation import voc

BOX = (10, 10, 20, 20)
FAR = (100, 100, 140, 160)


def ap(table, detections, name="voc_area_ap50", threshold=0.5):
    return voc.evaluate(table, detections, (threshold,))["metrics"][name]


# Worked by hand


def test_iou_of_exactly_the_threshold_matches(make_table, make_detections):
    table = make_table([(0, 1, BOX)])
    half = make_detections([(0, 1, 0.9, (10, 10, 20, 15))])
    assert ap(table, half) == 1.0
    assert ap(table, half, "voc_area_ap51", 0.51) == 0.0


def test_one_pixel_convention_of_the_kit_is_plain_iou_after_conversion(make_table, make_detections):
    # Inclusive pixels 11..20 and 11..15: 10 and 5 columns, so the kit's IoU is exactly 0.5. Without
    # its "+ 1" it would be 4 / 9.
    table = make_table([(0, 1, (11 - 1, 11 - 1, 20, 20))])
    assert ap(table, make_detections([(0, 1, 0.9, (11 - 1, 11 - 1, 20, 15))])) == 1.0


def test_a_duplicate_is_a_false_positive(make_table, make_detections):
    table = make_table([(0, 1, BOX), (0, 1, FAR)])
    found = make_detections([(0, 1, 0.9, BOX), (0, 1, 0.8, BOX), (0, 1, 0.7, FAR)])
    assert ap(table, found) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3, abs=1e-15)
    assert ap(table, found, "voc07_ap50") == pytest.approx((6 * 1 + 5 * 2 / 3) / 11, abs=1e-15)


def test_a_taken_object_does_not_give_way_to_the_next_best(make_table, make_detections):
    # Both detections overlap the first object most; the second object, with IoU 0.6, stays unfound.
    table = make_table([(0, 1, (0, 0, 10, 10)), (0, 1, (0, 2, 10, 14))])
    found = make_detections([(0, 1, 0.9, (0, 0, 10, 10)), (0, 1, 0.8, (0, 1, 10, 11))])
    (curves,) = voc.curves(table, found)
    recall, precision = curves["cat"]
    assert recall.tolist() == [0.5, 0.5]
    assert precision.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("difficult", [0, 1])
def test_of_objects_that_overlap_equally_the_first_counts(make_table, make_detections, difficult):
    table = make_table([(0, 1, BOX), (0, 1, BOX)], difficult=[difficult])
    found = make_detections([(0, 1, 0.9, BOX)])
    assert ap(table, found) == (0.0 if difficult == 0 else 1.0)


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_difficult_and_crowd_objects_are_neither_found_nor_missed(make_table, make_detections, flag):
    table = make_table([(0, 1, FAR), (0, 1, BOX)], **{flag: [0]})
    found = make_detections([(0, 1, 0.9, FAR), (0, 1, 0.8, FAR), (0, 1, 0.7, BOX)])
    result = voc.evaluate(table, found)
    assert result["metrics"]["voc_area_ap50"] == 1.0
    assert result["per_class"]["cat"]["objects"] == 1
    assert ap(table, make_detections([(0, 1, 0.9, FAR)])) == 0.0


def test_equal_scores_are_ranked_by_row_whatever_their_place(make_table, make_detections):
    table = make_table([(1, 1, BOX)])
    hit, miss = (1, 1, 0.5, BOX), (0, 1, 0.5, BOX)
    assert ap(table, make_detections([hit, miss])) == 0.5
    assert ap(table, make_detections([miss, hit])) == 0.5


def test_equal_scores_of_one_image_keep_their_order(make_table, make_detections):
    table = make_table([(0, 1, BOX)])
    hit, miss = (0, 1, 0.5, BOX), (0, 1, 0.5, FAR)
    assert ap(table, make_detections([hit, miss])) == 1.0
    assert ap(table, make_detections([miss, hit])) == 0.5


@pytest.mark.parametrize("tenths", range(1, 11))
def test_eleven_points_at_a_recall_of_exactly_a_level(tenths):
    # The levels 3 * 0.1, 6 * 0.1 and 7 * 0.1 lie a little above 0.3, 0.6 and 0.7.
    levels = tenths if tenths in (3, 6, 7) else tenths + 1
    hits = np.ones(tenths, dtype=bool)
    assert voc.eleven_point_ap(hits, 10) == pytest.approx(levels / 11, abs=1e-15)


def test_no_detections_score_zero(make_table, make_detections):
    result = voc.evaluate(make_table([(0, 1, BOX), (1, 2, BOX)]), make_detections([]))
    assert set(result["metrics"].values()) == {0.0}
    assert len(result["metrics"]) == 6


def test_classes_without_objects_are_left_out_of_the_mean(make_table, make_detections):
    table = make_table([(0, 1, BOX), (0, 2, FAR)], difficult=[1], classes=("cat", "dog", "cow"))
    found = make_detections([(0, 1, 0.9, BOX), (0, 2, 0.9, BOX), (1, 3, 0.9, BOX)])
    result = voc.evaluate(table, found)
    assert result["metrics"]["voc07_ap50"] == 1.0
    for name in ("dog", "cow"):
        assert result["per_class"][name]["voc07_ap50"] is None
        assert result["per_class"][name]["objects"] == 0
    assert [list(curves) for curves in voc.curves(table, found, (0.5, 0.7))] == [["cat"], ["cat"]]


def test_all_difficult_gives_none(make_table, make_detections):
    table = make_table([(0, 1, BOX)], difficult=[0])
    result = voc.evaluate(table, make_detections([(0, 1, 0.9, BOX)]))
    assert set(result["metrics"].values()) == {None}


# What cannot be scored


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        ((1, 1, float("nan"), BOX), r"^000001.jpg: a detection's score is not finite \(got nan, 1"),
        ((1, 1, 0.5, (0, 0, float("inf"), 1)), "^000001.jpg: a detection's box is not finite"),
        ((1, 1, 0.5, (9, 0, 3, 1)), "^000001.jpg: a detection's box is not x1, y1, x2, y2"),
        ((1, 3, 0.5, BOX), r"^000001.jpg: a detection's label is not in 1..2 \(got 3"),
        ((1, 0, 0.5, BOX), "^000001.jpg: a detection's label is not in 1..2"),
        ((2, 1, 0.5, BOX), "^made: detection 1 belongs to no image"),
        ((-1, 1, 0.5, BOX), "^made: detection 1 belongs to no image"),
    ],
)
def test_unscorable_detections_are_refused_by_image(make_table, make_detections, detection, message):
    found = make_detections([(0, 1, 0.5, BOX), detection])
    with pytest.raises(DataError, match=message) as error:
        voc.evaluate(make_table([(0, 1, BOX)]), found)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


def test_a_table_without_objects_is_refused(make_table, make_detections):
    with pytest.raises(DataError, match="^made: nothing to evaluate"):
        voc.evaluate(make_table([]), make_detections([]))


def test_arrays_of_two_lengths_are_refused(make_table, make_detections):
    found = make_detections([(0, 1, 0.5, BOX)]) | {"scores": np.ones(2)}
    with pytest.raises(ValueError, match="differ in length"):
        voc.evaluate(make_table([(0, 1, BOX)]), found)


# Published figures (see README.md of this folder)

# The toy set of review_object_detection_metrics: x, y, w, h of the objects of seven images, and
# score, x, y, w, h of the detections. That tool takes x + w as the last pixel, so its IoU adds 1.
TOY_OBJECTS = [
    [(25, 16, 38, 56), (129, 123, 41, 62)],
    [(123, 11, 43, 55), (38, 132, 59, 45)],
    [(16, 14, 35, 48), (123, 30, 49, 44), (99, 139, 47, 47)],
    [(53, 42, 40, 52), (154, 43, 31, 34)],
    [(59, 31, 44, 51), (48, 128, 34, 52)],
    [(36, 89, 52, 76), (62, 58, 44, 67)],
    [(28, 31, 55, 63), (58, 67, 50, 58)],
]
TOY_DETECTIONS = [
    [(0.88, 5, 67, 31, 48), (0.70, 119, 111, 40, 67), (0.80, 124, 9, 49, 67)],
    [(0.71, 64, 111, 64, 58), (0.54, 26, 140, 60, 47), (0.74, 19, 18, 43, 35)],
    [
        (0.18, 109, 15, 77, 39),
        (0.67, 86, 63, 46, 45),
        (0.38, 160, 62, 36, 53),
        (0.91, 105, 131, 47, 47),
        (0.44, 18, 148, 40, 44),
    ],
    [
        (0.35, 83, 28, 28, 26),
        (0.78, 28, 68, 42, 67),
        (0.45, 87, 89, 25, 39),
        (0.14, 10, 155, 60, 26),
    ],
    [
        (0.62, 50, 38, 28, 46),
        (0.44, 95, 11, 53, 28),
        (0.95, 29, 131, 72, 29),
        (0.23, 29, 163, 72, 29),
    ],
    [(0.45, 43, 48, 74, 38), (0.84, 17, 155, 29, 35), (0.43, 95, 110, 25, 42)],
    [(0.48, 16, 20, 101, 88), (0.95, 33, 116, 37, 49)],
]
TOY_FIGURES = [  # threshold, 11-point, every point
    (0.1, 0.3333333333, 0.3371980676),
    (0.3, 0.2683982683, 0.2456866804),
    (0.5, 0.0303030303, 0.0222222222),
    (0.75, 0.0, 0.0),
]


def corners(x, y, width, height):
    return (x, y, x + width + 1, y + height + 1)


@pytest.mark.parametrize(("threshold", "eleven_point", "area"), TOY_FIGURES)
def test_published_toy_set(make_table, make_detections, threshold, eleven_point, area):
    objects = [(row, 1, corners(*box)) for row, boxes in enumerate(TOY_OBJECTS) for box in boxes]
    table = make_table(objects, images=7, classes=("object",))
    found = make_detections(
        [(row, 1, score, corners(*box)) for row, boxes in enumerate(TOY_DETECTIONS) for score, *box in boxes]
    )
    metrics = voc.evaluate(table, found, (threshold,))["metrics"]
    assert metrics[f"voc07_ap{100 * threshold:g}"] == pytest.approx(eleven_point, abs=1e-10)
    assert metrics[f"voc_area_ap{100 * threshold:g}"] == pytest.approx(area, abs=1e-10)


# ChainerCV's cases of precision and recall, as xyxy after its "+ 1" on the far corner.
ONE_OBJECT = [(0, 1, (0, 0, 1.9, 2))]
ITS_DETECTIONS = [
    (0, 1, 0.8, (0, 0, 2, 2)),
    (0, 1, 0.9, (0, 0, 3, 3)),
    (0, 1, 1.0, (0.3, 0.3, 1.5, 1.5)),
]
TWO_IMAGES = [(0, 1, (0, 0, 2, 2)), (0, 1, (0, 1, 5, 5)), (1, 3, (2, 2, 4, 4))]
FOUR_FOUND = [
    (0, 1, 1.0, (4, 0, 6, 2)),
    (0, 1, 0.9, (0, 0, 2, 2)),
    (1, 1, 0.7, (0, 0, 3, 3)),
    (1, 3, 0.6, (2, 2, 4, 4)),
]
CHAINER_CASES = [
    (ONE_OBJECT, [], ITS_DETECTIONS, 0.5, {"a": ([0, 0, 1], [0, 0, 1 / 3])}),
    (ONE_OBJECT, [], ITS_DETECTIONS, 0.97, {"a": ([0, 0, 0], [0, 0, 0])}),
    (
        TWO_IMAGES,
        [],
        [*FOUR_FOUND, (1, 3, 0.8, (5, 5, 8, 8))],
        0.4,
        {"a": ([0, 0.5, 0.5], [0, 0.5, 1 / 3]), "c": ([0, 1], [0, 0.5])},
    ),
    (
        [*ONE_OBJECT, (0, 1, (1, 1, 3, 3))],
        [1],
        ITS_DETECTIONS,
        0.5,
        {"a": ([0, 0, 1], [0, 0, 1 / 3])},
    ),
    (
        TWO_IMAGES,
        [2],
        [*FOUR_FOUND, (1, 3, 0.8, (2, 2, 4, 4))],
        0.4,
        {"a": ([0, 0.5, 0.5], [0, 0.5, 1 / 3])},
    ),
]


@pytest.mark.parametrize(("objects", "difficult", "detections", "threshold", "expected"), CHAINER_CASES)
def test_published_precision_and_recall(
    make_table, make_detections, objects, difficult, detections, threshold, expected
):
    table = make_table(objects, classes=("a", "b", "c"), difficult=difficult)
    (found,) = voc.curves(table, make_detections(detections), (threshold,))
    assert found.keys() == expected.keys()
    for name, (recall, precision) in expected.items():
        np.testing.assert_allclose(found[name][0], recall, rtol=0, atol=1e-15)
        np.testing.assert_allclose(found[name][1], precision, rtol=0, atol=1e-15)


def test_published_areas():
    hits = np.array([False, True, False])
    assert voc.area_ap(hits, 2) == 0.25
    assert voc.eleven_point_ap(hits, 2) == pytest.approx(3 / 11, abs=1e-15)


# The plain form

CLASSES = ("a", "b")
IMAGES = 3
# A coarse grid, few scores: equal scores, equal IoUs and IoUs of exactly 0.5 are frequent.
boxes = st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 4)] * 2).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)
places = (st.integers(0, IMAGES - 1), st.integers(1, len(CLASSES)))
object_lists = st.lists(st.tuples(*places, boxes, st.sampled_from("nnnnndc")), min_size=1, max_size=20)
detection_lists = st.lists(st.tuples(*places, st.integers(0, 5), boxes), max_size=30)


def table_of(objects) -> Annotations:
    return pack(
        "random",
        CLASSES,
        image_ids=list(range(IMAGES)),
        sizes=[(10, 10)] * IMAGES,
        rows=[o[0] for o in objects],
        labels=[o[1] for o in objects],
        boxes=[o[2] for o in objects],
        difficult=[o[3] == "d" for o in objects],
        iscrowd=[o[3] == "c" for o in objects],
    )


def arrays_of(detections) -> dict[str, np.ndarray]:
    return {
        "rows": np.array([d[0] for d in detections], dtype=np.int64),
        "labels": np.array([d[1] for d in detections], dtype=np.int64),
        "scores": np.array([d[2] / 5 for d in detections]),
        "boxes": np.array([d[3] for d in detections], dtype=np.float64).reshape(-1, 4),
    }


def plain_iou(a, b) -> Fraction:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return Fraction(0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return Fraction(width * height, sum(areas) - width * height)


def plain_aps(objects, detections, label, threshold) -> tuple[Fraction, Fraction] | None:
    """Walks through the detections of a class one by one; exact but for the eleven levels."""
    own = [(row, box, kind) for row, its_label, box, kind in objects if its_label == label]
    count = sum(kind == "n" for _, _, kind in own)
    if not count:
        return None
    taken: set[int] = set()
    true, counted = 0, 0
    points = []
    ranked = sorted((d for d in detections if d[1] == label), key=lambda d: (-d[2], d[0]))
    for row, _, _, box in ranked:
        best, best_iou = -1, Fraction(0)
        for i, (its_row, its_box, _) in enumerate(own):
            if its_row == row and plain_iou(box, its_box) > best_iou:
                best, best_iou = i, plain_iou(box, its_box)
        if best_iou >= threshold:
            if own[best][2] != "n":
                continue
            if best not in taken:
                taken.add(best)
                true += 1
        counted += 1
        points.append((Fraction(true, count), Fraction(true, counted)))
    best_at = [max((p for r, p in points if float(r) >= 0.1 * k), default=Fraction(0)) for k in range(11)]
    area, last = Fraction(0), Fraction(0)
    for i, (recall, _) in enumerate(points):
        area += (recall - last) * max(p for _, p in points[i:])
        last = recall
    return sum(best_at, Fraction(0)) / 11, area


@given(object_lists, detection_lists)
@settings(max_examples=300, deadline=None)
def test_equals_the_plain_form(objects, detections):
    result = voc.evaluate(table_of(objects), arrays_of(detections), (0.5, 0.75))
    for label, name in enumerate(CLASSES, start=1):
        for threshold in (Fraction(1, 2), Fraction(3, 4)):
            expected = plain_aps(objects, detections, label, threshold)
            suffix = f"ap{float(100 * threshold):g}"
            found = [result["per_class"][name][f"{kind}_{suffix}"] for kind in ("voc07", "voc_area")]
            if expected is None:
                assert found == [None, None]
            else:
                assert found == pytest.approx([float(value) for value in expected], abs=1e-12)


@given(object_lists, detection_lists, st.randoms())
@settings(max_examples=50, deadline=None)
def test_order_and_scale_of_distinct_scores_do_not_matter(objects, detections, random):
    table, found = table_of(objects), arrays_of(detections)
    found["scores"] = np.linspace(0.9, 0.1, len(detections))
    shuffled = list(range(len(detections)))
    random.shuffle(shuffled)
    moved = {name: values[shuffled] for name, values in found.items()}
    moved["scores"] = moved["scores"] ** 3 - 5
    assert voc.evaluate(table, found) == voc.evaluate(table, moved)


@given(object_lists, detection_lists)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_do_not_matter(monkeypatch, objects, detections):
    table, found = table_of(objects), arrays_of(detections)
    whole = voc.evaluate(table, found)
    with monkeypatch.context() as patch:
        patch.setattr(overlaps, "_PAIRS", 3)
        assert voc.evaluate(table, found) == whole


def test_a_set_of_the_size_of_voc07_test_takes_seconds():
    images, classes, per_image = 4952, 20, 100
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(0, images, 15_000))
    corner = rng.uniform(0, 300, (len(rows), 2))
    table = pack(
        "large",
        [f"class {label}" for label in range(classes)],
        image_ids=list(range(images)),
        sizes=[(500, 500)] * images,
        rows=rows,
        labels=rng.integers(1, classes + 1, len(rows)),
        boxes=np.concatenate((corner, corner + rng.uniform(20, 200, corner.shape)), axis=1),
    )
    near = rng.integers(0, len(rows), images * per_image)
    found = {
        "rows": rows[near],
        "labels": table.labels[near],
        "scores": rng.random(len(near)),
        "boxes": table.boxes[near] + rng.normal(0, 4, (len(near), 4)),
    }
    metrics = voc.evaluate(table, found)["metrics"]
    assert 0 < metrics["voc_area_ap75"] < metrics["voc_area_ap50"] < 1
