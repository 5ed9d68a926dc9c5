"""Expected calibration error: how far scores are from the share of detections that are right.

Detections that are true or false positives at IoU 0.5 (:mod:`grcn.evaluation.tide`) are put into ten bins of equal
width by their scores. In each bin the mean score is compared with the share of true positives; the error is the mean of
the absolute differences, weighted by the detections of a bin (Guo et al. 2017, arXiv 1706.04599). 0 is perfect. It is
over all classes together. Most detections of most detectors have low scores, so the error depends on the score
threshold of the file: compare files that were written with the same threshold.
"""

from __future__ import annotations

import numpy as np

BINS = 10


class Calibration:
    """The calibration error on images that are counted as often as they were drawn.

    Args:
        images: N, the number of images.
        rows: int64 ``[D]``, the image of each detection.
        scores: float64 ``[D]``.
        hits: bool ``[D]``, the true positives.
    """

    def __init__(self, images: int, rows: np.ndarray, scores: np.ndarray, hits: np.ndarray) -> None:
        places = rows * BINS + np.clip(scores * BINS, 0, BINS - 1).astype(np.int64)
        sums = [np.bincount(places, weights=weights, minlength=images * BINS) for weights in (None, scores - hits)]
        self._counts, self._gaps = (values.reshape(images, BINS).astype(np.float64) for values in sums)
        self._defined = bool(len(scores)) and 0 <= scores.min() and scores.max() <= 1

    def error(self, drawn: np.ndarray) -> float:
        """Returns the error for images that count ``drawn`` times, int64 ``[N]``.

        NaN where there is no detection, or if a score is not in 0-1.
        """
        counts = drawn @ self._counts
        return float(np.abs(drawn @ self._gaps).sum() / counts.sum()) if self._defined and counts.any() else np.nan
