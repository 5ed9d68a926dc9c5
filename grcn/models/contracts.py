"""Compares what a backbone declares of its maps with the maps, and with the parts that read them.

A backbone of another library declares nothing, and parts of another library are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from grcn.models.features import FeatureSpec, Maps
from grcn.models.roi_heads import RoIHeads
from grcn.models.roi_pool import RoIPool
from grcn.models.rpn import RegionProposalNetwork


def check_maps(features: Mapping[str, Maps], backbone: nn.Module, canvas: tuple[int, int]) -> None:
    """Makes sure that maps have the channels and strides that their backbone declares.

    A map may have a cell more or less than declared, and a quarter of its cells: networks round down, and some do not
    pad.

    Args:
        features: of each task, maps ``[N, C, H, W]``.
        backbone: which made them.
        canvas: height and width of the network's input.

    Raises:
        TypeError: they are not a dict, or a task has something else than a tuple of maps.
        ValueError: the maps of a task are more or fewer than declared, or of other channels or strides.
    """
    specs = _specs(backbone)
    if specs and (not isinstance(features, Mapping) or specs.keys() - features.keys()):
        got = list(features) if isinstance(features, Mapping) else type(features).__name__
        raise TypeError(f"backbone: must return a dict of maps for {list(specs)} (got {got})")
    for task, spec in specs.items():
        maps = features[task]
        if not isinstance(maps, tuple | list):
            raise TypeError(f"backbone: features[{task!r}] must be a tuple of maps (got {type(maps).__name__})")
        if len(maps) != len(spec.strides):
            raise ValueError(f"backbone: {len(spec.strides)} maps are declared for {task} (got {len(maps)})")
        for map_, stride in zip(maps, spec.strides, strict=True):
            if map_.shape[1] != spec.channels:
                width = f"{map_.shape[1]} channels (declared: {spec.channels})"
                raise ValueError(f"backbone: the maps of {task} have {width}; declare what they have")
            cells = tuple(-(-side // stride) for side in canvas)
            if any(abs(side - usual) > 1 + usual / 4 for side, usual in zip(map_.shape[-2:], cells, strict=True)):
                raise ValueError(
                    f"backbone: the map of {task} has {tuple(map_.shape[-2:])} cells for an input of {canvas} pixels; "
                    f"declare its stride (stride {stride} gives {cells})"
                )


def check_readers(backbone: nn.Module, rpn: nn.Module, roi_heads: nn.Module) -> None:
    """Makes sure that our RPN and RoI heads fit what the backbone declares of the maps that they read.

    Raises:
        ValueError: strides of anchors or pools that are not the declared ones; maps of several widths for one set of
            hidden layers.
    """
    specs = _specs(backbone)
    widths = [spec.channels for spec in specs.values()]
    for network in (rpn, getattr(rpn, "auxiliary", None)):
        if isinstance(network, RegionProposalNetwork) and network.reads in specs:
            _same(f"rpn.anchors of {network.reads}", network.anchors.strides, specs[network.reads].strides)
    for stage in roi_heads.stages() if isinstance(roi_heads, RoIHeads) else ():
        if len(set(widths)) > 1 and stage.heads.tasks != "separate":
            raise ValueError(f"maps of {widths} channels need hidden layers of each task; pass tasks='separate'")
        pools = [(f"pools[{task!r}]", task, pool) for task, pool in stage.pools.items()]
        pools += [(f"context_pools[{task!r}]", task, pool) for task, pool in stage.context_pools.items()]
        for name, task, pool in pools:
            if isinstance(pool, RoIPool) and task in specs:
                _same(f"roi_heads.{name}", pool.strides, specs[task].strides[: len(pool.strides)])


def _specs(backbone: nn.Module) -> Mapping[str, FeatureSpec]:
    return getattr(backbone, "feature_specs", {})


def _same(part: str, own: tuple[int, ...], declared: tuple[int, ...]) -> None:
    if own != declared:
        raise ValueError(f"{part} has strides {own}, but the backbone declares {declared}; pass the same")
