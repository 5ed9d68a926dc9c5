"""Runs a bare training step, and reports peak memory."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from torch import Tensor, nn


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: list[Tensor],
    targets: list[dict[str, Any]],
    amp: torch.autocast,
) -> dict[str, Tensor]:
    """Does one update without guards, clipping and log; returns the losses."""
    with amp:
        losses = model.train()(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses


def peak_mb(device: torch.device) -> float:
    """Returns the peak memory so far, in MB: on a GPU that of tensors, elsewhere that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
