"""How far a figure may be off because of the images that it was measured on: a bootstrap over images.

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
    curves = Curves(classes, recalls)
    found = np.full((len(times), curves.overlaps), np.nan)
    for drawn, row in zip(times, found, strict=True):
        values = curves.average_precision(drawn)
        present = curves.objects @ drawn > 0
        if present.any():
            row[:] = values[:, present].mean(axis=1)
        advance()
    return found


class Ranked:
    """Detections of all classes in one row, class after class, and running sums within each class.

    Args:
        rows: int64 ``[D]`` of each class, the images of its detections, best score first.
    """

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        lengths = [len(of_class) for of_class in rows]
        self.rows = np.concatenate(rows)
        self.labels = np.repeat(np.arange(len(rows)), lengths)
        self.starts = np.cumsum([0, *lengths[:-1]])

    def running(self, weights: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Sums weights ``[D]`` of a class up to and including those at ``places``."""
        total = np.concatenate(([0], np.cumsum(weights)))
        return total[places + 1] - total[self.starts[self.labels[places]]]


class Curves:
    """Precision over recall of all classes at T overlaps, on images that are counted as often as they were drawn.

    Precision can be the best at a recall or a higher one only where a detection is a true positive, so nothing is
    computed elsewhere.

    Args:
        classes: as of :func:`resampled`.
        recalls: likewise.
    """

    def __init__(self, classes: Sequence[Matches], recalls: np.ndarray = COCO_RECALLS) -> None:
        self._ranked = Ranked([one.rows for one in classes])
        self._recalls = recalls
        self.overlaps = classes[0].hits.shape[0]
        self.objects = np.stack([one.objects for one in classes])
        hits, counted = (
            np.concatenate([getattr(one, name) for one in classes], axis=1) for name in ("hits", "counted")
        )
        self._hits = [np.flatnonzero(row) for row in hits]
        self._ignored = [np.flatnonzero(~row) for row in counted]
        self._bounds = [
            np.searchsorted(self._ranked.labels[places], np.arange(len(classes) + 1)) for places in self._hits
        ]

    def average_precision(self, drawn: np.ndarray) -> np.ndarray:
        """Returns float64 ``[T, C]`` for images that count ``drawn`` times, int64 ``[N]``; 0 without objects."""
        weights = drawn[self._ranked.rows]
        total = np.concatenate(([0], np.cumsum(weights)))
        needed = _needed(self._recalls, self.objects @ drawn)
        return np.stack([self._at(overlap, weights, total, needed) for overlap in range(self.overlaps)])

    def _at(self, overlap: int, weights: np.ndarray, total: np.ndarray, needed: np.ndarray) -> np.ndarray:
        places, bounds, ignored = self._hits[overlap], self._bounds[overlap], self._ignored[overlap]
        labels, starts = self._ranked.labels[places], self._ranked.starts
        found = np.concatenate(([0], np.cumsum(weights[places])))
        counted = total[places + 1] - total[starts[labels]]
        if len(ignored):
            uncounted = np.concatenate(([0], np.cumsum(weights[ignored])))
            at, first = np.searchsorted(ignored, places), np.searchsorted(ignored, starts)
            counted = counted - (uncounted[at] - uncounted[first[labels]])
        precision = (found[1:] - found[bounds[labels]]) / np.maximum(counted, 1)
        # The best from each place on, of all classes at once: a class lies above those behind it.
        above = 2.0 * (len(starts) - labels)
        best = np.maximum.accumulate((precision + above)[::-1])[::-1] - above
        reached = np.searchsorted(found[1:], found[bounds[:-1], None] + needed)
        reached = np.maximum(reached, bounds[:-1, None])  # for recall 0
        best = np.append(best, 0.0)
        return np.where(reached < bounds[1:, None], best[np.minimum(reached, len(places))], 0.0).mean(axis=1)


def _needed(recalls: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Returns how many of ``objects`` ``[C]`` have to be found for each recall, int64 ``[C, R]``.

    The quotient is compared in floating point, as all evaluators do: 3 of 10 fall short of ``3 * 0.1``.
    """
    counts = objects[:, None]
    needed = np.ceil(recalls * counts).astype(np.int64)
    whole = np.maximum(counts, 1)
    needed -= (needed > 0) & ((needed - 1) / whole >= recalls)
    return needed + (needed / whole < recalls)
