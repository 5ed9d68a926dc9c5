"""oLRP: cases that are worked out by hand, the definition computed naively, and images that are really repeated."""

from __future__ import annotations

import numpy as np
import pytest
from random_boxes import random_case, repeated

from grcn.evaluation import bootstrap, coco, matching, olrp
from grcn.evaluation.detections import check

A, B, FAR = (0, 0, 100, 100), (200, 0, 300, 100), (0, 200, 50, 250)
A80 = (0, 0, 80, 100)  # IoU 0.8 with A
B60 = (200, 0, 260, 100)  # IoU 0.6 with B


def parts(found):
    return [found[name] for name in olrp.PARTS]


def test_perfect_detections_have_no_error(make_table, make_detections):
    table = make_table([(0, 1, A), (1, 1, B), (1, 2, A)])
    found = olrp.evaluate(table, make_detections([(0, 1, 0.9, A), (1, 1, 0.3, B), (1, 2, 0.5, A)]))
    assert parts(found) == [0, 0, 0, 0]
    assert [found["per_class"][name]["score"] for name in ("cat", "dog")] == pytest.approx([0.3, 0.5])


def test_nothing_detected_is_all_missed(make_table, make_detections):
    found = olrp.evaluate(make_table([(0, 1, A), (0, 2, B)]), make_detections([]))
    assert parts(found) == [1, None, None, 1] and found["per_class"]["cat"]["score"] is None


def test_no_true_positive_is_all_missed(make_table, make_detections):
    found = olrp.evaluate(make_table([(0, 1, A)]), make_detections([(0, 1, 0.9, FAR), (1, 1, 0.8, A), (0, 2, 0.9, A)]))
    assert parts(found) == [1, None, None, 1]


def test_boxes_alone(make_table, make_detections):
    """IoU 0.8 and 0.6: (0.2 + 0.4) / 0.5 = 1.2, of two true positives 0.6; of the first alone (0.4 + 1) / 2 = 0.7."""
    table = make_table([(0, 1, A), (0, 1, B)])
    found = olrp.evaluate(table, make_detections([(0, 1, 0.9, A80), (0, 1, 0.8, B60)]))
    assert parts(found) == pytest.approx([0.6, 0.3, 0, 0])


def test_the_best_score_is_chosen(make_table, make_detections):
    """Scores 0.9 (hit, IoU 1), 0.8 (false), 0.7 (hit, IoU 0.6), two objects.

    From 0.9 on: (0 + 0 + 1) / 2 = 0.5. From 0.8 on: (0 + 1 + 1) / 3 = 0.667. From 0.7 on: (0.8 + 1 + 0) / 3 = 0.6.
    """
    table = make_table([(0, 1, A), (0, 1, B)])
    found = olrp.evaluate(table, make_detections([(0, 1, 0.9, A), (0, 1, 0.8, FAR), (0, 1, 0.7, B60)]))
    assert parts(found) == pytest.approx([0.5, 0, 0, 0.5])
    assert found["per_class"]["cat"]["score"] == pytest.approx(0.9)
    # With IoU 1 instead of 0.6 from 0.7 on: (0 + 1 + 0) / 3.
    found = olrp.evaluate(table, make_detections([(0, 1, 0.9, A), (0, 1, 0.8, FAR), (0, 1, 0.7, B)]))
    assert parts(found) == pytest.approx([1 / 3, 0, 1 / 3, 0])


def test_duplicates_alone(make_table, make_detections):
    """Nine detections of one object and score: one hit, eight false. A score takes all or none: 8 / 9."""
    table = make_table([(0, 1, A)])
    found = olrp.evaluate(table, make_detections([(0, 1, 0.5, A)] * 9))
    assert parts(found) == pytest.approx([8 / 9, 0, 8 / 9, 0])
    # Of falling scores, the first is enough.
    assert parts(olrp.evaluate(table, make_detections([(0, 1, 0.5 - k / 100, A) for k in range(9)]))) == [0, 0, 0, 0]


def test_classes_without_objects_count_for_nothing(make_table, make_detections):
    """One class is perfect, one has nothing right, one has detections but no object: mean of 0 and 1."""
    table = make_table([(0, 1, A), (0, 2, B)], classes=("cat", "dog", "owl"))
    found = olrp.evaluate(table, make_detections([(0, 1, 0.9, A), (0, 3, 0.9, A)]))
    assert parts(found) == [0.5, 0, 0, 0.5]
    assert set(found["per_class"]["owl"].values()) == {None}


