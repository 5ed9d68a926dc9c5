"""Every setting of grcn: its type, range, default and meaning. The manual of the YAML configs.

The defaults are the *paper* preset. The tag after a sentence says where its default comes from:

* [S] stated in the G-RCN paper (arXiv 2012.03677)
* [R] stated in the Faster R-CNN paper (Ren et al., arXiv 1506.01497), whose settings G-RCN adopts
  unless it says otherwise
* [C] in neither paper, but common to the public Faster R-CNN implementations of that time
* [O] our choice: none of the above decides it, or we deviate on purpose

What depends on the data set (schedule, anchor sizes) is set by ``configs/_base/*.yaml``; here stand
VOC's values or none. The number of classes is no setting: it comes from the data. Files are read by
:mod:`grcn.configfile`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from .configchecks import model_contradictions

Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Size = Annotated[int, Field(ge=1, le=10**5)]  # of images, layers, batches: more is a slip, and no machine's
Seed = Annotated[int, Field(ge=0, lt=2**64)]  # what randomness is hashed from: larger ones would repeat
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# YAML has lists, a frozen section wants tuples: the container is converted, its entries are not.
Positives = Annotated[tuple[Positive, ...], Strict(False), Field(min_length=1)]
Names = Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
Steps = Annotated[tuple[Count, ...], Strict(False)]


def _repeated(values: Sequence[object]) -> list[object]:
    """Returns the values that occur again after their first place."""
    return [value for i, value in enumerate(values) if value in values[:i]]


def _one_complaint(value: object, choose: ValidatorFunctionWrapHandler) -> Any:
    """Says once what a choice between names and a number expects; pydantic would complain for each."""
    try:
        return choose(value)
    except ValidationError:
        expected = "'none', 'conv3', 'conv4', 'conv5' or a whole number of units"
        raise PydanticCustomError("split", "{expected}", {"expected": expected}) from None


Split = Annotated[Literal["none", "conv3", "conv4", "conv5"] | Count, WrapValidator(_one_complaint)]


class Section(BaseModel):
    """A group of settings: no unknown keys, no silent conversions, no change after reading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Yields the settings that cannot stand, alone or together.

        Each as its dotted key within this section, and what is wrong and what to do about it.
        """
        yield from ()

    @model_validator(mode="after")
    def _raise_contradictions(self) -> Section:
        problems = list(self.contradictions())
        if problems:
            text = "; ".join(f"{key}: {message}" for key, message in problems)
            context = {"text": text, "problems": problems}
            raise PydanticCustomError("contradiction", "{text}", context)
        return self


class Image(Section):
    """Size of the images that the network sees; the aspect ratio is kept."""

    short: Size = 600
    """Length in pixels to which the shorter side is resized. [S]"""
    max: Size = 1000
    """Limit of the longer side; an image that would exceed it is resized to it instead. [R]"""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.max < self.short:
            yield "max", f"must be at least image.short = {self.short} (got {self.max}); raise it"


class Branch(Section):
    """The feature map that one task reads."""

    last_pool: Literal["max", "none", "conv2x2_s2", "max2x2_s1"] = "max"
    """What stands before conv5: the 2x2 max pooling (the map has stride 16), nothing (stride 8), a
    2x2 convolution of stride 2 (stride 16) or a 2x2 max pooling of stride 1 (stride 8). VGG16 and
    tiny only. [S]"""
    stride: Literal[16, 8] = 16
    """Stride of the map; for 8 the first unit of conv4 does not halve it, and units that both tasks
    share run once for each stride. ResNets only. [S]"""


class Context(Section):
    """Global context attention, eq. 1: every cell of a RoI attends to the whole image."""

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

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.dim is not None and self.dim % self.heads:
            yield "heads", f"must divide context.dim = {self.dim} (got {self.heads}); choose a divisor"


class Anchors(Section):
    """Boxes that the RPN scores and refines at every cell of its map."""

    sizes: Positives = (128, 256, 512)
    """Square roots of the anchors' areas, in pixels of the resized image. [S: three for VOC, five
    for COCO; R: the values]"""
    ratios: Positives = (0.5, 1, 2)
    """Height divided by width. [S: three; R: the values]"""


class Rpn(Section):
    """Region proposal network."""

    reads: Literal["cls", "loc"] = "cls"
    """Branch whose map the RPN reads. [S]"""
    channels: Size = 512
    """Channels of its 3x3 convolution. [C]"""
    pre_nms_train: Size = 12000
    """Best-scored boxes that enter NMS in training. [C]"""
    pre_nms_test: Size = 6000
    """Best-scored boxes that enter NMS at test. [C]"""
    post_nms_train: Size = 2000
    """Proposals per image in training. [S]"""
    post_nms_test: Size = 300
    """Proposals per image at test. [S]"""
    nms: Share = 0.7
    """IoU above which the lower-scored of two proposals is dropped. [R]"""
    batch: Size = 256
    """Anchors per image in the RPN's losses. [S]"""
    fg_fraction: Share = 0.5
    """Largest share of foreground anchors among them. [R]"""
    fg_iou: Share = 0.7
    """IoU from which an anchor is foreground; the best anchors of a box are foreground too. [R]"""
    bg_iou: Share = 0.3
    """IoU below which an anchor is background. [R]"""
    straddling: bool = False
    """Whether anchors that cross the image border are trained on. [R]"""
    min_size: PositiveOrZero = 16
    """Smallest side of a proposal, in pixels of the original image. [C]"""
    smooth_l1_beta: Positive = 1 / 9
    """Where the box loss turns from quadratic to linear. [C]"""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.bg_iou > self.fg_iou:
            yield "bg_iou", f"must not exceed rpn.fg_iou = {self.fg_iou} (got {self.bg_iou}); lower it"


