"""Heads of two kinds (Double-Head), boxes for all classes, weights of losses, and RoIs pooled from larger boxes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import CLASSES, SMALL, small_batch
from torch import nn
from torch.testing import assert_close
from torchvision.models.resnet import Bottleneck
from torchvision.ops import roi_align

from grcn import boxes, rng
from grcn.build import build_model
from grcn.config.model_schema import ModelConfig
from grcn.models.box_heads import TaskHeads, TwoMLPHead
from grcn.models.detector import Detector
from grcn.models.double_head import ResidualHead
from grcn.models.roi_heads import _row_keys
from grcn.models.roi_pool import RoIPool

EXACT = {"rtol": 1e-12, "atol": 1e-12}
DOUBLE_HEAD = {
    "head": {"loc": "residual", "tasks": "separate", "residual_dim": 32, "dim": 32, "dropout": 0.25},
    "loc": {"roi_scale": 1.3},
}


def build(**changes: object) -> Detector:
    return build_model(ModelConfig.model_validate(SMALL | changes), CLASSES, seed=3).double()


def groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


@torch.no_grad()
def test_the_residual_head_is_double_heads_of_torchvisions_units() -> None:
    """A 3x3 and a 1x1 convolution beside a 1x1 shortcut, four bottlenecks, the mean: 256 to 1,024 channels."""
    head = ResidualHead(256, 1024)
    first = nn.Sequential(
        nn.Conv2d(256, 256, 3, padding=1, bias=False), groups(256), nn.ReLU(),
        nn.Conv2d(256, 1024, 1, bias=False), groups(1024),
    )  # fmt: skip
    shortcut = nn.Sequential(nn.Conv2d(256, 1024, 1, bias=False), groups(1024))
    units = nn.Sequential(*(Bottleneck(1024, 256, norm_layer=groups) for _ in range(4)))
    theirs = [*first.parameters(), *shortcut.parameters(), *units.parameters()]
    assert [weight.shape for weight in head.parameters()] == [weight.shape for weight in theirs]
    generator = torch.Generator().manual_seed(0)
    for ours, weight in zip(head.parameters(), theirs, strict=True):
        ours.copy_(torch.randn(ours.shape, generator=generator) * (0.03 if ours.dim() > 1 else 1))
        weight.copy_(ours)
    x = torch.randn(3, 256, 7, 7, generator=generator)
    expected = units((first(x) + shortcut(x)).relu()).mean((2, 3))
    assert_close(head(x), expected, rtol=1e-4, atol=1e-4)
    assert_close(head(x)[1:2], head(x[1:2]), rtol=1e-4, atol=1e-5)  # no RoI depends on another


def test_each_loss_reaches_the_head_of_its_task_alone() -> None:
    model, (images, targets) = build(**DOUBLE_HEAD).train(), small_batch(torch.float64)
    heads = model.roi_heads.heads
    assert isinstance(heads.cls, TwoMLPHead) and isinstance(heads.loc, ResidualHead)
    for loss, own, other in (
        ("loss_classifier", (heads.cls, heads.cls_score), (heads.loc, heads.bbox_pred)),
        ("loss_box_reg", (heads.loc, heads.bbox_pred), (heads.cls, heads.cls_score)),
    ):
        model.zero_grad()
        model(images, targets)[loss].backward()
        assert all(weight.grad is not None and weight.grad.any() for part in own for weight in part.parameters())
        assert all(weight.grad is None for part in other for weight in part.parameters())


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 2.5)])
def test_losses_and_gradients_are_those_of_all_rois(agnostic: bool, weights: tuple[float, float]) -> None:
    changes = DOUBLE_HEAD | {"roi": SMALL["roi"] | {"loss_weights": weights, "batch": 24, "fg_fraction": 0.5}}
    changes["head"] = DOUBLE_HEAD["head"] | {"class_agnostic": agnostic}
    model = build(**changes).train()
    batch, targets = model.transform(*small_batch(torch.float64))
    features, heads = model.backbone(batch.tensors), model.roi_heads
    proposals, _ = model.rpn(batch, features, targets)
    _, losses = heads(features, proposals, batch.image_sizes, targets)

    states = rng.image_states(targets, proposals.device, (rng.ROIS,), (rng.DROPOUT, 0))
    rois, labels, regression_targets, valid, fg, _ = heads.sample(proposals, boxes.pad_objects(targets), states[0])
    assert fg.sum() > 4
    (map_,) = features["loc"]
    grown = boxes.scaled(rois, 1.3)
    middle, size = (rois[..., :2] + rois[..., 2:]) / 2, rois[..., 2:] - rois[..., :2]
    assert_close(grown, torch.cat([middle - 0.65 * size, middle + 0.65 * size], -1), **EXACT)
    pooled = {task: roi_align(map_, list(own), 4, 1 / 16, 2, True) for task, own in (("cls", rois), ("loc", grown))}
    logits = heads.heads.cls_score(heads.heads.cls(pooled["cls"], _row_keys(states[1], rois.shape[1])))
    deltas = heads.heads.bbox_pred(heads.heads.loc(pooled["loc"])).view(*rois.shape[:2], -1, 4)
    own = deltas[fg, 0 if agnostic else labels[fg]]
    plain = {
        "loss_classifier": F.cross_entropy(logits[valid.flatten()], labels[valid], reduction="sum") * weights[0],
        "loss_box_reg": F.smooth_l1_loss(own, regression_targets[fg], reduction="sum") * weights[1],
    }
    plain = {name: loss / labels.numel() for name, loss in plain.items()}
    assert_close(losses, plain, rtol=1e-9, atol=1e-12)
    trained = [*heads.parameters(), *model.backbone.parameters()]
    assert_close(
        torch.autograd.grad(sum(losses.values()), trained, retain_graph=True),
        torch.autograd.grad(sum(plain.values()), trained),
        rtol=1e-8,
        atol=1e-11,
    )


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown tasks 'seperate'; choose shared, separate or ensemble"):
        TaskHeads(lambda _: TwoMLPHead(16, 8, dropout=0.0), CLASSES, "seperate")


def test_boxes_of_all_classes_are_the_same() -> None:
    model = build(head={"dim": 32, "dropout": 0.0, "class_agnostic": True}).eval()
    heads = model.roi_heads.heads
    assert heads.bbox_pred.out_features == 4
    deltas = heads.deltas(torch.rand(3, 32).double())
    assert deltas.shape == (3, CLASSES, 4) and (deltas == deltas[:, :1]).all()


def test_a_larger_box_is_pooled_from_the_level_of_its_roi() -> None:
    torch.manual_seed(0)
    maps = tuple(torch.randn(1, 4, side, side).double() for side in (64, 32, 16, 8))
    rois = torch.tensor([[[8.0, 8, 118, 118], [100, 20, 180, 100]]]).double()  # side 110, just below 112
    grown, plain = (RoIPool((4, 8, 16, 32), 7, "align", roi_scale=scale) for scale in (1.3, 1.0))
    assert grown.level_of(rois).tolist() == plain.level_of(rois).tolist() == [[0, 0]]
    expected = roi_align(maps[0], list(boxes.scaled(rois, 1.3)), 7, 1 / 4, 2, True)
    assert_close(grown(maps, rois), expected, **EXACT)
    with boxes.as_if_on_gpu():
        assert_close(grown(maps, rois), expected, **EXACT)
