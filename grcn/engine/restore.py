"""Puts a checkpoint's weights and momenta into a model and an optimizer, after making sure that they belong there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grcn.errors import CheckpointError

# A weight that torchvision's detectors of two stages have, and ours have not.
_OF_TORCHVISION = "roi_heads.box_predictor.cls_score.weight"


def restore(
    state: Mapping[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    path: Path | None = None,
) -> None:
    """Loads a checkpoint's weights, and the state of its optimizer, into objects built alike.

    The optimizer keeps its own settings: momentum, weight decay and the like are not state.

    Args:
        path: of the checkpoint, for messages.

    Raises:
        CheckpointError: they were built otherwise.
    """
    where = f"{path}: " * (path is not None) + f"checkpoint of step {state['step']}"
    theirs, ours = state["model"], model.state_dict()
    if _OF_TORCHVISION in theirs.keys() - ours.keys():
        raise CheckpointError(
            f"{where}: of torchvision's detector; pass one of ours, or the detections.json of its run to tools/eval.py"
        )
    missing, unexpected = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise CheckpointError(
                f"{where}: another model: {len(missing)} weights missing, {len(unexpected)} "
                f"unexpected (first {kind}: {', '.join(names[:3])[:80]}); use its own config"
            )
    for name, tensor in ours.items():
        got, need = list(theirs[name].shape), list(tensor.shape)
        if got != need:
            raise CheckpointError(
                f"{where}: {name} has another shape (got {got}, need {need}); "
                "use the config and the classes it was trained with"
            )
    model.load_state_dict(theirs)
    if optimizer is not None:
        groups = optimizer.state_dict()["param_groups"]
        if fault := _optimizer_fault(state["optimizer"], optimizer):
            raise CheckpointError(f"{where}: another optimizer ({fault}); use the config it was trained with")
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        _lay_out_as_weights(optimizer)


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Gives momenta the strides of their weights: the fused update goes through both in the order of memory.

    Those of a file are of the device that wrote it; on a GPU weights are channels_last. Others stay what they are:
    strides of dimensions of one element say nothing, but are among the bytes of a checkpoint.
    """
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and _strides(value) != _strides(weight):
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def _strides(tensor: Tensor) -> list[int]:
    """Returns the strides that matter: of dimensions of more than one element."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _optimizer_fault(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str | None:
    """Says why a saved optimizer is not one for the same weights in the same order; None if it is."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    try:
        got = [len(group["params"]) for group in saved["param_groups"]]
        need = [len(group["params"]) for group in optimizer.param_groups]
        if got != need:
            return f"got groups of {got} weights, need {need}"
        if len(saved["state"]) not in (0, len(weights)):
            return f"got the state of {len(saved['state'])} weights, need {len(weights)}"
        for index, values in saved["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != weights[index].shape:
                    return f"got {name} of {list(value.shape)}, need {list(weights[index].shape)}"
    except (KeyError, TypeError, AttributeError, IndexError):
        return "got no groups and states of weights"
    return None
