"""Augmentation: random flips, crops and colour changes, drawn from the key of the sample.

The key of a sample is a hash of the seed and its number in the training, so a draw depends on nothing else: not on
workers, processes or earlier draws. Draw with ``rng.uniform(key, 0)``, ``rng.uniform(key, 1)``, …
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from grcn import rng
from grcn.data.validate import THINNEST

Size = tuple[int, int]  # height, width
Target = dict[str, Any]


class Augmentation(Protocol):
    """The protocol of an augmentation for :func:`grcn.data.loader.train_batches`: any object with two methods."""

    def size(self, size: Size, key: int) -> Size:
        """Returns the ``(height, width)`` that the call gives an image of ``size``, without seeing the image.

        Batches are padded to the largest image of all processes, each of which reads only its own.
        """
        ...

    def __call__(self, image: Tensor, target: Target, key: int) -> tuple[Tensor, Target]:
        """Returns another image and another target.

        Args:
            image: uint8 ``[3, H, W]``; do not write into it.
            target: ``boxes`` float64 ``[n, 4]``, absolute xyxy, ``labels``, ``area``, ``iscrowd`` and ``difficult``,
                each ``[n]``; do not write into them. :func:`keep_objects` drops objects from all of them.
            key: key of the sample and this augmentation.
        """
        ...


class HorizontalFlip:
    """Flips an image left to right with probability ``prob``."""

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def size(self, size: Size, key: int) -> Size:
        """Returns ``size``."""
        return size

    def __call__(self, image: Tensor, target: Target, key: int) -> tuple[Tensor, Target]:
        """Flips image and boxes, or returns both as they are."""
        if rng.unit(key) >= self.prob:
            return image, target
        image, boxes = horizontal_flip(image, target["boxes"])
        return image, {**target, "boxes": boxes, "augmented": (*target.get("augmented", ()), "flipped")}


class RandomCrop:
    """Crops a random part of an image with probability ``prob``.

    Objects are clipped to the part. An object of which less than ``min_kept`` is left is dropped from all fields; the
    image may end up without objects.

    Args:
        prob: probability that an image is cropped.
        scale: lower and upper bound of the part's height and width as shares of the image's, drawn separately.
        min_kept: share of an object's box that must lie in the part.
    """

    def __init__(self, prob: float, scale: tuple[float, float] = (0.5, 1.0), min_kept: float = 0.3) -> None:
        self.prob, self.scale, self.min_kept = prob, scale, min_kept

    def size(self, size: Size, key: int) -> Size:
        """Returns the size of the part, at least one pixel."""
        if rng.uniform(key, 0) >= self.prob:
            return size
        low, high = self.scale
        height, width = (
            max(1, round(side * (low + (high - low) * rng.uniform(key, draw))))
            for side, draw in zip(size, (1, 2), strict=True)
        )
        return height, width

    def __call__(self, image: Tensor, target: Target, key: int) -> tuple[Tensor, Target]:
        """Crops image and boxes, or returns both as they are."""
        if rng.uniform(key, 0) >= self.prob:
            return image, target
        whole = (image.shape[1], image.shape[2])
        height, width = self.size(whole, key)
        top, left = (
            int(rng.uniform(key, draw) * (side - part + 1))
            for side, part, draw in zip(whole, (height, width), (3, 4), strict=True)
        )
        boxes = target["boxes"]
        moved = boxes - boxes.new_tensor([left, top, left, top])
        limits = boxes.new_tensor([width, height, width, height])
        clipped = moved.clamp(min=0).minimum(limits)
        share = _area(clipped) / _area(boxes)
        kept = (share >= self.min_kept) & (_sides(clipped) >= THINNEST).all(1)
        target = {**target, "boxes": clipped, "area": target["area"] * share.to(target["area"].dtype)}
        target["augmented"] = (*target.get("augmented", ()), f"cropped to {width} x {height}")
        return F.crop(image, top, left, height, width), keep_objects(target, kept)


class ColorJitter:
    """Changes brightness, contrast and saturation by random factors, and hue by a random shift, in this order.

    Args:
        brightness, contrast, saturation: a factor is drawn from ``1 - value`` to ``1 + value``; 0 leaves it out.
        hue: a shift is drawn from ``-value`` to ``value``, in turns of the colour circle, at most 0.5.

    Raises:
        ValueError: a value is below 0, a factor's above 1, or the hue's above 0.5.
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ) -> None:
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be 0 to {most:g} (got {getattr(self, name)})")

    def size(self, size: Size, key: int) -> Size:
        """Returns ``size``."""
        return size

    def __call__(self, image: Tensor, target: Target, key: int) -> tuple[Tensor, Target]:
        """Returns the image with changed colours, and the target."""
        steps = (
            (F.adjust_brightness, self.brightness, 1.0),
            (F.adjust_contrast, self.contrast, 1.0),
            (F.adjust_saturation, self.saturation, 1.0),
            (F.adjust_hue, self.hue, 0.0),
        )
        for draw, (adjust, spread, middle) in enumerate(steps):
            if spread:
                image = adjust(image, middle + spread * (2 * rng.uniform(key, draw) - 1))
        return image, target


def horizontal_flip(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Flips an image ``[..., H, W]`` and its boxes ``[n, 4]``, absolute xyxy, left to right."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=1)


def keep_objects(target: Target, kept: Tensor) -> Target:
    """Returns a target with some of its objects: every tensor that has a row per object is filtered alike.

    Args:
        kept: bool ``[n]``.
    """
    per_object = {
        key: value[kept]
        for key, value in target.items()
        if isinstance(value, Tensor) and value.dim() and len(value) == len(kept)
    }
    return {**target, **per_object}


def key_of(seed: int, sample: int, place: int) -> int:
    """Returns the key of sample number ``sample`` of a training for the augmentation at ``place`` of its list."""
    return rng.hash_int(seed, rng.AUGMENT, sample, *([place] if place else []))


def augmented_size(augment: Sequence[Augmentation], size: Size, seed: int, sample: int) -> Size:
    """Returns the size of a sample after all augmentations."""
    for place, one in enumerate(augment):
        size = one.size(size, key_of(seed, sample, place))
    return size


def _sides(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def _area(boxes: Tensor) -> Tensor:
    return _sides(boxes).prod(1)
