"""Anchor boxes for one feature map of declared stride (Ren et al., Sec. 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Places boxes of every size and ratio on every cell of a map.

    Args:
        sizes: square roots of the anchor areas, in pixels of the network's input.
        ratios: heights over widths.
        stride: input pixels per cell of the map.
        offset: where in its cell an anchor is centred, in cells: 0.5 is the middle, as in the code the paper builds
            on; 0 is the corner, as in torchvision (which also rounds anchors to whole pixels; we do not).
    """

    def __init__(self, sizes: Sequence[float], ratios: Sequence[float], stride: int, offset: float = 0.5) -> None:
        super().__init__()
        self.sizes, self.ratios, self.stride, self.offset = tuple(sizes), tuple(ratios), stride, offset
        self._cache: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}

    @property
    def per_cell(self) -> int:
        """Anchors on each cell."""
        return len(self.sizes) * len(self.ratios)

    def forward(self, feature: Tensor) -> Tensor:
        """Returns the anchors ``[H * W * per_cell, 4]`` of a map ``[N, C, H, W]``: rows, then columns, then ratios
        and sizes.

        Every map of one shape shares one tensor, in float32 at least; treat it as read-only.
        """
        height, width = feature.shape[-2:]
        dtype = torch.promote_types(feature.dtype, torch.float32)
        place = (height, width, dtype, feature.device)
        anchors = self._cache.get(place)
        if anchors is None:
            if len(self._cache) >= 64:
                self._cache.clear()
            anchors = self._cache[place] = self._make(*place)
        return anchors

    def size_of(self, index: Tensor) -> Tensor:
        """Returns the places in ``sizes`` of the sizes of anchors, which are given by their rows in what
        :meth:`forward` returns.
        """
        return index % self.per_cell % len(self.sizes)

    def _make(self, height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = torch.tensor(self.sizes, dtype=torch.float64)
        root = torch.tensor(self.ratios, dtype=torch.float64).sqrt()
        sides = torch.stack([size / root[:, None], size * root[:, None]], -1).view(-1, 2)
        y = (torch.arange(height, dtype=torch.float64) + self.offset) * self.stride
        x = (torch.arange(width, dtype=torch.float64) + self.offset) * self.stride
        centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).view(-1, 1, 2)
        anchors = torch.cat([centre - sides / 2, centre + sides / 2], -1).view(-1, 4)
        return anchors.to(device, dtype)
