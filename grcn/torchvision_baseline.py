"""Builds torchvision's own Faster R-CNN with the network, head, anchors, RoIs and weights of one of our models.

A model with separate tasks has no counterpart there: its baseline is the Faster R-CNN that it extends.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, roi_pool
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from grcn.build import build_model
from grcn.catalog import RESNET_WIDTH
from grcn.config.files import leaves
from grcn.config.messages import show
from grcn.config.model_schema import BranchConfig, ContextConfig, ModelConfig
from grcn.config.rules import idle_in_model
from grcn.errors import ConfigError
from grcn.models import box_heads
from grcn.models.detector import Detector
from grcn.models.detector_weights import names_of
from grcn.models.features import Backbone
from grcn.models.layer_names import layer_name, torchvision_names
from grcn.models.resnet import EXPANSION
from grcn.models.rpn import RegionProposalNetwork
from grcn.models.weights import normalisation_of

logger = logging.getLogger("grcn")

_TORCHVISION = ("vgg16", "resnet50", "resnet101")
# The eps of a FrozenBatchNorm2d.
_EPS = 1e-5
# Our settings that torchvision's detector has no argument for, and its fixed values.
_ITS_OWN: dict[str, bool | float | str] = {
    "anchors.layout": "torchvision",
    "rpn.straddling": True,
    "rpn.min_size": 1e-3,
    "rpn.smooth_l1_beta": 1 / 9,
    "roi.aligned": False,
    "roi.bg_iou_low": 0.0,
    "roi.add_gt": True,
    "roi.smooth_l1_beta": 1 / 9,
    "head.dropout": 0.0,
}


def baseline_of(cfg: ModelConfig) -> ModelConfig:
    """Returns the Faster R-CNN that a model extends: no split, no context, one stage with the classification head, the
    network's own strides, one RPN and no loss weights."""
    one_head = {"kind": cfg.head.kinds["cls"], "cls": None, "loc": None, "tasks": "shared", "class_agnostic": False}
    one_stage = {} if isinstance(cfg.cascade, str) else {"fg_iou": cfg.cascade[0]}
    update = {
        "split": "none",
        "cls": BranchConfig(),
        "loc": BranchConfig(),
        "context": ContextConfig(),
        "rpn": cfg.rpn.model_copy(update={"reads": "cls"} if cfg.rpn.reads == "both" else {}),
        "head": cfg.head.model_copy(update=one_head),
        "roi": cfg.roi.model_copy(update=one_stage | {"loss_weights": (1.0, 1.0)}),
        "cascade": "none",
    }
    return cfg.model_copy(update=update)


def torchvision_lacks(cfg: ModelConfig) -> list[str]:
    """Returns a line for each setting of a model that keeps its baseline from being built in torchvision.

    Defaults that differ from torchvision's are left to it, and so is ``rpn.min_size``, which suits the images and is in
    pixels of the originals, while torchvision's is in pixels of the resized images.
    """
    lines = []
    if normalisation_of(cfg.weights).bgr:
        lines.append(
            "model.weights: torchvision's detector takes RGB, and strides ResNets in their 3x3 convolutions "
            f"(got {cfg.weights}); set IMAGENET1K_V1 or torchvision:FILE"
        )
    usual = leaves(ModelConfig())
    for key, (ours, theirs) in _differences(cfg).items():
        if key != "rpn.min_size" and ours != usual[key]:
            lines.append(f"model.{key}: torchvision's detector has {show(theirs)} (got {show(ours)}); set that")
    return lines


def check_torchvision(cfg: ModelConfig) -> None:
    """Makes sure that the baseline of a model can be built in torchvision.

    Raises:
        ConfigError: settings that torchvision's detector cannot have.
    """
    if lines := torchvision_lacks(cfg):
        raise ConfigError("\n".join(lines))


def check_is_baseline(cfg: ModelConfig, file: Path | None = None) -> None:
    """Makes sure that a model is a Faster R-CNN, which torchvision's detector can replace.

    Args:
        file: of the config, for the message.

    Raises:
        ConfigError: names the settings that make it another detector.
    """
    ours = leaves(cfg)
    if others := {key: value for key, value in leaves(baseline_of(cfg)).items() if value != ours[key]}:
        shown = {key: value if isinstance(value, str) else show(value) for key, value in others.items()}
        settings = " ".join(f"model.{key}={value}" for key, value in shown.items())
        which = "the config" if file is None else file
        raise ConfigError(f"--torchvision: {which} is not torchvision's FasterRCNN; set {settings}")


def _differences(cfg: ModelConfig) -> dict[str, tuple[object, object]]:
    """Returns the settings that differ in torchvision's detector, with both values."""
    ours, idle = leaves(cfg), idle_in_model(cfg)
    return {
        key: (ours[key], theirs) for key, theirs in _ITS_OWN.items() if key not in idle and _differ(ours[key], theirs)
    }


