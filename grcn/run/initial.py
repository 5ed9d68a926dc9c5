"""The weights that a run starts from."""

from __future__ import annotations

import logging
from pathlib import Path

from grcn.config.files import parse_config
from grcn.config.schema import Config
from grcn.data.annotations import Table
from grcn.engine import checkpoint, distributed
from grcn.engine.checkpoint import restore
from grcn.errors import ConfigError
from grcn.models.detector import Detector
from grcn.models.weights import load_weights, normalisation_of
from grcn.run.compatibility import check_classes

logger = logging.getLogger("grcn")


def load_initial(model: Detector, cfg: Config, init: Path | None, table: Table) -> None:
    """Gives the model the weights to start from; the first process downloads them before the others look."""
    told = distributed.on_main(lambda: _load_weights(model, cfg, init, table))
    if not distributed.is_main():
        _load_weights(model, cfg, init, table)
    logger.log(*told)


def _load_weights(model: Detector, cfg: Config, init: Path | None, table: Table) -> tuple[int, str]:
    """Loads the initial weights; returns what to log about it, and how urgent that is."""
    if init is not None:
        state = checkpoint.load(init)
        check_classes(state, init, table)
        theirs = parse_config(state["config"], str(init)).model
        if normalisation_of(theirs.weights) != normalisation_of(cfg.model.weights):
            needed = f"model.weights={theirs.weights}"
            raise ConfigError(f"{init}: its images are normalised for weights {theirs.weights}; set {needed}")
        if theirs.anchors != cfg.model.anchors:
            raise ConfigError(f"{init}: trained with other anchors; set model.anchors as in the config.yaml of its run")
        restore(state, model, path=init)
        return logging.INFO, f"initial weights from {init}"
    if cfg.model.weights is not None:
        return logging.INFO, str(load_weights(model, cfg.model.weights))
    if any(True for _ in model.backbone.frozen.parameters()):
        return logging.WARNING, (
            f"model.weights: null: the first layers of {cfg.model.backbone} stay as they are, at random values; give "
            "weights, or use a tiny backbone, which trains all of its layers"
        )
    return logging.DEBUG, "initial weights are random"
