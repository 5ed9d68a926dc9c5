"""One training step, bare, and the memory that it took."""

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
    """Does one update, without what surrounds it in training: guards, clipping, the log. Returns the losses."""
    with amp:
        losses = model.train()(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return losses


def peak_mb(device: torch.device) -> float:
    """Returns the most memory taken so far, in MB: of a GPU by tensors, elsewhere by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
