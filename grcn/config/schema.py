"""Defines every setting of grcn: its type, range, default and meaning. The manual of the YAML configs.

The defaults are the *paper* preset. The tag after a sentence says where its default comes from:

* [S] stated in the G-RCN paper (arXiv 2012.03677)
* [R] stated in the Faster R-CNN paper (Ren et al., arXiv 1506.01497), whose settings G-RCN adopts
  unless it says otherwise
* [C] in neither paper, but common to the public Faster R-CNN implementations of that time
* [T] torchvision's detectors have it so
* [O] our choice: none of the above decides it, or we deviate on purpose

The :class:`grcn.config.types.Role` of a setting states what it changes: the training, the detections, the measure, or
only how a run is carried out. It is that of its section, unless its annotation names another. Resuming, evaluating and
comparing runs read it there.

Settings that depend on the data set (schedule, anchor sizes) are set by ``configs/_base/*.yaml``; the defaults here are
VOC's values or none. The number of classes is not a setting: it comes from the data. :mod:`grcn.config.files` reads
the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, Strict

from grcn.catalog import SHAPES_CLASSES
from grcn.config.model_schema import ModelConfig
from grcn.config.types import (
    DATA,
    HOW,
    MEASURE,
    TRAINING,
    Count,
    CountOrZero,
    Decay,
    Names,
    NamesByName,
    Positive,
    PositiveOrZero,
    Section,
    Seed,
    Share,
    Size,
    Steps,
    repeated,
)


class CropConfig(Section):
    """Random crops in training. Objects are clipped; an image may end without any."""

    role = TRAINING

    prob: Share = 0.0
    """Probability that an image is cropped. [O]"""
    scale: Annotated[tuple[Share, Share], Strict(False)] = (0.5, 1.0)
    """Bounds of the crop's height as a share of the image's, and of its width, drawn independently. [O]"""
    min_kept: Share = 0.3
    """Share of an object's box that must lie in the crop; else the object is dropped. [O]"""

    def check(self) -> Iterator[tuple[str, str]]:
        if self.scale[0] > self.scale[1]:
            yield "scale", f"must rise (got {list(self.scale)}); swap them"


