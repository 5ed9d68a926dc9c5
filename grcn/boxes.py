"""Box operations: overlap, coding, matching, sampling and suppression, as pure functions on tensors of fixed shape.

Boxes are ``(x1, y1, x2, y2)`` in continuous pixels, width ``x2 - x1`` (no ``+1``). Only suppression reads a value back
to the host: sizes never depend on data, and masks mark the valid rows. :func:`sync_is_free` says where code may choose
shapes that depend on data instead.

Shapes: ``N`` images, ``G`` objects of an image (padded), ``A`` candidate boxes of an image (anchors or proposals).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

BACKGROUND = -1
IGNORED = -2
# Largest log-scale change of a decoded box, torchvision's guard: a side grows at most 1000 / 16 times.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def areas(boxes: Tensor) -> Tensor:
    """Computes the areas ``[...]`` of boxes ``[..., 4]``; empty rows (all zero) have area 0."""
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Computes the overlap ``[..., G, A]`` of boxes ``[..., G, 4]`` with boxes ``[..., A, 4]``, both of floating point;
    leading dimensions broadcast.

    Equals ``torchvision.ops.box_iou`` on each pair of lists. Two empty boxes give NaN, as there.
    """
    one, other = first[..., :, None, :], second[..., None, :, :]

    def common(axis: int) -> Tensor:
        ends = torch.minimum(one[..., axis + 2], other[..., axis + 2])
        return ends.sub_(torch.maximum(one[..., axis], other[..., axis])).clamp_(min=0)

    # In place: the matrices of all anchors and objects of a crowded batch are gigabytes.
    intersection = common(0).mul_(common(1))
    return intersection.div_((areas(first)[..., :, None] + areas(second)[..., None, :]).sub_(intersection))


