"""Builds a training from a config: model, data, optimizer, schedule and the record of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grcn.build.data import build_batches, build_test_split, build_train_split
from grcn.build.model import build_model
from grcn.config.files import dump_config
from grcn.config.schema import Config, RunConfig, TrainConfig
from grcn.data.dataset import DetectionDataset
from grcn.data.loader import TrainBatch
from grcn.engine.average import WeightAverage
from grcn.engine.recorder import Metrics, Recorder
from grcn.engine.signals import StopSignals
from grcn.engine.train import Batch, learning_rate, train
from grcn.errors import ConfigError
from grcn.models.detector import Detector


def amp_dtype(cfg: RunConfig) -> torch.dtype | None:
    """Returns the dtype of autocast, None for float32 alone.

    Raises:
        ConfigError: ``amp`` is auto, and the device not known.
    """
    if cfg.amp == "auto":
        raise ConfigError("run.amp: auto depends on the device; call grcn.run.backend.with_precision, or set bf16")
    return torch.bfloat16 if cfg.amp == "bf16" else None


def build_optimizer(cfg: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Builds SGD with momentum or AdamW, fused into one pass over the parameters.

    Biases learn at ``bias_lr_factor`` times the rate and decay only with ``bias_decay``; scales of norms never decay.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    biases = [parameter for name, parameter in named if name.endswith("bias")]
    others = [parameter for name, parameter in named if not name.endswith("bias")]
    scales = [parameter for parameter in others if parameter.dim() <= 1]
    weights = [parameter for parameter in others if parameter.dim() > 1]
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
    """A training, built from a config.

    Attributes:
        cfg: the config.
        model: on the CPU, with the initial values of ``run.seed``; pretrained weights are not loaded.
        train, test: the splits of the data.
        record: stored in each checkpoint beside the weights: settings, classes, fingerprint of the annotations.
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
        """Number of steps of the training."""
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
        """Copies a model that is on its device, to average its weights over the steps; None without ``train.ema``."""
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
        evaluate: Callable[[int], Metrics] | None = None,
        ema: WeightAverage | None = None,
        stop: StopSignals | None = None,
    ) -> Metrics:
        """Trains ``model`` by the schedule; arguments and result as in :func:`grcn.engine.train.train`."""
        cfg = self.cfg.train
        return train(
            model, batches, optimizer, recorder, steps=cfg.steps, lr_at=self.lr_at, seed=self.cfg.run.seed,
            accumulate=cfg.accumulate, amp=amp_dtype(self.cfg.run), clip_grad_norm=cfg.clip_grad_norm,
            checkpoint_every=cfg.checkpoint_every, evaluate=evaluate, eval_every=cfg.eval_every, ema=ema, stop=stop,
        )  # fmt: skip


def build_training(cfg: Config, backbone: nn.Module | None = None) -> Training:
    """Reads the annotations and builds the model.

    Args:
        backbone: to use in place of the config's, as in :func:`grcn.build.build_model`.

    Raises:
        DataError: as the readers do.
    """
    train_split = build_train_split(cfg.data)
    test_split = build_test_split(cfg.data, train_split.table.classes)
    model = build_model(cfg.model, len(train_split.table.classes) + 1, cfg.run.seed, backbone)
    record = {
        "config": dump_config(cfg),
        "classes": list(train_split.table.classes),
        "data_fingerprint": train_split.table.fingerprint(),
    }
    return Training(cfg, model, train_split, test_split, record)
