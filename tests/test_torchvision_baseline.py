"""Every setting of a model reaches its torchvision baseline, is refused, or is known to be torchvision's own."""

import logging
from typing import Any

import pytest
from torch import nn

from grcn.build import build_model
from grcn.config.files import leaves
from grcn.config.model_schema import ModelConfig
from grcn.errors import ConfigError
from grcn.torchvision_baseline import baseline_of, check_torchvision, torchvision_detector, torchvision_lacks

SMALL: dict[str, Any] = {"backbone": "tiny", "width": 4, "head.dim": 8, "roi.op": "align"}
PASSED_ON: dict[str, Any] = {
    "backbone": "tiny_resnet", "width": 8, "norm": "group", "image.short": 500, "image.max": 900,
    "anchors.sizes": [16, 32], "anchors.ratios": [1], "rpn.channels": 16, "rpn.pre_nms_train": 9,
    "rpn.pre_nms_test": 9, "rpn.post_nms_train": 9, "rpn.post_nms_test": 9, "rpn.nms": 0.6, "rpn.batch": 9,
    "rpn.fg_fraction": 0.4, "rpn.fg_iou": 0.6, "rpn.bg_iou": 0.2, "roi.op": "pool", "roi.size": 5,
    "roi.sampling_ratio": 1, "roi.batch": 9, "roi.fg_fraction": 0.4, "roi.fg_iou": 0.6,
    "roi.box_weights": [1, 1, 1, 1], "roi.score_thresh": 0.2, "roi.nms": 0.6, "roi.detections": 9,
    "head.kind": "conv", "head.dim": 16, "freeze": 1, "image.multiple": 64, "rpn.convs": 2,
}  # fmt: skip
REFUSED: dict[str, Any] = {
    "weights": "caffe:x.npz", "rpn.smooth_l1_beta": 0.5, "roi.bg_iou_low": 0.1, "roi.add_gt": False,
    "roi.smooth_l1_beta": 0.5, "head.dropout": 0.25,
}  # fmt: skip
# torchvision trains on anchors across the border, its RoIAlign is not aligned, its least size has another unit.
ITS_OWN: dict[str, Any] = {
    "anchors.layout": "torchvision",
    "rpn.straddling": True,
    "rpn.min_size": 2,
    "roi.aligned": False,
}
# The detector is that of the baseline model, which has one map, one head and one stage.
OF_OTHER_METHODS = {
    "split", "rpn.reads", "head.tasks", "head.cls", "head.loc", "head.class_agnostic", "roi.loss_weights", "cascade",
    "head.residual_dim",
}  # fmt: skip


def model_of(**changes: Any) -> ModelConfig:
    settings: dict[str, Any] = {}
    for key, value in (SMALL | changes).items():
        section, _, name = key.rpartition(".")
        (settings.setdefault(section, {}) if section else settings)[name] = value
    return ModelConfig.model_validate(settings)


def facts(cfg: ModelConfig) -> dict[str, str]:
    """Contents of the torchvision detector: all attributes of its modules, and the shapes of the weights."""
    theirs = torchvision_detector(cfg, build_model(cfg, 4))
    found = {name: str(weight.shape) for name, weight in theirs.state_dict().items()}
    found |= {f"{name} trained": str(weight.requires_grad) for name, weight in theirs.named_parameters()}
    for name, module in theirs.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") or attribute.endswith("_n"):
                # The matchers, samplers and coders are plain objects.
                plain = not isinstance(value, nn.Module) and type(value).__module__.startswith("torchvision.")
                found[f"{name}.{attribute}"] = str(vars(value)) if plain and hasattr(value, "__dict__") else str(value)
    return found


def test_every_setting_is_passed_on_refused_or_known_to_differ() -> None:
    elsewhere = ("cls.", "loc.", "context.", "pyramid.", "timm.")  # compared whole, with pyramids and networks of timm
    others = {key for key in leaves(ModelConfig()) if key.startswith(elsewhere)} | OF_OTHER_METHODS
    assert leaves(ModelConfig()).keys() == PASSED_ON.keys() | REFUSED.keys() | ITS_OWN.keys() | others


@pytest.mark.parametrize("key", PASSED_ON)
def test_a_setting_is_passed_on(key: str) -> None:
    plain = facts(model_of())
    assert facts(model_of()) == plain
    assert facts(model_of(**{key: PASSED_ON[key]})) != plain


