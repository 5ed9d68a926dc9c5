"""Norms of networks that train from scratch: images do not mix, and each kind keeps its own part of the contrast."""

from __future__ import annotations

import pytest
import torch
from support import CLASSES, SMALL, small_batch
from torch import nn
from torch.testing import assert_close

from grcn.build import build_model
from grcn.config.model_schema import ModelConfig
from grcn.models.norms import trained_norm

BACKBONES = ("tiny", "tiny_resnet", "tiny_resnet_det", "tiny_resnet_fpn")


@pytest.mark.parametrize(
    "channels, groups", [(1024, 32), (256, 32), (64, 16), (16, 4), (24, 4), (12, 2), (10, 2), (6, 1), (13, 1), (1, 1)]
)
def test_groups_are_of_four_channels_at_least(channels: int, groups: int) -> None:
    norm = trained_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown norm 'batch'; choose layer or group"):
        trained_norm("batch", 8)


@torch.no_grad()
def test_only_the_norm_of_groups_keeps_contrast() -> None:
    """A faint texture beside a strong one: over channels both come out alike, over positions they do not."""
    x = torch.randn(1, 16, 8, 16, generator=torch.Generator().manual_seed(0))
    x[..., :8] *= 0.01
    for kind, most in (("layer", 1.5), ("group", 0.05)):
        out = trained_norm(kind, 16)(x)
        ratio = out[..., :8].std() / out[..., 8:].std()
        assert (ratio > 0.7) == (kind == "layer") and ratio < most


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_halves_of_a_batch_give_the_losses_of_the_whole(backbone: str, norm: str) -> None:
    sizes = [[12], [16], [24], [32], [48]] if backbone.endswith("_fpn") else [16, 32]
    settings = SMALL | {"backbone": backbone, "norm": norm, "anchors": {"sizes": sizes}}
    model = build_model(ModelConfig.model_validate(settings), CLASSES, seed=3).double().train()
    kinds = {type(module) for module in model.modules()} & {nn.GroupNorm, nn.BatchNorm2d}
    assert kinds == ({nn.GroupNorm} if norm == "group" else set())
    images, targets = small_batch(torch.float64)
    together = model(images, targets)
    whole = {"batch_sizes": [(64, 96), (64, 64)]}
    alone = [model([image], [target | whole]) for image, target in zip(images, targets, strict=True)]
    for name, loss in together.items():
        assert_close(loss, (alone[0][name] + alone[1][name]) / 2, rtol=1e-12, atol=1e-12)
    sum(together.values()).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
