"""Leading stages that are not trained: which they are, that nothing else changes, and what cannot be frozen."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support import small_batch
from torch.testing import assert_close

from grcn.build import build_model
from grcn.config.model_schema import ModelConfig
from grcn.models.detector import Detector
from grcn.models.layer_names import layer_name, under_names_of
from grcn.models.resnet import SplitResNet
from grcn.models.vgg import SplitVGG

SMALL: dict[str, Any] = {
    "width": 8, "image": {"short": 64, "max": 96}, "anchors": {"sizes": [16, 32]}, "rpn": {"channels": 16},
    "head": {"dim": 16, "dropout": 0.0}, "roi": {"op": "align", "batch": 16},
}  # fmt: skip
BACKBONES = {
    "vgg16": 5, "resnet50": 4, "resnet101": 4, "resnet50_det": 5, "resnet101_det": 5,
    "tiny": 5, "tiny_resnet": 4, "tiny_resnet_det": 5,
}  # fmt: skip
# Models of which the forward pass is compared, and how many stages of each can be frozen.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "vgg": ({"backbone": "tiny"}, 5),
    "vgg, split": ({"backbone": "tiny", "split": "conv5", "loc": {"last_pool": "none"}}, 4),
    "resnet": ({"backbone": "tiny_resnet"}, 4),
    "resnet at stride 8": ({"backbone": "tiny_resnet", "cls": {"stride": 8}, "loc": {"stride": 8}}, 4),
    "resnet, split": ({"backbone": "tiny_resnet", "split": 2, "loc": {"stride": 8}}, 3),
    "resnet-det": ({"backbone": "tiny_resnet_det"}, 5),
    "resnet-det, split": ({"backbone": "tiny_resnet_det", "split": "conv5"}, 4),
}


def build(freeze: int | None, **model: Any) -> Detector:
    return build_model(ModelConfig.model_validate(SMALL | {"freeze": freeze} | model), 5)


def stage(name: str) -> int:
    """The stage of a parameter of a backbone, 1 for conv1."""
    layer = layer_name(name)
    found = re.match(r"(conv|pool|norm)(\d)|(stem)|layer(\d)", layer)
    assert found, name
    return int(found[2]) if found[2] else 1 if found[3] else int(found[4]) + 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_first_stages_are_not_trained(backbone: str) -> None:
    own = {} if backbone.startswith("tiny") else {"width": 24}
    for freeze in (None, *range(BACKBONES[backbone] + 1)):
        with torch.device("meta"):
            model = build(freeze, backbone=backbone, **own)
        usual = 0 if backbone.startswith("tiny") else 2
        first = usual if freeze is None else freeze
        for name, weight in model.backbone.named_parameters(prefix="backbone"):
            assert weight.requires_grad == (stage(name) > first), name
            assert name.startswith("backbone.frozen.") == (stage(name) <= first), name
        stages = {stage(name) for name, _ in model.backbone.named_parameters(prefix="backbone")}
        assert stages == set(range(1, BACKBONES[backbone] + 1))
        assert all(weight.requires_grad for part in (model.rpn, model.roi_heads) for weight in part.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_freezing_changes_neither_outputs_nor_the_gradients_of_the_rest(kind: str) -> None:
    settings, most = MODELS[kind]
    images, targets = small_batch(torch.float64)
    reference = build(0, **settings).double()
    everything = losses_and_gradients(reference, images, targets)
    outputs = reference.eval()(images)
    for freeze in range(1, most + 1):
        model = build(freeze, **settings).double()
        losses, gradients = losses_and_gradients(model, images, targets)
        assert_close(losses, everything[0], rtol=1e-12, atol=1e-14)
        theirs = under_names_of(model, everything[1])
        assert gradients.keys() == {name for name in theirs if not name.startswith("backbone.frozen.")}
        for name, gradient in gradients.items():
            assert_close(gradient, theirs[name], rtol=1e-9, atol=1e-12)
        assert all(weight.grad is None for weight in model.backbone.frozen.parameters())
        for ours, other in zip(model.eval()(images), outputs, strict=True):
            assert all(torch.equal(ours[key], other[key]) for key in ours)
        moved = under_names_of(reference, model.state_dict())
        assert moved.keys() == reference.state_dict().keys()


def losses_and_gradients(
    model: Detector, images: list[torch.Tensor], targets: list[dict[str, Any]]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    losses: Any = model.train()(images, targets)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, gradients


def test_no_graph_is_kept_of_frozen_stages() -> None:
    backbone = SplitResNet((1, 1, 3, 1), width=4, frozen_stages=4)
    recorded: list[bool] = []
    backbone.frozen.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    maps = backbone.train()(torch.rand(1, 3, 64, 64))
    assert recorded == [False] and maps["cls"] is maps["loc"]


@pytest.mark.parametrize("backbone", ["tiny", "tiny_resnet", "tiny_resnet_fpn"])
def test_images_have_a_gradient_also_through_frozen_stages(backbone: str) -> None:
    image = torch.rand(1, 3, 64, 64, requires_grad=True)
    levels = {"anchors": {"sizes": [[8], [16], [32], [64], [64]]}} if backbone.endswith("fpn") else {}
    gradients = []
    for freeze in (0, 3):
        maps = build(freeze, backbone=backbone, **levels).backbone(image)
        gradients += torch.autograd.grad(maps["cls"][0].square().sum(), image)
    assert gradients[0].abs().sum() > 0
    assert_close(gradients[1], gradients[0])
    with torch.no_grad():
        assert not build(3, backbone=backbone, **levels).backbone(image)["cls"][0].requires_grad


@pytest.mark.parametrize(
    ("settings", "freeze", "most"),
    [
        ({"backbone": "vgg16"}, 6, 5),
        ({"backbone": "vgg16", "split": "conv3"}, 3, 2),
        ({"backbone": "vgg16", "split": "conv5"}, 5, 4),
        ({"backbone": "tiny", "split": "conv4"}, 4, 3),
        ({"backbone": "resnet50"}, 5, 4),
        ({"backbone": "resnet50", "split": 2}, 4, 3),
        ({"backbone": "resnet50", "loc": {"stride": 8}}, 4, 3),
        ({"backbone": "resnet50_det"}, 6, 5),
        ({"backbone": "resnet50_det", "split": "conv3", "loc": {"stride": 8}}, 3, 2),
        ({"backbone": "resnet50_det", "split": "conv5", "loc": {"stride": 8}}, 4, 3),
    ],
)
def test_what_a_task_has_to_itself_cannot_be_frozen(settings: dict[str, Any], freeze: int, most: int) -> None:
    width = {} if settings["backbone"] == "tiny" else {"width": 24}
    with pytest.raises(ValidationError, match=rf"freeze: .* has {most} stages .* \(got {freeze}\); lower it") as caught:
        ModelConfig.model_validate(SMALL | settings | width | {"freeze": freeze})
    assert len(caught.value.errors()[0]["ctx"]["problems"]) == 1
    ModelConfig.model_validate(SMALL | settings | width | {"freeze": most})


def test_backbones_refuse_it_too() -> None:
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match=f"cannot freeze {wrong} of five blocks"):
            SplitVGG([[8]] * 5, frozen_blocks=wrong)
    for wrong, options in ((-1, {}), (5, {}), (4, {"split": 1}), (4, {"strides": {"cls": 16, "loc": 8}})):
        with pytest.raises(ValueError, match=f"cannot freeze {wrong} stages"):
            SplitResNet((1, 1, 3, 1), width=4, frozen_stages=wrong, **options)
