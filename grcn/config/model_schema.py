"""Defines the settings of a detector, the section ``model`` of a config.

:mod:`grcn.config.schema` explains the tags.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from grcn.config.rules import check_model
from grcn.config.types import (
    DETECTION,
    MODEL,
    TRAINING,
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Positives,
    Section,
    Share,
    Size,
)


def _expects(expected: str) -> WrapValidator:
    """Reports once what a setting of several types expects; pydantic would complain for each type."""

    def choose(value: object, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise PydanticCustomError("choice", "{expected}", {"expected": expected}) from None

    return WrapValidator(choose)


SplitPoint = Annotated[
    Literal["none", "conv3", "conv4", "conv5", "fpn", "output"] | Count,
    _expects("'none', 'conv3', 'conv4', 'conv5', 'fpn', 'output' or a whole number of units"),
]
Sizes = Annotated[
    Size | Annotated[tuple[Size, ...], Strict(False), Field(min_length=1)],
    _expects("a whole number of pixels, or a list of some"),
]


Thresholds = Annotated[
    Literal["none"] | Annotated[tuple[Share, ...], Strict(False), Field(min_length=1, max_length=9)],
    _expects("'none', or a list of IoU thresholds, each from 0 to 1, such as [0.5, 0.6, 0.7]"),
]
AnchorSize = Annotated[Positive | Positives, _expects("a number above 0, or for a pyramid a list of some for each map")]
AnchorSizes = Annotated[tuple[AnchorSize, ...], Strict(False), Field(min_length=1)]


_BACKBONES = (
    "tiny", "tiny_resnet", "tiny_resnet_det", "tiny_resnet_fpn",
    "vgg16", "resnet50", "resnet101", "resnet50_det", "resnet101_det", "resnet50_fpn", "resnet101_fpn",
)  # fmt: skip
BackboneName = Annotated[
    Literal[_BACKBONES] | Annotated[str, Field(pattern=r"^timm:[\w.\-]+$")],  # type: ignore[valid-type]
    _expects(f"{', '.join(map(repr, _BACKBONES))} or 'timm:NAME'"),
]


class ImageConfig(Section):
    """Size of the images that the network sees; the aspect ratio is kept."""

    role = MODEL

    short: Sizes = 600
    """Length in pixels to which the shorter side is resized. Of a list, such as [480, 600, 720], training draws one for
    each image, and evaluation takes the largest. [S: one]"""
    max: Size = 1000
    """Limit of the longer side; an image that would exceed it is resized to it instead. [R]"""
    multiple: Size | None = None
    """The sides of a batch are padded to a multiple of this many pixels; null is 32 on a pyramid, whose maps then lie
    on each other, else 1. [T]"""

    @property
    def largest(self) -> int:
        """The length of the shorter side in evaluation, and the largest in training."""
        return self.short if isinstance(self.short, int) else max(self.short)

    def check(self) -> Iterator[tuple[str, str]]:
        if self.max < self.largest:
            yield "max", f"must be at least image.short = {self.largest} (got {self.max}); raise it"


class BranchConfig(Section):
    """The feature maps that one task reads."""

    role = MODEL

    last_pool: Literal["max", "none", "conv2x2_s2", "max2x2_s1"] = "max"
    """Layer before conv5: the 2x2 max pooling (the map has stride 16), none (stride 8), a
    2x2 convolution of stride 2 (stride 16) or a 2x2 max pooling of stride 1 (stride 8). VGG16 and
    tiny only. [S]"""
    stride: Literal[32, 16, 8] = 16
    """Stride of the map; for 8 the first unit of conv4 does not halve it, and units that both tasks
    share run once for each stride. 32 is of ResNet-det alone, whose conv5 then keeps its stride. ResNets only. [S]"""
    level: Literal[-1, 0, 1] = 0
    """Pyramids only: added to the level that a RoI of its size is pooled from; with -1 its map has half the stride.
    [O]"""
    last_stride: Literal[2, 1] = 2
    """Pyramids only: stride of conv5; with 1 its map has the size of conv4's. Unless it is the same for both tasks,
    split must be conv5 or conv4. [O]"""
    roi_scale: Positive = 1.0
    """The box from which a RoI is pooled is this many times as wide and as high as the RoI; 1.3 for localization in the
    code of Double-Head. [O]"""


class ContextConfig(Section):
    """Global context attention, eq. 1: every cell of a RoI attends to the whole image."""

    role = MODEL

    on: Literal["none", "cls", "loc", "both"] = "none"
    """Task whose RoI features receive the context; none is Faster R-CNN, cls is G-RCN. [S]"""
    dim: Size | None = None
    """Width k of queries and keys; null is the number of channels of the map. [O]"""
    heads: Size = 1
    """Number of attention heads. [O]"""
    value: bool = False
    """Whether the values are projected by W_V, which the paper discarded. [S]"""
    size: Size = 14
    """Side of the grid to which the whole image is pooled for keys and values. [S]"""
    init: Annotated[Literal["gaussian", "xavier", "zero"], TRAINING] = "gaussian"
    """Initial values of the projections: N(0, 0.01), as for all new layers, with which attention starts even where the
    features are small, as after norms, and sharp where they are large; Xavier's, which grow with fewer channels; or
    zero, those of W_V zero and the others N(0, 0.01), with which the model starts as the one without context (needs
    value: true). The paper does not say. [O; R for new layers]"""
    norm: Literal["none", "qk"] = "none"
    """How sharp the attention is: none, eq. 1, as sharp as the scale of the features makes it; or qk, queries and keys
    of length one with a learned factor, whatever that scale. [O]"""
    gate: Literal["none", "zero"] = "none"
    """Factor of what is added: none, eq. 1; or zero, learned from zero, with which the model starts as the one without
    context. [O]"""

    def check(self) -> Iterator[tuple[str, str]]:
        if self.dim is not None and self.dim % self.heads:
            yield "heads", f"must divide context.dim = {self.dim} (got {self.heads}); choose a divisor"
        if self.init == "zero" and not self.value:
            yield "init", "zero is of W_V, which context.value: false leaves out; set context.value: true"
        elif self.init == "zero" and self.gate == "zero":
            yield (
                "gate",
                "zero times values of zero has no gradient and never learns (got init: zero too); set one of them",
            )


class AnchorsConfig(Section):
    """Boxes that the RPN scores and refines at every cell of its maps."""

    role = MODEL

    sizes: AnchorSizes = (128, 256, 512)
    """Square roots of the anchors' areas, in pixels of the resized image; on a pyramid a list for each map, finest
    first, such as [[32], [64], [128], [256], [512]]. [S: three for VOC, five for COCO; R: the values]"""
    ratios: Positives = (0.5, 1, 2)
    """Height divided by width. [S: three; R: the values]"""
    layout: Literal["centred", "torchvision"] = "centred"
    """Where anchors lie: on the middle of each cell of the declared stride; or as torchvision's, on its corner,
    rounded to whole pixels, and as far apart as the side of the batch divided by the cells of the map, rounded down:
    what torchvision's trained detectors expect. [O]"""

    @property
    def per_map(self) -> tuple[tuple[float, ...], ...]:
        """The sizes of each map, finest first."""
        lists = tuple(level for level in self.sizes if isinstance(level, tuple))
        return lists or (tuple(size for size in self.sizes if not isinstance(size, tuple)),)

    def check(self) -> Iterator[tuple[str, str]]:
        lists = [level for level in self.sizes if isinstance(level, tuple)]
        if lists and (len(lists) < len(self.sizes) or len({len(level) for level in lists}) > 1):
            yield "sizes", "must be numbers, or lists of the same length (got others); write as many for every map"