def _differ(one: bool | float | str, other: bool | float | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one != other
    return not math.isclose(one, other, rel_tol=1e-3)  # 1/9 is rounded in YAML


def torchvision_detector(cfg: ModelConfig, model: Detector) -> FasterRCNN:
    """Builds torchvision's detector of a model, or of its baseline, in evaluation mode.

    VGG16 and ResNets are torchvision's own layers, batch norms not folded; of other networks the
    layers are ours and the detector torchvision's. It takes the settings of the config as far as it supports them; the
    others are logged. Everything else is torchvision's: memory formats, sampling with host-device synchronisations,
    and, where ``image.multiple`` is null, padding to multiples of 32.

    Args:
        cfg: the ``model`` section.
        model: built from it; its weights are copied, by layer.

    Raises:
        ConfigError: as :func:`check_torchvision` raises.
    """
    check_torchvision(cfg)
    cfg = baseline_of(cfg)
    if unlike := _differences(cfg):
        settings = (f"model.{key} {show(theirs)} (not {show(ours)})" for key, (ours, theirs) in unlike.items())
        logger.info("torchvision's detector keeps its own %s", ", ".join(settings))
    num_classes = model.roi_heads.heads.cls_score.out_features
    plain = build_model(cfg, num_classes)
    named: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        named.setdefault(layer_name(name), value)  # the first of copies: the first stage, and the classification task
    with torch.no_grad():
        for name, value in plain.state_dict().items():
            known = named[layer_name(name)]
            if known.shape == value.shape:  # differs for the box regressor of another head, or of all classes
                value.copy_(known)
    trunk, head = _layers(cfg, plain)
    spec = plain.backbone.feature_specs["cls"]
    trunk.out_channels = spec.channels  # type: ignore[assignment]
    heads, anchors = plain.roi_heads.heads, plain.rpn.anchors
    detector = FasterRCNN(
        trunk,
        min_size=cfg.image.short if isinstance(cfg.image.short, int) else sorted(cfg.image.short),
        max_size=cfg.image.max,
        image_mean=plain.transform.normalisation.mean,
        image_std=plain.transform.normalisation.std,
        rpn_anchor_generator=AnchorGenerator(anchors.sizes, (anchors.ratios,) * len(anchors.sizes)),
        rpn_head=_rpn_head(plain.rpn),
        rpn_pre_nms_top_n_train=cfg.rpn.pre_nms_train,
        rpn_post_nms_top_n_train=cfg.rpn.post_nms_train,
        rpn_pre_nms_top_n_test=cfg.rpn.pre_nms_test,
        rpn_post_nms_top_n_test=cfg.rpn.post_nms_test,
        rpn_nms_thresh=cfg.rpn.nms,
        rpn_fg_iou_thresh=cfg.rpn.fg_iou,
        rpn_bg_iou_thresh=cfg.rpn.bg_iou,
        rpn_batch_size_per_image=cfg.rpn.batch,
        rpn_positive_fraction=cfg.rpn.fg_fraction,
        box_roi_pool=MultiScaleRoIAlign(
            [str(level) for level in range(len(spec.strides[: spec.pooled]))],
            cfg.roi.size,
            cfg.roi.sampling_ratio,
            canonical_scale=224 // 2 ** (2 - spec.finest),
        ),
        box_head=head,
        box_predictor=FastRCNNPredictor(heads.cls_score.in_features, num_classes),
        box_fg_iou_thresh=cfg.roi.fg_iou,
        box_bg_iou_thresh=cfg.roi.fg_iou,  # all others are background
        box_batch_size_per_image=cfg.roi.batch,
        box_positive_fraction=cfg.roi.fg_fraction,
        box_score_thresh=cfg.roi.score_thresh,
        box_nms_thresh=cfg.roi.nms,
        box_detections_per_img=cfg.roi.detections,
        bbox_reg_weights=cfg.roi.box_weights,
        size_divisible=cfg.image.multiple or 32,
    )
    theirs = detector.state_dict()
    names = {key: name for key, name in names_of(theirs, {}).items() if key in theirs}
    parts = ("backbone.fpn.", "rpn.head.", "roi_heads.box_predictor.")
    assert all(key in names for key in theirs if key.startswith(parts)), "every weight of these parts is ours"
    _copy_by_name(plain, detector, names)
    if cfg.roi.op == "pool":
        detector.roi_heads.box_roi_pool = _RoIPool(spec.strides[0], cfg.roi.size)
    return detector.eval()


class _RoIPool(nn.Module):
    """torchvision's RoIPool with the interface of its detectors' pooling."""

    def __init__(self, stride: int, size: int) -> None:
        super().__init__()
        self.scale, self.size = 1 / stride, size

    def forward(self, x: dict[str, Tensor], rois: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        dtype = torch.promote_types(x["0"].dtype, torch.float32)  # there is no kernel for bfloat16
        return roi_pool(x["0"].to(dtype), [boxes.to(dtype) for boxes in rois], self.size, self.scale)


class _Conv5(nn.Module):
    """torchvision's ``layer4`` as a head."""

    def __init__(self, layer4: nn.Module) -> None:
        super().__init__()
        self.layer4 = layer4

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(x).mean((2, 3))


def _rpn_head(rpn: RegionProposalNetwork) -> RPNHead:
    """Makes torchvision's convolution head as wide as ours, with our weights."""
    head = RPNHead(rpn.conv.in_channels, rpn.anchors.per_cell, 1 + len(rpn.further))
    for block, conv in zip(head.conv, (rpn.conv, *rpn.further), strict=True):
        block[0] = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1)  # the ReLU is a separate layer
        block[0].load_state_dict(conv.state_dict())
    head.cls_logits, head.bbox_pred = copy.deepcopy(rpn.cls_logits), copy.deepcopy(rpn.bbox_pred)
    return head


def _layers(cfg: ModelConfig, plain: Detector) -> tuple[nn.Module, nn.Module]:
    """Returns the backbone with weights, and the hidden layers of the head, with weights where the layers are ours."""
    hidden = plain.roi_heads.heads.cls
    head: nn.Module = hidden
    if isinstance(hidden, box_heads.TwoMLPHead):
        head = TwoMLPHead(hidden.fc6.in_features, hidden.fc6.out_features)
    elif isinstance(hidden, box_heads.ConvFCHead):
        channels = plain.backbone.feature_specs["cls"].channels
        size = (channels, cfg.roi.size, cfg.roi.size)
        head = FastRCNNConvFCHead(size, [channels] * len(hidden.convs), [hidden.out_features], FrozenBatchNorm2d)
    if cfg.network not in _TORCHVISION or cfg.of_timm:
        return _OurLayers(plain.backbone), head
    if cfg.backbone == "vgg16":
        network = torchvision.models.vgg16(weights=None)
        _copy_by_name(plain, network, torchvision_names("vgg16"))
        return network.features[:-1], head
    network = getattr(torchvision.models, cfg.network)(weights=None, norm_layer=FrozenBatchNorm2d)
    _copy_by_name(plain, network, torchvision_names(cfg.network))
    if cfg.has_pyramid:
        widths = [RESNET_WIDTH * EXPANSION * 2**stage for stage in range(4)]
        norm = FrozenBatchNorm2d if cfg.pyramid.norm == "frozen" else None
        stages = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
        return BackboneWithFPN(network, stages, widths, cfg.pyramid.channels, LastLevelMaxPool(), norm), head
    trunk = nn.Sequential(
        network.conv1, network.bn1, network.relu, network.maxpool, network.layer1, network.layer2, network.layer3
    )
    if cfg.network != cfg.backbone:  # ResNet-det, whose conv5 is in the backbone and has lost its stride
        first = network.layer4[0]
        first.conv2.stride = first.downsample[0].stride = (1, 1)
        return trunk.append(network.layer4), head
    return trunk, _Conv5(network.layer4) if cfg.head.kind == "conv5" else head


class _OurLayers(nn.Module):
    """One of our backbones with the interface of torchvision's."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {str(level): map_ for level, map_ in enumerate(self.backbone(x)["cls"])}


@torch.no_grad()
def _copy_by_name(plain: Detector, network: nn.Module, names: Mapping[str, str]) -> None:
    """Copies our weights and norms to torchvision's layers, and freezes those that are frozen in ours.

    Args:
        plain: the model.
        network: torchvision's layers.
        names: layer names by its keys, as from :func:`grcn.models.layer_names.torchvision_names`.
    """
    ours = {layer_name(name): value for name, value in plain.state_dict().items()}
    theirs = network.state_dict()
    for key, name in names.items():
        layer, _, norm = name.partition(".norm_")
        if norm == "running_mean":
            theirs[key].zero_()
        elif norm == "running_var":
            theirs[key].fill_(1 - _EPS)
        elif norm and f"{layer}.scale" in ours:  # conv5 is not, where the head is another
            theirs[key].copy_(ours[f"{layer}.{'scale' if norm == 'weight' else 'shift'}"])
        elif not norm and name in ours and ours[name].shape == theirs[key].shape:
            theirs[key].copy_(ours[name])
    frozen = {layer_name(name) for name, weight in plain.named_parameters() if not weight.requires_grad}
    for key, weight in network.named_parameters():
        if key in names:
            weight.requires_grad_(names[key] not in frozen)
