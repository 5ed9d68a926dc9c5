"""Selects candidates for detection: as few RoIs and boxes as the scores allow, or in fixed shapes.

Where reading a count is free, as on a CPU, detection goes image by image and works on the rows that can still become
detections. On a GPU every count would be a host-device synchronisation, which costs more than the work it saves:
shapes there depend on the settings only. Both give the same detections.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grcn import boxes


def image_groups(proposals: Tensor) -> list[slice]:
    """Groups the images of proposals ``[N, P, 4]`` for detection: each alone, or all at once."""
    if boxes.sync_is_free(proposals):
        return [slice(i, i + 1) for i in range(len(proposals))]
    return [slice(0, len(proposals))]


def rois_above(scores: Tensor, threshold: float) -> Tensor | slice:
    """Returns an index of the RoIs with a score above a threshold, or of all RoIs where that needs a synchronisation.

    The others yield no detection, whatever their boxes.

    Args:
        scores: ``[N, P, K - 1]``, not negative; on a CPU those of one image.
    """
    if threshold > 0 and boxes.sync_is_free(scores):
        return (scores[0] > threshold).any(1).nonzero()[:, 0]
    return slice(None)


def candidates_above(scores: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """Returns the ``most`` best scores above a threshold.

    Args:
        scores: ``[N, P, K - 1]``; those of a RoI sum to at most one.

    Returns:
        Scores ``[N, S]``, falling, and their indices int64 ``[N, S]`` into the ``P * (K - 1)`` of an image. An image
        with fewer has placeholders at the end, of score ``-inf``. ``S`` is as small as the scores allow, or a bound on
        it.
    """
    above = torch.where(scores > threshold, scores, -torch.inf).flatten(1)
    if boxes.sync_is_free(scores):
        slots = int((above > -torch.inf).sum(1).amax())
    else:  # as the scores of a RoI sum to one, at most 1 / threshold of them are above
        rois, classes = scores.shape[1:]
        slots = rois * (int(min(classes, 1 / threshold)) if threshold > 0 else classes)
    slots = min(slots, most)
    best, index = above.sort(dim=1, descending=True, stable=True)
    return best[:, :slots], index[:, :slots]