class RpnConfig(Section):
    """Region proposal network."""

    role = MODEL

    reads: Literal["cls", "loc", "both"] = "cls"
    """Branch whose maps the RPN reads. With both there is a second RPN on those of localization: its losses are added,
    and the proposals are those of the first. [S; O: both]"""
    channels: Size = 512
    """Channels of its 3x3 convolutions. [C]"""
    convs: Annotated[int, Field(ge=1, le=4)] = 1
    """How many 3x3 convolutions it has in a row. [R]"""
    pre_nms_train: Annotated[Size, TRAINING] = 12000
    """Best-scored boxes of each map that enter NMS in training. [C]"""
    pre_nms_test: Annotated[Size, DETECTION] = 6000
    """Best-scored boxes of each map that enter NMS at test. [C]"""
    post_nms_train: Annotated[Size, TRAINING] = 2000
    """Proposals per image in training. [S]"""
    post_nms_test: Annotated[Size, DETECTION] = 300
    """Proposals per image at test. [S]"""
    nms: Share = 0.7
    """IoU above which the lower-scored of two proposals is dropped. [R]"""
    batch: Annotated[Size, TRAINING] = 256
    """Anchors per image in the RPN's losses. [S]"""
    fg_fraction: Annotated[Share, TRAINING] = 0.5
    """Largest share of foreground anchors among them. [R]"""
    fg_iou: Annotated[Share, TRAINING] = 0.7
    """IoU from which an anchor is foreground; the best anchors of a box are foreground too. [R]"""
    bg_iou: Annotated[Share, TRAINING] = 0.3
    """IoU below which an anchor is background. [R]"""
    straddling: Annotated[bool, TRAINING] = False
    """Whether anchors that cross the image border are trained on. [R]"""
    min_size: PositiveOrZero = 16
    """Smallest side of a proposal, in pixels of the original image. [C]"""
    smooth_l1_beta: Annotated[Positive, TRAINING] = 1 / 9
    """Where the box loss turns from quadratic to linear. [C]"""

    def check(self) -> Iterator[tuple[str, str]]:
        if self.bg_iou > self.fg_iou:
            yield "bg_iou", f"must not exceed rpn.fg_iou = {self.fg_iou} (got {self.bg_iou}); lower it"


