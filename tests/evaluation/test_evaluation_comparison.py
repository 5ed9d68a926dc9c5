"""The figures of a comparison are those of the evaluators, also on images that are really repeated."""

from __future__ import annotations

import numpy as np
import pytest
from random_boxes import random_case, repeated

from grcn.evaluation import ap_loss, bootstrap, coco, olrp
from grcn.evaluation.calibration import Calibration
from grcn.evaluation.comparison import FIGURES, measure
from grcn.evaluation.tide import ERRORS

CLASSES = ("cat", "dog", "owl")


def evaluated(table, packed):
    """The same figures by the functions that the other commands use."""
    metrics = coco.evaluate(table, packed, "pycocotools")["metrics"]
    figures = ap_loss.analyse(table, packed).figures
    errors = olrp.evaluate(table, packed)
    values = {name: metrics[f"coco_{name}"] for name in ("ap", "ap50", "ap75")}
    values |= {f"tide_{error.lower()}": figures["gains"][error] for error in ERRORS}
    values |= {name: figures["oracles"][name] for name in ("right_class", "right_box")}
    values["spearman"] = figures["agreement"]["spearman"]
    names = ("olrp", "olrp_localization", "olrp_false_positives", "olrp_false_negatives")
    return values | dict(zip(names, (errors[part] for part in olrp.PARTS), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_the_evaluators_on_repeated_images_too(seed, make_table, make_detections):
    images = 7
    truth, found = random_case(seed, images)
    flagged = {"difficult": [0, 5], "crowd": [3]}
    table, packed = make_table(truth, images, CLASSES, **flagged), make_detections(found)
    times = bootstrap.draws(images, 4, seed)
    measured = measure(table, packed, times)
    assert measured.keys() == FIGURES.keys()
    for place, drawn in enumerate(times):
        copies = repeated([(row, index) for index, (row, *_) in enumerate(truth)], drawn)
        again = make_table(
            [(row, *truth[index][1:]) for row, index in copies],
            images,
            CLASSES,
            **{name: [n for n, (_, i) in enumerate(copies) if i in places] for name, places in flagged.items()},
        )
        expected = evaluated(again, make_detections(repeated(found, drawn)))
        assert {name: measured[name][place] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_nothing_detected(make_table, make_detections):
    table = make_table([(0, 1, (0, 0, 10, 10))])
    found = {name: values[0] for name, values in measure(table, make_detections([]), np.ones((1, 2), int)).items()}
    assert found["ap"] == found["right_box"] == 0 and found["olrp"] == found["olrp_false_negatives"] == 1
    assert all(np.isnan(found[name]) for name in ("spearman", "olrp_localization", "calibration_error"))


def test_images_without_objects_have_no_figures(make_table, make_detections):
    table = make_table([(0, 1, (0, 0, 10, 10))])
    found = measure(table, make_detections([(0, 1, 0.5, (0, 0, 10, 10))]), np.array([[0, 2], [1, 1]]))
    assert all(np.isnan(values[0]) for values in found.values()) and found["ap"][1] == pytest.approx(1)


def test_calibration_by_hand():
    """Scores 0.9, 0.95 (one right): |1.85 - 1|; scores 0.2, 0.25, 0.3 - the last in its own bin - (none right).

    (0.85 + 0.45 + 0.3) / 5 = 0.32. With the first image twice: (|2.75 - 2| + 0.45 + 0.3) / 6 = 0.25.
    """
    rows, scores = np.array([0, 1, 1, 1, 1]), np.array([0.9, 0.95, 0.2, 0.25, 0.3])
    calibration = Calibration(2, rows, scores, np.array([True, False, False, False, False]))
    assert calibration.error(np.array([1, 1])) == pytest.approx(0.32)
    assert calibration.error(np.array([2, 1])) == pytest.approx(0.25)
    assert np.isnan(calibration.error(np.array([0, 0])))
    assert np.isnan(Calibration(2, rows, scores * 8, rows > 0).error(np.array([1, 1]))), "logits are no probabilities"
    assert Calibration(1, np.zeros(2, int), np.array([1.0, 0.0]), np.array([True, False])).error(np.ones(1, int)) == 0
