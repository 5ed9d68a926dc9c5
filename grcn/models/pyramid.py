"""ResNets with a feature pyramid, in which each task may have its own last layers (Lin et al., Feature Pyramid
Networks; the paper names the pyramid as its next step).

The network has four parts in a row: units up to conv3, units of conv4 and conv5, laterals (1x1 convolutions that bring
each stage to one width, added up from coarse to fine) and outputs (a 3x3 convolution on each sum). ``split`` says which
of them exist once per task: those from there on. On a pyramid a small stride for localization costs no layer, since a
RoI may be pooled from a finer map (``level`` of :class:`grcn.models.roi_pool.RoIPool`); the paper's own edit, a stage
without its stride, is there as well.

torchvision's maps are P2 to P6, the last of which is P5 subsampled: so are these, ``fasterrcnn_resnet50_fpn`` and its
successor ``_v2`` to 1e-9 in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn.catalog import PYRAMID_SPLITS
from grcn.models.features import TASKS, Backbone, FeatureSpec, Maps
from grcn.models.memory_format import to_memory_format
from grcn.models.resnet import EXPANSION, Bottleneck, FrozenNormConv, Stem, conv_maker, residual_unit

_LEVELS = (2, 3, 4, 5)
# The first unit of conv5, whose stride is set per task.
_LAST_STRIDED = "layer4_0"


class Layers(nn.ModuleDict):
    """Layers of one part of the network, by name, in the order in which they run."""

    def forward(self, maps: Mapping[str, Tensor], last_stride: int = 2) -> dict[str, Tensor]:
        """Runs the layers on the maps of the earlier parts; see :func:`run_layers`."""
        return run_layers(dict(self.items()), maps, last_stride)


def run_layers(layers: Mapping[str, nn.Module], maps: Mapping[str, Tensor], last_stride: int = 2) -> dict[str, Tensor]:
    """Runs layers of a network with a pyramid; their names determine what they read and produce.

    Args:
        layers: ``stem``; units, such as ``layer3_0``, which make ``"C4"`` of ``"x"``; laterals, such as ``lateral4``,
            which make ``"M4"`` of ``"C4"`` and ``"M5"``; outputs, such as ``output4``, which make ``"P4"`` of ``"M4"``.
        maps: ``"x"``, the last map of the stages; by level, ``"C2"`` to ``"C5"``, the stages' maps, ``"M2"`` to
            ``"M5"``, the sums of the top-down path, and ``"P2"`` to ``"P5"``, the pyramid's: as many as exist so far.
        last_stride: of conv5, 2 or 1.

    Returns:
        The maps, including those that these layers make.
    """
    maps = dict(maps)
    for name, layer in layers.items():
        level = name[-1]
        if name.startswith("lateral"):
            lateral, coarser = layer(maps[f"C{level}"]), maps.get(f"M{int(level) + 1}")
            maps[f"M{level}"] = lateral if coarser is None else lateral + _enlarged(coarser, lateral)
        elif name.startswith("output"):
            maps[f"P{level}"] = layer(maps[f"M{level}"])
        else:
            assert isinstance(layer, Stem | Bottleneck)
            maps["x"] = layer(maps["x"], last_stride if name == _LAST_STRIDED else layer.stride)
            if name != "stem":
                maps[f"C{int(name.removeprefix('layer').split('_')[0]) + 1}"] = maps["x"]
    return maps


class PyramidResNet(Backbone):
    """A ResNet with a pyramid of feature maps per task.

    Args:
        units: residual units of conv2, conv3, conv4 and conv5.
        split: what exists once per task: ``"none"``; ``"output"``, the 3x3 convolutions after the sums; ``"fpn"``,
            the laterals too; ``"conv5"`` or ``"conv4"``, the stages from there on too.
        last_strides: for each task, the stride of conv5: 2, or 1, which leaves its map the size of conv4's and needs a
            conv5 of the task's own.
        channels: of the pyramid's maps.
        norm: after laterals and outputs: ``"none"``, or ``"frozen"``, as in torchvision's second release.
        width: channels of conv1; 64 in the standard networks.
        stride_in: see :class:`grcn.models.resnet.Bottleneck`.
        from_scratch: the kind of norms in the stages, which are trained, to do without pretrained weights
            (:func:`grcn.models.norms.trained_norm`); None: batch norms, which are not.
        frozen_stages: how many leading stages, of conv1 to conv5, are not trained; they run without a graph. None:
            conv1 and conv2, or with ``from_scratch`` none.
        finest: see :class:`grcn.models.features.FeatureSpec`.

    Raises:
        ValueError: a split, a stride or a norm that this network does not have; strides that differ without a conv5 of
            each task; a frozen stage that is split.
    """

    def __init__(
        self,
        units: Sequence[int],
        split: str = "none",
        last_strides: Mapping[str, int] | None = None,
        channels: int = 256,
        norm: str = "none",
        width: int = 64,
        stride_in: str = "conv3x3",
        from_scratch: str | None = None,
        frozen_stages: int | None = None,
        finest: int = 2,
    ) -> None:
        super().__init__()
        self.units, self.stride_in = tuple(units), stride_in
        self.last_strides = dict(last_strides or {"cls": 2, "loc": 2})
        if sorted(self.last_strides) != sorted(TASKS) or not set(self.last_strides.values()) <= {1, 2}:
            raise ValueError(f"last_strides must be 2 or 1 for each of cls and loc (got {self.last_strides})")
        if split != "none" and split not in PYRAMID_SPLITS:
            raise ValueError(f"unknown split {split!r}; choose none, {', '.join(PYRAMID_SPLITS)}")
        if split not in ("conv5", "conv4") and self.last_strides["cls"] != self.last_strides["loc"]:
            raise ValueError(f"conv5 cannot have two strides with split {split!r}; split conv5 or conv4")
        if stride_in not in ("conv3x3", "conv1x1"):
            raise ValueError(f"unknown stride_in {stride_in!r}; choose conv3x3 or conv1x1")
        if norm not in ("none", "frozen"):
            raise ValueError(f"unknown norm {norm!r}; choose none or frozen")
        self._format = "train_normed" if from_scratch else "train_units"
        conv = conv_maker(from_scratch)
        stages = [f"layer{stage}_{number}" for stage, count in enumerate(units, 1) for number in range(count)]
        names = ["stem", *stages]
        names += [f"lateral{level}" for level in reversed(_LEVELS)] + [f"output{level}" for level in _LEVELS]
        first = len(names) if split == "none" else names.index(PYRAMID_SPLITS[split])
        frozen = (0 if from_scratch else 2) if frozen_stages is None else frozen_stages
        ends = [0, *(1 + sum(units[:stage]) for stage in range(5))]
        if not 0 <= frozen < len(ends) or ends[frozen] > first:
            raise ValueError(f"cannot freeze {frozen} stages: only those that both tasks share")

        def build(start: int, end: int) -> Layers:
            return Layers({name: make(name) for name in names[start:end]})

        def make(name: str) -> nn.Module:
            if name.startswith("lateral"):
                stage = int(name[-1])
                return fpn_conv(width * EXPANSION * 2 ** (stage - 2), channels, 1, norm)
            if name.startswith("output"):
                return fpn_conv(channels, channels, 3, norm)
            return residual_unit(name, width, stride_in, conv)

        self.frozen = build(0, ends[frozen]).requires_grad_(False)
        self.trunk = build(ends[frozen], first)
        self.shared = split == "none"
        self.cls = None if self.shared else build(first, len(names))
        self.loc = None if self.shared else build(first, len(names))
        self.feature_specs = {
            task: FeatureSpec(channels, (4, 8, 16, 16 * stride, 32 * stride), pooled=4, finest=finest)
            for task, stride in self.last_strides.items()
        }

    def forward(self, x: Tensor) -> dict[str, Maps]:
        """Maps images ``[N, 3, H, W]`` to ``{"cls", "loc"}``, each five maps ``[N, channels, ceil(H / stride), ceil(W /
        stride)]``, P2 to P6.

        The sums are of maps that lie on each other only where ``H`` and ``W`` are multiples of 32 (or of 16, without
        conv5's stride); others are accepted.
        """
        # Without a graph, unless the caller wants the gradient of the images.
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            found = self.frozen({"x": to_memory_format(x, "frozen")}, self.last_strides["cls"])
        form = self._format if self.training else "eval"
        last = to_memory_format(found["x"], form)
        maps = {key: last if map_ is found["x"] else to_memory_format(map_, form) for key, map_ in found.items()}
        maps = self.trunk(maps, self.last_strides["cls"])
        if self.cls is None or self.loc is None:
            pyramid = pyramid_of(maps)
            return {"cls": pyramid, "loc": pyramid}
        return {
            "cls": pyramid_of(self.cls(maps, self.last_strides["cls"])),
            "loc": pyramid_of(self.loc(maps, self.last_strides["loc"])),
        }


def pyramid_of(maps: Mapping[str, Tensor]) -> Maps:
    """Picks the pyramid out of maps of :func:`run_layers`: P2 to P5, and P6, which is P5 subsampled."""
    pyramid = [maps[f"P{level}"] for level in _LEVELS]
    return (*pyramid, pyramid[-1][:, :, ::2, ::2])


def _enlarged(coarser: Tensor, to: Tensor) -> Tensor:
    """Repeats the cells of a coarser map so that it has the size of ``to``."""
    if coarser.shape[-2:] == to.shape[-2:]:
        return coarser
    return F.interpolate(coarser, size=to.shape[-2:], mode="nearest")


def fpn_conv(in_channels: int, channels: int, kernel: int, norm: str) -> nn.Module:
    """Builds a lateral or an output: a convolution with a bias, or one followed by a frozen norm."""
    if norm == "frozen":
        return FrozenNormConv(in_channels, channels, kernel)
    return nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2)
