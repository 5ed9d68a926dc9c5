"""Memory formats: the layout that each part of a detector computes in, by device; affects speed only."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

_PARTS = ("frozen", "train", "train_units", "train_normed", "eval")

# By device, arithmetic and part. Measured in float32: on a CPU, convolutions without weight gradients are faster in
# channels_last. With them, rows of 3x3 convolutions (train) are slower: 1.7 times with AVX2, up to 1.1 times with
# AVX512. Units of 1x1 convolutions, and convolutions on the small grids of RoIs (train_units), take 0.9 of the time
# with AVX512; with AVX2 a step of ResNet50 takes as long, with a pyramid 1.1 times. Convolutions that a trained norm
# follows (train_normed) are faster with both: steps of the miniatures take 0.8 to 0.98 of the time with AVX2. In
# bfloat16 all are faster in channels_last: a step of VGG16 takes 0.93 of the time with AVX512-BF16, 0.66 with AMX.
# Tensor cores compute in channels_last.
MEMORY_FORMATS: dict[str, dict[str, torch.memory_format]] = {
    "cpu": {
        "frozen": torch.channels_last,
        "train": torch.contiguous_format,
        "train_units": torch.contiguous_format,
        "train_normed": torch.channels_last,
        "eval": torch.channels_last,
    },
    "cpu AVX512": {
        "frozen": torch.channels_last,
        "train": torch.contiguous_format,
        "train_units": torch.channels_last,
        "train_normed": torch.channels_last,
        "eval": torch.channels_last,
    },
    "cpu AVX512 bf16": dict.fromkeys(_PARTS, torch.channels_last),
    "cuda": dict.fromkeys(_PARTS, torch.channels_last),
}


# This machine's name in the table, found at import: torch.compile cannot ask for it in the middle of a graph.
_CPU = f"cpu {torch.backends.cpu.get_cpu_capability()}"


def memory_formats(device: torch.device, bf16: bool = False) -> dict[str, torch.memory_format]:
    """Returns the row of :data:`MEMORY_FORMATS` for a device; an empty one for others.

    Args:
        bf16: whether autocast computes in bfloat16.
    """
    kind = _CPU if device.type == "cpu" else device.type
    usual = MEMORY_FORMATS.get(kind, MEMORY_FORMATS.get(device.type, {}))
    return MEMORY_FORMATS.get(f"{kind} bf16", usual) if bf16 else usual


def to_memory_format(x: Tensor, part: str) -> Tensor:
    """Converts ``x`` ``[N, C, H, W]`` to the format that :func:`memory_formats` gives for a part.

    Args:
        part: ``frozen``, ``train``, ``train_units``, ``train_normed`` or ``eval``.
    """
    if x.device.type not in MEMORY_FORMATS:
        return x
    formats = memory_formats(x.device, torch.is_autocast_enabled(x.device.type))
    return x.contiguous(memory_format=formats[part])


def to_device(model: Module, device: torch.device) -> Module:
    """Moves a detector to the device that it is to run on, with its weights in the memory format of that device."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cuda" else model
