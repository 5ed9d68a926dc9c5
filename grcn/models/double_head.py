"""The convolution head of Double-Head R-CNN, which localizes while a fully connected head classifies (Wu et al.,
Rethinking Classification and Localization for Object Detection, 2020, Sec. 3.1 and Fig. 5)."""

from __future__ import annotations

from torch import Tensor, nn

from grcn.models.box_heads import Hidden
from grcn.models.memory_format import to_memory_format
from grcn.models.resnet import EXPANSION, Bottleneck, conv_maker

_make_conv = conv_maker("group")


class WideningUnit(nn.Module):
    """A residual unit that widens its map: 3x3 and 1x1 convolutions beside a 1x1 shortcut."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _make_conv(in_channels, in_channels, 3)
        self.conv2 = _make_conv(in_channels, channels, 1)
        self.downsample = _make_conv(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[R, in_channels, s, s]`` to ``[R, channels, s, s]``."""
        return self.conv2(self.conv1(x, relu=True), plus=self.downsample(x), relu=True)


class ResidualHead(Hidden):
    """A widening unit, four bottlenecks and the mean over the grid.

    The norms are over groups of channels of each RoI, not over the batch as in the paper. So a RoI's box depends on no
    other RoI, the box loss needs the foreground only, and a batch may be spread over processes.

    Args:
        in_channels: of the pooled maps; 256 in the paper.
        dim: channels of the units; 1,024 in the paper.
        units: bottlenecks behind the first unit; with it five blocks in the paper.
    """

    def __init__(self, in_channels: int, dim: int, units: int = 4) -> None:
        super().__init__()
        if dim % EXPANSION:
            raise ValueError(f"dim must be a multiple of {EXPANSION} (got {dim})")
        self.widen = WideningUnit(in_channels, dim)
        self.residual = nn.ModuleList(Bottleneck(dim, dim // EXPANSION, conv=_make_conv) for _ in range(units))
        self.out_features = dim

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps RoI features ``[R, C, s, s]`` to ``[R, dim]``."""
        x = self.widen(to_memory_format(x, "train_units" if self.training else "eval"))
        for unit in self.residual:
            x = unit(x, 1)
        return x.mean((2, 3))
