"""The contract between backbones and what reads them, written down once.

A backbone maps images ``[N, 3, H, W]`` to a dict of two feature maps: ``"cls"``, which classification reads, and
``"loc"``, which localization reads. It declares one :class:`FeatureSpec` per map and builds no map twice: where both
tasks read one map (plain Faster R-CNN) the *same tensor* stands under both keys and ``shared`` is True.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

TASKS = ("cls", "loc")


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
