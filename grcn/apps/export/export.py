"""Exports a trained detector in one of three formats, for ``grcn export``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from grcn.apps.export.card import model_card
from grcn.apps.export.graph import as_onnx, as_program
from grcn.config.schema import Config
from grcn.engine import checkpoint
from grcn.engine.environment import commands_of, read_environment
from grcn.errors import ConfigError, DataError, named
from grcn.fileio import write_durably
from grcn.run import onnx_detector
from grcn.run.exported_folder import CONFIG, FACTS, WEIGHTS, facts_of, is_exported, require_safetensors
from grcn.run.load_detector import assemble, recorded_config
from grcn.run.predict import Predictor
from grcn.run.read_weights import read_weights

logger = logging.getLogger("grcn")

CARD, RESULTS = "README.md", "results.json"


def export(
    weights: Path, format: str, folder: Path, size: tuple[int, int] | None = None, device: str = "cpu"
) -> list[Path]:
    """Writes a detector into a folder, as evaluated by its run: with averaged weights if it has them.

    Args:
        weights: a checkpoint, the folder of a run, or an exported folder.
        format: ``safetensors``, ``torch`` or ``onnx``.
        folder: made if missing; files in it are not replaced.
        size: of a picture, for ``torch`` and ``onnx``; None: the short side by the longest of ``model.image``, to which
            the detector resizes a landscape picture.
        device: the device that a program of torch will run on.

    Returns:
        The files.

    Raises:
        CheckpointError: there is no such detector.
        ConfigError: a file would be replaced; the detector cannot be exported so.
        EnvironmentFault: a package is missing, or the device.
    """
    names = {
        "safetensors": (WEIGHTS, CONFIG, CARD, FACTS, RESULTS), "torch": ("model.pt2",), "onnx": ("model.onnx",),
    }[format]  # fmt: skip
    if there := [name for name in names if (folder / name).exists()]:
        raise ConfigError(f"{folder / there[0]}: exists already; choose another --output-dir, or remove it")
    weights, state = read_weights(weights)
    cfg = recorded_config(state, weights)
    predictor = assemble(state, cfg, weights, device)
    if format == "safetensors":
        contents = _folder(folder, weights, state, cfg, predictor)
    else:
        contents = {names[0]: _graph(format, cfg, predictor, size)}
    with named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        write_durably(folder / name, data)
        logger.info("%s: %.1f MB", folder / name, len(data) / 1e6)
    return [folder / name for name in contents]


def _folder(folder: Path, weights: Path, state: dict[str, Any], cfg: Config, predictor: Predictor) -> dict[str, bytes]:
    """Returns the files of an exported folder; ``detector.json``, which identifies it, comes last."""
    require_safetensors()
    from safetensors.torch import save

    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in predictor.model.state_dict().items()}
    contents = {WEIGHTS: save(tensors, {"format": "pt"}), CONFIG: state["config"].encode()}
    run = weights if weights.is_dir() else checkpoint.folder_of(weights)
    results = _results(run, state["step"])
    command = next(iter(commands_of(read_environment(run))), None)
    if results is not None:
        contents[RESULTS] = results
    card = model_card(folder.resolve().name, cfg, state, json.loads(results or "{}"), command)
    contents[CARD] = card.encode()
    facts = facts_of(state, {name: contents[name] for name in (WEIGHTS, CONFIG)})
    contents[FACTS] = (json.dumps(facts, indent=1) + "\n").encode()
    return contents


def _results(run: Path, step: int) -> bytes | None:
    """Returns the results of a step's evaluation, from a run's folder or an exported one; None without."""
    path = run / RESULTS if is_exported(run) else run / "eval" / f"step_{step}" / RESULTS
    if not path.is_file():
        return None
    contents = path.read_bytes()
    try:
        [round(value, 4) for value in json.loads(contents)["metrics"].values() if value is not None]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged; evaluate again, or remove it") from error
    return contents


def _graph(format: str, cfg: Config, predictor: Predictor, size: tuple[int, int] | None) -> bytes:
    """Returns a program of torch or an ONNX file."""
    transform = predictor.model.transform
    size = size or (max(transform.shorts), max(*transform.shorts, transform.max_size))
    facts = {
        onnx_detector.FORMAT: 1,
        onnx_detector.CLASSES: list(predictor.classes),
        onnx_detector.SIZE: list(size),
        onnx_detector.SCORE: float(predictor.model.score_thresh),
        onnx_detector.STEP: predictor.step,
        onnx_detector.BITS: predictor.bits,
        "input": "image: float32 [3, H, W], RGB in 0-1; negative where it is padding, at the right and at the bottom",
        "output": "boxes [D, 4] xyxy in pixels of the image, labels [D] from 1 in the order of the classes, "
        "scores [D]; best first, then rows of zeros",
    }
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    logger.info("exporting for pictures of %d x %d pixels (height x width)", *size)
    with torch.no_grad():
        if format == "torch":
            return as_program(predictor.model, size, metadata)
        if cfg.model.roi.op == "pool":
            raise ConfigError(
                "model.roi.op: pool: torch's ONNX exporter does not translate RoIPool; train with model.roi.op=align, "
                "or pass --format safetensors or torch"
            )
        return as_onnx(predictor.model, size, metadata)
