"""Region proposal network on the maps of one task (Ren et al., Sec. 3.1; paper, Sec. 3.2: it reads those of "cls").

Shapes: ``N`` images, ``A`` anchors of all maps, ``P`` proposals of an image, ``G`` objects of an image (padded).
Frames: every box is in pixels of the resized, padded input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn import boxes, rng
from grcn.models.anchors import AnchorGenerator
from grcn.models.features import Maps, joined
from grcn.models.fused_conv import ConvReLU
from grcn.models.transform import ImageBatch, as_tensor

BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class ProposalSettings:
    """How proposals are chosen from scored anchors.

    Attributes:
        pre_nms: of each map, boxes with the best scores that enter suppression.
        post_nms: proposals of an image, ``P``.
        nms: overlap above which the box of the lower score is dropped.
        min_size: minimum side, in *original* pixels.
    """

    pre_nms: int
    post_nms: int
    nms: float = 0.7
    min_size: float = 16.0


class AnchorSample(NamedTuple):
    """Anchors to train on, in ``S`` slots for each image, foreground first.

    Attributes:
        indices: int64 ``[N, S]`` into the anchors of all maps.
        matched_gt: int64 ``[N, S]``, the object of a foreground anchor; meaningless elsewhere.
        regression_targets: ``[N, S, 4]``, zero where not foreground.
        valid: bool ``[N, S]``, False where an image has too few anchors.
        foreground: bool ``[N, S]``.
        matched: int64 ``[N, A]`` of :func:`grcn.boxes.match`, from which they were drawn.
    """

    indices: Tensor
    matched_gt: Tensor
    regression_targets: Tensor
    valid: Tensor
    foreground: Tensor
    matched: Tensor


class RegionProposalNetwork(nn.Module):
    """Scores anchors and proposes boxes; in training also returns its two losses.

    The signature is torchvision's, so it fits into ``torchvision.models.detection.generalized_rcnn.GeneralizedRCNN``.

    Args:
        in_channels: channels of the maps it reads.
        channels: channels of its hidden 3x3 convolutions.
        anchors: boxes of those maps.
        reads: key of the maps among the features.
        train, test: choice of proposals in each mode.
        batch: anchors sampled per image; also the divisor of the losses, so that a batch may be spread over processes.
        fg_fraction: maximum share of foreground among them.
        fg_iou, bg_iou: thresholds of matching.
        straddling: train on anchors that cross the image border (Ren et al. leave them out).
        beta: where smooth L1 turns from quadratic to linear.
        convs: hidden convolutions in a row; 2 in torchvision's ``fasterrcnn_resnet50_fpn_v2``.
        auxiliary: another RPN, which reads the other task's maps; its losses are added to ours, and train those maps
            as ours do. It proposes nothing.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        anchors: AnchorGenerator,
        train: ProposalSettings,
        test: ProposalSettings,
        reads: str = "cls",
        batch: int = 256,
        fg_fraction: float = 0.5,
        fg_iou: float = 0.7,
        bg_iou: float = 0.3,
        straddling: bool = False,
        beta: float = 1 / 9,
        convs: int = 1,
        auxiliary: RegionProposalNetwork | None = None,
    ) -> None:
        super().__init__()
        self.conv = ConvReLU(in_channels, channels, 3)
        self.further = nn.ModuleList(ConvReLU(channels, channels, 3) for _ in range(convs - 1))
        self.cls_logits = nn.Conv2d(channels, anchors.per_cell, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors.per_cell * 4, 1)
        self.anchors = anchors
        self.reads = reads
        self.train_settings, self.test_settings = train, test
        self.batch, self.max_fg = batch, int(batch * fg_fraction)
        self.fg_iou, self.bg_iou, self.straddling, self.beta = fg_iou, bg_iou, straddling, beta
        self.auxiliary = auxiliary
        self.last_stats: dict[str, Tensor] = {}

    @property
    def settings(self) -> ProposalSettings:
        """The choice of proposals in the present mode."""
        return self.train_settings if self.training else self.test_settings

    def forward(
        self, images: ImageBatch, features: dict[str, Maps], targets: list[dict] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Proposes boxes.

        Args:
            images: the batch; torchvision's ``ImageList`` works too.
            features: by name, maps ``[N, C, H, W]``, finest first.
            targets: with ``boxes`` ``[n, 4]``, in training.

        Returns:
            ``proposals`` ``[N, P, 4]``, best first, whose empty rows are zero; and the losses ``loss_objectness`` and
            ``loss_rpn_box_reg`` (an empty dict in evaluation).
        """
        *found, losses = self._score(images, features, targets)
        if self.auxiliary is not None and self.training:
            *_, more = self.auxiliary._score(images, features, targets)
            losses = {name: loss + more[name] for name, loss in losses.items()}
        return self._suppress(*found), losses

    def layers(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the convolutions on one map ``[N, C, H, W]``: logits ``[N, A', H, W]``, deltas ``[N, 4A', H, W]`` for
        ``A'`` anchors of a cell."""
        hidden = self.conv(feature)
        for conv in self.further:
            hidden = conv(hidden)
        return self.cls_logits(hidden), self.bbox_pred(hidden)

    def _score(
        self, images: ImageBatch, features: dict[str, Maps], targets: list[dict] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Runs :meth:`forward` up to suppression, without a host-device synchronisation.

        Returns:
            As :meth:`score_maps`.
        """
        maps = features[self.reads]
        anchors = self.anchors(maps, (images.tensors.shape[-2], images.tensors.shape[-1]))
        sizes = as_tensor(images.image_sizes, anchors)
        scales = as_tensor(getattr(images, "scales", None) or [1.0] * len(sizes), anchors)
        if not self.training:
            return self.score_maps(maps, anchors, sizes, scales)
        if targets is None:
            raise ValueError("targets are needed in training mode")
        (states,) = rng.image_states(targets, anchors.device, (rng.ANCHORS,))
        return self.score_maps(maps, anchors, sizes, scales, boxes.pad_objects(targets), states)

    def score_maps(
        self,
        maps: Maps,
        anchors: Tensor,
        sizes: Tensor,
        scales: Tensor,
        objects: boxes.Objects | None = None,
        states: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Scores and moves anchors; in training also matches and samples them. Tensors only, in fixed shapes.

        Args:
            maps: each ``[N, C, H, W]``, finest first.
            anchors: ``[A, 4]`` of all maps.
            sizes: ``[N, 2]``, heights and widths of the images within the batch.
            scales: ``[N]``, by which they were resized.
            objects, states: as in :meth:`sample`, in training.

        Returns:
            The best boxes ``[N, K, 4]`` and their scores ``[N, K]``, descending except for boxes below the minimum
            size, which have ``-inf``; int64 ``[N, K]``, the map that each box is from; and the losses, as
            :meth:`forward` returns them.
        """
        of_maps = [self.layers(map_) for map_ in maps]
        logits = joined([of_map.permute(0, 2, 3, 1).flatten(1) for of_map, _ in of_maps], 1).to(anchors.dtype)
        cells = [of_map.permute(0, 2, 3, 1).reshape(len(logits), -1, 4) for _, of_map in of_maps]
        deltas = joined(cells, 1).to(anchors.dtype)
        counts = self.anchors.counts(maps)
        found = self._candidates(logits.detach(), deltas.detach(), anchors, counts, sizes, scales)
        if objects is None or states is None:
            return *found, {}
        return *found, self._losses(logits, deltas, self.sample(anchors, sizes, objects, states))

    @torch.no_grad()
    def _candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, counts: list[int], sizes: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        how = self.settings
        scores, index, level = self._best_of_each_map(logits.nan_to_num(nan=-torch.inf), counts)
        candidates = boxes.decode(boxes.take(deltas, index), anchors[index], BOX_WEIGHTS)
        candidates = boxes.clip(candidates, sizes)
        smallest = (candidates[..., 2:] - candidates[..., :2]).amin(-1)
        large_enough = smallest >= (how.min_size * scales).clamp(min=1e-3)[:, None]  # torchvision's minimum
        return candidates, torch.where(large_enough, scores, -torch.inf), level

    def _best_of_each_map(self, scores: Tensor, counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Picks the ``pre_nms`` best anchors of each map, and sorts those of all maps by score.

        Args:
            scores: ``[N, A]``, map after map.
            counts: anchors of each map.

        Returns:
            Scores ``[N, K]``, falling; indices and maps of these anchors, int64 ``[N, K]``.
        """
        best, indices, levels, start = [], [], [], 0
        for level, of_map in enumerate(scores.split(counts, dim=1)):
            # Stable, since topk breaks ties by device; cells whose hidden units are all zero tie.
            ordered, index = of_map.sort(dim=1, descending=True, stable=True)
            most = self.settings.pre_nms
            best.append(ordered[:, :most])
            indices.append(index[:, :most] + start)
            levels.append(torch.full_like(indices[-1], level))
            start += of_map.shape[1]
        found = joined(best, 1), joined(indices, 1), joined(levels, 1)
        if len(counts) == 1:  # sorted already
            return found
        ordered, order = found[0].sort(dim=1, descending=True, stable=True)
        return ordered, found[1].gather(1, order), found[2].gather(1, order)

    @torch.no_grad()
    def _suppress(self, candidates: Tensor, scores: Tensor, level: Tensor) -> Tensor:
        """Turns the output of :meth:`_score` into proposals ``[N, P, 4]``; the only host-device synchronisation.

        Boxes of different maps never drop each other (Lin et al., Feature Pyramid Networks, as in their code).
        """
        how = self.settings
        proposals = candidates.new_zeros(len(candidates), how.post_nms, 4)
        for i in range(len(candidates)):
            one = candidates[i] if len(self.anchors.strides) == 1 else boxes.apart(candidates[i], level[i])
            kept = boxes.nms_top_k(one, scores[i], how.nms, how.post_nms)
            proposals[i, : len(kept)] = torch.where(scores[i, kept, None] > -torch.inf, candidates[i, kept], 0)
        return proposals

    @torch.no_grad()
    def sample(self, anchors: Tensor, sizes: Tensor, objects: boxes.Objects, states: Tensor) -> AnchorSample:
        """Matches anchors to objects and samples those to train on.

        Args:
            anchors: ``[A, 4]`` of all maps.
            sizes: ``[N, 2]``, heights and widths of the images within the batch.
            objects: of the images.
            states: ``[N]`` of :func:`grcn.rng.image_states`, for ``ANCHORS``.
        """
        gt_boxes, gt_valid = objects.boxes.to(anchors.dtype), objects.valid
        usable = None if self.straddling else _inside(anchors, sizes)
        overlaps = boxes.iou(gt_boxes, anchors)
        matched = boxes.match(overlaps, gt_valid, self.fg_iou, self.bg_iou, low_quality=True, usable=usable)
        keys = rng.hash_on(states[:, None], torch.arange(len(anchors), device=anchors.device))
        indices, valid, foreground = boxes.sample(matched, keys, self.batch, self.max_fg)
        matched_gt = matched.gather(1, indices).clamp(min=0)
        regression_targets = boxes.encode(boxes.take(gt_boxes, matched_gt), anchors[indices], BOX_WEIGHTS)
        regression_targets = torch.where(foreground[..., None], regression_targets, 0)
        return AnchorSample(indices, matched_gt, regression_targets, valid, foreground, matched)

    def _losses(self, logits: Tensor, deltas: Tensor, sample: AnchorSample) -> dict[str, Tensor]:
        indices, _, regression_targets, valid, foreground, _ = sample
        logits, deltas = logits.gather(1, indices), boxes.take(deltas, indices)
        objectness = F.binary_cross_entropy_with_logits(logits, foreground.to(logits.dtype), reduction="none")
        regression = F.smooth_l1_loss(deltas, regression_targets, beta=self.beta, reduction="none").sum(-1)
        self.last_stats = {"num_fg": foreground.sum(), "num_bg": (valid & ~foreground).sum()}
        slots = indices.numel()
        return {
            "loss_objectness": torch.where(valid, objectness, 0).sum() / slots,
            "loss_rpn_box_reg": torch.where(foreground, regression, 0).sum() / slots,
        }


def _inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Returns which anchors lie inside their image: bool ``[N, A]``."""
    start, end = anchors[:, :2] >= 0, anchors[None, :, 2:] <= sizes.flip(-1)[:, None]
    return start.all(-1) & end.all(-1)
