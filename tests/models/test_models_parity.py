"""The whole detector against torchvision's FasterRCNN with the same weights, sampling everything."""

from dataclasses import replace

import pytest
import torch
from support import CLASSES, RATIOS, SIZES, as_torchvision, small_batch, small_detector
from torch.testing import assert_close
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from grcn import boxes, rng
from grcn.models.anchors import AnchorGenerator
from grcn.models.roi_heads import SamplingSettings
from grcn.models.rpn import ProposalSettings

TAKE_ALL = SamplingSettings(batch=200, fg_fraction=0.5)
RPN_ALL = 1000
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


def pair(dtype, op="align"):
    model = small_detector(sampling=TAKE_ALL, rpn_batch=RPN_ALL, op=op).to(dtype)
    return model, as_torchvision(model)


def rescaled_losses(model, images, targets):
    """Ours divide by the slots of the batch, theirs by what was sampled."""
    losses = model(images, targets)
    for part, name, slots in (("rpn", "rpn", RPN_ALL), ("roi_heads", "roi", TAKE_ALL.batch)):
        stats = getattr(model, part).last_stats
        factor = slots * len(images) / int(stats["num_fg"] + stats["num_bg"])
        for loss in ("loss_objectness", "loss_rpn_box_reg") if name == "rpn" else ("loss_classifier", "loss_box_reg"):
            losses[loss] = losses[loss] * factor
    return losses


@pytest.mark.parametrize("op", ["align", "pool"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_and_gradients_equal_torchvisions(dtype, op):
    model, reference = pair(dtype, op)
    images, targets = small_batch(dtype)
    theirs = reference.train()(images, targets)
    sum(theirs.values()).backward()
    expected = {
        id(ours): parameter.grad
        for theirs_, ours in reference.pairs.items()
        for parameter, ours in zip(theirs_.parameters(), ours.parameters(), strict=True)
    }
    backbone = [p.grad.clone() for p in model.backbone.parameters()]
    model.zero_grad()

    losses = rescaled_losses(model.train(), images, targets)
    assert model.roi_heads.last_stats["num_fg"] > 4
    assert list(losses) == ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"]
    total = list(losses.values())
    # Torchvision's objectness loss is float32 whatever the model: its labels are, and so is its value.
    assert_close(losses.pop("loss_objectness").float(), theirs.pop("loss_objectness"))
    assert_close(losses, theirs, **TOLERANCE[dtype])
    sum(total).backward()
    for parameter in model.parameters():
        if id(parameter) in expected:
            assert_close(parameter.grad, expected[id(parameter)], **TOLERANCE[dtype])
    assert_close([p.grad for p in model.backbone.parameters()], backbone, **TOLERANCE[dtype])


@pytest.mark.parametrize("op", ["align", "pool"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@torch.no_grad()
def test_proposals_and_detections_equal_torchvisions(dtype, op):
    model, reference = (m.eval() for m in pair(dtype, op))
    images, _ = small_batch(dtype)
    images = images + [torch.rand(3, 48, 72, dtype=dtype)]  # one that is resized
    for image in images:
        batch, _ = model.transform([image])
        assert_close(batch.tensors, reference.transform([image])[0].tensors, **TOLERANCE[dtype])
        feature = model.backbone(batch.tensors)
        ours, _ = model.rpn(batch, feature)
        theirs, _ = reference.rpn(ImageList(batch.tensors, batch.image_sizes), {"0": feature["cls"][0]})
        count = len(theirs[0])
        assert_close(ours[0, :count], theirs[0], **TOLERANCE[dtype])
        assert not ours[0, count:].any()
    for ours, theirs in ((model([image])[0], reference([image])[0]) for image in images):
        assert len(ours["boxes"]) > 10
        assert_close(ours, theirs, **TOLERANCE[dtype])
        assert set(ours["labels"].tolist()) <= set(range(1, CLASSES))


def test_anchors_equal_torchvisions():
    feature = torch.zeros(1, 8, 5, 7)
    theirs = TorchvisionAnchors((SIZES,), (RATIOS,))(ImageList(torch.zeros(1, 3, 80, 112), [(80, 112)]), [feature])[0]
    assert_close(AnchorGenerator([SIZES], RATIOS, [16], "torchvision")((feature,), (80, 112)), theirs)
    assert_close(AnchorGenerator([SIZES], RATIOS, [16])((feature,), (80, 112)), theirs + 8)


def test_anchors_are_not_rounded():
    anchors = AnchorGenerator([[32]], [0.5], [16])((torch.zeros(1, 8, 1, 1),), (16, 16))
    assert_close((anchors[0, 2] - anchors[0, 0]) * (anchors[0, 3] - anchors[0, 1]), torch.tensor(1024.0))


def test_anchors_across_the_border_are_not_trained_on():
    """Moving the logits of anchors that leave their own image, of another size each, changes no loss."""
    model = small_detector(straddling=False).double().train()
    images, targets = small_batch(torch.float64)
    batch, targets = model.transform(images, targets)
    anchors = model.rpn.anchors((torch.zeros(1, 1, 4, 6, dtype=torch.float64),), (64, 96))
    logits, deltas = torch.randn(2, len(anchors)).double(), torch.randn(2, len(anchors), 4).double()
    sizes = torch.tensor(batch.image_sizes).double()
    (states,) = rng.image_states(targets, anchors.device, (rng.ANCHORS,))
    sample = model.rpn.sample(anchors, sizes, boxes.pad_objects(targets), states)
    losses = model.rpn._losses(logits, deltas, sample)
    for image, (height, width) in enumerate(batch.image_sizes):
        for index, (x1, y1, x2, y2) in enumerate(anchors.tolist()):
            if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
                logits[image, index] += 5
                deltas[image, index] += 5
    assert_close(model.rpn._losses(logits, deltas, sample), losses)
    assert model.rpn.last_stats["num_fg"] > 0 and losses["loss_rpn_box_reg"] > 0


@torch.no_grad()
def test_smallest_proposals_are_measured_in_original_pixels():
    model = small_detector(short=128).eval()
    image = torch.rand(3, 64, 96)  # resized to twice its size
    batch, _ = model.transform([image])
    features = model.backbone(batch.tensors)
    everything = model.rpn(batch, features)[0][0]
    model.rpn.test_settings = replace(model.rpn.test_settings, min_size=9.0)
    kept = model.rpn(batch, features)[0][0]
    sides = (kept[:, 2:] - kept[:, :2])[kept.any(1)]
    assert sides.min() >= 18
    assert (everything[:, 2:] - everything[:, :2]).min() < 18


@torch.no_grad()
def test_of_equal_scores_the_first_anchor_comes_first():
    """Where the hidden layer is silent every score is the bias, and which proposals follow is not up to the device."""
    model = small_detector().eval()
    for parameter in (*model.rpn.cls_logits.parameters(), *model.rpn.bbox_pred.parameters()):
        parameter.zero_()
    model.rpn.test_settings = ProposalSettings(7, 7, 1.0, 0.0)
    batch, _ = model.transform([torch.rand(3, 64, 96)])
    features = model.backbone(batch.tensors)
    first = model.rpn.anchors(features["cls"], (64, 96))[:7].clamp(min=0)
    kept = model.rpn(batch, features)[0][0]
    assert {tuple(row) for row in kept.tolist()} == {tuple(row) for row in first.tolist()}
