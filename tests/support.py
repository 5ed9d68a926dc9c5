"""Shared helpers: a small detector, a batch for it, and the same detector made of torchvision's parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.faster_rcnn import TwoMLPHead as TorchvisionHead
from torchvision.ops import MultiScaleRoIAlign, roi_pool

from grcn.models.anchors import AnchorGenerator
from grcn.models.box_heads import Conv5Head, TaskHeads, TwoMLPHead
from grcn.models.context import ContextAttention
from grcn.models.detector import Detector
from grcn.models.init import initialise
from grcn.models.resnet import SplitResNet, conv5_units
from grcn.models.roi_heads import DetectionSettings, RoIHeads, SamplingSettings
from grcn.models.roi_pool import RoIPool
from grcn.models.rpn import ProposalSettings, RegionProposalNetwork
from grcn.models.transform import DetectionTransform, Normalisation
from grcn.models.vgg import SplitVGG

BLOCKS = ((8,), (8, 8), (16,), (16, 16), (16,))
CLASSES = 5
PLAIN = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
# Corners of these anchors are whole pixels, so torchvision's rounding of them changes nothing.
SIZES, RATIOS = (16, 32), (0.25, 1, 4)

# The ``model`` section of a detector of this size, and what makes it G-RCN.
SMALL: dict[str, Any] = {
    "backbone": "tiny",
    "width": 4,
    "image": {"short": 64, "max": 128},
    "anchors": {"sizes": [16, 32]},
    "rpn": {"channels": 16, "pre_nms_train": 80, "post_nms_train": 40, "pre_nms_test": 60, "post_nms_test": 20},
    "roi": {"op": "align", "size": 4, "batch": 24, "score_thresh": 0.15, "nms": 0.5},
    "head": {"dim": 32, "dropout": 0.0},
}
GRCN = {"split": "conv5", "loc": {"last_pool": "none"}, "context": {"on": "cls", "size": 6}}


def small_detector(
    split: str | int = "none",
    loc_pool: str = "max",
    context: tuple[str, ...] = (),
    tasks: str = "shared",
    sampling: SamplingSettings | None = None,
    rpn_batch: int = 32,
    op: str = "align",
    dropout: float = 0.0,
    straddling: bool = True,
    beta: float = 1 / 9,
    seed: int = 3,
    short: int = 64,
    detecting: DetectionSettings | None = None,
    resnet: bool = False,
    loc_stride: int = 16,
) -> Detector:
    """Builds a detector of 8 to 16 channels on images of about 64 pixels, by default with torchvision's conventions.

    With ``resnet`` it is one of 4 to 128 channels whose head is conv5; ``split`` is then a number of units. The seed is
    one whose proposals overlap several objects of :func:`small_batch`, so that sampled RoIs are of both kinds.
    """
    if resnet:
        backbone = SplitResNet((1, 1, 3, 1), split, {"cls": 16, "loc": loc_stride}, width=4, from_scratch="layer")
        heads = TaskHeads(lambda _: Conv5Head(conv5_units(1, 64, "conv3x3", "layer", 4), 128), CLASSES, tasks)
    else:
        backbone = SplitVGG(BLOCKS, split, {"cls": "max", "loc": loc_pool}, from_scratch="layer")
        heads = TaskHeads(lambda _: TwoMLPHead(16 * 16, 32, dropout), CLASSES, tasks)
    specs = backbone.feature_specs
    channels = specs["cls"].channels
    rpn = RegionProposalNetwork(
        channels,
        16,
        AnchorGenerator([SIZES], RATIOS, specs["cls"].strides, "torchvision"),
        train=ProposalSettings(80, 40, 0.7, 0.0),
        test=ProposalSettings(60, 20, 0.7, 0.0),
        batch=rpn_batch,
        straddling=straddling,
    )
    roi_heads = RoIHeads(
        {task: RoIPool(specs[task].strides, 4, op, aligned=False) for task in specs},
        heads,
        backbone.shared,
        {task: ContextAttention(channels) for task in context},
        {task: RoIPool(specs[task].strides, 6, op, aligned=False) for task in context},
        sampling or SamplingSettings(16),
        detecting or DetectionSettings(0.05, 0.5, 100),
        beta=beta,
    )
    model = Detector(backbone, rpn, roi_heads, DetectionTransform(short, 2 * short, PLAIN))
    initialise(model, seed)
    with torch.no_grad():  # new layers start so small that every score would be the same
        for layer in (rpn.cls_logits, rpn.bbox_pred, heads.cls_score, heads.bbox_pred):
            layer.weight.mul_(30)
        for layer in (rpn.cls_logits, rpn.bbox_pred):  # what all positions have in common is none of their business
            layer.weight.sub_(layer.weight.mean(1, keepdim=True))
            layer.weight.mul_(4)
        heads.cls_score.weight.mul_(6)
    return model


def small_batch(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[list[Tensor], list[dict]]:
    """Makes two images of different sizes with three objects and one."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, *size, generator=generator, dtype=dtype) for size in ((64, 96), (64, 64))]
    boxes = ([[4, 5, 30, 44], [40, 8, 75, 40], [50, 30, 90, 60]], [[10, 12, 52, 50]])
    labels = ([1, 3, 4], [2])
    targets = [
        {"boxes": torch.tensor(b, dtype=dtype), "labels": torch.tensor(k), "rng_key": 7 + i}
        for i, (b, k) in enumerate(zip(boxes, labels, strict=True))
    ]
    return images, targets


