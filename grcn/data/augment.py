"""Augmentation: what training changes about an image and its boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def horizontal_flip(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Flips an image [..., H, W] and its boxes [N, 4], absolute xyxy, left to right."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=1)