def encode(objects: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Expresses objects relative to boxes: the regression targets ``(dx, dy, dw, dh) * weights`` (Ren et al., eq. 2).

    Args:
        objects: ``[..., 4]``.
        boxes: ``[..., 4]``, anchors or proposals. Rows with zero area give values that are not finite: mask them.
        weights: four factors; ``(10, 10, 5, 5)`` is a normalisation by standard deviations ``(.1, .1, .2, .2)``.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    object_sides = objects[..., 2:] - objects[..., :2]
    shift = (objects[..., :2] - boxes[..., :2] + 0.5 * (object_sides - sides)) / sides
    return _weighted(torch.cat([shift, torch.log(object_sides / sides)], -1), weights)


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Applies deltas ``[..., 4]`` to boxes ``[..., 4]``: the inverse of :func:`encode`, with bounded growth."""
    deltas = _weighted(deltas, [1 / weight for weight in weights])
    sides = boxes[..., 2:] - boxes[..., :2]
    centre = deltas[..., :2] * sides + boxes[..., :2] + 0.5 * sides
    half = 0.5 * sides * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE))
    return torch.cat([centre - half, centre + half], -1)


def _weighted(deltas: Tensor, weights: Sequence[float]) -> Tensor:
    """Multiplies deltas ``[..., 4]`` by four factors; factors of 1 cost nothing."""
    if set(weights) == {1.0}:
        return deltas
    # A tensor of the weights would be copied to the device at every call.
    return torch.stack([deltas[..., i] * weight for i, weight in enumerate(weights)], -1)


def of_class(deltas: Tensor, labels: Tensor) -> Tensor:
    """Picks the deltas of one class for each box, int64 ``[N, R]``, from those of all classes ``[N, R, K, 4]``."""
    return deltas.gather(2, labels[..., None, None].expand(-1, -1, -1, 4))[:, :, 0]


def take(boxes: Tensor, index: Tensor) -> Tensor:
    """Picks boxes, or deltas, of each image: ``[N, K, 4]`` of ``[N, P, 4]``, at ``index``, int64 ``[N, K]``."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clips boxes ``[N, A, 4]`` to their image; NaN coordinates become 0, so that no operator ever sees one.

    Args:
        boxes: ``[N, A, 4]``.
        sizes: ``[N, 2]`` heights and widths.
    """
    limit = sizes.flip(-1).repeat(1, 2)[:, None, :]
    return torch.minimum(boxes.nan_to_num(nan=0.0).clamp(min=0), limit)


def scaled(boxes: Tensor, factor: float) -> Tensor:
    """Scales boxes ``[..., 4]`` by ``factor`` about their centres."""
    start, end = boxes.split(2, dim=-1)
    grown = (end - start) * ((factor - 1) / 2)
    return torch.cat([start - grown, end + grown], dim=-1)


def match(
    overlaps: Tensor,
    valid: Tensor,
    fg_iou: float,
    bg_iou: float,
    low_quality: bool = False,
    usable: Tensor | None = None,
    bg_iou_low: float = 0.0,
) -> Tensor:
    """Assigns each candidate to an object: its index, ``BACKGROUND`` (-1) or ``IGNORED`` (-2).

    Args:
        overlaps: ``[N, G, A]`` IoU of objects and candidates.
        valid: ``[N, G]`` bool, False for padding rows.
        fg_iou: a candidate whose best overlap reaches this is foreground.
        bg_iou: one whose best overlap is below this is background; between the two it is ignored.
        low_quality: also make foreground every candidate that ties for an object's best overlap (Ren et al., Sec.
            3.1.2), assigned to the object that *it* overlaps most. An object that overlaps no usable candidate gets
            none (torchvision would then take all of them).
        usable: ``[N, A]`` bool; other candidates are ignored.
        bg_iou_low: background must also reach this overlap with some object (Fast R-CNN's 0.1); else it is ignored.

    Returns:
        int64 ``[N, A]``.
    """
    mask = valid[:, :, None] if usable is None else valid[:, :, None] & usable[:, None, :]
    overlaps = torch.where(mask, overlaps, -1.0)
    best, index = overlaps.max(dim=1)
    matched = torch.where(best < bg_iou, BACKGROUND, torch.where(best < fg_iou, IGNORED, index))
    if bg_iou_low > 0:
        matched = torch.where((best >= 0) & (best < bg_iou_low), IGNORED, matched)
    if low_quality:
        top = overlaps.amax(dim=2, keepdim=True)
        matched = torch.where(((overlaps == top) & (top > 0)).any(dim=1), index, matched)
    return matched if usable is None else torch.where(usable, matched, IGNORED)


def sample(matched: Tensor, keys: Tensor, count: int, max_foreground: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a fixed number of candidates per image: at most ``max_foreground`` foreground ones, first, then background.

    The candidates with the largest keys are taken, so uniform random keys give a uniform sample without replacement.

    Args:
        matched: ``[N, A]`` from :func:`match`.
        keys: int64 ``[N, A]``, not negative.
        count: slots per image.
        max_foreground: maximum number of foreground slots.

    Returns:
        ``indices`` int64 ``[N, count]`` into the candidates, ``valid`` bool ``[N, count]`` (False where an image has
        too few), ``foreground`` bool ``[N, count]``, a prefix of each row.
    """
    candidates = matched.shape[1]
    num_fg = (matched >= 0).sum(1, keepdim=True).clamp(max=min(max_foreground, count))
    num_bg = torch.minimum((matched == BACKGROUND).sum(1, keepdim=True), count - num_fg)
    fg_slots, bg_slots = min(max_foreground, count, candidates), min(count, candidates)
    fg = torch.where(matched >= 0, keys, -1).topk(fg_slots, dim=1).indices
    bg = torch.where(matched == BACKGROUND, keys, -1).topk(bg_slots, dim=1).indices
    slot = torch.arange(count, device=matched.device)[None]
    source = torch.where(slot < num_fg, slot, (fg_slots + slot - num_fg).clamp(max=fg_slots + bg_slots - 1))
    return torch.cat([fg, bg], dim=1).gather(1, source), slot < num_fg + num_bg, slot < num_fg


def nms_top_k(boxes: Tensor, scores: Tensor, threshold: float, count: int) -> Tensor:
    """Returns the indices of the first ``count`` boxes that greedy suppression keeps, best score first.

    Greedy suppression decides in order of score, so a prefix can be finished before the rest is read. On a CPU, where
    each call is cheap and the work grows with the square of the boxes, it goes by chunks; on a GPU each call is a
    host-device synchronisation, so there is one.

    Args:
        boxes: ``[A, 4]`` in descending order of score, inside an image.
        scores: ``[A]``; boxes of score ``-inf`` are placeholders: they drop no other, and come last if at all. If there
            are any, and the threshold is below 1, one of them is kept, after all others.
        threshold: a box that overlaps a kept one by more than this is dropped.
        count: maximum number of indices returned.
    """
    # At one position outside the image the placeholders drop each other, and the last box kept is one of them.
    nowhere = boxes.new_full((4,), -2.0)
    nowhere[2:] = -1.0
    boxes, scores = torch.where((scores > -torch.inf)[:, None], boxes, nowhere), scores.to(boxes.dtype)
    chunk = max(256, count + count // 2) if sync_is_free(boxes) else max(1, len(boxes))
    kept = nms(boxes[:chunk], scores[:chunk], threshold)
    for start in range(chunk, len(boxes), chunk):
        if (scores[kept] > -torch.inf).sum() >= count:
            break
        fresh = torch.arange(start, min(start + chunk, len(boxes)), device=boxes.device)
        candidates = torch.cat([kept, fresh])
        kept = candidates[nms(boxes[candidates], scores[candidates], threshold)]
    return kept[:count]


def batched_nms_top_k(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, count: int) -> Tensor:
    """Returns the indices of the first ``count`` boxes that suppression within each class keeps, best score first.

    They are the first ones of ``torchvision.ops.batched_nms``, without the placeholders.

    Args:
        boxes: ``[A, 4]`` in descending order of score, inside an image.
        scores: ``[A]``; boxes of score ``-inf`` are placeholders.
        labels: int64 ``[A]``, not negative.
        threshold, count: as in :func:`nms_top_k`.
    """
    if len(boxes) == 0:
        return labels.new_empty(0)
    shifted = apart(boxes, labels)
    # With one more placeholder there is always at least one, and suppression keeps exactly one, as the last: it can be
    # dropped without reading a score, which would be a second host-device synchronisation.
    shifted, scores = F.pad(shifted, (0, 0, 0, 1)), F.pad(scores, (0, 1), value=-torch.inf)
    kept = nms_top_k(shifted, scores, threshold, count + 1)
    if threshold < 1:
        return kept[:-1]
    return kept[scores[kept] > -torch.inf][:count]  # nothing drops another, so all placeholders may be among them


def apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Shifts boxes ``[A, 4]`` of different groups so far that they do not overlap, for suppression within each group.

    In float64, or boxes of high groups would lose their fractions.

    Args:
        boxes: ``[A, 4]``, inside an image; at least one.
        groups: int64 ``[A]``, not negative.
    """
    return boxes.double() + (groups * (boxes.max() + 1))[:, None]


_pretends_gpu = ContextVar("pretends_gpu", default=False)


def sync_is_free(tensor: Tensor) -> bool:
    """Returns whether reading a value of a tensor needs no host-device synchronisation, as on a CPU.

    Code that chooses between data-dependent shapes (on a CPU) and fixed shapes calls this, so that
    :func:`as_if_on_gpu` reaches all of it.
    """
    return tensor.device.type == "cpu" and not _pretends_gpu.get()


@contextmanager
def as_if_on_gpu() -> Iterator[None]:
    """Makes :func:`sync_is_free` return False in a ``with`` block, in the calling thread only.

    The code paths for a GPU then run on a CPU, where they can be counted and compared.
    """
    token = _pretends_gpu.set(True)
    try:
        yield
    finally:
        _pretends_gpu.reset(token)


class Objects(NamedTuple):
    """The objects of a batch of images, padded; padding rows are zero.

    Attributes:
        boxes: ``[N, G, 4]``, ``G >= 1``.
        labels: int64 ``[N, G]``.
        valid: bool ``[N, G]``, False for padding.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor


def pad_objects(targets: list[dict]) -> Objects:
    """Stacks the objects of a batch, padded to the next power of two so that few shapes occur."""
    most = max(len(target["boxes"]) for target in targets)
    slots = 1 << max(most - 1, 0).bit_length()

    def stack(tensors: list[Tensor]) -> Tensor:
        return torch.stack([F.pad(t, (0, 0) * (t.dim() - 1) + (0, slots - len(t))) for t in tensors])

    boxes = stack([target["boxes"] for target in targets])
    labels = stack([target["labels"] for target in targets])
    valid = stack([torch.ones_like(target["labels"], dtype=torch.bool) for target in targets])
    return Objects(boxes, labels, valid)
