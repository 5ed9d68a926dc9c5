"""Collects the inputs of a training step by image: pixels, ground truth, and the anchors and RoIs of its losses.

Shapes: ``n`` objects of an image. Frames: every box is in pixels of the image as the network sees it, resized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grcn import boxes, rng
from grcn.models.detector import Detector
from grcn.models.features import Maps
from grcn.models.rpn import AnchorSample
from grcn.models.transform import DetectionTransform, ImageBatch, as_tensor


@dataclass(frozen=True)
class Anchors:
    """Anchors of one image that the RPN's losses read.

    Attributes:
        boxes: ``[p, 4]``, the foreground ones.
        matched_gt: int64 ``[p]``, the object of each.
        num_bg: number of background anchors.
        matched: int64 ``[n]``, number of anchors matched to each object, sampled or not.
        best_iou: ``[n]``, the largest overlap of an object with an anchor matched to it; 0 where it has none.
        best_size: int64 ``[n]``, which of the anchors' sizes that one has, counted over all maps; -1 where there is
            none.
        fg_iou: overlap from which an anchor is foreground.
    """

    boxes: Tensor
    matched_gt: Tensor
    num_bg: int
    matched: Tensor
    best_iou: Tensor
    best_size: Tensor
    fg_iou: float

    @property
    def missed(self) -> Tensor:
        """Objects without a matched anchor, bool ``[n]``: no usable one overlaps them, or others match them all."""
        return self.matched == 0

    @property
    def rescued(self) -> Tensor:
        """Objects that have anchors by the low-quality rule only, bool ``[n]``: none overlaps them by ``fg_iou``."""
        return ~self.missed & (self.best_iou < self.fg_iou)


@dataclass(frozen=True)
class RoIs:
    """RoIs of one image that the losses of the second stage read.

    Attributes:
        boxes: ``[f, 4]``, the foreground ones.
        labels: int64 ``[f]``, their target classes.
        matched_gt: int64 ``[f]``, the object of each.
        iou: ``[f]``, overlap with it.
        background: ``[b, 4]``.
        truth: bool ``[f]``, those that are ground-truth boxes themselves, added to the proposals.
        maps: by task, int64 ``[f + b]``: which of its maps each is pooled from, foreground first.
    """

    boxes: Tensor
    labels: Tensor
    matched_gt: Tensor
    iou: Tensor
    background: Tensor
    truth: Tensor
    maps: dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """One image of a training step. Tensors are on the CPU.

    Attributes:
        image: ``[3, h, w]``, RGB in 0-1: the network's input without normalisation and padding.
        original: ``(height, width)`` before resizing.
        canvas: ``(height, width)`` that the image is padded to.
        target: the loader's, with ``boxes`` ``[n, 4]`` and ``labels`` ``[n]``.
        anchors: None where not asked for.
        rois: None where not asked for.
    """

    image: Tensor
    original: tuple[int, int]
    canvas: tuple[int, int]
    target: dict[str, Any]
    anchors: Anchors | None = None
    rois: RoIs | None = None


def inputs_of(transform: DetectionTransform, images: Sequence[Tensor], targets: Sequence[dict]) -> list[Sample]:
    """Transforms images into the network's inputs.

    Args:
        transform: of the detector.
        images: on its device, each ``[3, h, w]``, float in 0-1 or uint8.
        targets: of :func:`grcn.data.loader.train_batches`.
    """
    batch, fed = transform(images, list(targets))
    assert fed is not None
    return _inputs(transform, images, batch, fed)


@torch.no_grad()
def samples_of(model: Detector, images: Sequence[Tensor], targets: Sequence[dict], rois: bool = True) -> list[Sample]:
    """Runs a training step up to its losses, by the same methods and the same random draws.

    Args:
        model: in training mode, whose numbers of proposals differ from those of evaluation.
        images: the micro-batch, on the model's device; each ``[3, h, w]``, float in 0-1 or uint8.
        targets: of :func:`grcn.data.loader.train_batches`, on the same device.
        rois: sample RoIs too. Anchors do not depend on the weights, RoIs do.

    Raises:
        ValueError: the model is in evaluation mode.
    """
    if not model.training:
        raise ValueError("RoIs are sampled in training mode; call model.train()")
    batch, fed = model.transform(images, list(targets))
    assert fed is not None
    features = model.backbone(batch.tensors)
    maps = features[model.rpn.reads]
    anchors = model.rpn.anchors(maps, (batch.tensors.shape[2], batch.tensors.shape[3]))
    (states,) = rng.image_states(fed, anchors.device, (rng.ANCHORS,))
    drawn = model.rpn.sample(anchors, as_tensor(batch.image_sizes, anchors), boxes.pad_objects(fed), states)
    samples = [
        replace(sample, anchors=_anchors(model, maps, anchors, drawn, i, fed[i]["boxes"]))
        for i, sample in enumerate(_inputs(model.transform, images, batch, fed))
    ]
    if rois:
        proposals, _ = model.rpn(batch, features, fed)
        found = _rois(model, proposals, fed)
        samples = [replace(sample, rois=one) for sample, one in zip(samples, found, strict=True)]
    return samples


def _inputs(
    transform: DetectionTransform, images: Sequence[Tensor], batch: ImageBatch, fed: Sequence[dict]
) -> list[Sample]:
    canvas = (batch.tensors.shape[2], batch.tensors.shape[3])
    return [
        Sample(
            image=picture.cpu(),
            original=(image.shape[1], image.shape[2]),
            canvas=canvas,
            target={key: value.cpu() if isinstance(value, Tensor) else value for key, value in target.items()},
        )
        for picture, image, target in zip(transform.pictures(batch), images, fed, strict=True)
    ]


def _anchors(model: Detector, maps: Maps, anchors: Tensor, drawn: AnchorSample, image: int, objects: Tensor) -> Anchors:
    """Selects one image's anchors from those of its batch."""
    foreground, valid, matched = drawn.foreground[image], drawn.valid[image], drawn.matched[image]
    own = matched == torch.arange(len(objects), device=matched.device)[:, None]
    overlaps = torch.where(own, boxes.iou(objects.to(anchors.dtype), anchors), 0.0)
    best_iou, best = overlaps.max(dim=1)
    counts = own.sum(1)
    return Anchors(
        boxes=anchors[drawn.indices[image][foreground]].cpu(),
        matched_gt=drawn.matched_gt[image][foreground].cpu(),
        num_bg=int((valid & ~foreground).sum()),
        matched=counts.cpu(),
        best_iou=best_iou.cpu(),
        best_size=torch.where(counts > 0, model.rpn.anchors.size_of(best, maps), -1).cpu(),
        fg_iou=model.rpn.fg_iou,
    )


def _rois(model: Detector, proposals: Tensor, targets: list[dict]) -> list[RoIs]:
    (states,) = rng.image_states(targets, proposals.device, (rng.ROIS,))
    drawn = model.roi_heads.sample(proposals, boxes.pad_objects(targets), states)
    found = []
    for i, target in enumerate(targets):
        foreground, valid = drawn.foreground[i], drawn.valid[i]
        sampled = drawn.rois[i][valid]  # foreground first
        positives, matched_gt = drawn.rois[i][foreground], drawn.matched_gt[i][foreground]
        objects = target["boxes"].to(positives.dtype)[matched_gt]
        found.append(
            RoIs(
                boxes=positives.cpu(),
                labels=drawn.labels[i][foreground].cpu(),
                matched_gt=matched_gt.cpu(),
                iou=boxes.iou(objects[:, None], positives[:, None])[:, 0, 0].cpu(),
                background=drawn.rois[i][valid & ~foreground].cpu(),
                truth=(positives == objects).all(1).cpu(),
                maps={task: pool.level_of(sampled).cpu() for task, pool in model.roi_heads.pools.items()},
            )
        )
    return found