class Roi(Section):
    """RoI pooling, sampling of RoIs, their losses and the final detections."""

    op: Literal["pool", "align"] = "pool"
    """RoIPool or RoIAlign. [S: 7x7 RoI pooling]"""
    size: Size = 7
    """Side of the pooled grid. [S]"""
    sampling_ratio: CountOrZero = 2
    """RoIAlign only: samples per cell and axis; 0 chooses by the size of the RoI. [O]"""
    aligned: bool = True
    """RoIAlign only: shift by half a cell, so that samples sit at cell centres. [O]"""
    batch: Size = 128
    """RoIs per image in training. [S]"""
    fg_fraction: Share = 0.25
    """Largest share of foreground RoIs among them. [R]"""
    fg_iou: Share = 0.5
    """IoU from which a RoI is foreground. [R]"""
    bg_iou_low: Share = 0.0
    """IoU from which a RoI that is not foreground is background; others are not used. [R]"""
    add_gt: bool = True
    """Whether the ground-truth boxes join the proposals in training. [C]"""
    box_weights: Annotated[tuple[Positive, Positive, Positive, Positive], Strict(False)] = (
        10,
        10,
        5,
        5,
    )
    """Weights of the box targets (dx, dy, dw, dh). [C]"""
    smooth_l1_beta: Positive = 1.0
    """Where the box loss turns from quadratic to linear. [C]"""
    score_thresh: Share = 0.05
    """Detections must score above it. [C]"""
    nms: Share = 0.3
    """IoU above which the lower-scored of two detections of one class is dropped. [S]"""
    detections: Size = 100
    """Most detections per image. [C]"""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.bg_iou_low > self.fg_iou:
            yield (
                "bg_iou_low",
                f"must not exceed roi.fg_iou = {self.fg_iou} (got {self.bg_iou_low}); lower it",
            )


class Head(Section):
    """The layers that turn pooled features into scores and boxes."""

    kind: Literal["fc", "conv5", "conv"] = "fc"
    """Two fully connected layers, fc6 and fc7; the ResNet's conv5, which halves the pooled grid, and
    its mean; or two convolutions, 3x3, and their mean. [S; O: size and mean of the two convolutions]"""
    dim: Size = 4096
    """Width of each layer; conv5 has its own. [C]"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Kind fc only: dropout after each layer, with a mask of its own for each task's pass. [C]"""
    tasks: Literal["shared", "separate", "ensemble"] = "shared"
    """One head for both tasks (detect-F), one for each (detect-RF), or two whose fc7 are joined
    before one classifier and one regressor (detect-S). [S; O: the joining]"""


