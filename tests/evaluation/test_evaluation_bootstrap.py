"""The bootstrap over images: pycocotools and the VOC evaluator on images that are really repeated."""

from __future__ import annotations

import numpy as np
import pytest
from random_boxes import random_case, repeated

from grcn.evaluation import bootstrap, coco, voc


@pytest.mark.parametrize("seed", range(12))
def test_a_resample_scores_as_the_repeated_images_do(seed, make_table, make_detections):
    images = 7
    truth, found = random_case(seed, images)
    flagged = {"difficult": [0, 5], "crowd": [3]}
    classes = ("cat", "dog", "owl")
    table = make_table(truth, images, classes, **flagged)
    packed = make_detections(found)
    times = bootstrap.draws(images, 5, seed)
    coco_aps = bootstrap.resampled(coco.matches(table, packed), times)
    voc_aps = bootstrap.resampled(voc.matches(table, packed, 0.6), times, bootstrap.VOC07_RECALLS)
    for drawn, coco_ap, voc_ap in zip(times, coco_aps, voc_aps, strict=True):
        copies = repeated([(row, index) for index, (row, *_) in enumerate(truth)], drawn)
        again = make_table(
            [(row, *truth[index][1:]) for row, index in copies],
            images,
            classes,
            **{name: [n for n, (_, i) in enumerate(copies) if i in places] for name, places in flagged.items()},
        )
        detections = make_detections(repeated(found, drawn))
        metrics = coco.evaluate(again, detections, "pycocotools")["metrics"]
        expected = [metrics["coco_ap"], metrics["coco_ap50"], metrics["coco_ap75"]]
        assert [coco_ap.mean(), coco_ap[0], coco_ap[5]] == pytest.approx(expected, abs=1e-12)
        assert voc_ap[0] == pytest.approx(voc.evaluate(again, detections, [0.6])["metrics"]["voc07_ap60"], abs=1e-12)


def test_the_first_draw_is_the_images_as_they_are_and_the_others_are_as_many():
    times = bootstrap.draws(50, 20, 3)
    assert (times[0] == 1).all() and (times.sum(axis=1) == 50).all() and times.shape == (21, 50)
    assert len(np.unique(times, axis=0)) == 21
    np.testing.assert_array_equal(times, bootstrap.draws(50, 20, 3))


def test_draws_without_any_object_have_no_average_precision(make_table, make_detections):
    table = make_table([(0, 1, (0, 0, 10, 10))])
    matched = coco.matches(table, make_detections([]))
    found = bootstrap.resampled(matched, np.array([[1, 1], [0, 2]]))
    np.testing.assert_array_equal(found, [[0.0] * 10, [np.nan] * 10])