class OneMap(nn.Module):
    """A grcn backbone as torchvision's detectors want it: one tensor and ``out_channels``."""

    def __init__(self, backbone: SplitVGG) -> None:
        super().__init__()
        self.body = backbone
        self.out_channels = backbone.feature_specs["cls"].channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns the map of the classification branch."""
        return self.body(x)["cls"][0]


class PlainRoIPool(nn.Module):
    """torchvision's RoIPool at stride 16, called as its detectors call their pooling."""

    def forward(self, x: dict[str, Tensor], rois: list[Tensor], image_sizes: list[tuple[int, int]]) -> Tensor:
        """Pools all boxes of a batch to 4 x 4 cells."""
        return roi_pool(x["0"], rois, 4, 1 / 16)


def as_torchvision(model: Detector) -> FasterRCNN:
    """Builds torchvision's FasterRCNN around the backbone of ``model``, with its weights, sampling everything."""
    head = model.roi_heads.heads
    theirs = FasterRCNN(
        OneMap(model.backbone),
        min_size=max(model.transform.shorts),
        max_size=model.transform.max_size,
        image_mean=PLAIN.mean,
        image_std=PLAIN.std,
        rpn_anchor_generator=TorchvisionAnchors((SIZES,), (RATIOS,)),
        rpn_pre_nms_top_n_train=80,
        rpn_post_nms_top_n_train=40,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=20,
        rpn_batch_size_per_image=10**6,
        box_batch_size_per_image=10**6,
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),  # FasterRCNN insists on it
        box_head=TorchvisionHead(256, 32),
        box_predictor=FastRCNNPredictor(32, CLASSES),
    ).to(model.rpn.conv.weight.dtype)
    theirs.transform.size_divisible = 1
    if model.roi_heads.pools["cls"].op == "pool":
        theirs.roi_heads.box_roi_pool = PlainRoIPool()
    pairs = {
        theirs.rpn.head.conv[0][0]: model.rpn.conv,
        theirs.rpn.head.cls_logits: model.rpn.cls_logits,
        theirs.rpn.head.bbox_pred: model.rpn.bbox_pred,
        theirs.roi_heads.box_head.fc6: head.cls.fc6,
        theirs.roi_heads.box_head.fc7: head.cls.fc7,
        theirs.roi_heads.box_predictor.cls_score: head.cls_score,
        theirs.roi_heads.box_predictor.bbox_pred: head.bbox_pred,
    }
    for layer, ours in pairs.items():
        layer.load_state_dict(ours.state_dict())
    theirs.pairs = pairs
    return theirs