class Model(Section):
    """The detector: every row of the paper's tables is one setting of these keys."""

    backbone: Literal[
        "tiny", "tiny_resnet", "tiny_resnet_det", "vgg16", "resnet50", "resnet101", "resnet50_det", "resnet101_det"
    ] = "vgg16"
    """VGG16; ResNets up to conv4, whose usual head is kind conv5 (configs/_base/coco_resnet.yaml);
    ResNet-det, with conv5 at stride 1; miniatures, which train from scratch on a CPU. [S]"""
    weights: str | None = None
    """Initial weights: null; torchvision's IMAGENET1K_V1 (VGG16: with fc6 and fc7), IMAGENET1K_V2
    (ResNets) or IMAGENET1K_FEATURES (VGG16's convolutions, of the Caffe release); or a file as
    torchvision:FILE (also of a torchvision detector on a ResNet, whose trunk is taken) or
    caffe:FILE, relative to the current directory. With caffe, ResNets are strided in the first
    convolution of a unit, else in the second. Whatever the weights, conv1 and conv2 of VGG16 and
    of the ResNets, and all batch norms, are not trained.
    [O; the paper starts from ImageNet weights, and so do configs/_base/voc.yaml and coco.yaml]"""
    width: Size = 24
    """Channels of the first layer of a tiny backbone; the others have their own. [O]"""
    image: Image = Image()
    split: Split = "none"
    """First block of which each task has its own copy (VGG16, tiny, ResNet-det), or the number of
    conv4's last units (other ResNets); none is one set of weights for both. [S: none and conv5; 2 of
    ResNet50's units, 6 of ResNet101's]"""
    cls: Branch = Branch()
    loc: Branch = Branch()
    context: Context = Context()
    anchors: Anchors = Anchors()
    rpn: Rpn = Rpn()
    roi: Roi = Roi()
    head: Head = Head()

    def contradictions(self) -> Iterator[tuple[str, str]]:
        yield from model_contradictions(self)


class DataSection(Section):
    """What every data set has."""

    flip: Share = 0.5
    """Probability of a horizontal flip in training. [C]"""
    drop_empty: bool = True
    """Whether training skips images without boxes; evaluation never does. [C]"""


class ShapesData(DataSection):
    """The built-in generated data set: drawn when needed, nothing on disk."""

    format: Literal["shapes"]
    """Layout of the data set: shapes, voc or coco; it decides which other keys this section has."""
    level: Literal["flat", "full"] = "flat"
    """flat is quick to learn, for demonstrations; full is for studies. [O]"""
    train_images: Annotated[int, Field(ge=1, le=10**7)] = 2000
    """Images of the training split. [O]"""
    test_images: Annotated[int, Field(ge=1, le=10**7)] = 500
    """Images of the test split. [O]"""
    test: Literal["test", "val"] = "test"
    """Split to evaluate on: val to choose settings by, test for results. [O]"""
    size: Annotated[int, Field(ge=32, le=10**5)] = 128
    """Side of the square images in pixels. [O]"""
    seed: Seed = 0
    """Seed of the images; not run.seed, so that all seeds of a study see the same images. [O]"""


class FilesData(DataSection):
    """A data set on disk, as PASCAL VOC XML files or as COCO JSON."""

    format: Literal["voc", "coco"]
    """Layout of the data set: shapes, voc or coco; it decides which other keys this section has."""
    root: Annotated[str, Field(min_length=1)]
    """Folder of the data set (voc: VOCdevkit; coco: the one with annotations/), relative to the
    current directory."""
    train: Names
    """Splits to train on, joined in this order, as VOC2007/trainval (voc) or train2014 (coco)."""
    test: Names
    """Splits to evaluate on."""
    classes: Names | None = None
    """Names of the classes in the order of their labels; null takes them from the data. [O]"""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        for key in ("train", "test", "classes"):
            repeated = _repeated(getattr(self, key) or ())
            if repeated:
                yield key, f"names {repeated[0]!r} twice; remove one"


Data = Annotated[ShapesData | FilesData, Field(discriminator="format")]


