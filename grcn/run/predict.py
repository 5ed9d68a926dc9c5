"""From images to boxes: ``grcn.load(file).predict(image)``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from grcn.data.images import read_image
from grcn.engine.evaluate import move_images
from grcn.models.detector import Detector
from grcn.models.memory_format import to_device

Picture = str | os.PathLike[str] | Tensor | np.ndarray | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What was found in one image, best score first.

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
        """Returns those of at least this score."""
        count = int((self.scores >= least).sum())
        return Prediction(self.boxes[:count], self.labels[:count], self.scores[:count], self.names[:count])


class Predictor:
    """A trained detector and the names of its classes; several threads may predict with one.

    Attributes:
        model: the detector, in evaluation mode, on its device.
        classes: names of the labels 1..C.
        step: of training, after which the weights are these.
    """

    def __init__(self, model: Detector, classes: Sequence[str], device: torch.device, step: int = 0) -> None:
        self.model = to_device(model, device).eval()
        self.classes = tuple(classes)
        self.device = device
        self.step = step

    def predict(self, image: Picture, score_threshold: float | None = None) -> Prediction:
        """Finds objects in one image; see :meth:`predict_all`.

        Raises:
            TypeError: there are several images.
        """
        if isinstance(image, list | tuple):
            raise TypeError(f"predict takes one image (got {type(image).__name__}); predict_all takes several")
        return self.predict_all([image], score_threshold)[0]

    @torch.inference_mode()
    def predict_all(self, images: Sequence[Picture], score_threshold: float | None = None) -> list[Prediction]:
        """Finds objects in images, in one pass of the network.

        Args:
            images: each a file, a Pillow image, an RGB array uint8 ``[H, W, 3]``, or an RGB tensor ``[3, H, W]``,
                uint8 or float in 0-1. Files are turned as their EXIF orientation says.
            score_threshold: detections of lower score are left out; by default those below the model's own
                ``roi.score_thresh``.

        Raises:
            DataError: a file is missing or not an image.
            ValueError: an array or a tensor is none of these.
        """
        if not images:
            return []
        tensors = move_images([as_tensor(image) for image in images], self.device)
        usual = self.model.roi_heads.detecting.score_thresh
        least = usual if score_threshold is None else score_threshold
        detections = self.model(tensors, score_thresh=max(0.0, min(least, usual)))
        return [self._prediction(found, least) for found in detections]

    def _prediction(self, found: dict[str, Tensor], score_threshold: float) -> Prediction:
        fields = {key: found[key].cpu() for key in ("boxes", "labels", "scores")}
        names = [self.classes[label - 1] for label in fields["labels"].tolist()]
        return Prediction(**fields, names=names).from_score(score_threshold)


def as_tensor(image: Picture) -> Tensor:
    """Returns an image as RGB tensor ``[3, H, W]``, uint8, or float in 0-1 if it was such a tensor."""
    if isinstance(image, str | os.PathLike):
        return read_image(image, "check the path")
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array must be uint8 [H, W, 3] (got {image.dtype} {list(image.shape)})")
        return torch.tensor(image).permute(2, 0, 1)
    if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(f"a tensor must be uint8 or float [3, H, W] (got {image.dtype} {list(image.shape)})")
    return image


def as_record(found: Prediction) -> list[dict[str, Any]]:
    """Returns detections as plain types: ``name``, ``label``, ``score`` and ``box`` (xyxy in pixels)."""
    rows = zip(found.names, found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [
        {"name": name, "label": label, "score": round(score, 5), "box": [round(side, 2) for side in box]}
        for name, label, score, box in rows
    ]
