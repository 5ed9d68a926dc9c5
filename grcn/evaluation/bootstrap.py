"""How far an average precision may be off because of the images that it was measured on: a bootstrap over images.

Detections are matched to objects once; a resample then only counts each image as often as it was drawn. Two detectors
that see the same draws are compared in pairs, which takes out how hard the drawn images are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from grcn.evaluation.detections import Matches

COCO_RECALLS = np.linspace(0, 1, 101)
VOC07_RECALLS = np.arange(11) * 0.1


def draws(images: int, count: int, seed: int = 0) -> np.ndarray:
    """Draws as many images as there are, with replacement, ``count`` times.

    Returns:
        int64 ``[count, images]``: how often each image was drawn. The first row is all ones, the images as they are.
    """
    uniform = np.full(images, 1 / images)
    drawn = np.random.default_rng(seed).multinomial(images, uniform, size=count)
    return np.concatenate((np.ones((1, images), dtype=np.int64), drawn))


def resampled(
    classes: Sequence[Matches],
    times: np.ndarray,
    recalls: np.ndarray = COCO_RECALLS,
    advance: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Computes average precision on resampled images.

    Args:
        classes: for each class, how its detections fared, by :func:`grcn.evaluation.coco.matches` or
            :func:`grcn.evaluation.voc.matches`.
        times: int64 ``[B, N]``, of :func:`draws`.
        recalls: at which precision is averaged: COCO's 101 or VOC 2007's 11.
        advance: called after each resample, for a progress bar.

    Returns:
        float64 ``[B, T]``: at each overlap, the mean over those classes that have objects in the resample; NaN where
        there are none.
    """
    overlaps = classes[0].hits.shape[0]
    found = np.full((len(times), overlaps), np.nan)
    for drawn, row in zip(times, found, strict=True):
        values = [_average_precision(one, drawn, recalls) for one in classes if one.objects @ drawn]
        if values:
            row[:] = np.mean(values, axis=0)
        advance()
    return found


def _average_precision(found: Matches, times: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """Returns the mean precision ``[T]`` at the recalls, each the best at that recall or a higher one."""
    weights = times[found.rows] * found.counted
    hits = np.cumsum(weights * found.hits, axis=1)
    precision = hits / np.maximum(np.cumsum(weights, axis=1), 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))  # 0 beyond the highest recall
    reached = [np.searchsorted(row, recalls) for row in hits / (found.objects @ times)]
    return np.take_along_axis(precision, np.stack(reached), axis=1).mean(axis=1)
