"""Runs a detector from an ONNX file of ``grcn export``, by ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn.errors import CheckpointError, EnvironmentFault
from grcn.fileio import cause, read_file

logger = logging.getLogger("grcn")

# The keys of its metadata, whose values are JSON.
FORMAT, CLASSES, SIZE, SCORE, STEP, BITS = "grcn_format", "classes", "image_size", "score_threshold", "step", "bits"
_KINDS = {CLASSES: list, SIZE: list, SCORE: float, STEP: int}


class OnnxDetector(nn.Module):
    """Detects in images of any size, as :class:`grcn.models.detector.Detector` does, with a file for one size.

    Attributes:
        facts: the metadata of the file: ``classes``, ``image_size`` and others.
        score_thresh: the score that a detection must exceed. It is fixed in the file and cannot be lowered.

    Raises:
        CheckpointError: the file is missing, damaged or not written by grcn export.
        EnvironmentFault: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        contents = read_file(path, "pass a file of grcn export")
        try:
            import onnxruntime
        except ImportError as error:
            remedy = "pip install 'grcn[export]'"
            raise EnvironmentFault(f"{path}: needs onnxruntime, which is not installed; {remedy}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # a damaged or foreign file may raise anything
            remedy = "export it again, or update onnxruntime"
            raise CheckpointError(f"{path}: ONNX Runtime cannot read it ({cause(error)}); {remedy}") from error
        self.facts = _facts(path, self._session.get_modelmeta().custom_metadata_map)
        self.score_thresh: float = self.facts[SCORE]
        self._warned_of_threshold = False

    def forward(
        self, images: Sequence[Tensor], targets: None = None, score_thresh: float | None = None
    ) -> list[dict[str, Tensor]]:
        """Detects; the arguments and the result are those of :class:`grcn.models.detector.Detector` in evaluation."""
        if score_thresh is not None and score_thresh < self.score_thresh and not self._warned_of_threshold:
            self._warned_of_threshold = True
            logger.warning("the ONNX file has no detections with scores below its own threshold, %g", self.score_thresh)
        return [self._detect(image, score_thresh or 0.0) for image in images]

    def _detect(self, image: Tensor, score_thresh: float) -> dict[str, Tensor]:
        picture, (x, y) = fitted(image, self.facts[SIZE])
        boxes, labels, scores = map(torch.from_numpy, self._session.run(None, {"image": picture.numpy()}))
        count = int((scores > score_thresh).sum())
        boxes = boxes[:count] / torch.tensor([x, y, x, y])
        return {"boxes": boxes, "labels": labels[:count], "scores": scores[:count]}


def fitted(image: Tensor, size: Sequence[int]) -> tuple[Tensor, tuple[float, float]]:
    """Resizes an image to fit into a size, and pads it at the right and at the bottom.

    The pixels are those of the detector's own resizing. Padding is negative, so that the exported graph can detect it.

    Args:
        image: ``[3, h, w]``, float in 0-1 or uint8.
        size: height and width.

    Returns:
        float32 ``[3, H, W]``, and the factors by which the image was resized in width and height.
    """
    height, width = image.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    new = max(1, int(height * scale + 1e-6)), max(1, int(width * scale + 1e-6))
    image = image.float() if image.is_floating_point() else image.float() / 255
    if (height, width) != new:
        image = F.interpolate(image[None], size=new, mode="bilinear", align_corners=False)[0]
    return F.pad(image, (0, size[1] - new[1], 0, size[0] - new[0]), value=-1.0), (new[1] / width, new[0] / height)


def _facts(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if FORMAT not in metadata:
        remedy = "pass one, or run it with the tools that it comes from"
        raise CheckpointError(f"{path}: not an ONNX file of grcn export (no {FORMAT} in its metadata); {remedy}")
    try:
        facts = {key: json.loads(metadata[key]) for key in (FORMAT, BITS, *_KINDS)}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged (its metadata lack {error}); export it again") from error
    if wrong := [key for key, kind in _KINDS.items() if not isinstance(facts[key], kind)]:
        raise CheckpointError(f"{path}: damaged (its metadata have no {', '.join(wrong)}); export it again")
    if facts[FORMAT] != 1:
        raise CheckpointError(f"{path}: written in another format (got {facts[FORMAT]}, need 1); update grcn")
    return facts
