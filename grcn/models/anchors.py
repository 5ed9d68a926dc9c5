"""Anchor boxes for feature maps of declared strides (Ren et al., Sec. 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grcn.models.features import Maps, joined

LAYOUTS = ("centred", "torchvision")


class AnchorGenerator(nn.Module):
    """Places boxes of every size and ratio on every cell of each map.

    Args:
        sizes: for each map, square roots of the anchor areas, in pixels of the network's input; as many for each.
        ratios: heights over widths.
        strides: input pixels per cell of each map.
        layout: ``"centred"``: an anchor is centred on its cell, as in the code the paper builds on.
            ``"torchvision"``: as torchvision's generator, as its released weights expect: on the upper left
            corner, with corners rounded to whole pixels relative to it, and with strides that are not the declared ones
            but the side of the batch divided by the cells of the map, rounded down.

    Raises:
        ValueError: not as many lists of sizes as strides; lists of different lengths; an unknown layout.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        strides: Sequence[int],
        layout: str = "centred",
    ) -> None:
        super().__init__()
        self.sizes, self.ratios = tuple(tuple(level) for level in sizes), tuple(ratios)
        self.strides, self.layout = tuple(strides), layout
        if len(self.sizes) != len(self.strides) or len({len(level) for level in self.sizes}) != 1:
            raise ValueError(
                f"sizes must be {len(self.strides)} lists of one length, one for each stride (got {self.sizes})"
            )
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}; choose centred or torchvision")
        self._cache: dict[tuple, Tensor] = {}

    @property
    def per_cell(self) -> int:
        """Anchors on each cell."""
        return len(self.sizes[0]) * len(self.ratios)

    def counts(self, maps: Maps) -> list[int]:
        """Returns how many anchors each map ``[N, C, H, W]`` has."""
        return [self.per_cell * map_.shape[-2] * map_.shape[-1] for map_ in maps]

    def forward(self, maps: Maps, canvas: tuple[int, int]) -> Tensor:
        """Returns the anchors ``[A, 4]`` of all maps: map after map, in each rows, then columns, then ratios and sizes.

        Maps of the same shapes share one tensor, in float32 at least; treat it as read-only.

        Args:
            maps: each ``[N, C, H, W]``.
            canvas: height and width of the network's input, which ``layout="torchvision"`` reads.

        Raises:
            ValueError: not as many maps as strides.
        """
        if len(maps) != len(self.strides):
            raise ValueError(f"expected {len(self.strides)} maps, one for each stride (got {len(maps)})")
        shapes = tuple((map_.shape[-2], map_.shape[-1]) for map_ in maps)
        steps = tuple(
            (canvas[0] // shape[0], canvas[1] // shape[1]) if self.layout == "torchvision" else (stride, stride)
            for stride, shape in zip(self.strides, shapes, strict=True)
        )
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        place = (shapes, steps, dtype, maps[0].device)
        anchors = self._cache.get(place)
        if anchors is None:
            if len(self._cache) >= 64:
                self._cache.clear()
            levels = [self._level(*level) for level in zip(self.sizes, shapes, steps, strict=True)]
            anchors = self._cache[place] = joined(levels, 0).to(maps[0].device, dtype)
        return anchors

    def size_of(self, index: Tensor, maps: Maps) -> Tensor:
        """Returns the index of each anchor's size among the sizes of all levels.

        Args:
            index: int64, rows in what :meth:`forward` returns.
            maps: as passed to :meth:`forward`.
        """
        # Every map has a whole number of cells, so one modulus finds the position within a cell on all of them.
        ends = torch.tensor(self.counts(maps), device=index.device).cumsum(0)
        sizes = len(self.sizes[0])
        return torch.bucketize(index, ends, right=True) * sizes + index % self.per_cell % sizes

    def _level(self, sizes: Sequence[float], shape: tuple[int, int], steps: tuple[int, int]) -> Tensor:
        """Returns the anchors of one map of ``shape`` cells, ``steps`` pixels apart, in float64."""
        size = torch.tensor(sizes, dtype=torch.float64)
        root = torch.tensor(self.ratios, dtype=torch.float64).sqrt()
        sides = torch.stack([size / root[:, None], size * root[:, None]], -1).view(-1, 2)
        around, offset = torch.cat([-sides / 2, sides / 2], -1), 0.5
        if self.layout == "torchvision":
            around, offset = around.round(), 0.0
        y, x = (
            (torch.arange(cells, dtype=torch.float64) + offset) * step for cells, step in zip(shape, steps, strict=True)
        )
        centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).view(-1, 1, 2)
        return (centre.repeat(1, 1, 2) + around).view(-1, 4)
