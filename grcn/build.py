"""From a config to what it describes: model, data, optimizer. The parts themselves take plain arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from grcn.catalog import (
    COCO_CLASSES,
    RESNET_UNITS,
    RESNET_WIDTH,
    SHAPES_CLASSES,
    TINY_BLOCKS,
    VGG16_BLOCKS,
    VOC_CLASSES,
)
from grcn.config.files import dump_config
from grcn.config.model_schema import ModelConfig
from grcn.config.schema import Config, DataConfig, EvalConfig, FilesDataConfig, ShapesDataConfig, TrainConfig
from grcn.data import coco, voc, yolo
from grcn.data.annotations import Annotations
from grcn.data.augment import Augmentation, ColorJitter, HorizontalFlip, RandomCrop
from grcn.data.dataset import DetectionDataset
from grcn.data.faults import Notes, Report
from grcn.data.images import FileImages
from grcn.data.loader import TrainBatch, train_batches
from grcn.data.synthetic import dataset as shapes
from grcn.engine import distributed
from grcn.engine.average import WeightAverage
from grcn.engine.recorder import Metrics, Recorder
from grcn.engine.signals import StopSignals
from grcn.engine.train import Batch, learning_rate, train
from grcn.errors import DataError, one_line
from grcn.models.anchors import AnchorGenerator
from grcn.models.box_heads import Conv5Head, ConvHead, TaskHeads, TwoMLPHead
from grcn.models.context import ContextAttention
from grcn.models.detector import Detector
from grcn.models.features import TASKS
from grcn.models.init import initialise
from grcn.models.resnet import SplitResNet, conv5_units
from grcn.models.roi_heads import DetectionSettings, RoIHeads, SamplingSettings
from grcn.models.roi_pool import RoIPool
from grcn.models.rpn import ProposalSettings, RegionProposalNetwork
from grcn.models.transform import DetectionTransform
from grcn.models.vgg import SplitVGG
from grcn.models.weights import normalisation_of, stride_in_of

AMP = {"none": None, "bf16": torch.bfloat16}

_READERS = {"voc": voc.load, "coco": coco.load, "yolo": yolo.load}


def build_model(cfg: ModelConfig, num_classes: int | None = None, seed: int = 0) -> Detector:
    """Builds a detector with initial values from ``seed``; reads neither disk nor network.

    On the meta device it builds too, without values.

    Args:
        cfg: the ``model`` section.
        num_classes: including background; needed, no config says it.
        seed: of the initial values. Pretrained weights are loaded apart, by ``grcn.models.weights.load_weights``.

    Raises:
        TypeError: ``cfg`` is something else, as a whole config or its file; there is no ``num_classes``.
    """
    # A whole config comes without num_classes often: both mistakes get a line that says how to call this.
    usage = "build_model takes the model section and num_classes"
    if not isinstance(cfg, ModelConfig):
        raise TypeError(f"{usage}; pass cfg.model (got {type(cfg).__name__})")
    if num_classes is None:
        raise TypeError(f"{usage}; pass the number of classes, background included")
    backbone = _backbone(cfg)
    specs = backbone.feature_specs

    rpn = RegionProposalNetwork(
        specs[cfg.rpn.reads].channels,
        cfg.rpn.channels,
        AnchorGenerator(cfg.anchors.sizes, cfg.anchors.ratios, specs[cfg.rpn.reads].stride),
        train=ProposalSettings(cfg.rpn.pre_nms_train, cfg.rpn.post_nms_train, cfg.rpn.nms, cfg.rpn.min_size),
        test=ProposalSettings(cfg.rpn.pre_nms_test, cfg.rpn.post_nms_test, cfg.rpn.nms, cfg.rpn.min_size),
        reads=cfg.rpn.reads,
        batch=cfg.rpn.batch,
        fg_fraction=cfg.rpn.fg_fraction,
        fg_iou=cfg.rpn.fg_iou,
        bg_iou=cfg.rpn.bg_iou,
        straddling=cfg.rpn.straddling,
        beta=cfg.rpn.smooth_l1_beta,
    )

    def pool(task: str, size: int) -> RoIPool:
        return RoIPool(specs[task].stride, size, cfg.roi.op, cfg.roi.sampling_ratio, cfg.roi.aligned)

    in_context = [task for task in TASKS if cfg.context.on in (task, "both")]
    roi_heads = RoIHeads(
        pools={task: pool(task, cfg.roi.size) for task in TASKS},
        heads=TaskHeads(lambda: _hidden_layers(cfg, specs["cls"].channels), num_classes, cfg.head.tasks),
        shared_map=backbone.shared,
        context={
            task: ContextAttention(specs[task].channels, cfg.context.dim, cfg.context.heads, cfg.context.value)
            for task in in_context
        },
        context_pools={task: pool(task, cfg.context.size) for task in in_context},
        sampling=SamplingSettings(
            cfg.roi.batch, cfg.roi.fg_fraction, cfg.roi.fg_iou, cfg.roi.bg_iou_low, cfg.roi.add_gt
        ),
        detecting=DetectionSettings(cfg.roi.score_thresh, cfg.roi.nms, cfg.roi.detections),
        box_weights=cfg.roi.box_weights,
        beta=cfg.roi.smooth_l1_beta,
    )
    transform = DetectionTransform(cfg.image.short, cfg.image.max, normalisation_of(cfg.weights))
    model = Detector(transform, backbone, rpn, roi_heads)
    initialise(model, seed, xavier_context=cfg.context.init == "xavier")
    return model


def _backbone(cfg: ModelConfig) -> SplitVGG | SplitResNet:
    name, tiny = cfg.backbone.removesuffix("_det"), cfg.backbone.startswith("tiny")
    frozen = cfg.freeze if cfg.freeze is not None else 0 if tiny else 2
    if name in RESNET_UNITS:
        return SplitResNet(
            RESNET_UNITS[name],
            cfg.split,
            {"cls": cfg.cls.stride, "loc": cfg.loc.stride},
            det=name != cfg.backbone,
            width=cfg.width if tiny else RESNET_WIDTH,
            stride_in=stride_in_of(cfg.weights),
            from_scratch=tiny,
            frozen_stages=frozen,
        )
    blocks = [[cfg.width * factor] for factor in TINY_BLOCKS] if tiny else VGG16_BLOCKS
    last_pool = {"cls": cfg.cls.last_pool, "loc": cfg.loc.last_pool}
    return SplitVGG(blocks, str(cfg.split), last_pool, frozen_blocks=frozen, from_scratch=tiny)


def _hidden_layers(cfg: ModelConfig, channels: int) -> TwoMLPHead | ConvHead | Conv5Head:
    """Builds one set of hidden layers for maps of ``channels``."""
    if cfg.head.kind == "fc":
        return TwoMLPHead(channels * cfg.roi.size**2, cfg.head.dim, cfg.head.dropout)
    if cfg.head.kind == "conv":
        return ConvHead(channels, cfg.head.dim)
    name, tiny = cfg.backbone.removesuffix("_det"), cfg.backbone.startswith("tiny")
    count, width = RESNET_UNITS[name][3], cfg.width if tiny else RESNET_WIDTH
    units = conv5_units(count, channels, stride_in_of(cfg.weights), from_scratch=tiny, width=width)
    return Conv5Head(units, out_features=32 * width)


def build_train_split(cfg: DataConfig) -> DetectionDataset:
    """Reads the annotations to train on."""
    return _split(cfg, "train", cfg.classes if isinstance(cfg, FilesDataConfig) else None)


def class_names(cfg: DataConfig) -> tuple[str, ...] | None:
    """Returns the classes of a model trained on this data; None where the test split itself names them all."""
    if isinstance(cfg, ShapesDataConfig) or cfg.classes is not None or cfg.format != "voc":
        return cfg.classes if isinstance(cfg, FilesDataConfig) else None
    if read_annotations(cfg, "test", None).classes == VOC_CLASSES:
        return None
    return read_annotations(cfg, "train", None).classes


def usual_classes(cfg: DataConfig) -> tuple[str, ...]:
    """Returns the classes that a data set of this format has unless it says otherwise; reads nothing."""
    if isinstance(cfg, ShapesDataConfig):
        return SHAPES_CLASSES[cfg.level]
    return cfg.classes or (VOC_CLASSES if cfg.format == "voc" else COCO_CLASSES)


def build_test_split(cfg: DataConfig, classes: tuple[str, ...] | None) -> DetectionDataset:
    """Reads the annotations to evaluate on.

    Args:
        cfg: the ``data`` section.
        classes: those of the model: a class that it does not know is an error. None takes them from the split.
    """
    return _split(cfg, "test", classes)


def limit_images(cfg: EvalConfig, table: Annotations) -> Annotations:
    """Returns the images of a test split that count: all, or the first ``eval.limit``."""
    return table if cfg.limit is None else table.first(cfg.limit)


def _split(cfg: DataConfig, side: Literal["train", "test"], classes: tuple[str, ...] | None) -> DetectionDataset:
    if isinstance(cfg, ShapesDataConfig):
        count, split = (cfg.train_images, side) if side == "train" else (cfg.test_images, cfg.test)
        table = shapes.load(cfg.level, split, count, cfg.size, cfg.seed)
        return DetectionDataset(table, shapes.ShapesImages(cfg.level, split, cfg.size, cfg.seed))
    table = read_annotations(cfg, side, classes)
    return DetectionDataset(table, FileImages(table, cfg.bits))


def read_annotations(
    cfg: FilesDataConfig,
    side: Literal["train", "test"],
    classes: tuple[str, ...] | None,
    report: Report | None = None,
    notes: Notes | None = None,
) -> Annotations:
    """Reads the annotations of one side of a data set on disk; its images need not exist.

    Args:
        report: is told of every fault, where otherwise the first one is raised.
        notes: counts what is read as it was meant; without one, a warning does.

    Raises:
        DataError: as the readers do; or there is no folder to read in, which is no fault of its files.
    """
    exists = os.path.isdir(cfg.folder)
    try:
        own = Notes(cfg.strict) if notes is None else notes
        table = _READERS[cfg.format](cfg.folder, getattr(cfg, side), classes, report if exists else None, own)
        if notes is None:
            own.log(table.name)
        return table
    except DataError as error:
        if exists or "set data.root=" in str(error):  # where the data are instead
            raise
        what, remedy = _no_folder(cfg.root)
        raise DataError(one_line(f"data.root: {what} (got {cfg.root!r}); {remedy}")) from error


def _no_folder(root: str) -> tuple[str, str]:
    """Says what a ``data.root`` is that is no folder, and what to do."""
    if re.match(r"\w+://", root):
        return "an address, not a folder", "download the data and set it to their folder"
    if windows := re.match(r"([A-Za-z]):[\\/]+(.*)", root):
        drive, rest = windows[1].lower(), windows[2].replace("\\", "/")
        return "a Windows path, which this machine has not", f"set it to the folder here, as /mnt/{drive}/{rest} in WSL"
    return "no such folder", "set it to the folder of the data"


def build_augmentations(cfg: DataConfig) -> tuple[Augmentation, ...]:
    """Builds the augmentations of ``data.flip`` and ``data.augment``."""
    crop, color = cfg.augment.crop, cfg.augment.color
    found: list[Augmentation] = [HorizontalFlip(cfg.flip)]  # the first one, or others would be drawn otherwise without
    if crop.prob:
        found.append(RandomCrop(crop.prob, crop.scale, crop.min_kept))
    if any((color.brightness, color.contrast, color.saturation, color.hue)):
        found.append(ColorJitter(color.brightness, color.contrast, color.saturation, color.hue))
    return tuple(found)


def build_batches(
    cfg: Config,
    data: DetectionDataset,
    *,
    start_step: int = 0,
    steps: int | None = None,
    batch: int | None = None,
    accumulate: int | None = None,
    workers: int | None = None,
    pin_memory: bool = False,
    alone: bool = False,
) -> Iterator[TrainBatch]:
    """Yields this process's micro-batches of a training, as :func:`grcn.data.loader.train_batches` documents them.

    Args:
        start_step: the first step.
        steps: the step to stop before; None for ``train.steps``.
        batch, accumulate, workers: None for the config's.
        alone: yield the micro-batches of all processes.
    """
    return train_batches(
        data,
        seed=cfg.run.seed,
        batch=cfg.train.batch if batch is None else batch,
        steps=cfg.train.steps if steps is None else steps,
        start_step=start_step,
        accumulate=cfg.train.accumulate if accumulate is None else accumulate,
        rank=0 if alone else distributed.rank(),
        world=1 if alone else distributed.world_size(),
        workers=cfg.run.workers if workers is None else workers,
        augment=build_augmentations(cfg.data),
        drop_empty=cfg.data.drop_empty,
        pin_memory=pin_memory,
        timeout=cfg.run.timeout,
    )


def build_optimizer(cfg: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Builds SGD with momentum or AdamW, fused into one pass over the parameters.

    Biases learn at ``bias_lr_factor`` times the rate and do not decay unless told to; scales of norms do not decay.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    biases = [parameter for name, parameter in named if name.endswith("bias")]
    scales = [parameter for name, parameter in named if not name.endswith("bias") and parameter.dim() == 1]
    weights = [parameter for name, parameter in named if parameter.dim() > 1]
    groups = [
        {"params": weights, "weight_decay": cfg.weight_decay},
        {"params": scales, "weight_decay": 0.0},
        {
            "params": biases,
            "weight_decay": cfg.weight_decay if cfg.bias_decay else 0.0,
            "lr_factor": cfg.bias_lr_factor,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, fused=True)
    return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, fused=True)


@dataclass(frozen=True)
class Training:
    """What a config says of a training, built.

    Attributes:
        cfg: the config.
        model: on the CPU, with the initial values of ``run.seed``; pretrained weights are not loaded.
        train, test: the splits of the data.
        record: what each checkpoint holds beside the weights: settings, classes, fingerprint of the annotations.
    """

    cfg: Config
    model: Detector
    train: DetectionDataset
    test: DetectionDataset
    record: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1..C."""
        return self.train.table.classes

    @property
    def steps(self) -> int:
        """The step that the training ends with."""
        return self.cfg.train.steps

    def __str__(self) -> str:
        steps, images, lr = self.cfg.train.steps, self.cfg.train.batch, self.cfg.train.lr
        return (
            f"{steps} steps of {images} image{'s' * (images > 1)}, lr {lr:g} (scale lr with the batch: "
            f"{lr / images:g} per image)"
        )

    def batches(self, device: torch.device, start_step: int = 0, workers: int | None = None) -> Iterator[TrainBatch]:
        """Yields this process's micro-batches from a step on; see :func:`build_batches`."""
        return build_batches(
            self.cfg, self.train, start_step=start_step, workers=workers, pin_memory=device.type == "cuda"
        )

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Builds the optimizer of a model that is on its device."""
        return build_optimizer(self.cfg.train, model)

    def average(self, model: nn.Module) -> WeightAverage | None:
        """Copies a model that is on its device, to average its weights over the steps; None where none is wanted."""
        decay = self.cfg.train.ema
        return None if decay is None else WeightAverage(model, decay)

    def recorder(self, folder: Path, state: dict[str, Any] | None) -> Recorder:
        """Returns the recorder of a run's folder, to continue from the checkpoint ``state``, or at step 0."""
        cfg = self.cfg
        return Recorder(
            folder, state=state, record=self.record, log_every=cfg.train.log_every, keep=cfg.train.keep,
            best=cfg.eval.best_metric, tensorboard=cfg.run.tensorboard,
        )  # fmt: skip

    def lr_at(self, step: int) -> float:
        """Returns the learning rate of update ``step``, counted from 0."""
        cfg = self.cfg.train
        return learning_rate(
            step, lr=cfg.lr, steps=cfg.steps, schedule=cfg.schedule, milestones=cfg.lr_steps, gamma=cfg.gamma,
            warmup=cfg.warmup, warmup_factor=cfg.warmup_factor,
        )  # fmt: skip

    def run(
        self,
        model: nn.Module,
        batches: Iterator[Batch],
        optimizer: torch.optim.Optimizer,
        recorder: Recorder,
        evaluate: Callable[[int], Metrics],
        ema: WeightAverage | None,
        stop: StopSignals | None,
    ) -> Metrics:
        """Trains ``model`` by the schedule; arguments and result as of :func:`grcn.engine.train.train`."""
        cfg = self.cfg.train
        return train(
            model, batches, optimizer, recorder, steps=cfg.steps, lr_at=self.lr_at, seed=self.cfg.run.seed,
            accumulate=cfg.accumulate, amp=AMP[self.cfg.run.amp], clip_grad_norm=cfg.clip_grad_norm,
            checkpoint_every=cfg.checkpoint_every, evaluate=evaluate, eval_every=cfg.eval_every, ema=ema, stop=stop,
        )  # fmt: skip


def build_training(cfg: Config) -> Training:
    """Reads the annotations and builds the model.

    Raises:
        DataError: as the readers do.
    """
    train_split = build_train_split(cfg.data)
    test_split = build_test_split(cfg.data, train_split.table.classes)
    model = build_model(cfg.model, len(train_split.table.classes) + 1, cfg.run.seed)
    record = {
        "config": dump_config(cfg),
        "classes": list(train_split.table.classes),
        "data_fingerprint": train_split.table.fingerprint(),
    }
    return Training(cfg, model, train_split, test_split, record)
