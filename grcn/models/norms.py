"""Norms for training from scratch, at any batch size: none of them mixes the images of a batch."""

from __future__ import annotations

import math

from torch import nn
from torchvision.models.convnext import LayerNorm2d

_MOST_GROUPS, _LEAST_CHANNELS = 32, 4


def trained_norm(kind: str, channels: int) -> nn.Module:
    """Makes the norm that follows a convolution.

    ``"layer"`` is over the channels of each position, so no position sees another, but differences in contrast are
    lost: flat regions get activations as large as those of edges. ``"group"`` is over all positions and some channels
    (Wu and He, Group Normalization): 32 groups, or fewer where one would have fewer than 4 channels. It keeps the
    contrast within an image, as a batch norm does, and shows every position a summary of the image. It includes the
    padding of an image that is smaller than its batch, so its features differ from those of the image alone.

    Args:
        kind: ``"layer"`` or ``"group"``.
        channels: number of channels of the map.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "layer":
        return LayerNorm2d(channels)
    if kind != "group":
        raise ValueError(f"unknown norm {kind!r}; choose layer or group")
    groups = math.gcd(_MOST_GROUPS, channels)
    while groups > 1 and channels // groups < _LEAST_CHANNELS:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def returns_view(kind: str) -> bool:
    """Returns whether a norm of this kind returns a view, as the norm over channels does (of a permuted tensor).

    Do not overwrite a view: autograd would copy its whole gradient three times in the backward pass.
    """
    return kind == "layer"
