"""Cascade R-CNN: refines the boxes that a stage passes to the next (Cai and Vasconcelos, Cascade R-CNN, Sec. 4).

Each stage is :class:`grcn.models.roi_heads.RoIHeads` with its own heads. It learns from boxes of a higher overlap
than the stage before, which also supplies them. At test time a RoI's scores are the mean over the stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grcn import boxes

# Weight of a stage's losses relative to those of the stage before: 1, 1/2, 1/4 in the authors' code.
FOLLOWING_WEIGHT = 0.5


def box_weights_of(stage: int, first: Sequence[float]) -> tuple[float, float, float, float]:
    """Returns the normalisation of a stage's regression targets, which get smaller from stage to stage.

    Args:
        stage: its number, from 0.
        first: that of the first stage, usually 10, 10, 5, 5; the next two have twice and three times as much.
    """
    x, y, width, height = ((stage + 1) * weight for weight in first)
    return x, y, width, height


@torch.no_grad()
def refine(rois: Tensor, scores: Tensor, deltas: Tensor, box_weights: Sequence[float], sizes: Tensor) -> Tensor:
    """Returns the RoIs of the next stage: the box that each RoI has for its best class but background.

    Args:
        rois: ``[N, R, 4]``; rows of zero area are empty.
        scores: ``[N, R, K]`` of the classes, background first; any measure of the same order, such as logits.
        deltas: ``[N, R, K, 4]``.
        box_weights: of the stage that they are from.
        sizes: ``[N, 2]`` heights and widths of the images.

    Returns:
        ``[N, R, 4]`` within the images; the row of an empty RoI is zero, and so is one whose box is not finite.
    """
    chosen = boxes.of_class(deltas, scores[..., 1:].argmax(-1) + 1)
    refined = boxes.clip(boxes.decode(chosen, rois, box_weights), sizes)
    usable = (boxes.areas(rois) > 0) & (boxes.areas(refined) > 0)
    return torch.where(usable[..., None], refined, 0)
