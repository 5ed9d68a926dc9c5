"""The detector: transform, backbone, region proposals, RoI heads. Every model of the paper is this class."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from grcn.models.contracts import check_maps, check_readers
from grcn.models.features import Backbone
from grcn.models.roi_heads import RoIHeads
from grcn.models.rpn import RegionProposalNetwork
from grcn.models.targets import check_targets
from grcn.models.transform import DetectionTransform


class Detector(nn.Module):
    """A two-stage detector whose classification and localization read ``features["cls"]`` and ``features["loc"]``.

    The four parts, and their order, are those of ``torchvision.models.detection.generalized_rcnn.GeneralizedRCNN``,
    which also accepts ours. RPN and RoI heads go together: ours pass on one tensor of proposals, torchvision's a list.

    Raises:
        ValueError: anchors, pools or hidden layers do not fit what the backbone declares.
    """

    def __init__(
        self, backbone: Backbone, rpn: RegionProposalNetwork, roi_heads: RoIHeads, transform: DetectionTransform
    ) -> None:
        super().__init__()
        check_readers(backbone, rpn, roi_heads)
        self.transform = transform
        self.backbone = backbone
        self.rpn = rpn
        self.roi_heads = roi_heads

    @property
    def score_thresh(self) -> float:
        """The score that a detection must exceed."""
        return self.roi_heads.detecting.score_thresh

    def forward(
        self, images: Sequence[Tensor], targets: list[dict] | None = None, score_thresh: float | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Computes losses in training mode and detections in evaluation mode.

        Args:
            images: each ``[3, h, w]``, float in 0-1 or uint8, of any sizes.
            targets: one dict per image, in training: ``boxes`` ``[n, 4]`` absolute xyxy with ``x1 < x2`` and
                ``y1 < y2``, of any type of numbers, ``labels`` int64 ``[n]`` in 1..C; for further keys see
                ``grcn.data.loader``.
            score_thresh: in evaluation, only detections of a higher score are returned; None: the threshold that the
                RoI heads were built with.

        Returns:
            Training: ``loss_objectness``, ``loss_rpn_box_reg``, ``loss_classifier``, ``loss_box_reg``, weighted
            scalars whose sum is the total. Evaluation: per image ``boxes`` ``[m, 4]`` in original pixels, ``labels``
            ``[m]``, ``scores`` ``[m]``, best first.

        Raises:
            ValueError, TypeError: the images, the targets of a training or the maps are not as they must be; see
                :func:`grcn.models.transform.check_images`, :func:`grcn.models.targets.check_targets` and
                :func:`grcn.models.contracts.check_maps`. Values of targets are checked on a CPU only.
        """
        if self.training:
            if targets is None:
                raise ValueError("targets are needed in training mode")
            check_targets(targets, len(images))
        batch, targets = self.transform(images, targets)
        features = self.backbone(batch.tensors)
        check_maps(features, self.backbone, (batch.tensors.shape[-2], batch.tensors.shape[-1]))
        proposals, losses = self.rpn(batch, features, targets)
        # Third-party heads have torchvision's signature, so they get score_thresh only if the caller sets it.
        own = {} if score_thresh is None else {"score_thresh": score_thresh}
        detections, roi_losses = self.roi_heads(features, proposals, batch.image_sizes, targets, **own)
        if self.training:
            return {**losses, **roi_losses}
        original = [(image.shape[-2], image.shape[-1]) for image in images]
        return self.transform.postprocess(detections, batch.image_sizes, original)


def count_parameters(module: nn.Module) -> int:
    """Counts weights and biases, those of frozen norms too, which are not parameters; not the statistics of norms."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(tensor.numel() for name, tensor in module.state_dict().items() if not name.endswith(statistics))
