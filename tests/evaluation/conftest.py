"""Small data sets of known and of random contents for the evaluators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from grcn.data.annotations import Annotations
from grcn.data.validate import pack

Object = tuple[int, int, Sequence[float]]  # row, label, xyxy
Detection = tuple[int, int, float, Sequence[float]]  # row, label, score, xyxy


@pytest.fixture
def make_table() -> Callable[..., Annotations]:
    def make(
        objects: Sequence[Object],
        images: int = 2,
        classes: Sequence[str] = ("cat", "dog"),
        size: tuple[int, int] = (400, 500),
        difficult: Sequence[int] = (),
        crowd: Sequence[int] = (),
    ) -> Annotations:
        """Packs objects; `difficult` and `crowd` list the places of those that are."""
        places = np.arange(len(objects))
        return pack(
            "made",
            classes,
            image_ids=[f"{row:06d}" for row in range(images)],
            files=[f"{row:06d}.jpg" for row in range(images)],
            sizes=[size] * images,
            rows=[row for row, _, _ in objects],
            labels=[label for _, label, _ in objects],
            boxes=[box for _, _, box in objects],
            difficult=np.isin(places, difficult),
            iscrowd=np.isin(places, crowd),
        )

    return make


@pytest.fixture
def make_detections() -> Callable[[Sequence[Detection]], dict[str, np.ndarray]]:
    def make(detections: Sequence[Detection]) -> dict[str, np.ndarray]:
        return {
            "rows": np.array([row for row, _, _, _ in detections], dtype=np.int64),
            "labels": np.array([label for _, label, _, _ in detections], dtype=np.int64),
            "scores": np.array([score for _, _, score, _ in detections], dtype=np.float32),
            "boxes": np.array([box for _, _, _, box in detections], np.float32).reshape(-1, 4),
        }

    return make