class ColorConfig(Section):
    """Random changes of colour in training, in this order; factors are drawn from 1 - value to 1 + value."""

    role = TRAINING

    brightness: Share = 0.0
    """Spread of the factor of brightness. [O]"""
    contrast: Share = 0.0
    """Spread of the factor of contrast. [O]"""
    saturation: Share = 0.0
    """Spread of the factor of saturation. [O]"""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest shift of the hue, in turns of the colour circle. [O]"""


class AugmentConfig(Section):
    """Augmentation beside the flip; the paper has none."""

    role = TRAINING

    crop: CropConfig = CropConfig()
    color: ColorConfig = ColorConfig()


class CommonDataConfig(Section):
    """Settings of every data set."""

    role = DATA

    flip: Annotated[Share, TRAINING] = 0.5
    """Probability of a horizontal flip in training. [C]"""
    augment: AugmentConfig = AugmentConfig()
    drop_empty: Annotated[bool, TRAINING] = True
    """Whether training skips images without boxes; evaluation never does. [C]"""
    same_as: Annotated[NamesByName, TRAINING] = {}
    """Names that the starting weights have for classes of the data, where they differ: {aeroplane: airplane} for VOC
    data and COCO weights. Such a class starts from the rows of its name there. [O]"""


class ShapesDataConfig(CommonDataConfig):
    """The built-in generated data set: drawn when needed, nothing on disk."""

    format: Literal["shapes"]
    """Layout of the data set: shapes, voc, coco or yolo; it decides which other keys this section has."""
    level: Literal["flat", "full"] = "flat"
    """flat is quick to learn, for demonstrations; full is for studies. [O]"""
    train_images: Annotated[int, Field(ge=1, le=10**7), TRAINING] = 2000
    """Images of the training split. [O]"""
    test_images: Annotated[int, Field(ge=1, le=10**7), MEASURE] = 500
    """Images of the test split. [O]"""
    test: Annotated[Literal["test", "val"], MEASURE] = "test"
    """Split to evaluate on: val to choose settings by, test for results. [O]"""
    classes: Names | None = None
    """Classes that are objects, of those of the level, in the order of their labels; the others are drawn and are
    background. null takes all. [O]"""
    size: Annotated[int, Field(ge=32, le=10**5)] = 128
    """Side of the square images in pixels. [O]"""
    seed: Seed = 0
    """Seed of the images; not run.seed, so that all seeds of a study see the same images. [O]"""

    def check(self) -> Iterator[tuple[str, str]]:
        known = SHAPES_CLASSES[self.level]
        if unknown := [name for name in self.classes or () if name not in known]:
            yield "classes", f"level {self.level} has no {unknown[0]!r}; choose of {', '.join(known)}"
        if twice := repeated(self.classes or ()):
            yield "classes", f"names {twice[0]!r} twice; remove one"


class FilesDataConfig(CommonDataConfig):
    """A data set on disk, as PASCAL VOC XML files, as COCO JSON, or as YOLO text files."""

    format: Literal["voc", "coco", "yolo"]
    """Layout of the data set: shapes, voc, coco or yolo; it decides which other keys this section has."""
    root: Annotated[str, Field(min_length=1), HOW]
    """Folder of the data set (voc: VOCdevkit; coco: the one with annotations/; yolo: the one with data.yaml), relative
    to the current directory, or to your home after ~/."""
    train: Annotated[Names, TRAINING]
    """Splits to train on, joined in this order: VOC2007/trainval (voc), or train for a folder of images and XML without
    a list; train2014 (coco), for annotations/instances_train2014.json and images in train2014/, or IMAGES:FILE.json
    (coco), a folder of images and an annotation file, both below root; train (yolo), as data.yaml names it, or for
    images/train/, train/images/ or train.txt."""
    test: Annotated[Names, MEASURE]
    """Splits to evaluate on."""
    classes: Names | None = None
    """Names of the classes in the order of their labels, every one that occurs; null takes them from the data. yolo
    without a data.yaml needs them. [O]"""
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """How many of their 16 bits grey images use; many cameras and X-ray devices use 12. Larger values become white.
    null is all 16. Other images do not change. [O]"""
    strict: Annotated[bool, HOW] = False
    """Whether annotations that deviate from the layout are refused. Else those that have one sensible meaning are read
    that way and counted. [O]"""

    @property
    def folder(self) -> str:
        """The folder that ``root`` means on this machine and for this user."""
        return os.path.expanduser(self.root)

    def check(self) -> Iterator[tuple[str, str]]:
        for key in ("train", "test", "classes"):
            twice = repeated(getattr(self, key) or ())
            if twice:
                yield key, f"names {twice[0]!r} twice; remove one"
        for key in ("train", "test"):
            for split in getattr(self, key):
                if any(part.startswith("/") or ".." in part.split("/") for part in split.split(":")):
                    yield key, f"{split!r} leads out of data.root; give paths below it"
                elif self.format == "coco" and (problem := _problem_of_split(split)):
                    yield key, f"{split!r} {problem}"


_JSON = (".json", ".json.gz")


def _problem_of_split(split: str) -> str | None:
    """Describes what is wrong with the name of a split in COCO's layout, and what it should be."""
    usual = "a split is NAME, for annotations/instances_NAME.json and NAME/, or IMAGES:FILE.json"
    parts = split.split(":")
    if len(parts) == 1:
        return f"is a file; {usual}" if split.endswith(_JSON) else None
    if len(parts) > 2 or not all(parts) or not split.endswith(_JSON):
        return f"is no IMAGES:FILE.json; {usual}"
    return None


DataConfig = Annotated[ShapesDataConfig | FilesDataConfig, Field(discriminator="format")]


