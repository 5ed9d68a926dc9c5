"""Builds a detector from the ``model`` section of a config."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from grcn import rng
from grcn.catalog import RESNET_UNITS, RESNET_WIDTH, TINY_BLOCKS, VGG16_BLOCKS
from grcn.config.model_schema import ModelConfig
from grcn.models.anchors import AnchorGenerator
from grcn.models.box_heads import Conv5Head, ConvFCHead, ConvHead, Hidden, TaskHeads, TwoMLPHead
from grcn.models.cascade import box_weights_of
from grcn.models.context import ContextAttention
from grcn.models.detector import Detector
from grcn.models.double_head import ResidualHead
from grcn.models.features import TASKS, FeatureSpec
from grcn.models.init import Undrawn, initialise
from grcn.models.pyramid import PyramidResNet
from grcn.models.resnet import SplitResNet, conv5_units
from grcn.models.roi_heads import DetectionSettings, RoIHeads, SamplingSettings
from grcn.models.roi_pool import RoIPool
from grcn.models.rpn import ProposalSettings, RegionProposalNetwork
from grcn.models.timm_backbone import TimmPyramid
from grcn.models.transform import DetectionTransform
from grcn.models.vgg import SplitVGG
from grcn.models.weights import normalisation_of, stride_in_of


def build_model(cfg: ModelConfig, num_classes: int, seed: int = 0, backbone: nn.Module | None = None) -> Detector:
    """Builds a detector with initial values from ``seed``; reads neither disk nor network.

    Also works on the meta device, without values.

    Args:
        cfg: the ``model`` section.
        num_classes: including background; the data decide it, so it is not part of a config.
        seed: of the initial values. Pretrained weights are loaded separately, by ``grcn.models.weights.load_weights``.
        backbone: to use in place of the config's: it returns maps, and declares ``feature_specs``, as
            :class:`grcn.models.features.Backbone` does. It keeps its values. Images are normalised by its
            ``normalisation`` or, if it has none, as ``weights`` of the config need them; other settings of the
            config's backbone, such as ``split`` and strides, have no effect.

    Raises:
        TypeError: ``cfg`` is something else, such as a whole config or its file.
        ValueError: ``backbone`` has another number of maps than the anchors of the config.
    """
    if not isinstance(cfg, ModelConfig):
        raise TypeError(f"build_model takes the model section; pass cfg.model (got {type(cfg).__name__})")
    if backbone is not None:
        network: Any = backbone
    else:
        with nullcontext() if cfg.of_timm else Undrawn():  # timm's values are its own
            network = _backbone(cfg, seed)
    specs = network.feature_specs
    with Undrawn():
        if cfg.rpn.reads == "both":
            rpn = _rpn(cfg, "cls", specs["cls"], auxiliary=_rpn(cfg, "loc", specs["loc"]))
        else:
            rpn = _rpn(cfg, cfg.rpn.reads, specs[cfg.rpn.reads])
        roi_heads = _roi_heads(cfg, specs, getattr(network, "shared", False), num_classes)
    multiple = cfg.image.multiple or (32 if len(specs["cls"].strides) > 1 else 1)
    normalisation = getattr(network, "normalisation", normalisation_of(cfg.weights))
    transform = DetectionTransform(cfg.image.short, cfg.image.max, normalisation, multiple)
    model = Detector(network, rpn, roi_heads, transform)
    initialise(model, seed, cfg.context.init, but=None if backbone is None else "backbone.")
    return model


def _rpn(
    cfg: ModelConfig, task: str, spec: FeatureSpec, auxiliary: RegionProposalNetwork | None = None
) -> RegionProposalNetwork:
    """Builds the RPN that reads the maps of a task."""
    return RegionProposalNetwork(
        spec.channels,
        cfg.rpn.channels,
        AnchorGenerator(cfg.anchors.per_map, cfg.anchors.ratios, spec.strides, cfg.anchors.layout),
        train=ProposalSettings(cfg.rpn.pre_nms_train, cfg.rpn.post_nms_train, cfg.rpn.nms, cfg.rpn.min_size),
        test=ProposalSettings(cfg.rpn.pre_nms_test, cfg.rpn.post_nms_test, cfg.rpn.nms, cfg.rpn.min_size),
        reads=task,
        batch=cfg.rpn.batch,
        fg_fraction=cfg.rpn.fg_fraction,
        fg_iou=cfg.rpn.fg_iou,
        bg_iou=cfg.rpn.bg_iou,
        straddling=cfg.rpn.straddling,
        beta=cfg.rpn.smooth_l1_beta,
        convs=cfg.rpn.convs,
        auxiliary=auxiliary,
    )


def _roi_heads(
    cfg: ModelConfig, specs: Mapping[str, FeatureSpec], shared: bool, num_classes: int, stage: int = 0
) -> RoIHeads:
    """Builds the RoI heads of a stage of a cascade and of those that follow; a model without a cascade has one.

    Args:
        specs, shared: attributes of the backbone.
    """
    thresholds = (cfg.roi.fg_iou,) if isinstance(cfg.cascade, str) else cfg.cascade
    is_last = stage + 1 == len(thresholds)

    def pool(task: str, size: int, roi_scale: float = 1.0) -> RoIPool:
        spec, level = specs[task], getattr(cfg, task).level
        strides = spec.strides[: spec.pooled]
        how = cfg.roi.op, cfg.roi.sampling_ratio, cfg.roi.aligned
        return RoIPool(strides, size, *how, level, spec.finest, roi_scale)

    in_context = [task for task in TASKS if cfg.context.on in (task, "both")]
    kinds = cfg.head.kinds
    return RoIHeads(
        pools={task: pool(task, cfg.roi.size, getattr(cfg, task).roi_scale) for task in TASKS},
        heads=TaskHeads(
            lambda task: _hidden_layers(cfg, kinds[task], specs[task].channels),
            num_classes,
            cfg.head.tasks,
            cfg.head.class_agnostic,
        ),
        shared_map=shared and cfg.cls.level == cfg.loc.level and cfg.cls.roi_scale == cfg.loc.roi_scale,
        context={
            task: ContextAttention(
                specs[task].channels,
                cfg.context.dim,
                cfg.context.heads,
                cfg.context.value,
                cfg.context.norm,
                cfg.context.gate,
                cfg.context.size**2,
            )
            for task in in_context
        },
        context_pools={task: pool(task, cfg.context.size) for task in in_context},
        sampling=SamplingSettings(
            cfg.roi.batch, cfg.roi.fg_fraction, thresholds[stage], cfg.roi.bg_iou_low, cfg.roi.add_gt
        ),
        detecting=DetectionSettings(cfg.roi.score_thresh, cfg.roi.nms, cfg.roi.detections),
        box_weights=box_weights_of(stage, cfg.roi.box_weights),
        beta=cfg.roi.smooth_l1_beta,
        loss_weights=cfg.roi.loss_weights,
        following=None if is_last else _roi_heads(cfg, specs, shared, num_classes, stage + 1),
    )


def _backbone(cfg: ModelConfig, seed: int) -> SplitVGG | SplitResNet | PyramidResNet | TimmPyramid:
    name, tiny = cfg.network, cfg.is_tiny
    if cfg.of_timm:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(rng.hash_int(seed, rng.INIT))  # timm draws its initial values from it
            return TimmPyramid(
                name,
                str(cfg.split),
                cfg.pyramid.channels,
                frozen_stages=cfg.freeze or 0,
                norm=cfg.timm.norm,
                drop_path=cfg.timm.drop_path,
            )
    frozen = cfg.freeze if cfg.freeze is not None else 0 if tiny else 2
    norm = cfg.norm if tiny else None
    if cfg.has_pyramid:
        return PyramidResNet(
            RESNET_UNITS[name],
            str(cfg.split),
            {"cls": cfg.cls.last_stride, "loc": cfg.loc.last_stride},
            channels=cfg.pyramid.channels,
            norm=cfg.pyramid.norm,
            width=cfg.width if tiny else RESNET_WIDTH,
            stride_in=stride_in_of(cfg.weights),
            from_scratch=norm,
            frozen_stages=frozen,
            finest=0 if tiny else 2,  # the miniature's images are a quarter as large
        )
    if name in RESNET_UNITS:
        return SplitResNet(
            RESNET_UNITS[name],
            cfg.split,
            {"cls": cfg.cls.stride, "loc": cfg.loc.stride},
            det=name != cfg.backbone,
            width=cfg.width if tiny else RESNET_WIDTH,
            stride_in=stride_in_of(cfg.weights),
            from_scratch=norm,
            frozen_stages=frozen,
        )
    blocks = [[cfg.width * factor] for factor in TINY_BLOCKS] if tiny else VGG16_BLOCKS
    last_pool = {"cls": cfg.cls.last_pool, "loc": cfg.loc.last_pool}
    return SplitVGG(blocks, str(cfg.split), last_pool, frozen_blocks=frozen, from_scratch=norm)


def _hidden_layers(cfg: ModelConfig, kind: str, channels: int) -> Hidden:
    """Builds one set of hidden layers for maps of ``channels``."""
    if kind == "fc":
        return TwoMLPHead(channels * cfg.roi.size**2, cfg.head.dim, cfg.head.dropout)
    if kind == "conv":
        return ConvHead(channels, cfg.head.dim)
    if kind == "conv_fc":
        return ConvFCHead(channels, cfg.roi.size, cfg.head.dim)
    if kind == "residual":
        return ResidualHead(channels, cfg.head.residual_dim)
    tiny = cfg.is_tiny
    count, width, norm = RESNET_UNITS[cfg.network][3], cfg.width if tiny else RESNET_WIDTH, cfg.norm if tiny else None
    units = conv5_units(count, channels, stride_in_of(cfg.weights), from_scratch=norm, width=width)
    return Conv5Head(units, out_features=32 * width)
