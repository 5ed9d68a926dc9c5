"""RoI pooling from one map of declared stride: a fixed grid of features for every box."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from grcn import boxes


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
        if self.op == "align" and self.sampling_ratio > 0 and boxes.sync_is_free(rois):
            return self._align(feature.to(rois.dtype), rois)
        owner = torch.arange(images, device=rois.device, dtype=rois.dtype).repeat_interleave(count)
        rows = torch.cat([owner[:, None], rois.reshape(-1, 4)], dim=1)
        feature = feature.to(rows.dtype)  # half precision would round coordinates to several pixels
        if self.op == "pool":
            return roi_pool(feature, rows, self.size, self.scale)
        return roi_align(feature, rows, self.size, self.scale, self.sampling_ratio, self.aligned)

    def _align(self, feature: Tensor, rois: Tensor) -> Tensor:
        """RoIAlign as a sum of few rows of the map for each cell, which a CPU does several times faster.

        The four corners of all samples of a cell, 16 for ``sampling_ratio`` 2, are on average six positions of the
        map: their weights are added up, and a bag of embeddings sums the rest. The result lies channels last.
        """
        images, channels, height, width = feature.shape
        count = rois.shape[1]
        start, end = (rois.flatten(0, 1) * self.scale - (0.5 if self.aligned else 0.0)).unflatten(1, (2, 2)).unbind(1)
        sides = end - start if self.aligned else (end - start).clamp(min=1.0)
        x, x_weight = self._samples(start[:, 0], sides[:, 0], width)
        y, y_weight = self._samples(start[:, 1], sides[:, 1], height)
        place = torch.arange(images).repeat_interleave(count).view(-1, 1, 1, 1, 1) * (height * width)
        place = place + y[:, :, None, :, None] * width + x[:, None, :, None, :]
        weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
        counts = weight != 0
        in_bag = counts.flatten(3).sum(-1).flatten()
        rows = feature.permute(0, 2, 3, 1).reshape(-1, channels)
        summed = F.embedding_bag(
            place[counts], rows, in_bag.cumsum(0) - in_bag, mode="sum", per_sample_weights=weight[counts]
        )
        return summed.view(images * count, self.size, self.size, channels).permute(0, 3, 1, 2)

    def _samples(self, start: Tensor, sides: Tensor, cells: int) -> tuple[Tensor, Tensor]:
        """Finds where the samples of each RoI fall along one axis of ``cells`` positions.

        Args:
            start, sides: ``[R]``, in cells of the map.

        Returns:
            Positions int64 ``[R, size, 2 * sampling_ratio]`` and their weights, zero where there is nothing to add.
        """
        samples = torch.arange(self.size * self.sampling_ratio, dtype=start.dtype) + 0.5
        at = start[:, None] + samples * (sides / len(samples))[:, None]
        inside = ((at >= -1) & (at <= cells)).to(at.dtype) / self.sampling_ratio
        low = at.clamp(0, cells - 1).floor()
        fraction = (at.clamp(min=0) - low).clamp(max=1) * (low < cells - 1)
        shape = (len(start), self.size, self.sampling_ratio)
        position = low.long().view(shape)
        near, far = ((1 - fraction) * inside).view(shape), (fraction * inside).view(shape)
        for j in range(1, self.sampling_ratio):
            # What the sample before has at the same positions is added to this one's.
            same = position[..., j] == position[..., j - 1]
            next_to = position[..., j] == position[..., j - 1] + 1
            near[..., j] += same * near[..., j - 1] + next_to * far[..., j - 1]
            far[..., j] += same * far[..., j - 1]
            near[..., j - 1] *= ~same
            far[..., j - 1] *= ~(same | next_to)
        both = torch.stack([position, (position + 1).clamp(max=cells - 1)], -1)
        return both.flatten(2), torch.stack([near, far], -1).flatten(2)
