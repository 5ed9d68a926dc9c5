"""Analysis of lost AP: cases worked by hand, hotcoco's TIDE, and a plain form of the array computations."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from grcn.data.validate import pack
from grcn.errors import DataError
from grcn.evaluation import ap_loss as errors
from grcn.evaluation import coco, tide
from grcn.evaluation import matching as overlaps
from grcn.evaluation.detections import Detections, check
from grcn.evaluation.matching import iou, overlapping
from grcn.evaluation.oracle import oracle_split

CAT, DOG = 1, 2
A, B, C = (0, 0, 40, 40), (100, 0, 140, 40), (200, 0, 240, 40)
NOWHERE = (300, 300, 340, 340)


def shifted(box, by=20):
    """Moves a box of 40 pixels to the right; by 20 its IoU with itself is 1/3, by 8 it is 2/3."""
    return (box[0] + by, box[1], box[2] + by, box[3])


def random_set(seed, ignored=0.0, apart=False):
    """Makes objects and detections near them, of the right or another class.

    Args:
        ignored: share of the objects that are difficult, and of those that are crowds.
        apart: objects that are ignored, and detections near them, lie where no others do.
    """
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    objects, found = [], []
    for row in range(images):
        for _ in range(rng.integers(row == 0, 10)):
            sides = rng.uniform(20, 120, 2)
            corner = rng.uniform(0, 1, 2) * (300 - sides)
            kind = rng.choice(3, p=[1 - 2 * ignored, ignored, ignored])
            box = np.concatenate([corner, corner + sides]) + (400 if kind and apart else 0)
            label = int(rng.integers(1, classes + 1))
            objects.append((row, label, box, kind == 1, kind == 2))
            for _ in range(rng.integers(0, 4)):
                noise = 0.0 if kind and apart else rng.choice([0.05, 0.2, 0.5])
                near = box + rng.normal(0, noise, 4) * np.tile(sides, 2)
                near = np.concatenate([np.minimum(near[:2], near[2:]), np.maximum(near[:2], near[2:]) + 0.1])
                right = (kind and apart) or rng.random() < 0.7
                found.append((row, label if right else int(rng.integers(1, classes + 1)), near))
    rows, labels, boxes, difficult, crowd = zip(*objects, strict=True)
    table = pack(
        "random", [f"class {k}" for k in range(classes)], image_ids=rng.permutation(99)[:images].tolist(),
        sizes=[(800, 800)] * images, rows=rows, labels=labels, boxes=np.array(boxes), difficult=difficult,
        iscrowd=crowd,
    )  # fmt: skip
    packed = {
        "rows": np.array([row for row, _, _ in found], np.int64),
        "labels": np.array([label for _, label, _ in found], np.int64),
        "boxes": np.array([box for _, _, box in found]).reshape(-1, 4),
        "scores": (rng.permutation(len(found)) + 1) / (len(found) + 1),
    }
    return table, packed


# Three detections of which the second is wrong: precision 1 up to recall 1/2, then 2/3.
ONE_WRONG = (51 + 50 * 2 / 3) / 101


@pytest.mark.parametrize(
    "objects, found, ap50, gain, counts",
    [
        pytest.param([(0, CAT, A)], [(0, CAT, 0.9, shifted(A))], 0, {"Loc": 1, "FP": 0}, {"Loc": 1}, id="Loc"),
        pytest.param([(0, CAT, A)], [(0, DOG, 0.9, A)], 0, {"Cls": 1}, {"Cls": 1}, id="Cls"),
        pytest.param(
            [(0, CAT, A), (0, CAT, B)],
            [(0, CAT, 0.9, A), (0, CAT, 0.8, shifted(A, 8)), (0, CAT, 0.7, B)],
            ONE_WRONG, {"Dupe": 1 - ONE_WRONG, "FP": 1 - ONE_WRONG}, {"Dupe": 1}, id="Dupe",
        ),
        pytest.param(
            [(0, CAT, A), (0, CAT, B)],
            [(0, CAT, 0.9, A), (0, CAT, 0.8, NOWHERE), (0, CAT, 0.7, B)],
            ONE_WRONG, {"Bkg": 1 - ONE_WRONG, "FP": 1 - ONE_WRONG}, {"Bkg": 1}, id="Bkg",
        ),
        pytest.param(
            [(0, CAT, A), (0, CAT, B), (0, DOG, C)],
            [(0, CAT, 0.9, A), (0, CAT, 0.8, shifted(C)), (0, CAT, 0.7, B)],
            ONE_WRONG / 2, {"Both": (1 - ONE_WRONG) / 2, "FP": (1 - ONE_WRONG) / 2}, {"Both": 1, "Miss": 1}, id="Both",
        ),
        pytest.param(
            [(0, CAT, A), (1, CAT, A)],
            [(0, CAT, 0.9, A)],
            51 / 101, {"Miss": 50 / 101, "FN": 50 / 101}, {"Miss": 1}, id="Miss",
        ),
        pytest.param(  # The dog that is a cat outranks the badly placed cat, which vanishes or stays as it is.
            [(0, CAT, A), (0, CAT, B), (0, DOG, C)],
            [(0, DOG, 0.9, A), (0, CAT, 0.8, shifted(A)), (0, CAT, 0.6, B), (0, DOG, 0.5, C)],
            (0.5 * 51 / 101 + 0.5) / 2,
            {"Cls": 0.5 * (ONE_WRONG + 1) - (0.5 * 51 / 101 + 0.5) / 2, "Loc": 0.5 * 51 / 101 / 2,
             "FP": (51 / 101 + 1) / 2 - (0.5 * 51 / 101 + 0.5) / 2, "FN": 0.5 * 50 / 101 / 2},
            {"Cls": 1, "Loc": 1}, id="two about one object",
        ),
    ],
)  # fmt: skip
def test_each_error_by_hand(make_table, make_detections, objects, found, ap50, gain, counts):
    figures = errors.analyse(make_table(objects), make_detections(found)).figures
    assert figures["ap50"] == pytest.approx(ap50)
    assert figures["counts"] == dict.fromkeys(tide.ERRORS, 0) | counts
    assert figures["gains"] == pytest.approx(dict.fromkeys([*tide.ERRORS, "FP", "FN"], 0.0) | gain, abs=1e-12)
    for name in tide.ERRORS:
        for part in ("per_class", "per_size"):
            assert sum(one["counts"][name] for one in figures[part].values()) == figures["counts"][name]


def test_thresholds_are_inclusive(make_table, make_detections):
    """IoU 0.1 with the own class is Loc, with another class it is background; from 0.5 on detections match."""
    table = make_table([(0, CAT, (0, 0, 100, 10))])
    for label, box, error in ((CAT, (0, 0, 10, 10), "Loc"), (DOG, (0, 0, 10, 10), "Bkg"), (DOG, (0, 0, 50, 10), "Cls")):
        counts = errors.analyse(table, make_detections([(0, label, 0.9, box)])).figures["counts"]
        assert counts == dict.fromkeys(tide.ERRORS, 0) | {error: 1, "Miss": int(error == "Bkg")}
    half = errors.analyse(table, make_detections([(0, CAT, 0.9, (0, 0, 50, 10))])).figures
    assert half["ap50"] == 1 and not any(half["counts"].values())


@pytest.mark.parametrize("ignored", [0.0, 0.12])
def test_equals_hotcoco(ignored):
    """Where ignored objects take part in no error; hotcoco lets a detection be badly localized on one."""
    hotcoco = pytest.importorskip("hotcoco")
    kinds = set()
    for seed in range(100):
        table, packed = random_set(seed, ignored, apart=True)
        table = replace(table, difficult=np.zeros(len(table.boxes), bool), iscrowd=table.iscrowd | table.difficult)
        ids = coco._image_ids(table)
        truth = hotcoco.COCO(coco._ground_truth(table, ids))
        evaluator = hotcoco.COCOeval(truth, truth.load_res(coco._results(table, check(table, packed), ids)), "bbox")
        evaluator.evaluate()
        theirs = evaluator.tide_errors(pos_thr=0.5, bg_thr=0.1)
        found = check(table, packed)
        verdicts = tide.judge(table, found, overlapping(table, found))
        ap50, gains = tide.gains(table, found, verdicts)
        counts = [int((verdicts.errors == error).sum()) for error in range(5)] + [int(verdicts.missed.sum())]
        assert dict(zip(tide.ERRORS, counts, strict=True)) == theirs["counts"], seed
        if not np.isnan(ap50).all():
            ours = {name: float(np.nanmean(values)) for name, values in gains.items()}
            assert ours == pytest.approx(theirs["delta_ap"], abs=1e-12), seed
            assert np.nanmean(ap50) == pytest.approx(theirs["ap_base"], abs=1e-12), seed
        kinds |= {name for name, count in zip(tide.ERRORS, counts, strict=True) if count}
    assert kinds == set(tide.ERRORS)


@pytest.mark.parametrize("kind", ["difficult", "crowd"])
def test_on_objects_that_do_not_count_nothing_is_badly_done(make_table, make_detections, kind):
    table = make_table([(0, CAT, A), (0, CAT, B)], **{kind: [0]})
    for found in ((0, CAT, 0.9, shifted(A, 25)), (0, DOG, 0.9, A), (0, DOG, 0.9, shifted(A))):
        figures = errors.analyse(table, make_detections([found, (0, CAT, 0.8, B)])).figures
        assert figures["counts"] == dict.fromkeys(tide.ERRORS, 0) | {"Bkg": 1}
        assert figures["agreement"]["detections"] == 1
    figures = errors.analyse(table, make_detections([(0, CAT, 0.9, A), (0, CAT, 0.8, B)])).figures
    assert figures["counts"] == dict.fromkeys(tide.ERRORS, 0) and figures["ap50"] == 1
    table = make_table([(0, CAT, A), (0, CAT, shifted(A, 8))], **{kind: [0]})
    assert errors.analyse(table, make_detections([(0, CAT, 0.9, A)])).figures["ap50"] == 1, "it takes one that counts"


def test_memory_is_bounded_by_parts(monkeypatch):
    table, packed = random_set(1, 0.1)
    whole = overlapping(table, check(table, packed))
    monkeypatch.setattr(overlaps, "_PAIRS", 3)
    for ours, theirs in zip(overlapping(table, check(table, packed)), whole, strict=True):
        assert np.array_equal(ours, theirs) and len(ours) > 20


def test_ap50_and_ap_by_iou_are_cocos():
    """With equal scores, crowds and difficult objects among the others."""
    for seed in range(24):
        table, packed = random_set(seed, 0.15)
        packed["scores"] = np.round(packed["scores"], 1)
        figures, metrics = errors.analyse(table, packed).figures, coco.evaluate(table, packed)["metrics"]
        values = list(figures["ap_by_iou"].values())
        assert list(figures["ap_by_iou"]) == [f"0.{iou}" for iou in range(50, 100, 5)]
        assert (figures["ap50"] is None) == (metrics["coco_ap"] is None)
        if figures["ap50"] is not None:
            assert figures["ap50"] == pytest.approx(metrics["coco_ap50"], abs=1e-12), seed
            assert (values[0], values[5]) == (metrics["coco_ap50"], metrics["coco_ap75"])
            assert np.mean(values) == pytest.approx(metrics["coco_ap"])
            assert figures["oracles"]["measured"] == metrics["coco_ap"]


def test_of_a_class_100_detections_count(make_table, make_detections):
    found = [(0, CAT, 0.9, NOWHERE)] * 120 + [(0, CAT, 0.1, A), (0, DOG, 0.1, B)]
    figures = errors.analyse(make_table([(0, CAT, A), (0, DOG, B)]), make_detections(found)).figures
    assert figures["counts"] == dict.fromkeys(tide.ERRORS, 0) | {"Bkg": 100, "Miss": 1}
    assert figures["per_class"]["cat"]["ap50"] == 0 and figures["per_class"]["dog"]["ap50"] == 1


def test_classes_and_sizes_have_their_own_figures(make_table, make_detections):
    large, medium = (0, 100, 97, 196), (200, 100, 233, 132)  # just above 96 and 32 squared
    table = make_table([(0, CAT, A), (0, DOG, large), (1, DOG, medium)])
    found = make_detections([(0, DOG, 0.9, A), (0, CAT, 0.8, (300, 300, 331, 331)), (1, DOG, 0.7, medium)])
    figures = errors.analyse(table, found).figures
    cat, dog = figures["per_class"]["cat"], figures["per_class"]["dog"]
    assert (cat["objects"], dog["objects"]) == (1, 2)
    assert (cat["ap50"], dog["ap50"]) == pytest.approx((0, 0.5 * 51 / 101))
    assert cat["counts"] == dict.fromkeys(tide.ERRORS, 0) | {"Bkg": 1}
    assert dog["counts"] == dict.fromkeys(tide.ERRORS, 0) | {"Cls": 1, "Miss": 1}
    assert (cat["gains"]["Cls"], dog["gains"]["Cls"]) == pytest.approx((1, 0.5 * 51 / 101))
    sizes = figures["per_size"]
    assert [sizes[size]["objects"] for size in ("small", "medium", "large")] == [0, 2, 1]
    assert sizes["small"]["counts"]["Bkg"] == sizes["medium"]["counts"]["Cls"] == sizes["large"]["counts"]["Miss"] == 1


def test_scores_that_agree_with_ious_and_scores_that_do_not(make_table, make_detections):
    table = make_table([(0, CAT, A), (0, CAT, B), (0, CAT, C), (1, DOG, A)])
    found = [(0, CAT, 0.9, A), (0, CAT, 0.6, shifted(B)), (0, CAT, 0.3, shifted(C, 8))]
    others = [(1, CAT, 0.99, A), (0, CAT, 0.98, shifted(A, 36))]  # another class; IoU 1/19
    analysis = errors.analyse(table, make_detections([*others, *found]))
    order = np.argsort(-analysis.scores)
    assert analysis.scores[order] == pytest.approx([0.9, 0.6, 0.3])
    assert analysis.ious[order] == pytest.approx([1, 1 / 3, 2 / 3])
    agreement = analysis.figures["agreement"]
    assert agreement["detections"] == 3 and agreement["spearman"] == pytest.approx(0.5)
    assert agreement["pearson"] == pytest.approx(np.corrcoef([0.9, 0.6, 0.3], [1, 1 / 3, 2 / 3])[0, 1])
    for few in (found[:1], [found[0], (1, DOG, 0.2, A)]):  # one point; equal IoUs
        agreement = errors.analyse(table, make_detections(few)).figures["agreement"]
        assert agreement == {"detections": len(few), "spearman": None, "pearson": None}


def test_equal_values_share_a_rank():
    assert errors._ranks(np.array([0.3, 0.1, 0.3, 0.2, 0.3])).tolist() == [4, 1, 4, 2, 4]


def test_confusion_and_faults_by_hand(make_table, make_detections):
    table = make_table([(0, CAT, A), (0, DOG, B), (0, DOG, C), (1, CAT, A), (1, DOG, B)], difficult=[4])
    found = [
        (0, DOG, 0.9, shifted(A, 8)),  # taken for a dog
        (0, CAT, 0.8, A),  # too late for the matrix, a hit for TIDE
        (0, DOG, 0.7, B),
        (0, DOG, 0.4, C),  # below the threshold
        (1, DOG, 0.3, NOWHERE),  # likewise
        (1, CAT, 0.6, NOWHERE),
        (1, CAT, 0.95, B),  # on the difficult dog
    ]
    analysis = errors.analyse(table, make_detections(found), score_threshold=0.5)
    cat, dog, background = [0, 1, 1], [0, 1, 1], [2, 0, 0]
    assert analysis.figures["confusion"] == {"score_threshold": 0.5, "matrix": [cat, dog, background]}
    # Image 0: the dog on the cat, and the dog below the threshold. Image 1: two false positives and a missed cat.
    assert analysis.faults == pytest.approx([0.9 + 1, 0.6 + 0.95 + 1])


PERFECT = [(0, CAT, 0.9, A), (0, DOG, 0.8, B), (1, CAT, 0.7, C)]
SHIFTED = [(row, label, score, shifted(box)) for row, label, score, box in PERFECT]


def swapped(found):
    """Calls cats dogs and dogs cats."""
    return [(row, CAT + DOG - label, score, box) for row, label, score, box in found]


@pytest.mark.parametrize(
    "found, expected",
    [
        pytest.param(PERFECT, (1, 1, 1, 1, 1), id="perfect"),
        pytest.param(swapped(PERFECT), (0, 0, 1, 0, 1), id="classes swapped"),
        pytest.param(SHIFTED, (0, 0, 0, 1, 1), id="boxes shifted"),
        pytest.param(swapped(SHIFTED), (0, 0, 0, 0, 1), id="both"),
        pytest.param([*PERFECT, (0, CAT, 0.85, A)], ((ONE_WRONG + 1) / 2, 1, 1, 1, 1), id="a duplicate"),
        pytest.param([*PERFECT, (0, DOG, 0.85, A)], (0.75, 0.75, 1, 0.75, 1), id="a second class of one object"),
        pytest.param([*PERFECT[:2], (1, CAT, 0.95, NOWHERE)], (*[(0.5 * 51 / 101 + 1) / 2] * 5,), id="beyond help"),
        pytest.param([], (0,) * 5, id="nothing detected"),
    ],
)  # fmt: skip
def test_oracles_by_hand(make_table, make_detections, found, expected):
    table = make_table([(0, CAT, A), (0, DOG, B), (1, CAT, C)])
    oracles = errors.analyse(table, make_detections(found)).figures["oracles"]
    names = ("measured", "no_duplicates", "right_class", "right_box", "right_class_and_box")
    assert oracles == pytest.approx(dict(zip(names, expected, strict=True)), abs=1e-12)


def test_oracles_and_objects_that_do_not_count(make_table, make_detections):
    """A detection of a difficult object is set right and excused; one in a crowd is left alone, and excused."""
    table = make_table([(0, CAT, A), (0, CAT, B), (0, CAT, C)], difficult=[0], crowd=[1])
    found = [(0, DOG, 0.95, A), (0, CAT, 0.9, shifted(A, 25)), (0, CAT, 0.8, (101, 1, 120, 20)), (0, CAT, 0.7, C)]
    oracles = errors.analyse(table, make_detections(found)).figures["oracles"]
    assert oracles["measured"] == 0.5  # the second detection
    assert (oracles["right_box"], oracles["right_class_and_box"]) == pytest.approx((1, 1))


def plain_oracle(table, found, right_class, right_box):
    """The plain form: object by object, detection by detection."""
    best, kept = {}, []
    labels, boxes = found.labels.copy(), found.boxes.copy()
    for k, row in enumerate(found.rows):
        target, most = None, 0.0
        for m in range(*table.objects(row).indices(len(table.boxes))):
            overlap = iou(found.boxes[k : k + 1], table.boxes[m : m + 1])[0]
            allowed = not table.iscrowd[m] and (right_class or table.labels[m] == found.labels[k])
            if allowed and overlap >= 0.1 and overlap > most:
                target, most = m, overlap
        if target is None:
            kept.append(k)
            continue
        if target not in best or found.scores[k] > found.scores[best[target]]:
            best[target] = k
        labels[k] = table.labels[target]
        if right_box:
            boxes[k] = table.boxes[target]
    kept = sorted([*kept, *best.values()])
    return Detections(found.rows[kept], boxes[kept], found.scores[kept], labels[kept])._asdict()


def test_oracles_equal_their_plain_form():
    for seed in range(12):
        table, packed = random_set(seed, 0.1)
        found = check(table, packed)
        oracles = oracle_split(table, found, overlapping(table, found))
        for name, right_class, right_box in (
            ("no_duplicates", False, False),
            ("right_class", True, False),
            ("right_box", False, True),
            ("right_class_and_box", True, True),
        ):
            expected = coco.evaluate(table, plain_oracle(table, found, right_class, right_box))
            assert oracles[name] == expected["metrics"]["coco_ap"], (seed, name)


@pytest.mark.parametrize("found", [[], [(0, CAT, 0.9, NOWHERE)]], ids=["no detections", "one far from all"])
@pytest.mark.parametrize("difficult", [[], [0]], ids=["an object", "a difficult object"])
def test_with_next_to_nothing(make_table, make_detections, found, difficult):
    table = make_table([(0, CAT, A)], classes=("cat",), difficult=difficult)
    analysis = errors.analyse(table, make_detections(found))
    figures = analysis.figures
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    undefined = bool(difficult)
    assert figures["ap50"] == (None if undefined else 0)
    assert set(figures["gains"].values()) == {None if undefined else 0.0}
    assert set(figures["oracles"].values()) == set(figures["ap_by_iou"].values()) == {None if undefined else 0.0}
    assert figures["counts"] == dict.fromkeys(tide.ERRORS, 0) | {"Bkg": len(found), "Miss": int(not undefined)}
    assert figures["agreement"] == {"detections": 0, "spearman": None, "pearson": None}
    assert figures["confusion"]["matrix"] == [[0, int(not undefined)], [len(found), 0]]
    assert len(analysis.scores) == len(analysis.ious) == 0 and analysis.faults.shape == (2,)


def test_what_cannot_be_scored_is_refused(make_table, make_detections):
    with pytest.raises(DataError, match="nothing to evaluate"):
        errors.analyse(make_table([]), make_detections([]))
    with pytest.raises(DataError, match="score is not finite"):
        errors.analyse(make_table([(0, CAT, A)]), make_detections([(0, CAT, float("nan"), A)]))
