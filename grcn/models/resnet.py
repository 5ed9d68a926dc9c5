"""ResNet backbones: one set of units, of which each task may have its own last ones and its own stride.

The paper (Sec. 4.2) starts from the usual protocol, *C4*: conv1 to conv4 are the backbone, conv5 is the head after RoI
pooling. G-RCN separates the last units of conv4; the first unit of conv4, which halves the resolution, keeps its
stride for classification and loses it for localization, so the units in between run at both strides with the same
weights. *ResNet-det* (Sec. 4.3) takes conv5 into the backbone, at stride 1.

torchvision's names are used: ``layer3_5`` is unit 5 (from 0) of the paper's conv4.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn.models.features import TASKS, Backbone, FeatureSpec, Maps
from grcn.models.fused_conv import conv2d
from grcn.models.memory_format import to_memory_format
from grcn.models.norms import returns_view, trained_norm

EXPANSION = 4
# The units whose stride is set per task: the first of conv4, which the paper edits, and of a conv5 in the backbone.
_EDITED, _FIRST_OF_CONV5 = "layer3_0", "layer4_0"
_SPLIT_BEFORE = {"conv3": "layer2_0", "conv4": "layer3_0", "conv5": "layer4_0"}

MakeConv = Callable[[int, int, int], nn.Module]


class FrozenNormConv(nn.Module):
    """A convolution followed by a batch norm that is never trained: a scale and a shift per channel.

    Both are folded into the weight at each call, which saves two passes over the map. The stored weight stays
    unfolded, or its gradient and decay would change.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = _weight(in_channels, channels, kernel)
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, x: Tensor, stride: int = 1, plus: Tensor | None = None, relu: bool = False) -> Tensor:
        """Maps ``[N, in_channels, H, W]`` to ``[N, channels, ceil(H / stride), ceil(W / stride)]``, adds ``plus`` of
        that shape, and takes ReLU of the sum."""
        weight = self.weight * self.scale[:, None, None, None]
        return conv2d(x, weight, self.shift, stride, weight.shape[2] // 2, plus, relu)


class NormConv(nn.Module):
    """A convolution and a norm that is trained, at any batch size (:func:`grcn.models.norms.trained_norm`)."""

    def __init__(self, in_channels: int, channels: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.weight = _weight(in_channels, channels, kernel)
        self.norm = trained_norm(norm, channels)
        self.overwrites = not returns_view(norm)

    def forward(self, x: Tensor, stride: int = 1, plus: Tensor | None = None, relu: bool = False) -> Tensor:
        """Maps ``[N, in_channels, H, W]`` to ``[N, channels, ceil(H / stride), ceil(W / stride)]``, adds ``plus`` of
        that shape, and takes ReLU of the sum."""
        out = self.norm(F.conv2d(x, self.weight, None, stride, padding=self.weight.shape[2] // 2))
        if plus is not None:
            out = out.add_(plus) if self.overwrites else out + plus
        return F.relu(out, inplace=self.overwrites or plus is not None) if relu else out


def conv_maker(from_scratch: str | None) -> MakeConv:
    """Returns the factory of a convolution with the norm ``from_scratch``; None: with a frozen batch norm."""
    return FrozenNormConv if from_scratch is None else functools.partial(NormConv, norm=from_scratch)


def _weight(in_channels: int, channels: int, kernel: int) -> nn.Parameter:
    """Draws a convolution's weight as torchvision does; ``grcn.models.init`` redraws it from the layer's name."""
    weight = torch.empty(channels, in_channels, kernel, kernel)
    return nn.Parameter(nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu"))


class Stem(nn.Module):
    """conv1 and its pooling."""

    def __init__(self, channels: int, conv: MakeConv) -> None:
        super().__init__()
        self.stride = 2
        self.conv1 = conv(3, channels, 7)

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """Maps ``[N, 3, H, W]`` to a map of twice ``stride``."""
        # ReLU after the maximum gives the same, on a quarter of the values.
        return F.relu(F.max_pool2d(self.conv1(x, stride), 3, 2, padding=1), inplace=True)


class Bottleneck(nn.Module):
    """A residual unit: 1x1, 3x3 and 1x1 convolutions beside a shortcut (He et al. 2016, Fig. 5).

    Args:
        in_channels: of the map it reads.
        planes: channels of its first two convolutions; it returns four times as many.
        stride: its stride in the network; a call may use another one with the same weights.
        stride_in: the convolution that is strided: ``"conv3x3"`` (torchvision's weights) or ``"conv1x1"`` (MSRA's).
        conv: makes a convolution with its norm from channels in, channels out and kernel size.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        stride_in: str = "conv3x3",
        conv: MakeConv = FrozenNormConv,
    ) -> None:
        super().__init__()
        channels = planes * EXPANSION
        self.stride, self.stride_in = stride, stride_in
        self.conv1 = conv(in_channels, planes, 1)
        self.conv2 = conv(planes, planes, 3)
        self.conv3 = conv(planes, channels, 1)
        self.downsample = conv(in_channels, channels, 1) if stride != 1 or in_channels != channels else None

    def forward(self, x: Tensor, stride: int) -> Tensor:
        """Maps ``[N, in_channels, H, W]`` to ``[N, 4 * planes, ceil(H / stride), ceil(W / stride)]``."""
        strides = (stride, 1) if self.stride_in == "conv1x1" else (1, stride)
        out = self.conv2(self.conv1(x, strides[0], relu=True), strides[1], relu=True)
        shortcut = x if self.downsample is None else self.downsample(x, stride)
        return self.conv3(out, plus=shortcut, relu=True)


class Units(nn.Sequential):
    """Units in a row, by name. The paper's edit is made here: the stride of the first unit of conv4."""

    def forward(self, x: Tensor, stride: int = 16) -> Tensor:
        """Runs the units; ``stride`` is that of the backbone's map: 8 takes it from the first unit of conv4, and 32
        gives it back to that of conv5, which has lost it in a backbone."""
        for name, unit in self.named_children():
            if name == _EDITED:
                x = unit(x, min(stride, 16) // 8)
            else:
                x = unit(x, 2 if name == _FIRST_OF_CONV5 and stride == 32 else unit.stride)
        return x


class SplitResNet(Backbone):
    """A ResNet with one feature map per task.

    Args:
        units: residual units of conv2, conv3, conv4 and conv5.
        split: ``"none"``; or how many of the last units of conv4 exist once per task (the paper: 6 of ResNet101's, 2 of
            ResNet50's); or, with ``det``, the block from which the tasks have their own weights, as for VGG16.
        strides: for each task, 16 or 8; with ``det`` also 32, of a conv5 that keeps its stride.
        det: whether conv5 is part of the backbone, at stride 1 (ResNet-det).
        width: channels of conv1; 64 in the standard networks.
        stride_in: see :class:`Bottleneck`.
        from_scratch: the kind of its norms, which are trained, to do without pretrained weights
            (:func:`grcn.models.norms.trained_norm`); None: batch norms, which are not.
        frozen_stages: how many leading stages, of conv1 to conv5, are not trained; they run without a graph. None:
            conv1 and conv2, or with ``from_scratch`` none.

    Raises:
        ValueError: a split or a stride that this network does not have; a frozen stage that it does not have, that is
            split, or that runs at both strides.
    """

    def __init__(
        self,
        units: Sequence[int],
        split: str | int = "none",
        strides: Mapping[str, int] | None = None,
        det: bool = False,
        width: int = 64,
        stride_in: str = "conv3x3",
        from_scratch: str | None = None,
        frozen_stages: int | None = None,
    ) -> None:
        super().__init__()
        self.units, self.stride_in = tuple(units), stride_in
        self.strides = dict(strides or {"cls": 16, "loc": 16})
        known = {32, 16, 8} if det else {16, 8}
        if sorted(self.strides) != sorted(TASKS) or not set(self.strides.values()) <= known:
            choices = " or ".join(map(str, sorted(known, reverse=True)))
            raise ValueError(f"strides must be {choices} for each of cls and loc (got {self.strides})")
        if stride_in not in ("conv3x3", "conv1x1"):
            raise ValueError(f"unknown stride_in {stride_in!r}; choose conv3x3 or conv1x1")
        self._format = "train_normed" if from_scratch else "train_units"
        conv = conv_maker(from_scratch)
        names = ["stem", *(f"layer{i}_{k}" for i, n in enumerate(units[: 4 if det else 3], 1) for k in range(n))]
        part = _first_own_unit(names, split, det)
        fork = part
        if self.strides["cls"] != self.strides["loc"]:
            fork = min(part, names.index(_EDITED if 8 in self.strides.values() else _FIRST_OF_CONV5))
        ends = [0, *(1 + sum(units[:stage]) for stage in range(5 if det else 4))]
        stages = (0 if from_scratch else 2) if frozen_stages is None else frozen_stages
        if not 0 <= stages < len(ends) or ends[stages] > fork:
            raise ValueError(f"cannot freeze {stages} stages: only those that both tasks share and run once")
        frozen = ends[stages]

        def build(start: int, end: int) -> Units:
            chosen = ((name, residual_unit(name, width, stride_in, conv)) for name in names[start:end])
            return Units(OrderedDict(chosen))

        self.frozen = build(0, frozen).requires_grad_(False)
        self.trunk = build(frozen, fork)
        self.fork = build(fork, min(fork + 1, part))
        self.twice = build(fork + 1, part)
        self.cls = build(part, len(names))
        self.shared = part == len(names) and fork == part
        self.loc = None if self.shared else build(part, len(names))
        # Subsampling the output of a unit without its stride gives the unit with its stride, as long as nothing that
        # mixes positions, a convolution or a norm, follows the strided one.
        self.subsamples = stride_in == "conv3x3" and from_scratch != "group"
        channels = width * EXPANSION * (8 if det else 4)
        self.feature_specs = {task: FeatureSpec(channels, (self.strides[task],)) for task in TASKS}

    def forward(self, x: Tensor) -> dict[str, Maps]:
        """Maps images ``[N, 3, H, W]`` to a map of each task, ``[N, channels, ceil(H / stride), ceil(W / stride)]``."""
        # Without a graph, unless the caller wants the gradient of the images.
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            x = self.frozen(to_memory_format(x, "frozen"), self.strides["cls"])
        x = self.trunk(to_memory_format(x, self._format if self.training else "eval"), self.strides["cls"])
        maps = self._at_both_strides(x) if len(self.fork) else dict.fromkeys(self.strides.values(), x)
        cls = (self.cls(maps[self.strides["cls"]], self.strides["cls"]),)
        loc = cls if self.loc is None else (self.loc(maps[self.strides["loc"]], self.strides["loc"]),)
        return {"cls": cls, "loc": loc}

    def _at_both_strides(self, x: Tensor) -> dict[int, Tensor]:
        """Runs the shared units whose stride is set per task on the trunk's map: with the stride, and without."""
        small, large = sorted(self.strides.values())
        dense = self.fork(x, small)
        coarse = dense[:, :, ::2, ::2] if self.subsamples else self.fork(x, large)
        return {large: self.twice(coarse, large), small: self.twice(dense, small)}


def conv5_units(count: int, in_channels: int, stride_in: str, from_scratch: str | None, width: int = 64) -> Units:
    """Builds conv5 as a head: it halves the pooled grid.

    On conv5's own map (ResNet-det) it is a second conv5. Its first unit reads twice the channels, so it has its own
    name and no pretrained weights (its pretrained 3x3 is of no use after a new 1x1); the others start from those of
    conv5.
    """
    conv = conv_maker(from_scratch)
    planes = 8 * width
    first = "layer4_0" if in_channels == 2 * planes else "layer5_0"
    units: OrderedDict[str, nn.Module] = OrderedDict({first: Bottleneck(in_channels, planes, 2, stride_in, conv)})
    for number in range(1, count):
        units[f"layer4_{number}"] = Bottleneck(planes * EXPANSION, planes, 1, stride_in, conv)
    return Units(units)


def _first_own_unit(names: list[str], split: str | int, det: bool) -> int:
    """Returns the index of the first unit that exists once per task; past the end for none."""
    if split == "none":
        return len(names)
    if not isinstance(split, str):
        most = sum(name.startswith("layer3_") for name in names)
        if det or not 1 <= split <= most:
            raise ValueError(f"cannot split off {split} units: only backbones without conv5 can, 1 to {most}")
        return len(names) - split
    if not det or split not in _SPLIT_BEFORE:
        choices = ", ".join(_SPLIT_BEFORE) if det else "a number of units"
        raise ValueError(f"cannot split at {split!r}; choose none or {choices}")
    return names.index(_SPLIT_BEFORE[split])


def residual_unit(name: str, width: int, stride_in: str, conv: MakeConv) -> Stem | Bottleneck:
    """Builds the layer of a name, such as ``stem`` or ``layer3_0``; ``width`` as in :class:`SplitResNet`."""
    if name == "stem":
        return Stem(width, conv)
    stage, number = (int(part) for part in name.removeprefix("layer").split("_"))
    planes = width * 2 ** (stage - 1)
    if number > 0:
        return Bottleneck(planes * EXPANSION, planes, 1, stride_in, conv)
    # conv2 follows the stem's pooling; conv5 in the backbone has lost its stride (ResNet-det).
    in_channels = width if stage == 1 else planes * EXPANSION // 2
    return Bottleneck(in_channels, planes, 2 if stage in (2, 3) else 1, stride_in, conv)
