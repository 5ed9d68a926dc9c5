"""Makes the input of benchmarks: full-size random images with objects, and scores spread as a trained model's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grcn.models.detector import Detector

OBJECTS = 8
# Standard deviation of the classifier's outputs.
_SPREAD = 3.0

Scene = tuple[list[Tensor], list[dict[str, Any]]]


def make_scene(
    size: tuple[int, int],
    classes: int,
    device: torch.device,
    images: int = 1,
    objects: int = OBJECTS,
    seed: int = 0,
) -> Scene:
    """Makes images of random pixels with boxes of a twentieth to a half of them on a side.

    Args:
        size: height and width of an image, pixels.
        classes: without background.
        images, objects: how many, and how many objects in each.

    Returns:
        float ``[3, H, W]`` in 0-1 and targets, on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    extent = torch.tensor([width, height])
    pixels, targets = [], []
    for image in range(images):
        pixels.append(torch.rand(3, height, width, generator=generator).to(device))
        sides = (0.05 + 0.45 * torch.rand(objects, 2, generator=generator)) * extent
        corners = torch.rand(objects, 2, generator=generator) * (extent - sides)
        labels = torch.randint(1, classes + 1, (objects,), generator=generator)
        boxes = torch.cat([corners, corners + sides], 1)
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device), "rng_key": seed + image})
    return pixels, targets


@torch.no_grad()
def spread_scores(model: Detector, images: list[Tensor]) -> None:
    """Scales the classifier until scores differ as much as a trained model's, and suppresses background.

    Scores of random weights are about equal, and below the threshold with many classes: on a CPU nothing would be
    localized, and NMS would have nothing to do. Without background, every RoI is localized.
    """
    for stage in model.roi_heads.stages():
        classifier = stage.heads.cls_score
        seen: list[Tensor] = []
        hook = classifier.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        model.eval()(images)
        hook.remove()
        classifier.weight.mul_(_SPREAD / seen[0].float().std().clamp(min=1e-6))
        classifier.bias[0] = -1e4
