"""Resizes, normalises and batches images for the network, and maps boxes back to original pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn import rng


@dataclass(frozen=True)
class Normalisation:
    """The input that a set of pretrained weights expects: ``(image - mean) / std`` per channel, in its channel order.

    Attributes:
        mean, std: per channel of the *given* order, for images in 0-1.
        bgr: channels are blue, green, red.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    bgr: bool = False


@dataclass
class ImageBatch:
    """A padded batch; the first two fields are torchvision's ``ImageList``.

    Attributes:
        tensors: ``[N, 3, H, W]``, each image at the top left, zeros elsewhere.
        image_sizes: ``(height, width)`` of each image within it.
        scales: resized over original pixels, per image.
    """

    tensors: Tensor
    image_sizes: list[tuple[int, int]]
    scales: list[float] = field(default_factory=list)


class DetectionTransform(nn.Module):
    """Resizes, normalises and batches images; maps detections back.

    The short side becomes ``short`` unless the long side would pass ``max_size`` (paper, Sec. 4: 600; Ren et al.:
    1000). Bilinear, without antialiasing, as torchvision. A single image is padded to ``multiple`` only.

    Args:
        short: target of the short side, pixels. From several, training draws one for each image by its key, and
            evaluation takes the largest.
        max_size: limit of the long side, pixels.
        normalisation: that of the weights in use.
        multiple: the sides of a batch are rounded up to a multiple of this, pixels. On a pyramid, whose maps are
            enlarged and added, 32 makes each map exactly twice the next.
    """

    def __init__(
        self,
        short: int | Sequence[int],
        max_size: int,
        normalisation: Normalisation | None = None,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.multiple = multiple
        self.shorts = (short,) if isinstance(short, int) else tuple(short)
        self.max_size = max_size
        normalisation = normalisation or Normalisation()
        self.normalisation = normalisation
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def resized(self, size: tuple[int, int], key: int | None = None) -> tuple[int, int]:
        """Returns the resized ``(height, width)`` of an image of ``size``.

        Args:
            key: of the sample, which draws the short side of several; None takes the largest.
        """
        if key is None or len(self.shorts) == 1:
            short = max(self.shorts)
        else:
            short = self.shorts[rng.hash_int(key, rng.SCALE) % len(self.shorts)]
        scale = min(short / min(size), self.max_size / max(size))
        # Rounded down, as torchvision; the small term keeps a side that is whole in exact arithmetic whole.
        return max(1, int(size[0] * scale + 1e-6)), max(1, int(size[1] * scale + 1e-6))

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Returns the sides of the batch that holds images of ``(height, width)``, in pixels."""
        return -(-height // self.multiple) * self.multiple, -(-width // self.multiple) * self.multiple

    def forward(
        self, images: Sequence[Tensor], targets: list[dict] | None = None
    ) -> tuple[ImageBatch, list[dict] | None]:
        """Prepares a batch.

        Args:
            images: each ``[3, h, w]``, float in 0-1 or uint8.
            targets: with ``boxes`` ``[n, 4]`` in original pixels, of any type of numbers. A target's ``batch_sizes``, a
                list of ``(h, w)``, names all images of the optimizer step, and ``batch_keys`` their keys: the batch is
                padded to the largest of them, so that it does not matter how they are spread over processes. Its own
                key is ``rng_key``; without one, a short side of several is drawn from torch's generator of the CPU.

        Returns:
            The batch, and copies of the targets with boxes in its pixels and its dtype.

        Raises:
            ValueError, TypeError: as :func:`check_images`.
        """
        check_images(images)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        resized = [self.resized(size, key) for size, key in zip(sizes, self._keys(targets, len(sizes)), strict=True)]
        tensors = [self._prepare(image, size) for image, size in zip(images, resized, strict=True)]
        canvas = list(resized)
        if targets is not None:
            canvas += [size for target in targets for size in self._resized_together(target)]
            targets = [
                {**target, "boxes": _rescale(target["boxes"].to(self.mean.dtype), old, new)}
                for target, old, new in zip(targets, sizes, resized, strict=True)
            ]
        height, width = self.padded(*map(max, zip(*canvas, strict=True)))
        padded = [F.pad(t, (0, width - t.shape[2], 0, height - t.shape[1])) for t in tensors]
        scales = [min(new[0] / old[0], new[1] / old[1]) for old, new in zip(sizes, resized, strict=True)]
        return ImageBatch(torch.stack(padded), resized, scales), targets

    def pictures(self, batch: ImageBatch) -> list[Tensor]:
        """Returns each image as the network sees it, as RGB ``[3, h, w]`` in 0-1, without the padding."""
        shown = []
        for tensor, (height, width) in zip(batch.tensors, batch.image_sizes, strict=True):
            image = tensor[:, :height, :width] * self.std + self.mean
            shown.append(image.flip(0) if self.normalisation.bgr else image)
        return shown

    def postprocess(
        self,
        detections: list[dict[str, Tensor]],
        image_sizes: list[tuple[int, int]],
        original_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Maps the boxes of detections from resized to original pixels (torchvision's signature)."""
        if self.training:
            return detections
        return [
            {**detection, "boxes": _rescale(detection["boxes"], old, new)}
            for detection, old, new in zip(detections, image_sizes, original_sizes, strict=True)
        ]

    def _keys(self, targets: list[dict] | None, images: int) -> list[int | None]:
        """Returns the keys that draw the short side of each image; None in evaluation or with a single one."""
        if targets is None or not self.training or len(self.shorts) == 1:
            return [None] * images
        return [int(target["rng_key"]) if "rng_key" in target else int(torch.randint(2**62, ())) for target in targets]

    def _resized_together(self, target: dict) -> list[tuple[int, int]]:
        """Returns the resized sizes of all images of the optimizer step of a target."""
        sizes = target.get("batch_sizes", ())
        keys = target.get("batch_keys", ()) if self.training and len(self.shorts) > 1 else ()
        return [self.resized(size, key) for size, key in zip_longest(sizes, keys)]

    def _prepare(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        floating = image.is_floating_point()
        image = image.to(self.mean.dtype)
        if not floating:
            image = image / 255
        if image.shape[-2:] != size:
            image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
        if self.normalisation.bgr:
            image = image.flip(0)
        return (image - self.mean) / self.std


def check_images(images: Sequence[Tensor]) -> None:
    """Makes sure that there are images, each a tensor ``[3, h, w]``; reads none of their values.

    Raises:
        ValueError: there are none; one has another shape, or no pixel.
        TypeError: one is no tensor, or neither of floats nor uint8.
    """
    if isinstance(images, Mapping) or not len(images):
        raise ValueError(f"expected a list of images, one at least (got {type(images).__name__} of {len(images)})")
    for index, image in enumerate(cast(Sequence[object], images)):
        if not isinstance(image, Tensor):
            kind = type(image)
            raise TypeError(f"image {index}: must be one of tensors [3, H, W] (got {kind.__module__}.{kind.__name__})")
        if image.dim() != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(f"image {index}: expected images [3, h, w] (got {list(image.shape)}); make grey ones RGB")
        if not image.is_floating_point() and image.dtype != torch.uint8:
            # Of other integers the value of white is unknown.
            raise TypeError(f"image {index}: must be float in 0-1 or uint8 (got {image.dtype}); convert it")


def _rescale(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Maps boxes ``[n, 4]`` from an image of size ``old`` to one of size ``new``, both ``(height, width)``."""
    if old == new:
        return boxes
    x, y = new[1] / old[1], new[0] / old[0]
    return torch.stack([boxes[:, 0] * x, boxes[:, 1] * y, boxes[:, 2] * x, boxes[:, 3] * y], dim=1)


def as_tensor(values: Sequence[tuple[int, int]] | Sequence[float], like: Tensor) -> Tensor:
    """Puts sizes ``[N, 2]`` or scales ``[N]`` on the device and in the type of ``like``, without a host-device
    synchronisation."""
    numbers = torch.tensor(values, dtype=like.dtype)
    return numbers.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else numbers.to(like.device)
