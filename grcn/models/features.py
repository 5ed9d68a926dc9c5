"""The contract between backbones and what reads them, written down once.

A backbone maps images ``[N, 3, H, W]`` to a dict of two feature maps: ``"cls"``, which classification reads, and
``"loc"``, which localization reads. It declares one :class:`FeatureSpec` per map and builds no map twice: where both
tasks read one map (plain Faster R-CNN) the *same tensor* stands under both keys and ``shared`` is True.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

TASKS = ("cls", "loc")

# Which memory format a part computes in, by device. Measured: on a CPU, convolutions without weight gradients are
# faster in channels_last. With them, rows of 3x3 convolutions (train) are slower: 1.7 times with AVX2, up to 1.1 times
# with AVX512, with which units of 1x1 convolutions, layers behind which a norm over the channels stands, and
# convolutions on the small grids of RoIs (train_units) take 0.9 of the time. Tensor cores want channels_last.
MEMORY_FORMATS: dict[str, dict[str, torch.memory_format]] = {
    "cpu": {
        "frozen": torch.channels_last,
        "train": torch.contiguous_format,
        "train_units": torch.contiguous_format,
        "eval": torch.channels_last,
    },
    "cpu AVX512": {
        "frozen": torch.channels_last,
        "train": torch.contiguous_format,
        "train_units": torch.channels_last,
        "eval": torch.channels_last,
    },
    "cuda": dict.fromkeys(("frozen", "train", "train_units", "eval"), torch.channels_last),
}


@dataclass(frozen=True)
class FeatureSpec:
    """What is known about a feature map before it is computed.

    Attributes:
        channels: its channels.
        stride: input pixels per cell; an input side of ``s`` pixels gives ``ceil(s / stride)`` cells. Declared,
            never inferred
            from sizes: strides are what the paper is about.
    """

    channels: int
    stride: int


class Backbone(nn.Module):
    """What the rest of a detector knows of its backbone.

    Attributes:
        feature_specs: what is declared of each map, by task.
        shared: whether both tasks read one map.
        frozen: its first layers, those that are never trained; may be empty.
    """

    feature_specs: dict[str, FeatureSpec]
    shared: bool
    frozen: nn.Module


def memory_formats(device: torch.device) -> dict[str, torch.memory_format]:
    """Returns the row of :data:`MEMORY_FORMATS` for a device; an empty one for others."""
    kind = f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type
    return MEMORY_FORMATS.get(kind, MEMORY_FORMATS.get(device.type, {}))


def in_format(x: Tensor, part: str) -> Tensor:
    """Lays ``x`` out as :func:`memory_formats` says for a part: ``frozen``, ``train``, ``train_units`` or ``eval``."""
    formats = memory_formats(x.device)
    return x.contiguous(memory_format=formats[part]) if formats else x
