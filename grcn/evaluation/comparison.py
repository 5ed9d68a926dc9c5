"""Computes the figures that detectors are compared by, on the images as they are and on resampled ones.

Matches, kinds of errors and oracle corrections are decided image by image before any image is drawn. So a resample
gives what would be measured on the drawn images, exactly where no two scores of a class are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from grcn.data.annotations import Annotations
from grcn.evaluation import olrp
from grcn.evaluation.bootstrap import Curves
from grcn.evaluation.calibration import Calibration
from grcn.evaluation.coco import THRESHOLDS
from grcn.evaluation.detections import check
from grcn.evaluation.matching import matches_by_class, overlapping
from grcn.evaluation.oracle import oracle_versions
from grcn.evaluation.tide import BACKGROUND, ERRORS, judge, matches_without


class Figure(NamedTuple):
    """One figure of a comparison.

    Attributes:
        title: its name in tables and pictures.
        higher_is_better: else lower is.
    """

    title: str
    higher_is_better: bool


FIGURES = {
    "ap": Figure("AP", True),
    "ap50": Figure("AP50", True),
    "ap75": Figure("AP75", True),
    **{f"tide_{error.lower()}": Figure(f"TIDE {error}", False) for error in ERRORS},
    "right_class": Figure("AP, right class", True),
    "right_box": Figure("AP, right box", True),
    "spearman": Figure("score-IoU correlation", True),
    "olrp": Figure("oLRP", False),
    "olrp_localization": Figure("oLRP localization", False),
    "olrp_false_positives": Figure("oLRP false positives", False),
    "olrp_false_negatives": Figure("oLRP false negatives", False),
    "calibration_error": Figure("calibration error", False),
}


def measure(
    table: Annotations,
    detections: Mapping[str, Any],
    times: np.ndarray,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Computes every figure on images that are drawn several times.

    Args:
        table: annotations of all images that count, whether or not anything is detected in them.
        detections: packed detections (:mod:`grcn.evaluation.detections`), original pixels.
        times: int64 ``[B, N]``, of :func:`grcn.evaluation.bootstrap.draws`.
        advance: called after each resample, for a progress bar.

    Returns:
        for each key of :data:`FIGURES` float64 ``[B]``, in 0-1 (the correlation in -1 to 1); NaN where it is undefined.
        ``ap``, ``ap50``, ``ap75`` are COCO's; ``tide_*`` what AP50 gains without the errors of a kind
        (:mod:`grcn.evaluation.tide`); ``right_class`` and ``right_box`` COCO's AP with an oracle
        (:mod:`grcn.evaluation.oracle`); ``spearman`` the correlation of score and IoU
        (:func:`grcn.evaluation.ap_loss.analyse`); ``olrp*`` of :mod:`grcn.evaluation.olrp`; ``calibration_error`` of
        :mod:`grcn.evaluation.calibration`.

    Raises:
        DataError: the table has no object, or a detection cannot be scored; names the image.
    """
    measures = _Measures(table, detections)
    found = np.full((len(times), len(FIGURES)), np.nan)
    for drawn, row in zip(times, found, strict=True):
        row[:] = measures.on(drawn)
        advance()
    return dict(zip(FIGURES, found.T, strict=True))


class _Measures:
    """The figures of one detector's detections, in the order of :data:`FIGURES`."""

    def __init__(self, table: Annotations, detections: Mapping[str, Any]) -> None:
        found = check(table, detections)
        pairs = overlapping(table, found)
        self._precision = Curves(matches_by_class(table, found, pairs, THRESHOLDS))
        verdicts = judge(table, found, pairs)
        without = matches_without(table, found, verdicts)
        self._without = [Curves(without[error]) for error in ERRORS]
        versions = oracle_versions(table, found, pairs)
        self._oracles = [
            Curves(matches_by_class(table, versions[name], overlapping(table, versions[name]), THRESHOLDS))
            for name in ("right_class", "right_box")
        ]
        order = verdicts.order
        judged = order[verdicts.own_ious[order] >= BACKGROUND]
        self._agreement = _Agreement(found.rows[judged], found.scores[judged], verdicts.own_ious[judged])
        self._errors = olrp.ErrorCurves(olrp.localized(table, found, pairs))
        self._calibration = Calibration(len(table), found.rows[order], found.scores[order], verdicts.hits[order])

    def on(self, drawn: np.ndarray) -> list[float]:
        """Returns the figures for images that count ``drawn`` times, int64 ``[N]``."""
        present = self._precision.objects @ drawn > 0
        if not present.any():
            return [np.nan] * len(FIGURES)
        by_overlap = self._precision.average_precision(drawn)[:, present].mean(axis=1)
        ap50 = by_overlap[0]
        return [
            by_overlap.mean(),
            ap50,
            by_overlap[5],
            *(one.average_precision(drawn)[0, present].mean() - ap50 for one in self._without),
            *(one.average_precision(drawn)[:, present].mean() for one in self._oracles),
            self._agreement.spearman(drawn),
            *olrp.class_mean(self._errors.optima(drawn)[0]),
            self._calibration.error(drawn),
        ]


class _Agreement:
    """The rank correlation of scores and IoUs on images that are counted as often as they were drawn."""

    def __init__(self, rows: np.ndarray, scores: np.ndarray, ious: np.ndarray) -> None:
        self._rows = rows
        self._places = [np.unique(values, return_inverse=True)[1] for values in (scores, ious)]

    def spearman(self, drawn: np.ndarray) -> float:
        """Returns the correlation for images that count ``drawn`` times, int64 ``[N]``; NaN where it is undefined."""
        weights = drawn[self._rows].astype(np.float64)
        total = weights.sum()
        if total < 2:
            return np.nan
        deviations = []
        for places in self._places:
            counts = np.bincount(places, weights=weights)
            ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
            deviations.append(ranks - (weights @ ranks) / total)
        spread = np.sqrt([weights @ one**2 for one in deviations]).prod()
        return float(np.clip((weights * deviations[0]) @ deviations[1] / spread, -1, 1)) if spread > 0 else np.nan
