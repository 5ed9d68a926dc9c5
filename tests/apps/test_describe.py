"""Costs of the shipped models: parameters to the integer, strides, multiply-accumulates; and their table."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from grcn.apps.benchmark.describe import costs, describe, table
from grcn.build import build_model
from grcn.config.files import load_config
from grcn.models.detector import count_parameters

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# From the layers' definitions: convolutions, linear layers, and two values for each channel of a norm. Each anchor
# shape has one sigmoid logit, 513 parameters, where the code that the paper builds on has a softmax of two.
VGG16 = {"voc": 137_073_622, "coco": 138_318_112}
CONV5, FC, CONTEXT = 7_079_424, 119_545_856, 2 * 512 * 512
PARAMETERS = {
    "voc/faster_rcnn_vgg16": VGG16["voc"],
    "voc/nopool_loc_vgg16": VGG16["voc"] + CONV5,
    "voc/grcn_vgg16": VGG16["voc"] + CONV5 + CONTEXT,
    "voc/faster_rcnn_resnet50": 28_465_366,
    "voc/grcn_resnet50": 28_465_366 + 2_234_368 + 2 * 1024 * 1024,
    "voc/faster_rcnn_resnet101": 47_457_494,
    "voc/grcn_resnet101": 47_457_494 + 6_703_104 + 2 * 1024 * 1024,
    "voc/faster_rcnn_resnet50_det": 136_887_510,
    "coco/faster_rcnn_vgg16": VGG16["coco"],
    "coco/detect_f_vgg16": VGG16["coco"] + CONV5,
    "coco/detect_rf_vgg16": VGG16["coco"] + CONV5 + FC,
    "coco/detect_s_vgg16": VGG16["coco"] + FC + 4096 * (81 + 4 * 81),
    "coco/context_cls_vgg16": VGG16["coco"] + CONTEXT,
    "coco/context_loc_vgg16": VGG16["coco"] + CONTEXT,
    "coco/nopool_cls_vgg16": VGG16["coco"] + CONV5,
    "coco/nopool_loc_vgg16": VGG16["coco"] + CONV5,
    "coco/pool221_loc_vgg16": VGG16["coco"] + CONV5,
    "coco/conv222_loc_vgg16": VGG16["coco"] + CONV5 + 1_049_088,
    "coco/grcn_vgg16": VGG16["coco"] + CONV5 + CONTEXT,
    "coco/faster_rcnn_resnet50": 29_095_456,
    "coco/grcn_resnet50": 29_095_456 + 2_234_368 + 2 * 1024 * 1024,
    "coco/faster_rcnn_resnet101": 48_087_584,
    "coco/grcn_resnet101": 48_087_584 + 6_703_104 + 2 * 1024 * 1024,
    # COCO has 60 classes and 6 anchor shapes more than VOC.
    "coco/faster_rcnn_resnet50_det": 136_887_510 + 60 * 5 * 1025 + 6 * 5 * 513,
    "coco/faster_rcnn_resnet101_det": 136_887_510 + 60 * 5 * 1025 + 6 * 5 * 513 + 17 * 1_117_184,
    "coco/faster_rcnn_resnet50_det_align14": 136_887_510 + 60 * 5 * 1025 + 6 * 5 * 513 + 147 * 2048 * 1024,
    "coco/faster_rcnn_resnet50_det_conv": 61_390_038 + 60 * 5 * 1025 + 6 * 5 * 513,
    "coco/faster_rcnn_resnet50_det_conv5": 50_770_134 + 60 * 5 * 2049 + 6 * 5 * 513,
    "coco/grcn_resnet50_det": 136_887_510 + 60 * 5 * 1025 + 6 * 5 * 513 + 14_964_736 + 2 * 2048 * 2048,
}
STRIDES = {"nopool_cls": (8, 16), "nopool_loc": (16, 8), "pool221_loc": (16, 8), "grcn": (16, 8)}


def parts_of(name):
    cfg = load_config(CONFIGS / f"{name}.yaml")
    parts, strides = costs(cfg)
    return {part.name: part for part in parts}, strides


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_strides_of_the_papers_rows(name):
    parts, strides = parts_of(name)
    assert sum(part.parameters for part in parts.values()) == PARAMETERS[name]
    method = next((m for m in STRIDES if m in name), None)
    assert (*strides["cls"], *strides["loc"]) == STRIDES.get(method, (16, 16))


def test_detect_rf_and_detect_s_differ_from_the_baseline_as_on_voc():
    def count(**overrides):
        cfg = load_config(CONFIGS / "voc/faster_rcnn_vgg16.yaml", [f"model.{k}={v}" for k, v in overrides.items()])
        with torch.device("meta"):
            return count_parameters(build_model(cfg.model, 21))

    assert count(split="conv5", **{"head.tasks": "separate"}) - VGG16["voc"] == 126_625_280
    assert count(**{"head.tasks": "ensemble"}) - VGG16["voc"] == 119_975_936


@pytest.mark.parametrize(
    "name, part, gmac",
    [
        ("coco/faster_rcnn_vgg16", "trunk", 183.9),  # 13 convolutions at 600 x 1000
        ("coco/faster_rcnn_vgg16", "RPN", 5.75),
        ("coco/nopool_cls_vgg16", "RPN", 22.5),
        ("coco/detect_f_vgg16", "loc branch", 16.94),
        ("coco/nopool_loc_vgg16", "loc branch", 66.36),
        ("coco/detect_f_vgg16", "head, cls pass", 300 * (25088 * 4096 + 4096 * 4096 + 4096 * 81) / 1e9),
        ("coco/grcn_resnet50", "cls branch", 2 * 1_114_112 * 38 * 63 / 1e9),
        ("coco/grcn_resnet50", "loc branch", 2 * 1_114_112 * 75 * 125 / 1e9),
        # Keys, projected and folded, then scores and sums: 196 cells against 300 RoIs of 7 x 7.
        ("coco/grcn_vgg16", "context/cls", (2 * 196 * 512**2 + 2 * 300 * 49 * 196 * 512) / 1e9),
    ],
)
def test_multiply_accumulates(name, part, gmac):
    assert parts_of(name)[0][part].gmac == pytest.approx(gmac, rel=3e-3)


@pytest.mark.parametrize(
    "name, extra",
    [
        ("faster_rcnn_tiny", []),
        ("detect_s_tiny", []),
        ("detect_rf_tiny", ["model.head.kind=conv"]),
        ("grcn_tiny", []),
        ("grcn_tiny", ["model.context.value=true", "model.context.on=both"]),
        ("grcn_tiny_resnet", []),
        ("grcn_tiny_resnet_det", []),
    ],
)
def test_the_parts_are_the_whole(name, extra):
    """Every weight and every product of a detection is in one part: counted on a real one."""
    cfg = load_config(CONFIGS / f"shapes/{name}.yaml", ["model.roi.score_thresh=0", "model.image.short=64", *extra])
    model = build_model(cfg.model, 7).eval()
    proposals = []
    model.rpn.register_forward_hook(lambda module, inputs, output: proposals.append(output[0]))
    # Fused attention kernels of the CPU are not counted.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model([torch.rand(3, 64, 96)])
    parts = describe(cfg.model, 7, 64, 96, proposals[0].shape[1])
    assert sum(part.parameters for part in parts) == count_parameters(model)
    assert sum(part.gmac for part in parts) == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-9)


def test_a_table_has_every_part_and_their_sum():
    parts, strides = costs(load_config(CONFIGS / "coco/grcn_resnet50.yaml"))
    lines = table(parts, strides).splitlines()
    assert len(lines) == len(parts) + 3
    assert lines[-2].split()[:2] == ["all", "33,426,976"] and lines[-1] == "strides: cls 16, loc 8"