class RoiConfig(Section):
    """RoI pooling, sampling of RoIs, their losses and the final detections."""

    role = MODEL

    op: Literal["pool", "align"] = "pool"
    """RoIPool or RoIAlign. [S: 7x7 RoI pooling]"""
    size: Size = 7
    """Side of the pooled grid. [S]"""
    sampling_ratio: CountOrZero = 2
    """RoIAlign only: samples per cell and axis; 0 chooses by the size of the RoI. [O]"""
    aligned: bool = True
    """RoIAlign only: shift by half a cell, so that samples sit at cell centres. [O]"""
    batch: Annotated[Size, TRAINING] = 128
    """RoIs per image in training. [S]"""
    fg_fraction: Annotated[Share, TRAINING] = 0.25
    """Largest share of foreground RoIs among them. [R]"""
    fg_iou: Annotated[Share, TRAINING] = 0.5
    """IoU from which a RoI is foreground. [R]"""
    bg_iou_low: Annotated[Share, TRAINING] = 0.0
    """IoU from which a RoI that is not foreground is background; others are not used. [R]"""
    add_gt: Annotated[bool, TRAINING] = True
    """Whether the ground-truth boxes join the proposals in training. [C]"""
    box_weights: Annotated[tuple[Positive, Positive, Positive, Positive], Strict(False)] = (
        10,
        10,
        5,
        5,
    )
    """Weights of the box targets (dx, dy, dw, dh). [C]"""
    smooth_l1_beta: Annotated[Positive, TRAINING] = 1.0
    """Where the box loss turns from quadratic to linear. [C]"""
    loss_weights: Annotated[tuple[PositiveOrZero, PositiveOrZero], TRAINING, Strict(False)] = (1, 1)
    """Weights of the losses of classification and of boxes; 2 and 2 in mmdetection's Double-Head. [S: 1 and 1]"""
    score_thresh: Annotated[Share, DETECTION] = 0.05
    """Detections must score above it. [C]"""
    nms: Annotated[Share, DETECTION] = 0.3
    """IoU above which the lower-scored of two detections of one class is dropped. [S]"""
    detections: Annotated[Size, DETECTION] = 100
    """Maximum number of detections per image. [C]"""


HeadKind = Literal["fc", "conv5", "conv", "conv_fc", "residual"]


class HeadConfig(Section):
    """The layers that turn pooled features into scores and boxes."""

    role = MODEL

    kind: HeadKind = "fc"
    """Two fully connected layers, fc6 and fc7; the ResNet's conv5, which halves the pooled grid, and
    its mean; two convolutions, 3x3, and their mean; four convolutions of the channels of the map, 3x3 with frozen
    norms, and one fully connected layer, fc6; or five residual units and their mean, which Double-Head localizes
    with. [S; O: size and mean of the two convolutions; T: conv_fc]"""
    cls: HeadKind | None = None
    """Kind of the layers of classification, where it is not kind. Two kinds need tasks: separate. [O]"""
    loc: HeadKind | None = None
    """Kind of the layers of localization, where it is not kind. [O]"""
    dim: Size = 4096
    """Width of each layer, of conv_fc of the fully connected one; conv5 and residual have their own. [C]"""
    residual_dim: Size = 1024
    """Kind residual only: channels of its units, a multiple of 4. [O; the Double-Head paper's]"""
    dropout: Annotated[float, Field(ge=0, lt=1), TRAINING] = 0.5
    """Kind fc only: dropout after each layer, with a mask of its own for each task's pass. [C]"""
    tasks: Literal["shared", "separate", "ensemble"] = "shared"
    """One head for both tasks (detect-F), one for each (detect-RF), or two whose fc7 are joined
    before one classifier and one regressor (detect-S). [S; O: the joining]"""
    class_agnostic: bool = False
    """Whether one box is regressed for all classes, as in Cascade R-CNN, instead of one for each. [O]"""

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of the layers of each task."""
        return {"cls": self.cls or self.kind, "loc": self.loc or self.kind}


class PyramidConfig(Section):
    """The layers of a pyramid after the stages of a ResNet: laterals and outputs."""

    role = MODEL

    channels: Size = 256
    """Channels of its maps. [T]"""
    norm: Literal["none", "frozen"] = "none"
    """Norm after each of its convolutions: none, only a bias; or a batch norm that is not trained, as in
    torchvision's fasterrcnn_resnet50_fpn_v2. [T]"""


