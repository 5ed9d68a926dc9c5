"""Second stage: samples RoIs, pools each task's maps, runs the heads; losses in training, detections in evaluation.

Shapes: ``N`` images, ``P`` proposals of an image, ``R`` sampled RoIs of an image, ``L`` its first RoIs that may be
foreground, ``K`` classes including background. Frames: every box is in pixels of the resized, padded input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn import boxes, rng
from grcn.models.box_heads import TaskHeads
from grcn.models.candidates import candidates_above, image_groups, rois_above
from grcn.models.cascade import FOLLOWING_WEIGHT, refine
from grcn.models.context import ContextAttention
from grcn.models.features import Maps
from grcn.models.roi_pool import RoIPool
from grcn.models.targets import check_labels, check_loss
from grcn.models.transform import as_tensor

Features = dict[str, Maps]
ClassificationLoss = Callable[[Tensor, Tensor], Tensor]
BoxLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
# Maximum number of boxes of an image that enter suppression: without a score threshold, 1,203 classes give 361,000.
_MOST_CANDIDATES = 10_000
_MIN_SIDE = 1e-2  # of a detection, in pixels of the resized image, as in torchvision


@dataclass(frozen=True)
class SamplingSettings:
    """How RoIs are chosen for training.

    Attributes:
        batch: RoIs of an image; also the divisor of the losses, so that a batch may be spread over processes.
        fg_fraction: maximum share of foreground among them, but at least one RoI.
        fg_iou: overlap with an object from which a RoI is foreground; below it is background.
        bg_iou_low: overlap that background must reach with some object (Fast R-CNN's 0.1).
        add_gt: whether objects are added to the proposals.
    """

    batch: int = 128
    fg_fraction: float = 0.25
    fg_iou: float = 0.5
    bg_iou_low: float = 0.0
    add_gt: bool = True

    @property
    def max_fg(self) -> int:
        """``L``: slots of an image that may be foreground."""
        return max(1, int(self.batch * self.fg_fraction))


@dataclass(frozen=True)
class DetectionSettings:
    """How detections are chosen: scores above ``score_thresh``, suppression per class, the best ``detections``."""

    score_thresh: float = 0.05
    nms: float = 0.3
    detections: int = 100


class RoISample(NamedTuple):
    """RoIs to train on, foreground first.

    Attributes:
        rois: ``[N, R, 4]``.
        labels: int64 ``[N, R]``, 0 for background.
        regression_targets: ``[N, R, 4]``, zero where not foreground.
        valid: bool ``[N, R]``, False where an image has too few RoIs.
        foreground: bool ``[N, R]``.
        matched_gt: int64 ``[N, R]``, the object of a foreground RoI; meaningless elsewhere.
    """

    rois: Tensor
    labels: Tensor
    regression_targets: Tensor
    valid: Tensor
    foreground: Tensor
    matched_gt: Tensor


class RoIHeads(nn.Module):
    """The paper's second stage, on the same maps for both tasks or on separate ones.

    Where the tasks do not differ (the same maps and levels, no context, shared hidden layers) RoIs are pooled and run
    once; else localization has a separate pass. The box loss reads foreground RoIs only, so in training that pass
    runs on the ``L`` slots that can be foreground; losses and gradients are those of running all.

    Args:
        pools: RoI pooling for each task's maps.
        heads: hidden layers and predictors.
        shared_map: both tasks pool every RoI from the same map, ``features["cls"]``, of the same level and scale.
        context: attention modules, for the tasks that have one (paper, Sec. 3.3).
        context_pools: pooling of the whole image for them, per task.
        sampling, detecting: choice of RoIs and of detections.
        box_weights: normalisation of the regression targets.
        beta: where smooth L1 turns from quadratic to linear.
        loss_weights: of the losses of classification and of localization.
        following: the next stage of a cascade (Cai and Vasconcelos, Cascade R-CNN, Sec. 4), which classifies and
            refines the boxes that this stage has refined, with half the weight of its losses; None for the last.

    Attributes:
        classification_loss: may be replaced; from logits ``[M, K]`` and labels int64 ``[M]``, the loss of each RoI
            ``[M]``. Those of empty slots, which have label 0 like background, are ignored. Detection takes the softmax
            of the logits.
        box_loss: may be replaced; from deltas, regression targets and RoIs, each ``[N, L, 4]``, the loss of each RoI
            ``[N, L]``. :func:`grcn.boxes.decode` makes boxes of deltas or targets, RoIs and ``box_weights``. Those of
            RoIs that are not foreground, whose targets are zero, are not read, and must be finite.

    Raises:
        ValueError: ``context`` and ``context_pools`` are of different tasks.
    """

    def __init__(
        self,
        pools: dict[str, RoIPool],
        heads: TaskHeads,
        shared_map: bool,
        context: dict[str, ContextAttention] | None = None,
        context_pools: dict[str, RoIPool] | None = None,
        sampling: SamplingSettings | None = None,
        detecting: DetectionSettings | None = None,
        box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        beta: float = 1.0,
        loss_weights: tuple[float, float] = (1.0, 1.0),
        following: RoIHeads | None = None,
    ) -> None:
        super().__init__()
        if (context or {}).keys() != (context_pools or {}).keys():
            tasks = [sorted(one or {}) for one in (context, context_pools)]
            raise ValueError(f"context and context_pools must be of the same tasks (got {tasks[0]} and {tasks[1]})")
        self.pools: Mapping[str, RoIPool] = nn.ModuleDict(pools)  # type: ignore[assignment]
        self.context: Mapping[str, ContextAttention] = nn.ModuleDict(context or {})  # type: ignore[assignment]
        self.context_pools: Mapping[str, RoIPool] = nn.ModuleDict(context_pools or {})  # type: ignore[assignment]
        self.heads = heads
        self.shared_map = shared_map
        self.sampling = sampling or SamplingSettings()
        self.detecting = detecting or DetectionSettings()
        self.box_weights, self.loss_weights = box_weights, loss_weights
        self.classification_loss: ClassificationLoss = partial(F.cross_entropy, reduction="none")
        self.box_loss: BoxLoss = partial(smooth_l1, beta=beta)
        self.following = following
        self.last_stats: dict[str, Tensor] = {}

    @property
    def separate_loc_pass(self) -> bool:
        """Whether localization has a separate pass."""
        return not self.shared_map or len(self.context) > 0 or self.heads.tasks == "separate"

    def stages(self) -> list[RoIHeads]:
        """Returns this stage and those that follow."""
        return [self, *([] if self.following is None else self.following.stages())]

    def forward(
        self,
        features: Features,
        proposals: Tensor,
        image_sizes: list[tuple[int, int]],
        targets: list[dict] | None = None,
        score_thresh: float | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Classifies and refines proposals (torchvision's signature, and ``score_thresh``).

        Args:
            features: maps ``[N, C, H, W]``, finest first, under ``"cls"`` and ``"loc"``.
            proposals: ``[N, P, 4]``; rows of zero area are empty.
            image_sizes: ``(height, width)`` of each image.
            targets: ``boxes`` ``[n, 4]`` and ``labels`` ``[n]``, in training.
            score_thresh: in evaluation, scores must be above this; None: above that of ``detecting``.

        Returns:
            Detections (``boxes``, ``labels``, ``scores`` per image; an empty list in training) and the losses
            ``loss_classifier`` and ``loss_box_reg`` (an empty dict in evaluation).

        Raises:
            ValueError: no targets in training, or a label that is not one of the classes (on a CPU only);
                ``shared_map`` with two maps.
        """
        if self.shared_map and features["cls"][0] is not features["loc"][0]:
            raise ValueError("shared_map: the maps of cls and loc differ; pass shared_map=False")
        if self.training:
            if targets is None:
                raise ValueError("targets are needed in training mode")
            check_labels(targets, self.heads.cls_score.out_features)
            return [], self.losses(features, proposals, image_sizes, targets)
        score_thresh = self.detecting.score_thresh if score_thresh is None else score_thresh
        detections = []
        for group in image_groups(proposals):
            own = {task: tuple(map_[group] for map_ in maps) for task, maps in features.items()}
            sizes = as_tensor(image_sizes[group], proposals)
            shortlist = self.shortlist(own, proposals[group], sizes, score_thresh)
            detections += self._suppress(*shortlist)
        return detections, {}

    def losses(
        self, features: Features, proposals: Tensor, image_sizes: list[tuple[int, int]], targets: list[dict]
    ) -> dict[str, Tensor]:
        """Samples RoIs and computes the losses of this stage and of those that follow.

        Args:
            features, proposals, image_sizes, targets: as in :meth:`forward`.
        """
        words: list[tuple[int, ...]] = []
        for number in range(len(self.stages())):
            # Without its number, the first stage draws what the only stage of a model without a cascade draws.
            words.append((rng.ROIS, number) if number else (rng.ROIS,))
            words += (rng.DROPOUT, 2 * number), (rng.DROPOUT, 2 * number + 1)
        states = rng.image_states(targets, proposals.device, *words)
        sizes = as_tensor(image_sizes, proposals)
        return self.losses_from_tensors(features, proposals, sizes, boxes.pad_objects(targets), states)

    def losses_from_tensors(
        self, features: Features, proposals: Tensor, sizes: Tensor, objects: boxes.Objects, states: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of :meth:`losses` from tensors only, in fixed shapes.

        Args:
            features, proposals: as in :meth:`forward`.
            sizes: ``[N, 2]``, heights and widths of the images.
            objects: of the images.
            states: ``[3 * stages, N]`` of :func:`grcn.rng.image_states`: for the sampling of each stage, and for the
                dropout of its two passes.
        """
        rois, labels, regression_targets, valid, foreground, _ = self.sample(proposals, objects, states[0])
        images, count = rois.shape[:2]
        # The next stage needs all RoIs refined; the loss reads only those that can be foreground.
        loc = slice(0, self.sampling.max_fg if self.following is None else count)
        cls_hidden, loc_hidden = self._hidden(features, rois, loc, sizes, states[1], states[2])
        logits = self.heads.cls_score(cls_hidden).to(rois.dtype)
        deltas = self.heads.deltas(loc_hidden).to(rois.dtype).unflatten(0, (images, -1))

        flat = labels.flatten()
        classification = self.classification_loss(logits, flat)
        check_loss("classification_loss", classification, flat)
        classification = classification.view(images, count)
        own = boxes.of_class(deltas, labels[:, loc])
        regression = self.box_loss(own, regression_targets[:, loc], rois[:, loc])
        check_loss("box_loss", regression, labels[:, loc])
        slots = images * self.sampling.batch
        self.last_stats = {"num_fg": foreground.sum(), "num_bg": (valid & ~foreground).sum()}
        losses = {
            "loss_classifier": torch.where(valid, classification, 0).sum() / slots * self.loss_weights[0],
            "loss_box_reg": torch.where(foreground[:, loc], regression, 0).sum() / slots * self.loss_weights[1],
        }
        if self.following is None:
            return losses
        rois = torch.where(valid[..., None], rois, 0)
        refined = refine(rois, logits.view(images, count, -1), deltas, self.box_weights, sizes)
        further = self.following.losses_from_tensors(features, refined, sizes, objects, states[3:])
        return {name: loss + FOLLOWING_WEIGHT * further[name] for name, loss in losses.items()}

    def _hidden(
        self, features: Features, rois: Tensor, loc: slice, sizes: Tensor, cls_states: Tensor, loc_states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Runs both passes in training: hidden units ``[N * R, ...]`` and, of the RoIs in ``loc``, ``[N * L, ...]``.

        Args:
            cls_states, loc_states: ``[N]``, of the dropout masks of each pass.
        """
        images, count = rois.shape[:2]
        raw = self._pool("cls", features, rois)
        cls_in = self._add_context("cls", raw, features, sizes)
        if not self.separate_loc_pass:
            hidden = self.heads.hidden("cls", cls_in, _row_keys(cls_states, count))
            return hidden, hidden.unflatten(0, (images, count))[:, loc].flatten(0, 1)
        loc_rois = rois[:, loc]
        same = raw.unflatten(0, (images, count))[:, loc].flatten(0, 1) if self.shared_map else None
        loc_in = self._pool("loc", features, loc_rois) if same is None else same
        loc_in = self._add_context("loc", loc_in, features, sizes)
        keys = _row_keys(cls_states, count), _row_keys(loc_states, loc_rois.shape[1])
        return self.heads.hidden_both(cls_in, loc_in, *keys)

    @torch.no_grad()
    def sample(self, proposals: Tensor, objects: boxes.Objects, states: Tensor) -> RoISample:
        """Draws the RoIs to train on.

        Args:
            proposals: ``[N, P, 4]``.
            objects: of the images.
            states: ``[N]`` of :func:`grcn.rng.image_states`, for ``ROIS``.
        """
        how = self.sampling
        gt_boxes, gt_labels, gt_valid = objects.boxes.to(proposals.dtype), objects.labels, objects.valid
        usable = boxes.areas(proposals) > 0
        if how.add_gt:
            proposals, usable = torch.cat([proposals, gt_boxes], 1), torch.cat([usable, gt_valid], 1)
        overlaps = boxes.iou(gt_boxes, proposals)
        matched = boxes.match(overlaps, gt_valid, how.fg_iou, how.fg_iou, usable=usable, bg_iou_low=how.bg_iou_low)
        candidates = torch.arange(proposals.shape[1], device=proposals.device)
        keys = rng.hash_on(states[:, None], candidates)
        indices, valid, foreground = boxes.sample(matched, keys, how.batch, how.max_fg)
        rois = boxes.take(proposals, indices)
        matched_gt = matched.gather(1, indices).clamp(min=0)
        labels = torch.where(foreground, gt_labels.gather(1, matched_gt), 0)
        regression_targets = boxes.encode(boxes.take(gt_boxes, matched_gt), rois, self.box_weights)
        regression_targets = torch.where(foreground[..., None], regression_targets, 0)
        return RoISample(rois, labels, regression_targets, valid, foreground, matched_gt)

    def shortlist(
        self,
        features: Features,
        rois: Tensor,
        sizes: Tensor,
        score_thresh: float,
        earlier: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs detection up to suppression.

        Args:
            features: as in :meth:`forward`.
            rois: ``[N, P, 4]`` of the images of a group of :func:`grcn.models.candidates.image_groups`.
            sizes: ``[N, 2]``, heights and widths of these images.
            score_thresh: scores must be above this.
            earlier: scores ``[N, P, K - 1]`` of the stages before; a RoI's scores are the mean over the stages.

        Returns:
            The boxes ``[N, S, 4]`` with the best scores, their scores ``[N, S]``, descending except for boxes below
            the minimum size and placeholders, which have ``-inf``, and their classes int64 ``[N, S]``.
        """
        classes = self.heads.cls_score.out_features
        raw = self._pool("cls", features, rois)
        hidden = self.heads.hidden("cls", self._add_context("cls", raw, features, sizes))
        of_classes = self.heads.cls_score(hidden).to(rois.dtype).softmax(-1).view(*rois.shape[:2], classes)
        scores = torch.where((boxes.areas(rois) > 0)[..., None], of_classes[..., 1:], 0)
        if self.following is not None:
            deltas = self._deltas(features, rois, sizes, raw, hidden)
            refined = refine(rois, of_classes, deltas, self.box_weights, sizes)
            return self.following.shortlist(features, refined, sizes, score_thresh, (*earlier, scores))
        if earlier:
            scores = torch.stack([*earlier, scores]).mean(0)

        # A RoI without a score above the threshold gives no detection: it need not be localized.
        rows = rois_above(scores, score_thresh)
        rois, raw, hidden, scores = rois[:, rows], raw[rows], hidden[rows], scores[:, rows]
        deltas = self._deltas(features, rois, sizes, raw, hidden)[:, :, 1:]

        best, index = candidates_above(scores, score_thresh, max(_MOST_CANDIDATES, self.detecting.detections))
        row, label = index // (classes - 1), index % (classes - 1)
        rois, deltas = boxes.take(rois, row), boxes.take(deltas.flatten(1, 2), index)
        found = boxes.clip(boxes.decode(deltas, rois, self.box_weights), sizes)
        large_enough = ((found[..., 2:] - found[..., :2]) >= _MIN_SIDE).all(-1)
        return found, torch.where(large_enough, best, -torch.inf), label + 1

    def _deltas(self, features: Features, rois: Tensor, sizes: Tensor, raw: Tensor, hidden: Tensor) -> Tensor:
        """Localizes RoIs ``[N, R, 4]``: deltas ``[N, R, K, 4]``.

        Args:
            raw, hidden: pooled maps and hidden units of classification, used where localization shares them.
        """
        if self.separate_loc_pass:
            loc_in = raw if self.shared_map else self._pool("loc", features, rois)
            hidden = self.heads.hidden("loc", self._add_context("loc", loc_in, features, sizes))
        return self.heads.deltas(hidden).to(rois.dtype).unflatten(0, rois.shape[:2])

    def _suppress(self, found: Tensor, scores: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
        """Turns the output of :meth:`shortlist` into detections; one host-device synchronisation per image."""
        detections = []
        for box, score, label in zip(found, scores, labels, strict=True):
            kept = boxes.batched_nms_top_k(box, score, label, self.detecting.nms, self.detecting.detections)
            detections.append({"boxes": box[kept], "labels": label[kept], "scores": score[kept]})
        return detections

    def _pool(self, task: str, features: Features, rois: Tensor) -> Tensor:
        return self.pools[task](features[task], rois)

    def _add_context(self, task: str, pooled: Tensor, features: Features, sizes: Tensor) -> Tensor:
        if task not in self.context:
            return pooled
        image = self.context_pools[task].whole(features[task], sizes)
        return self.context[task](pooled, image)


def smooth_l1(deltas: Tensor, regression_targets: Tensor, rois: Tensor, beta: float) -> Tensor:
    """Returns the smooth L1 loss of each RoI ``[N, L]``, summed over its four coordinates; ``rois`` are not read."""
    return F.smooth_l1_loss(deltas, regression_targets, beta=beta, reduction="none").sum(-1)


def _row_keys(states: Tensor, slots: int) -> Tensor:
    """Random keys of the rows of a pass, int64 ``[N * slots]``, from the states of its images ``[N]``."""
    return rng.hash_on(states[:, None], torch.arange(slots, device=states.device)).flatten()
