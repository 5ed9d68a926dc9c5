"""RoI pooling from maps of declared strides: a fixed grid of features for every box."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from grcn import boxes
from grcn.models.features import Maps
from grcn.models.roi_align_cpu import roi_align_cpu

# Eq. 1 of Lin et al., Feature Pyramid Networks: a RoI of this side is pooled from this level.
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 4
# Coordinate at which a RoI costs nothing to pool: RoIAlign's kernels skip samples over a cell outside the map.
_NOWHERE = -1e4


class RoIPool(nn.Module):
    """Pools every box to ``size x size`` cells of the map that suits its size.

    Args:
        strides: input pixels per cell of each map to pool from, finest first.
        size: cells of a side of the result.
        op: ``"pool"`` (RoIPool: cell borders rounded to the map's grid, maximum; from one map only) or ``"align"``
            (RoIAlign: bilinear samples, mean).
        sampling_ratio: RoIAlign's samples per cell and side.
        aligned: RoIAlign's half-cell shift, which puts box and map in the same frame; torchvision's detectors leave
            it out.
        level: added to the level that eq. 1 of Feature Pyramid Networks gives a RoI: -1 pools it from a map twice as
            fine.
        finest: the level of the first map in that equation.
        roi_scale: pool from boxes this many times as wide and as high, about the same centre; the level is that of the
            box itself.

    Raises:
        ValueError: an unknown operator, or RoIPool from several maps.
    """

    def __init__(
        self,
        strides: Sequence[int],
        size: int,
        op: str = "pool",
        sampling_ratio: int = 2,
        aligned: bool = True,
        level: int = 0,
        finest: int = 2,
        roi_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if op not in ("pool", "align"):
            raise ValueError(f"unknown RoI operator {op!r}; choose pool or align")
        if op == "pool" and len(strides) > 1:
            raise ValueError(f"RoIPool reads one map (got {len(strides)}); choose align")
        self.strides, self.size, self.op = tuple(strides), size, op
        self.sampling_ratio, self.aligned = sampling_ratio, aligned
        self.level, self.finest, self.roi_scale = level, finest, roi_scale

    @property
    def scales(self) -> tuple[float, ...]:
        """Cells per input pixel of each map."""
        return tuple(1.0 / stride for stride in self.strides)

    def level_of(self, rois: Tensor) -> Tensor:
        """Returns which of the maps each box is pooled from: int64 ``[...]``, 0 for the finest.

        That is eq. 1 of Lin et al., ``4 + log2(side / 224)`` rounded down, shifted by ``level`` and clamped to the
        available maps.

        Args:
            rois: ``[..., 4]`` in pixels of the network's input.
        """
        if len(self.scales) == 1:
            return rois.new_zeros(rois.shape[:-1], dtype=torch.long)
        side = boxes.areas(rois).sqrt()
        # An empty box has -inf, which does not convert to an integer.
        exact = torch.floor(_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE) + 1e-6) + (self.level - self.finest)
        return exact.clamp(0, len(self.scales) - 1).long()

    def whole(self, maps: Maps, sizes: Tensor) -> Tensor:
        """Pools each image as one RoI, from the coarsest map that RoIs are pooled from, without the batch's padding.

        With RoIPool, whose last cell is inclusive, this is adaptive max pooling of the cells that the image covers.

        Args:
            maps: each ``[N, C, H, W]``.
            sizes: ``[N, 2]`` heights and widths of the images, pixels of the network's input.

        Returns:
            ``[N, C, size, size]``.
        """
        last = len(self.scales) - 1
        end = sizes.flip(-1)
        if self.op == "pool":
            end = ((end * self.scales[last]).ceil() - 1) / self.scales[last]
        rows = _rows(torch.cat([torch.zeros_like(end), end], dim=1)[:, None])
        return self._pool(maps[last : last + 1], rows, rows.new_zeros(len(rows), dtype=torch.long), self.scales[last:])

    def forward(self, maps: Maps, rois: Tensor) -> Tensor:
        """Pools.

        Args:
            maps: each ``[N, C, H, W]``, finest first; those beyond ``strides`` are not read.
            rois: ``[N, R, 4]`` in pixels of the network's input, finite.

        Returns:
            ``[N * R, C, size, size]``, the boxes of image 0 first.
        """
        level = self.level_of(rois).flatten()
        if self.roi_scale != 1:
            rois = boxes.scaled(rois, self.roi_scale)
        return self._pool(maps[: len(self.scales)], _rows(rois), level, self.scales)

    def _pool(self, maps: Maps, rows: Tensor, level: Tensor, scales: Sequence[float]) -> Tensor:
        # Half precision would round coordinates to several pixels.
        maps = tuple(map_.to(rows.dtype) for map_ in maps)
        if self.op == "pool":
            return roi_pool(maps[0], rows, self.size, scales[0])
        if boxes.sync_is_free(rows) and self.sampling_ratio > 0:
            return roi_align_cpu(maps, rows, level, self.size, scales, self.sampling_ratio, self.aligned)
        if len(maps) == 1:
            return roi_align(maps[0], rows, self.size, scales[0], self.sampling_ratio, self.aligned)
        # In fixed shapes: every map pools all boxes. Those of other maps are moved out of it, and masked, since
        # torchvision's deterministic RoIAlign repeats the border of a map for positions outside.
        pooled = []
        for k, (map_, scale) in enumerate(zip(maps, scales, strict=True)):
            own = level == k
            found = roi_align(map_, _elsewhere(rows, ~own), self.size, scale, self.sampling_ratio, self.aligned)
            pooled.append(torch.where(own[:, None, None, None], found, 0))
        return functools.reduce(torch.add, pooled)


def _rows(rois: Tensor) -> Tensor:
    """Prepends the index of its image to each box: ``[N * R, 5]`` from ``[N, R, 4]``."""
    images, count = rois.shape[:2]
    image = torch.arange(images, device=rois.device, dtype=rois.dtype).repeat_interleave(count)
    return torch.cat([image[:, None], rois.reshape(-1, 4)], dim=1)


def _elsewhere(rows: Tensor, moved: Tensor) -> Tensor:
    """Moves the boxes of rows ``[R, 5]`` out of every map where ``moved`` ``[R]`` says so."""
    return torch.cat([rows[:, :1], torch.where(moved[:, None], _NOWHERE, rows[:, 1:])], dim=1)
