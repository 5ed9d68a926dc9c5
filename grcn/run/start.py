"""Builds the detector that an analysis starts from: that of a checkpoint, or an untrained one on initial weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from grcn import build
from grcn.config.schema import Config
from grcn.models.detector import Detector
from grcn.models.memory_format import to_device
from grcn.models.weights import load_weights
from grcn.run.load_detector import load_detector

logger = logging.getLogger("grcn")


@dataclass(frozen=True)
class Start:
    """A detector, its name in headings, and its training step."""

    model: Detector
    name: str
    step: int


def start_from(
    cfg: Config,
    classes: Sequence[str],
    weights: Path | None,
    device: torch.device,
    allow_changes: bool = False,
    initial: bool = True,
) -> Start:
    """Builds the model with the weights of a checkpoint, or else with those that training starts from.

    Args:
        classes: names of the data's classes.
        weights: a checkpoint; None for initial weights.
        allow_changes: continue even if settings of the model differ from those of the checkpoint.
        initial: load ``model.weights`` if there is no checkpoint; otherwise the values stay random.

    Raises:
        CheckpointError, ConfigError: as :func:`grcn.run.load_detector.load_detector` and
            :func:`grcn.models.weights.load_weights` raise.
    """
    if weights is not None:
        detector = load_detector(weights, device, cfg=cfg, classes=classes, allow_changes=allow_changes)
        return Start(detector.model, f"{weights.name}, step {detector.step}", detector.step)
    model = to_device(build.build_model(cfg.model, len(classes) + 1, cfg.run.seed), device)
    if cfg.model.weights is None:
        return Start(model, "an untrained network, its weights random", 0)
    if initial:
        logger.info("%s", load_weights(model, cfg.model.weights, classes, cfg.data.same_as))
    return Start(model, f"an untrained network on the initial weights {cfg.model.weights}", 0)