def test_what_is_passed_on_has_its_value() -> None:
    cfg = model_of(**PASSED_ON)
    theirs = torchvision_detector(cfg, build_model(cfg, 4))
    matchers = [part.proposal_matcher for part in (theirs.rpn, theirs.roi_heads)]
    assert [(m.high_threshold, m.low_threshold) for m in matchers] == [(0.6, 0.2), (0.6, 0.6)]
    assert theirs.roi_heads.box_coder.weights == (1, 1, 1, 1)


@pytest.mark.parametrize("key", REFUSED)
def test_what_torchvisions_detector_cannot_have_is_refused_in_one_line(key: str) -> None:
    changes = {key: REFUSED[key]} | ({"backbone": "resnet50", "width": 24} if key == "weights" else {})
    cfg = model_of(**changes)
    with pytest.raises(ConfigError, match=rf"^model\.{key}: torchvision's detector .* \(got .*\); set [^\n]*$"):
        check_torchvision(cfg)
    with pytest.raises(ConfigError, match=rf"model\.{key}"):
        torchvision_detector(cfg, build_model(cfg, 4))


def test_torchvisions_own_values_and_unused_ones_are_fine() -> None:
    its_own = {"rpn.smooth_l1_beta": 0.1111, "roi.smooth_l1_beta": 0.1111, "head.dropout": 0.0, **ITS_OWN}
    assert torchvision_lacks(model_of(**its_own)) == []
    assert torchvision_lacks(model_of(**{"head.kind": "conv", "head.dropout": 0.25})) == []


def test_what_differs_from_the_config_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "grcn"):
        facts(model_of(**ITS_OWN))
    assert {record.getMessage() for record in caplog.records} == {
        "torchvision's detector keeps its own model.rpn.min_size 0.001 (not 2.0), model.roi.smooth_l1_beta "
        "0.1111111111111111 (not 1.0), model.head.dropout 0.0 (not 0.5)"
    }


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
@pytest.mark.parametrize("freeze", [0, 3])
def test_a_baseline_has_the_same_layers_frozen(backbone: str, freeze: int) -> None:
    kind = {"head.kind": "conv5", "roi.size": 14} if backbone == "resnet50" else {"head.dim": 8}
    cfg = model_of(**{"backbone": backbone, "width": 24, "freeze": freeze, **kind})
    model = build_model(cfg, 4)
    theirs = torchvision_detector(cfg, model)
    frozen = [
        sum(weight.numel() for weight in one.backbone.parameters() if not weight.requires_grad)
        for one in (model, theirs)
    ]
    assert frozen[0] == frozen[1] and (frozen[0] > 0) == (freeze > 0)


def test_separate_tasks_have_the_detector_of_their_baseline() -> None:
    cfg = model_of(**{"split": "conv5", "context.on": "cls", "head.tasks": "separate", "loc.last_pool": "none"})
    assert baseline_of(cfg) == model_of()
    assert facts(cfg) == facts(model_of())


@pytest.mark.parametrize("changes", [
    {"backbone": "tiny_resnet_fpn"}, {"backbone": "tiny_resnet_fpn", "pyramid.norm": "frozen"}, {"rpn.convs": 3},
    {"backbone": "tiny_resnet_fpn", "head.kind": "conv_fc", "rpn.convs": 2}, {"head.kind": "conv_fc"},
    {"backbone": "resnet50_fpn", "pyramid.norm": "frozen", "width": 24},
    {"backbone": "resnet50", "rpn.convs": 2, "width": 24},
    {"backbone": "resnet50_det", "width": 24, "head.dim": 8},
])  # fmt: skip
def test_every_weight_is_the_models(changes: dict[str, Any]) -> None:
    sizes = [[16], [32], [32], [64], [64]] if "fpn" in changes.get("backbone", "") else [16, 32]
    cfg = model_of(**{"anchors.sizes": sizes, "roi.op": "align"}, **changes)
    model = build_model(cfg, 4)
    for parameter in model.parameters():  # nothing is the default of any layer
        nn.init.uniform_(parameter, 2.0, 3.0)
    theirs = torchvision_detector(cfg, model)
    assert all(parameter.min() >= 2 for name, parameter in theirs.named_parameters() if "body.fc" not in name)
