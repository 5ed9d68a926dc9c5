"""One line that says why AP is zero, for each of the ways in which it gets there."""

from __future__ import annotations

import numpy as np
import pytest

from grcn.data.validate import pack
from grcn.evaluation import coco, voc
from grcn.evaluation.diagnosis import diagnose

IMAGES, CLASSES = 20, 3


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 150, (3 * IMAGES, 2))
    return pack(
        "made",
        [f"class {label}" for label in range(1, CLASSES + 1)],
        image_ids=list(range(IMAGES)),
        sizes=[(200, 300)] * IMAGES,
        rows=np.repeat(np.arange(IMAGES), 3),
        labels=rng.integers(1, CLASSES + 1, len(corner)),
        boxes=np.concatenate((corner, corner + rng.uniform(20, 50, corner.shape)), axis=1),
    )


@pytest.fixture
def perfect(table):
    return {
        "rows": np.repeat(np.arange(IMAGES), 3),
        "labels": table.labels.copy(),
        "scores": np.full(len(table.boxes), 0.9),
        "boxes": table.boxes.copy(),
    }


def diagnosis(table, detections):
    metrics = voc.evaluate(table, detections)["metrics"]
    line = diagnose(table, detections, metrics)
    assert line == diagnose(table, detections, coco.evaluate(table, detections)["metrics"])
    assert line is None or ("\n" not in line and len(line) <= 300)
    return line


def far_away(table, detections):
    return detections | {"boxes": np.tile([280.0, 180.0, 290.0, 190.0], (len(table.boxes), 1))}


def test_a_detector_that_works_needs_none(table, perfect):
    assert diagnosis(table, perfect) is None


def test_recall_of_random_boxes_is_no_excuse(table, perfect):
    assert diagnose(table, perfect, {"coco_ap70": 0.05, "coco_ar100": 0.3}) is None
    assert diagnose(table, perfect, {"coco_ap70": 0.049, "coco_ar100": 0.3}) is not None


@pytest.mark.parametrize("name", ["coco_ap50", "voc_area_ap50"])
def test_one_figure_decides(table, perfect, name):
    """That the few medium objects are found does not make the others so."""
    others = {"coco_ap": 0.0048, "coco_ap_medium": 0.07, "voc07_ap50": 0.09}
    assert diagnose(table, perfect, others | {name: 0.04}) is not None
    assert diagnose(table, perfect, {"coco_ap": 0.0048, name: 0.05}) is None


def test_no_detections(table, perfect):
    nothing = diagnosis(table, {k: v[:0] for k, v in perfect.items()})
    assert "there are no detections" in nothing and "its scores are not finite" in nothing


def test_fractions_of_the_image(table, perfect):
    found = perfect | {"boxes": perfect["boxes"] / [300, 200, 300, 200]}
    assert "fractions of the image" in diagnosis(table, found)


def test_frame_of_the_resized_image(table, perfect):
    found = perfect | {"boxes": perfect["boxes"] * 3}
    assert "of the boxes leave their image" in diagnosis(table, found)


@pytest.mark.parametrize("shift", [1, -1])
def test_labels_off_by_one(table, perfect, shift):
    moved = perfect["labels"] + shift
    known = (moved >= 1) & (moved <= CLASSES)
    found = {k: v[known] for k, v in (perfect | {"labels": moved}).items()}
    assert f"with every label {-shift:+d}" in diagnosis(table, found)


def test_classes_in_another_order(table, perfect):
    found = perfect | {"labels": np.array([0, 2, 3, 1])[perfect["labels"]]}
    keep = found["labels"] == 1  # the others are off by one
    line = diagnosis(table, {k: v[keep] for k, v in found.items()})
    assert "or compare the order of the class names" in line


def test_a_shift_of_labels_that_is_no_better_is_no_cause(table, perfect):
    both = {name: np.concatenate((values, values)) for name, values in perfect.items()}
    both["labels"][len(table.boxes) :] -= 1
    both = {name: values[both["labels"] > 0] for name, values in both.items()}
    assert "with every label" not in diagnose(table, both, {"coco_ap": 0.01})


def test_few_images(table, perfect):
    found = {k: v[:6] for k, v in far_away(table, perfect).items()}
    assert "only 2 of 20 images" in diagnosis(table, found)


def test_scores_of_background(table, perfect):
    found = far_away(table, perfect) | {"scores": np.full(len(table.boxes), 0.03)}
    assert "the best score of all is 0.03" in diagnosis(table, found)


def test_boxes_beside_the_objects(table, perfect):
    assert "do not lie on objects (median side 10 px" in diagnosis(table, far_away(table, perfect))


def test_nothing_to_find(table, perfect):
    object.__setattr__(table, "difficult", np.ones(len(table.boxes), dtype=bool))
    assert "none of the 60 objects of made has to be found" in diagnosis(table, perfect)