class TrainConfig(Section):
    """The training schedule; a step is one update of the weights."""

    role = TRAINING

    steps: Count
    """Number of updates."""
    batch: Size = 1
    """Images per step over all processes and micro-batches. [S]"""
    accumulate: Size = 1
    """Micro-batches per step in each process. [S]"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW, which needs an lr and a weight_decay of its own. [S]"""
    lr: Positive = 0.001
    """Learning rate. [S: of SGD]"""
    momentum: Decay = 0.9
    """Optimizer sgd only: the momentum. [S]"""
    betas: Annotated[tuple[Decay, Decay], Strict(False)] = (0.9, 0.999)
    """Optimizer adamw only: decay per step of the means of the gradient and of its square. [C]"""
    weight_decay: PositiveOrZero = 0.0005
    """Weight decay: added to the gradient by sgd, decoupled from it by adamw. [R: of SGD]"""
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
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of a moving average of the weights, which evaluation and prediction use in place of the last
    weights; null keeps none. [O]"""
    checkpoint_every: Annotated[Count, HOW] = 2000
    """Steps between checkpoints; one is always written at the end. [O]"""
    keep: Annotated[Count, HOW] = 3
    """Newest checkpoints to keep. [O]"""
    eval_every: Annotated[CountOrZero, HOW] = 0
    """Steps between evaluations; 0 evaluates only at the end. [O]"""
    log_every: Annotated[Count, HOW] = 20
    """Steps between lines of metrics.jsonl, which hold the mean losses since the last. [O]"""

    def check(self) -> Iterator[tuple[str, str]]:
        if self.batch % self.accumulate:
            yield "accumulate", f"must divide train.batch = {self.batch} (got {self.accumulate}); choose a divisor"
        if list(self.lr_steps) != sorted(set(self.lr_steps)):
            yield "lr_steps", f"must rise (got {list(self.lr_steps)}); sort them, each once"


class EvalConfig(Section):
    """Evaluation on the test splits."""

    role = MEASURE

    protocols: Annotated[tuple[Literal["voc", "coco"], ...], Strict(False), Field(min_length=1)] = (
        "voc",
        "coco",
    )
    """Protocols to score by; any data set can be scored by either. [O]"""
    voc_iou: Annotated[tuple[Share, ...], Strict(False), Field(min_length=1)] = (0.5, 0.7, 0.75)
    """IoU thresholds of the VOC protocol, in whole percents. [S: 0.7; O: the others]"""
    limit: Count | None = None
    """Evaluate only that many images; null takes all. [O]"""
    pictures: Annotated[CountOrZero, HOW] = 8
    """Images drawn with ground truth and detections after each evaluation; 0 draws nothing, neither curves nor the
    first inputs. [O]"""
    best: Annotated[str | None, HOW] = None
    """Metric whose best evaluation keeps its checkpoint, as best-….pt; null takes coco_ap if the COCO protocol is
    among protocols, voc_area_ap at the first of voc_iou otherwise. [O]"""

    @property
    def best_metric(self) -> str:
        """The metric that ``best`` names, or its default."""
        default = "coco_ap" if "coco" in self.protocols else f"voc_area_ap{round(self.voc_iou[0] * 100)}"
        return default if self.best is None else self.best

    def check(self) -> Iterator[tuple[str, str]]:
        for key in ("protocols", "voc_iou"):
            twice = repeated(getattr(self, key))
            if twice:
                yield key, f"names {twice[0]!r} twice; remove one"
        for iou in self.voc_iou:
            if not 0 < iou < 1 or abs(iou * 100 - round(iou * 100)) > 1e-9:
                yield "voc_iou", f"expected whole percents between 0 and 1, as 0.75 (got {iou}); round it"
        if self.best_metric not in (measured := self._measured()):
            yield "best", f"not measured (got {self.best!r}); take one of {', '.join(measured)}"

    def _measured(self) -> list[str]:
        voc = [f"voc{kind}_ap{round(iou * 100)}" for iou in self.voc_iou for kind in ("07", "_area")]
        coco = ["coco_ap", "coco_ap50", "coco_ap75", "coco_ap_small", "coco_ap_medium", "coco_ap_large"]
        return voc * ("voc" in self.protocols) + coco * ("coco" in self.protocols)


class RunConfig(Section):
    """Where and how a run is carried out."""

    role = HOW

    seed: Annotated[Seed, TRAINING] = 0
    """Seed of everything random but the shapes data. [O]"""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto for a GPU where there is one. [O]"""
    deterministic: Annotated[bool, TRAINING] = False
    """Whether a GPU repeats its results to the bit, as a CPU does anyway; slower, and with roi.op: align only. [O]"""
    amp: Annotated[Literal["none", "bf16", "auto"], TRAINING] = "none"
    """Precision of the forward pass: float32, or bfloat16 by autocast; auto: bfloat16 on GPUs and CPUs that multiply it
    (AVX512-BF16, AMX). The run records which, and keeps it. [O]"""
    compile: Annotated[Literal["none", "default", "reduce-overhead"], TRAINING] = "none"
    """Mode of torch.compile for backbone, RPN and RoI heads, which takes minutes at the start of a run. reduce-overhead
    replays a GPU's kernels without Python, recorded for each size of a batch: model.image.multiple=32 makes them
    few. [O]"""
    tf32: Annotated[bool, TRAINING] = False
    """Whether a GPU multiplies float32 matrices with 10 bits of mantissa (TF32), faster; it convolves so in any case,
    torch's default. [O]"""
    workers: Annotated[int, Field(ge=0, le=10**4)] = 2
    """Processes per rank that read images; 0 reads in the main process. [O]"""
    timeout: Annotated[float, Field(gt=0, le=10**6)] = 1800.0
    """Seconds to wait for another process, one that trains too or one that reads images, before giving up. It must
    cover scoring the whole test set. [O]"""
    threads: Size | None = None
    """CPU threads of torch per process; null leaves torch's choice. [O]"""
    tensorboard: bool = False
    """Whether the run folder gets events for TensorBoard, beside metrics.jsonl; needs grcn[tb]. [O]"""

    def check(self) -> Iterator[tuple[str, str]]:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device, re.ASCII):
            yield "device", f"expected auto, cpu, cuda or cuda:N (got {self.device!r}); choose one"


class PaperRowConfig(Section):
    """One row of one table of the paper."""

    role = HOW

    table: Annotated[int, Field(ge=1, le=5)]
    """Number of the table."""
    row: str
    """Id of the row in configs/paper_tables.yaml."""


class Config(Section):
    """A whole config file."""

    role = HOW

    model: ModelConfig = ModelConfig()
    data: DataConfig
    train: TrainConfig
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()
    paper: Annotated[tuple[PaperRowConfig, ...], Strict(False)] = ()
    """Rows of the paper's tables that this config reproduces."""
