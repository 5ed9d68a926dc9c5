"""Objects and detections at random places, and the same on images that are drawn several times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def random_case(seed: int, images: int = 7) -> tuple[list[Any], list[Any]]:
    """Objects and detections of three classes, of which some detections lie near an object."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, 300, (count, 2))
        return np.concatenate((corner, corner + rng.uniform(10, 90, (count, 2))), axis=1)

    truth = [(int(rng.integers(images)), int(rng.integers(1, 4)), box) for box in boxes(20).tolist()]
    found = [(row, label, np.asarray(box) + rng.normal(0, 5, 4)) for row, label, box in truth for _ in range(2)]
    found += [(int(rng.integers(images)), int(rng.integers(1, 4)), box) for box in boxes(30)]
    scores = rng.permutation(len(found)) / 100 + 0.01  # no two are equal
    found = [
        (row, label, score, [*np.minimum(box[:2], box[2:] - 1), *box[2:]])
        for (row, label, box), score in zip(found, scores, strict=True)
    ]
    return truth, found


def repeated(items: Sequence[Any], times: np.ndarray) -> list[Any]:
    """Copies what belongs to image ``row`` as often as it was drawn, into images of their own."""
    starts = np.cumsum(times) - times
    return [(int(starts[row]) + copy, *rest) for row, *rest in items for copy in range(times[row])]
