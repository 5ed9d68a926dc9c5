"""Wraps a detector as one graph of fixed shapes: a picture in, a fixed number of detections out.

It calls the detector's parts in their form for a GPU, whose shapes do not depend on data. It adds an NMS that pads its
output to a fixed number of rows, and finds the padding in the picture itself.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from grcn import boxes
from grcn.models.detector import Detector


class FixedDetector(nn.Module):
    """A detector for pictures of one size.

    Args:
        model: on the device of the pictures; it is put into evaluation mode.
        size: height and width of a picture, in pixels. It is not resized.
    """

    def __init__(self, model: Detector, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model.eval()
        self.size = size
        self.canvas = model.transform.padded(*size)
        with torch.no_grad(), boxes.as_if_on_gpu():
            blank = torch.zeros(1, 3, *self.canvas, device=model.transform.mean.device)
            anchors = model.rpn.anchors(model.backbone(blank)[model.rpn.reads], self.canvas)
        self.register_buffer("anchors", anchors.clone(), persistent=False)
        self.anchors: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detects.

        Args:
            image: float32 ``[3, H, W]``, RGB in 0-1. Negative values, at the right and at the bottom only, are padding,
                which is treated as the padding of a smaller picture in a batch with larger ones.

        Returns:
            Boxes ``[D, 4]`` in pixels of the picture, labels int64 ``[D]``, 1..C, and scores ``[D]``, best first. ``D``
            is ``model.roi.detections``; if there are fewer, the remaining rows are zero.
        """
        with boxes.as_if_on_gpu():
            batch, sizes = self._prepared(image)
            features = self.model.backbone(batch)
            proposals = self._proposals(features, sizes)
            heads = self.model.roi_heads
            found, scores, labels = heads.shortlist(features, proposals, sizes, heads.detecting.score_thresh)
        how = heads.detecting
        kept = _first_kept(found[0], scores[0], labels[0], how.nms, how.detections, heads.heads.cls_score.out_features)
        return _rows(found[0], kept), _rows(labels[0], kept), _rows(scores[0], kept)

    def _prepared(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the network's input ``[1, 3, H', W']``, and height and width of the picture in it ``[1, 2]``."""
        transform = self.model.transform
        inside = image[:1] >= 0
        sizes = torch.stack([inside[0, :, 0].sum(), inside[0, 0].sum()])[None].to(image.dtype)
        if transform.normalisation.bgr:
            image = image.flip(0)
        image = torch.where(inside, (image - transform.mean) / transform.std, 0.0)
        below, right = (canvas - side for canvas, side in zip(self.canvas, self.size, strict=True))
        return F.pad(image, (0, right, 0, below))[None], sizes

    def _proposals(self, features: dict[str, tuple[Tensor, ...]], sizes: Tensor) -> Tensor:
        """Returns proposals ``[1, P, 4]``, as :class:`grcn.models.rpn.RegionProposalNetwork` does."""
        rpn = self.model.rpn
        ones = torch.ones_like(sizes[:, 0])
        candidates, scores, level, _ = rpn.score_maps(features[rpn.reads], self.anchors, sizes, ones)
        how, levels = rpn.test_settings, len(rpn.anchors.strides)
        kept = _first_kept(candidates[0], scores[0], level[0], how.nms, how.post_nms, levels)
        return _rows(candidates[0], kept)[None]


def _first_kept(found: Tensor, scores: Tensor, groups: Tensor, threshold: float, count: int, most: int) -> Tensor:
    """Returns indices ``[count]`` of the first boxes that NMS within each group keeps, best score first.

    If there are fewer, the remaining indices are the number of boxes.

    Args:
        found: ``[A, 4]``, inside an image.
        scores: ``[A]``; boxes of score ``-inf`` are placeholders.
        groups: int64 ``[A]``, from 0 and below ``most``.
        threshold: a box that overlaps a kept one of its group by more than this is dropped.
    """
    # ONNX's NMS computes in float32. Groups lie closer together in a square than in a row, which loses less precision.
    side = math.isqrt(most - 1) + 1
    cell = torch.stack([groups % side, groups // side], -1).repeat(1, 2)
    apart = found.double() + cell * (found.max() + 1)
    # Placeholders lie in one place outside the image, where they suppress only each other.
    nowhere = torch.tensor([-2.0, -2.0, -1.0, -1.0], dtype=apart.dtype, device=apart.device)
    real = scores > -torch.inf
    kept = nms(torch.where(real[:, None], apart, nowhere), scores.to(apart.dtype), threshold)
    kept = torch.where(real[kept], kept, len(found))
    return torch.cat([kept, kept.new_full((count,), len(found))])[:count]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Selects rows; the index one past the last returns a row of zeros."""
    return torch.cat([values, torch.zeros_like(values[:1])])[index]