class TimmConfig(Section):
    """Training of a network of timm."""

    role = MODEL

    norm: Annotated[Literal["frozen", "trained"], TRAINING] = "frozen"
    """Its batch norms: frozen, with the statistics, weights and biases of its weights; or trained, from the statistics
    of each micro-batch, so that a step depends on how the batch is spread. Other norms are trained. [O]"""
    drop_path: Annotated[Share, TRAINING] = 0.0
    """Largest rate at which its residual units are left out in training. Draws depend on the seed, the step and the
    process: a run resumes exactly on as many processes as before. [O]"""


class ModelConfig(Section):
    """The detector: every row of the paper's tables is one setting of these keys."""

    role = MODEL

    backbone: BackboneName = "vgg16"
    """VGG16; ResNets up to conv4, whose usual head is kind conv5 (configs/_base/coco_resnet.yaml);
    ResNet-det, with conv5 at stride 1; ResNets with a feature pyramid, five maps of strides 4 to 64
    (configs/_base/coco_fpn.yaml); a pyramid on a network of timm that has maps of strides 4 to 32, as
    timm:convnext_tiny (pip install 'grcn[timm]'); miniatures, which train from scratch on a CPU. [S; T: the pyramid]"""
    weights: str | None = None
    """Initial weights: null; torchvision's IMAGENET1K_V1 (VGG16: with fc6 and fc7), IMAGENET1K_V2
    (ResNets) or IMAGENET1K_FEATURES (VGG16's convolutions, of the Caffe release); of resnet50_fpn also the
    whole detectors COCO_V1 and COCO_V2; or a file as torchvision:FILE (also of a torchvision detector on a
    ResNet: a pyramid takes all of it, others its trunk) or
    caffe:FILE, relative to the current directory, or to your home after ~/; of a network of timm, a file of its
    release as timm:FILE. With caffe, ResNets are strided in the first convolution of a unit, else in the second.
    [O; the paper starts from ImageNet weights, and so do configs/_base/voc.yaml and coco.yaml]"""
    freeze: Annotated[CountOrZero | None, TRAINING] = None
    """How many leading stages, of conv1 to conv5, are not trained; null is 2 for VGG16 and the ResNets, 0 for tiny
    backbones and those of timm, where 2 is all up to the map of stride 4. The batch norms of the ResNets are not
    trained in any case. [C]"""
    width: Size = 24
    """Channels of the first layer of a tiny backbone; the others have their own. [O]"""
    norm: Literal["layer", "group"] = "layer"
    """The norms of a tiny backbone: layer, over the channels of each position; or group, over all positions and some of
    the channels, which learns far faster on images with flat regions, and shows every position a summary of the
    image. The others have their own. [O]"""
    image: ImageConfig = ImageConfig()
    split: SplitPoint = "none"
    """First block of which each task has its own copy (VGG16, tiny, ResNet-det), or the number of
    conv4's last units (other ResNets); none is one set of weights for both. On a pyramid: output, each
    task has its own 3x3 convolutions at the end; fpn, its own 1x1 convolutions too; conv5 or conv4, its
    own stages too. [S: none and conv5; 2 of ResNet50's units, 6 of ResNet101's; O: pyramids]"""
    cls: BranchConfig = BranchConfig()
    loc: BranchConfig = BranchConfig()
    pyramid: PyramidConfig = PyramidConfig()
    timm: TimmConfig = TimmConfig()
    context: ContextConfig = ContextConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    rpn: RpnConfig = RpnConfig()
    roi: RoiConfig = RoiConfig()
    head: HeadConfig = HeadConfig()
    cascade: Thresholds = "none"
    """Stages of a cascade of RoI heads, as the IoU from which a RoI is foreground in each: [0.5, 0.6, 0.7] in Cascade
    R-CNN. Each stage refines the boxes of the one before, with heads of its own, and the scores are the mean of all;
    roi.fg_iou is not read. none: one stage. [O]"""

    @property
    def network(self) -> str:
        """The classifier whose layers the backbone has, as ``resnet50``."""
        return self.backbone.removeprefix("timm:").removesuffix("_det").removesuffix("_fpn")

    @property
    def has_pyramid(self) -> bool:
        """Whether the backbone is a feature pyramid."""
        return self.backbone.endswith("_fpn") or self.of_timm

    @property
    def is_tiny(self) -> bool:
        """Whether the backbone is a miniature, which has a width and a norm to set, and no pretrained weights."""
        return self.backbone.startswith("tiny")

    @property
    def of_timm(self) -> bool:
        """Whether the backbone is a network of timm."""
        return self.backbone.startswith("timm:")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from check_model(self)
