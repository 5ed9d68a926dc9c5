"""Predicts boxes in images: ``grcn.load(file).predict(image)``."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from grcn.data.images import Picture, to_rgb_tensor
from grcn.engine.evaluate import move_images
from grcn.models.detector import Detector
from grcn.models.memory_format import to_device

logger = logging.getLogger("grcn")

# Iterable types that are single images.
_SINGLE = (str, bytes, bytearray, os.PathLike, io.IOBase, Image.Image)


@dataclass(frozen=True)
class Prediction:
    """Detections in one image, best score first.

    Attributes:
        boxes: float32 ``[M, 4]``, absolute xyxy in pixels of the image.
        labels: int64 ``[M]``, 1..C.
        scores: float32 ``[M]``, 0-1.
        names: of the classes, one for each box.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    names: list[str]

    def from_score(self, least: float) -> Prediction:
        """Returns the detections with at least this score."""
        count = int((self.scores >= least).sum())
        return Prediction(self.boxes[:count], self.labels[:count], self.scores[:count], self.names[:count])


class Predictor:
    """A trained detector and the names of its classes; several threads may predict with one.

    Attributes:
        model: the detector, in evaluation mode, on its device.
        classes: names of the labels 1..C.
        step: training step of the weights.
        bits: how many of 16 bits grey images use, ``data.bits`` of the training; None for all.
    """

    def __init__(
        self,
        model: Detector,
        classes: Sequence[str],
        device: torch.device,
        step: int = 0,
        bits: int | None = None,
    ) -> None:
        self.model = to_device(model, device).eval()
        self.classes = tuple(classes)
        self.device = device
        self.step = step
        self.bits = bits
        self._warned_of_dark = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.classes)} classes, step {self.step}, {self.device})"

    def predict(self, image: Picture, score_threshold: float | None = None) -> Prediction:
        """Finds objects in one image; see :meth:`predict_all`.

        Raises:
            TypeError: there are several images, or it is none.
        """
        if isinstance(image, list | tuple):
            raise TypeError(f"predict takes one image (got {type(image).__name__}); predict_all takes several")
        return self.predict_all([image], score_threshold)[0]

    @torch.inference_mode()
    def predict_all(self, images: Iterable[Picture], score_threshold: float | None = None) -> list[Prediction]:
        """Finds objects in images, in one pass of the network.

        Args:
            images: each as :func:`grcn.data.images.to_rgb_tensor` takes it: a file (its name, its bytes, or opened), a
                Pillow image, an RGB or grey array, or an RGB tensor ``[3, H, W]``. Files and Pillow images are rotated
                by their EXIF orientation, and boxes are of the rotated image.
            score_threshold: detections of lower score are left out; by default those below the model's own
                ``roi.score_thresh``.

        Raises:
            DataError: a file is missing or not an image.
            ValueError: an array or a tensor is none of these.
            TypeError: an image is none of these, or is not in a list.
        """
        if images is None or isinstance(images, _SINGLE):
            raise TypeError(f"predict_all takes a list of images (got {type(images).__name__}); predict takes one")
        read = [self.read(image) for image in images]
        if not read:
            return []
        tensors = move_images(read, self.device)
        usual = self.model.score_thresh
        threshold = usual if score_threshold is None else score_threshold
        detections = self.model(tensors, score_thresh=max(0.0, min(threshold, usual)))
        return [self._prediction(found, threshold) for found in detections]

    def read(self, image: Picture) -> Tensor:
        """Returns an image as the detector's input, RGB ``[3, H, W]``; see :meth:`predict_all`.

        Warns once about a 16-bit image that becomes nearly black.
        """
        return to_rgb_tensor(image, self.bits, self._warn_of_dark if self.bits is None else None)

    def _warn_of_dark(self, used: int) -> None:
        if not self._warned_of_dark:
            self._warned_of_dark = True
            what = f"an image uses {used} of its 16 bits and is nearly black to this detector"
            logger.warning("%s; one that is trained with data.bits=%d reads such images", what, max(8, used))

    def _prediction(self, found: dict[str, Tensor], score_threshold: float) -> Prediction:
        fields = {key: found[key].cpu() for key in ("boxes", "labels", "scores")}
        names = [self.classes[label - 1] for label in fields["labels"].tolist()]
        return Prediction(**fields, names=names).from_score(score_threshold)


def as_record(found: Prediction) -> list[dict[str, Any]]:
    """Returns detections as plain types: ``name``, ``label``, ``score`` and ``box`` (xyxy in pixels)."""
    rows = zip(found.names, found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [
        {"name": name, "label": label, "score": round(score, 5), "box": [round(side, 2) for side in box]}
        for name, label, score, box in rows
    ]