class Train(Section):
    """The training schedule; a step is one update of the weights."""

    steps: Count
    """Number of updates."""
    batch: Size = 1
    """Images per step over all processes and micro-batches. [S]"""
    accumulate: Size = 1
    """Micro-batches per step in each process. [S]"""
    lr: Positive = 0.001
    """Learning rate of SGD. [S]"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD. [S]"""
    weight_decay: PositiveOrZero = 0.0005
    """Weight decay. [R]"""
    bias_lr_factor: Positive = 2.0
    """Learning rate of biases, as a multiple of lr. [C: VGG16]"""
    bias_decay: bool = False
    """Whether biases decay too. [O]"""
    schedule: Literal["step", "cosine"] = "step"
    """How lr falls: by steps, or along half a cosine to zero. [S]"""
    lr_steps: Steps = ()
    """Schedule step only: steps at which lr is multiplied by gamma; those past the end do nothing.
    [S: 150000 for VOC, 240000 for COCO]"""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Schedule step only: the factor. [S]"""
    warmup: CountOrZero = 0
    """Steps during which lr rises linearly from warmup_factor * lr. [C]"""
    warmup_factor: Share = 0.001
    """Where the warm-up starts. [O]"""
    clip_grad_norm: Positive | None = None
    """Largest norm of the whole gradient; null does not clip. [C]"""
    checkpoint_every: Count = 2000
    """Steps between checkpoints; one is always written at the end. [O]"""
    keep: Count = 3
    """Newest checkpoints to keep. [O]"""
    eval_every: CountOrZero = 0
    """Steps between evaluations; 0 evaluates only at the end. [O]"""
    log_every: Count = 20
    """Steps between lines of metrics.jsonl, which hold the mean losses since the last. [O]"""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if self.batch % self.accumulate:
            yield "accumulate", f"must divide train.batch = {self.batch} (got {self.accumulate}); choose a divisor"
        if list(self.lr_steps) != sorted(set(self.lr_steps)):
            yield "lr_steps", f"must rise (got {list(self.lr_steps)}); sort them, each once"


class Eval(Section):
    """What is measured on the test splits."""

    protocols: Annotated[tuple[Literal["voc", "coco"], ...], Strict(False), Field(min_length=1)] = (
        "voc",
        "coco",
    )
    """Protocols to score by; any data set can be scored by either. [O]"""
    voc_iou: Annotated[tuple[Share, ...], Strict(False), Field(min_length=1)] = (0.5, 0.7, 0.75)
    """IoU thresholds of the VOC protocol, in whole percents. [S: 0.7; O: the others]"""
    limit: Count | None = None
    """Evaluate only that many images; null takes all. [O]"""
    pictures: CountOrZero = 8
    """Images drawn with ground truth and detections after each evaluation; 0 draws nothing, curves neither. [O]"""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        for key in ("protocols", "voc_iou"):
            repeated = _repeated(getattr(self, key))
            if repeated:
                yield key, f"names {repeated[0]!r} twice; remove one"
        for iou in self.voc_iou:
            if not 0 < iou < 1 or abs(iou * 100 - round(iou * 100)) > 1e-9:
                yield "voc_iou", f"expected whole percents between 0 and 1, as 0.75 (got {iou}); round it"


class Run(Section):
    """Where and how a run is carried out; only seed, deterministic, amp and tf32 change what is computed."""

    seed: Seed = 0
    """Seed of everything random but the shapes data. [O]"""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto for a GPU where there is one. [O]"""
    deterministic: bool = False
    """Whether a GPU repeats its results to the bit, as a CPU does anyway; slower, and with roi.op: align only. [O]"""
    amp: Literal["none", "bf16"] = "none"
    """Precision of the forward pass: float32, or bfloat16 by autocast. [O]"""
    tf32: bool = False
    """Whether a GPU multiplies float32 matrices with 10 bits of mantissa (TF32), faster; it convolves so in any case,
    torch's default. [O]"""
    workers: Annotated[int, Field(ge=0, le=10**4)] = 2
    """Processes per rank that read images; 0 reads in the main process. [O]"""
    timeout: Annotated[float, Field(gt=0, le=10**6)] = 1800.0
    """Seconds to wait for another process, one that trains too or one that reads images, before giving up. It must
    cover scoring the whole test set. [O]"""
    threads: Size | None = None
    """CPU threads of torch per process; null leaves torch's choice. [O]"""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device, re.ASCII):
            yield "device", f"expected auto, cpu, cuda or cuda:N (got {self.device!r}); choose one"


class PaperRow(Section):
    """One row of one table of the paper."""

    table: Annotated[int, Field(ge=1, le=5)]
    """Number of the table."""
    row: str
    """Id of the row in configs/paper_tables.yaml."""


class Config(Section):
    """A whole config file."""

    model: Model = Model()
    data: Data
    train: Train
    eval: Eval = Eval()
    run: Run = Run()
    paper: Annotated[tuple[PaperRow, ...], Strict(False)] = ()
    """Rows of the paper's tables that this config reproduces."""
