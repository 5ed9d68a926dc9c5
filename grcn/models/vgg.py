"""VGG-shaped backbones: a shared trunk of convolution blocks, then one branch per task (paper, Sec. 3.2 to 3.4).

Five blocks of 3x3 convolutions with a pooling layer after each of the first four; RoI pooling replaces the fifth
pooling. The network splits at a block (``split``): the blocks from there on exist once per task, all earlier ones
once. The paper edits the *last pooling*, before block 5, per task: removing it leaves the following layers as they
are and halves the stride.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn.catalog import VGG_SPLITS
from grcn.models.features import TASKS, Backbone, FeatureSpec, Maps
from grcn.models.fused_conv import ConvReLU
from grcn.models.memory_format import to_memory_format
from grcn.models.norms import returns_view, trained_norm

# Stride of the map before the last pooling, and the factor of each kind of last pooling.
_STRIDE_BEFORE_LAST_POOL = 8
_LAST_POOL_STRIDE = {"max": 2, "none": 1, "conv2x2_s2": 2, "max2x2_s1": 1}


class SplitVGG(Backbone):
    """A VGG-shaped network with one feature map per task.

    Args:
        blocks: channels of the convolutions of each of the five blocks.
        split: the block from which the tasks have their own weights (``"conv3"``, ``"conv4"`` or ``"conv5"``), or
            ``"none"``: one map for both.
        last_pool: for each task, the layer between blocks 4 and 5: ``"max"`` (2x2, stride 2), ``"none"``,
            ``"conv2x2_s2"`` or ``"max2x2_s1"`` (Table 3). With ``split="none"`` both are the same.
        frozen_blocks: how many leading blocks are not trained; they run without a graph. All five only where both
            tasks read one map.
        from_scratch: the kind of norm to put after each convolution, to train without pretrained weights
            (:func:`grcn.models.norms.trained_norm`); None: no norms.

    Raises:
        ValueError: an unknown split; ``split="none"`` with two kinds of last pooling; a split inside the frozen blocks,
            or more of these than there are.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        split: str = "none",
        last_pool: Mapping[str, str] | None = None,
        frozen_blocks: int = 0,
        from_scratch: str | None = None,
    ) -> None:
        super().__init__()
        last_pool = last_pool or {"cls": "max", "loc": "max"}
        if split != "none" and split not in VGG_SPLITS:
            raise ValueError(f"unknown split {split!r}; choose none, {', '.join(VGG_SPLITS)}")
        if split == "none" and last_pool["cls"] != last_pool["loc"]:
            raise ValueError("one map for both tasks (split='none') cannot have two kinds of last pooling")
        self.shared = split == "none"
        self._format = "train_normed" if from_scratch else "train"
        if not 0 <= frozen_blocks <= 5:
            raise ValueError(f"cannot freeze {frozen_blocks} of five blocks")
        first = VGG_SPLITS.get(split, max(5, frozen_blocks + 1))
        if frozen_blocks >= first:
            raise ValueError(f"the split at {split} lies inside the {frozen_blocks} frozen blocks")
        self.frozen = _chain(blocks, range(1, frozen_blocks + 1), from_scratch, last_pool["cls"])
        self.frozen.requires_grad_(False)
        self.trunk = _chain(blocks, range(frozen_blocks + 1, first), from_scratch)
        self.cls = _chain(blocks, range(first, 6), from_scratch, last_pool["cls"])
        self.loc = None if self.shared else _chain(blocks, range(first, 6), from_scratch, last_pool["loc"])
        self.feature_specs = {
            task: FeatureSpec(blocks[4][-1], (_STRIDE_BEFORE_LAST_POOL * _LAST_POOL_STRIDE[last_pool[task]],))
            for task in TASKS
        }

    def forward(self, x: Tensor) -> dict[str, Maps]:
        """Maps images ``[N, 3, H, W]`` to a map of each task, ``[N, channels, ceil(H / stride), ceil(W / stride)]``."""
        # Without a graph, unless the caller wants the gradient of the images.
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            x = self.frozen(to_memory_format(x, "frozen"))
        x = self.trunk(to_memory_format(x, self._format if self.training else "eval"))
        cls = (self.cls(x),)
        return {"cls": cls, "loc": cls if self.loc is None else (self.loc(x),)}


def _chain(
    blocks: Sequence[Sequence[int]], indices: range, from_scratch: str | None, last_pool: str | None = None
) -> nn.Sequential:
    """Builds the blocks of ``indices`` (from 1), each after the pooling that precedes it; block 1 has none.

    Layers carry the paper's names (``conv4_3``, ``pool4``), so that a weight has one name wherever the split lies. The
    last ReLU of a block belongs to the pooling that follows, in the next block's chain: that of the maximum is the
    maximum of ReLUs, of a quarter as many values.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in indices:
        channels = 3 if index == 1 else blocks[index - 2][-1]
        if index > 1:
            kind = last_pool if index == 5 and last_pool is not None else "max"
            layers[f"pool{index - 1}"] = _pool(kind, channels)
        widths = blocks[index - 1]
        for number, width in enumerate(widths, start=1):
            name, has_relu = f"{index}_{number}", number < len(widths) or index == 5
            if from_scratch is None:
                conv = ConvReLU(channels, width, 3) if has_relu else nn.Conv2d(channels, width, 3, padding=1)
                layers[f"conv{name}"] = conv
            else:
                layers[f"conv{name}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers[f"norm{name}"] = trained_norm(from_scratch, width)
                if has_relu:
                    layers[f"relu{name}"] = nn.ReLU(inplace=not returns_view(from_scratch))
            channels = width
    return nn.Sequential(layers)


def _pool(kind: str, channels: int) -> nn.Module:
    """Builds the layer between two blocks, with the ReLU of the first."""
    if kind == "max":
        return nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), nn.ReLU(inplace=True))
    if kind == "none":
        return nn.ReLU()  # the other task may read the same map
    if kind == "conv2x2_s2":
        return StridedConv(channels)
    if kind == "max2x2_s1":
        return nn.Sequential(DensePool(), nn.ReLU(inplace=True))
    raise ValueError(f"unknown last pooling {kind!r}; choose max, none, conv2x2_s2 or max2x2_s1")


class StridedConv(nn.Module):
    """conv(2,2,2): ReLU, a 2x2 convolution of stride 2 and another ReLU in place of the last pooling (Table 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to ``[N, C, ceil(H / 2), ceil(W / 2)]``; odd sides are padded by a row of zeros."""
        return F.relu(self.conv(F.pad(F.relu(x), (0, x.shape[3] % 2, 0, x.shape[2] % 2))), inplace=True)


class DensePool(nn.Module):
    """pool(2,2,1): 2x2 max pooling at stride 1, padded right and below so that the map keeps its size (Table 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape; cell ``(i, j)`` is the maximum over ``(i to i+1, j to j+1)``."""
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, 1)
