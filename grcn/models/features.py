"""Defines the contract between backbones and the modules that read their maps.

A backbone maps images ``[N, 3, H, W]`` to a dict of two tuples of feature maps: ``"cls"``, which classification reads,
and ``"loc"``, which localization reads; each finest first. A backbone without a pyramid returns tuples of one map, and
nothing asks which kind it is. It declares one :class:`FeatureSpec` per task and builds nothing twice: where both tasks
read the same maps (plain Faster R-CNN) the *same tuple* is under both keys and ``shared`` is True.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TASKS = ("cls", "loc")

Maps = tuple[Tensor, ...]


@dataclass(frozen=True)
class FeatureSpec:
    """Properties of the maps of a task that are known before the maps are computed.

    Attributes:
        channels: of every map.
        strides: input pixels per cell of each map, finest first; need be neither distinct nor powers of two. An input
            side of ``s`` pixels gives ``ceil(s / stride)`` cells. Declared, never inferred from sizes: strides are
            what the paper is about.
        pooled: number of leading maps that RoIs are pooled from, None for all; region proposals read all.
        finest: the pyramid level of the first map in eq. 1 of Lin et al., Feature Pyramid Networks.

    Raises:
        TypeError: ``strides`` is not a tuple.
    """

    channels: int
    strides: tuple[int, ...]
    pooled: int | None = None
    finest: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.strides, tuple):
            raise TypeError(f"strides must be a tuple, one for each map, such as (16,) (got {self.strides!r})")


class Backbone(nn.Module):
    """The interface of a backbone that the rest of a detector relies on.

    Attributes:
        feature_specs: declared properties of the maps, by task.
        shared: whether both tasks read the same maps.

    A backbone may also have a ``normalisation``, which ``build_model`` reads: what it expects of images. A ResNet has
    ``units`` and ``stride_in``, by which ``load_weights`` knows it.
    """

    feature_specs: dict[str, FeatureSpec]
    shared: bool


def strides_as_text(strides: Sequence[int]) -> str:
    """Writes the strides of maps as ``4/8/16``."""
    return "/".join(map(str, strides))


def joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenates the tensors of all levels; the tensor of a single level is returned as it is, without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)
