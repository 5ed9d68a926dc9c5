"""The few names of detectron2 and mmdetection that docs/own_detector.md imports, with the signatures of their sources.

What they compute is enough to see which map, of which shape, goes where.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align


@dataclass
class ShapeSpec:
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class Registry(dict):
    """A decorator keeps a class under its name, as in both libraries; mmdetection's builds from ``dict(type=...)``."""

    def register(self) -> Any:
        return lambda kind: self.setdefault(kind.__name__, kind)

    register_module = register

    def build(self, cfg: dict) -> Any:
        return self[cfg["type"]](**{key: value for key, value in cfg.items() if key != "type"})


class ROIPooler(nn.Module):
    """Of one map only: several have to be a pyramid."""

    def __init__(self, output_size: int, scales: list[float], sampling_ratio: int, pooler_type: str) -> None:
        super().__init__()
        (self.scale,) = scales
        self.size, self.ratio = output_size, sampling_ratio

    def forward(self, x: list[Tensor], box_lists: list[Tensor]) -> Tensor:
        (feature,) = x
        return roi_align(feature, box_lists, self.size, self.scale, self.ratio, aligned=True)


class FastRCNNOutputLayers(nn.Module):
    """Tells what it was given."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(channels, classes + 1), nn.Linear(channels, 4 * classes)

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list) -> dict[str, Tensor]:
        return {"loss_cls": predictions[0].sum(), "loss_box_reg": predictions[1].sum()}

    def inference(self, predictions: tuple[Tensor, Tensor], proposals: list) -> tuple[Any, Any]:
        return predictions, None


class StandardROIHeads(nn.Module):
    """Built from a config; ``IN_FEATURES`` of one name."""

    def __init__(self, cfg: Any, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        spec, head = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]], cfg.MODEL.ROI_BOX_HEAD
        size = head.POOLER_RESOLUTION
        self.box_pooler = ROIPooler(size, [1 / spec.stride], head.POOLER_SAMPLING_RATIO, head.POOLER_TYPE)
        self.box_head = nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * size**2, 8))
        self.box_predictor = FastRCNNOutputLayers(8, 3)


class BaseModule(nn.Module):
    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__()


class RPNHead(BaseModule):
    """Reads every map that it is given."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.rpn_cls = nn.Conv2d(in_channels, 3, 1)

    def forward(self, x: tuple[Tensor, ...]) -> list[Tensor]:
        return [self.rpn_cls(feature) for feature in x]


class SingleRoIExtractor(BaseModule):
    def __init__(self, out_channels: int, featmap_strides: list[int]) -> None:
        super().__init__()
        self.out_channels, self.featmap_strides = out_channels, featmap_strides

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        (feature,) = feats
        assert feature.shape[1] == self.out_channels
        return roi_align(feature, rois, 7, 1 / self.featmap_strides[0], 2, True)


class Shared2FCBBoxHead(BaseModule):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(in_channels * 49, num_classes + 1)
        self.fc_reg = nn.Linear(in_channels * 49, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc_cls(x.flatten(1)), self.fc_reg(x.flatten(1))


MODELS = Registry(SingleRoIExtractor=SingleRoIExtractor, Shared2FCBBoxHead=Shared2FCBBoxHead)


class StandardRoIHead(BaseModule):
    def __init__(self, bbox_roi_extractor: dict, bbox_head: dict) -> None:
        super().__init__()
        self.bbox_roi_extractor, self.bbox_head = MODELS.build(bbox_roi_extractor), MODELS.build(bbox_head)


def modules() -> dict[str, ModuleType]:
    """Returns the modules that the page imports, by name."""
    names: dict[str, dict[str, Any]] = {
        "detectron2": {},
        "detectron2.layers": {"ShapeSpec": ShapeSpec},
        "detectron2.modeling": {
            "BACKBONE_REGISTRY": Registry(), "ROI_HEADS_REGISTRY": Registry(), "Backbone": nn.Module,
            "StandardROIHeads": StandardROIHeads,
        },
        "detectron2.modeling.poolers": {"ROIPooler": ROIPooler},
        "mmdet": {},
        "mmdet.models": {},
        "mmdet.models.dense_heads": {"RPNHead": RPNHead},
        "mmdet.models.roi_heads": {"StandardRoIHead": StandardRoIHead},
        "mmdet.registry": {"MODELS": MODELS},
        "mmengine": {},
        "mmengine.model": {"BaseModule": BaseModule},
    }  # fmt: skip
    made = {name: ModuleType(name) for name in names}
    for name, contents in names.items():
        vars(made[name]).update(contents)
    return made


def run_in_detectron2(names: dict[str, Any]) -> None:
    """Builds what the page registers as detectron2 does, and takes two proposals through it."""
    of = SimpleNamespace
    head = of(POOLER_RESOLUTION=7, POOLER_SAMPLING_RATIO=0, POOLER_TYPE="ROIAlignV2")
    cfg = of(MODEL=of(ROI_HEADS=of(IN_FEATURES=["cls"]), ROI_BOX_HEAD=head))
    backbone = names["BACKBONE_REGISTRY"]["SplitBackbone"](cfg, ShapeSpec(channels=3))
    shapes = backbone.output_shape()
    assert [(shape.channels, shape.stride) for shape in (shapes["cls"], shapes["loc"])] == [(512, 16), (512, 8)]
    heads = names["ROI_HEADS_REGISTRY"]["SplitROIHeads"](cfg, shapes)
    proposals = [of(proposal_boxes=torch.tensor([[3.0, 4, 40, 50], [0, 0, 20, 20]]))]
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert set(heads.train()._forward_box(maps, proposals)) == {"loss_cls", "loss_box_reg"}
    scores, deltas = heads.eval()._forward_box(maps, proposals)
    assert scores.shape == (2, 4) and deltas.shape == (2, 12)
    other_scores, other_deltas = heads._forward_box(maps | {"loc": maps["loc"] + 1}, proposals)
    assert torch.equal(other_scores, scores) and not torch.equal(other_deltas, deltas)


def run_in_mmdetection(names: dict[str, Any]) -> None:
    """Builds what the page registers from dicts, as mmdetection does, and takes two RoIs through it."""
    build = names["MODELS"].build
    maps = build({"type": "SplitBackbone"})(torch.rand(1, 3, 64, 96))
    assert [tuple(feature.shape) for feature in maps] == [(1, 512, 4, 6), (1, 512, 8, 12)]
    assert len(build({"type": "FirstMapRPNHead", "in_channels": 512})(maps)) == 1
    extractor = {"type": "SingleRoIExtractor", "out_channels": 512}
    head = build({
        "type": "SplitRoIHead", "bbox_roi_extractor": extractor | {"featmap_strides": [16]},
        "loc_roi_extractor": extractor | {"featmap_strides": [8]},
        "bbox_head": {"type": "Shared2FCBBoxHead", "in_channels": 512, "num_classes": 3},
    })  # fmt: skip
    rois = torch.tensor([[0.0, 3, 4, 40, 50], [0, 0, 0, 20, 20]])
    found, other = head._bbox_forward(maps, rois), head._bbox_forward((maps[0], maps[1] + 1), rois)
    assert found["cls_score"].shape == (2, 4) and found["bbox_pred"].shape == (2, 12)
    assert found["bbox_feats"].shape == (2, 512, 7, 7)
    assert torch.equal(other["cls_score"], found["cls_score"])
    assert not torch.equal(other["bbox_pred"], found["bbox_pred"])