def test_ignored_objects_count_for_nothing(make_table, make_detections):
    """Detections of a crowd, inside it, and of a difficult object are neither right nor wrong."""
    objects = [(0, 1, A), (0, 1, B), (0, 1, (300, 200, 500, 400))]
    detections = [
        (0, 1, 0.99, B),
        (0, 1, 0.98, (310, 210, 340, 240)),
        (0, 1, 0.97, (350, 210, 380, 240)),
        (0, 1, 0.9, A),
    ]
    table = make_table(objects, difficult=[1], crowd=[2])
    assert parts(olrp.evaluate(table, make_detections(detections))) == [0, 0, 0, 0]
    # The second detection of the difficult object is false: (1 + 0) / 2.
    again = olrp.evaluate(table, make_detections([(0, 1, 0.96, B), *detections]))
    assert parts(again) == pytest.approx([0.5, 0, 0.5, 0])
    only = make_table([(0, 1, A), (0, 2, B)], difficult=[1])
    assert parts(olrp.evaluate(only, make_detections([]))) == [1, None, None, 1]


def test_another_tau(make_table, make_detections):
    """At tau 0.7 IoU 0.8 is 0.2 / 0.3 of the way, and IoU 0.6 no match: (2 / 3 + 1) / 2, from the first on."""
    table = make_table([(0, 1, A), (0, 1, B)])
    found = olrp.evaluate(table, make_detections([(0, 1, 0.9, A80), (0, 1, 0.8, B60)]), tau=0.7)
    assert parts(found) == pytest.approx([5 / 6, 0.2, 0, 0.5])


def naive(table, packed):
    """The definition, score by score, from what pycocotools' matching leaves at IoU 0.5."""
    found, values = check(table, packed), []
    pairs = matching.overlapping(table, found)
    for label, one in enumerate(olrp.localized(table, found, pairs), start=1):
        if not one.objects.sum():
            continue
        best = [1.0, np.nan, np.nan, 1.0]
        for score in sorted(set(found.scores[found.labels == label].tolist()), reverse=True):
            ious = one.ious[one.scores >= score]
            hits = ious[~np.isnan(ious)]
            false, missed = len(ious) - len(hits), one.objects.sum() - len(hits)
            error = (np.sum(1 - hits) / 0.5 + false + missed) / (len(hits) + false + missed)
            if len(hits) and error < best[0]:
                best = [error, np.mean(1 - hits), false / len(ious), missed / one.objects.sum()]
        values.append(best)
    return np.nanmean(values, axis=0)


@pytest.mark.parametrize("seed", range(8))
def test_random_cases(seed, make_table, make_detections):
    """Naively, and on images that are really repeated; true positives are those of the COCO protocol."""
    images, classes = 7, ("cat", "dog", "owl")
    truth, found = random_case(seed, images)
    found = [(row, label, round(score, 1), box) for row, label, score, box in found]  # many are equal
    flagged = {"difficult": [0, 5], "crowd": [3]}
    table, packed = make_table(truth, images, classes, **flagged), make_detections(found)
    assert parts(olrp.evaluate(table, packed)) == pytest.approx(naive(table, packed))
    localized = olrp.localized(table, check(table, packed), matching.overlapping(table, check(table, packed)))
    hits = [one.hits[0].sum() for one in coco.matches(table, packed)]
    assert [np.count_nonzero(~np.isnan(one.ious)) for one in localized] == hits
    curves = olrp.ErrorCurves(localized)
    for drawn in bootstrap.draws(images, 5, seed):
        copies = repeated([(row, index) for index, (row, *_) in enumerate(truth)], drawn)
        again = make_table(
            [(row, *truth[index][1:]) for row, index in copies],
            images,
            classes,
            **{name: [n for n, (_, i) in enumerate(copies) if i in places] for name, places in flagged.items()},
        )
        expected = olrp.evaluate(again, make_detections(repeated(found, drawn)))
        assert olrp.class_mean(curves.optima(drawn)[0]) == pytest.approx(parts(expected), abs=1e-12)
