"""RoI pooling from one map of declared stride: a fixed grid of features for every box."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from grcn import boxes
from grcn.models.roi_align_cpu import roi_align_cpu


class RoIPool(nn.Module):
    """Pools every box to ``size x size`` cells of a map whose stride is declared.

    Args:
        stride: input pixels per cell of the map.
        size: cells of a side of the result.
        op: ``"pool"`` (RoIPool: cell borders rounded to the map's grid, maximum) or ``"align"`` (RoIAlign: bilinear
            samples, mean).
        sampling_ratio: RoIAlign's samples per cell and side.
        aligned: RoIAlign's half-cell shift, which puts box and map in the same frame; torchvision's detectors leave
            it out.
    """

    def __init__(self, stride: int, size: int, op: str = "pool", sampling_ratio: int = 2, aligned: bool = True) -> None:
        super().__init__()
        if op not in ("pool", "align"):
            raise ValueError(f"unknown RoI operator {op!r}; choose pool or align")
        self.scale, self.size, self.op = 1.0 / stride, size, op
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def whole(self, feature: Tensor, sizes: Tensor) -> Tensor:
        """Pools each image as one RoI, without the padding of the batch.

        With RoIPool, whose last cell is inclusive, this is adaptive max pooling of the cells that the image covers.

        Args:
            feature: ``[N, C, H, W]``.
            sizes: ``[N, 2]`` heights and widths of the images, pixels of the network's input.

        Returns:
            ``[N, C, size, size]``.
        """
        end = sizes.flip(-1)
        if self.op == "pool":
            end = ((end * self.scale).ceil() - 1) / self.scale
        return self.forward(feature, torch.cat([torch.zeros_like(end), end], dim=1)[:, None])

    def forward(self, feature: Tensor, rois: Tensor) -> Tensor:
        """Pools.

        Args:
            feature: ``[N, C, H, W]``.
            rois: ``[N, R, 4]`` in pixels of the network's input, finite.

        Returns:
            ``[N * R, C, size, size]``, the boxes of image 0 first.
        """
        images, count = rois.shape[:2]
        image = torch.arange(images, device=rois.device, dtype=rois.dtype).repeat_interleave(count)
        rows = torch.cat([image[:, None], rois.reshape(-1, 4)], dim=1)
        feature = feature.to(rows.dtype)  # half precision would round coordinates to several pixels
        if self.op == "pool":
            return roi_pool(feature, rows, self.size, self.scale)
        align = roi_align_cpu if boxes.sync_is_free(rois) and self.sampling_ratio > 0 else roi_align
        return align(feature, rows, self.size, self.scale, self.sampling_ratio, self.aligned)
