"""The few names of detectron2 and mmdetection that docs/own_detector.md imports, with the signatures of their sources.

They compute enough to see which map, of which shape, goes where. They make the same demands as the real ones, in which
the page was run, and also demand contiguous maps, without which mmcv silently computes nonsense.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from grcn.models.weights import normalisation_of


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


@dataclass
class Boxes:
    tensor: Tensor


class Backbone(nn.Module, ABC):
    @abstractmethod
    def forward(self) -> None: ...


class ROIPooler(nn.Module):
    """Of one map only: several have to be a pyramid."""

    def __init__(self, output_size: int, scales: list[float], sampling_ratio: int, pooler_type: str) -> None:
        super().__init__()
        (self.scale,) = scales
        assert math.log2(self.scale).is_integer() and pooler_type == "ROIAlignV2"
        self.size, self.ratio = output_size, sampling_ratio

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        assert isinstance(x, list) and isinstance(box_lists, list)
        (feature,) = x
        return roi_align(feature, [boxes.tensor for boxes in box_lists], self.size, self.scale, self.ratio, True)


class FastRCNNOutputLayers(nn.Module):
    """Returns its input."""

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
        assert head.NAME == "FastRCNNConvFCHead" and head.NUM_FC > 0  # with none of NUM_CONV and NUM_FC it fails
        self.box_head = nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * size**2, 8))
        self.box_predictor = FastRCNNOutputLayers(8, 3)


class BaseModule(nn.Module):
    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__()

    def init_weights(self) -> None:
        """Is called of a detector before it is trained, and calls those of its parts that have one."""
        for child in self.children():
            if hasattr(child, "init_weights"):
                child.init_weights()


class RPNHead(BaseModule):
    """Reads every map that it is given, and has anchors for as many as its strides."""

    def __init__(self, in_channels: int, anchor_generator: dict, feat_channels: int = 256, **others: Any) -> None:
        assert set(others) <= {"bbox_coder", "loss_cls", "loss_bbox", "train_cfg", "test_cfg", "num_classes"}
        super().__init__()
        self.strides = anchor_generator["strides"]
        self.rpn_conv = nn.Conv2d(in_channels, feat_channels, 3, padding=1)

    def forward(self, x: tuple[Tensor, ...]) -> list[Tensor]:
        assert len(x) == len(self.strides)
        return [self.rpn_conv(feature) for feature in x]


class SingleRoIExtractor(BaseModule):
    def __init__(self, roi_layer: dict, out_channels: int, featmap_strides: list[int]) -> None:
        super().__init__()
        assert roi_layer["type"] == "RoIAlign"
        self.size, self.ratio = roi_layer["output_size"], roi_layer["sampling_ratio"]
        self.out_channels, self.featmap_strides = out_channels, featmap_strides

    def forward(self, feats: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        (feature,) = feats
        assert feature.shape[1] == self.out_channels
        assert feature.is_contiguous()  # mmcv's RoIAlign reads a map's memory as if it were
        return roi_align(feature, rois, self.size, 1 / self.featmap_strides[0], self.ratio, True)


class Shared2FCBBoxHead(BaseModule):
    def __init__(self, in_channels: int, roi_feat_size: int, num_classes: int, **others: Any) -> None:
        assert set(others) <= {"fc_out_channels", "bbox_coder", "reg_class_agnostic", "loss_cls", "loss_bbox"}
        super().__init__()
        self.fc_cls = nn.Linear(in_channels * roi_feat_size**2, num_classes + 1)
        self.fc_reg = nn.Linear(in_channels * roi_feat_size**2, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc_cls(x.flatten(1)), self.fc_reg(x.flatten(1))


MODELS = Registry(SingleRoIExtractor=SingleRoIExtractor, Shared2FCBBoxHead=Shared2FCBBoxHead)


class StandardRoIHead(BaseModule):
    def __init__(self, bbox_roi_extractor: dict, bbox_head: dict, train_cfg: Any = None, test_cfg: Any = None) -> None:
        super().__init__()
        self.bbox_roi_extractor, self.bbox_head = MODELS.build(bbox_roi_extractor), MODELS.build(bbox_head)


class FasterRCNN(BaseModule):
    def __init__(self, backbone: dict, rpn_head: dict, roi_head: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.rpn_head = MODELS.build(rpn_head | {"train_cfg": {}, "test_cfg": {}, "num_classes": 1})
        self.roi_head = MODELS.build(roi_head | {"train_cfg": {}, "test_cfg": {}})


# The part of mmdetection's file that a detector of stand-ins reads.
BASES = {
    "mmdet::_base_/models/faster-rcnn_r50-caffe-dc5.py": {
        "data_preprocessor": {"bgr_to_rgb": False, "mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0]},
        "backbone": {"type": "ResNet", "depth": 50},
        "rpn_head": {
            "type": "RPNHead", "in_channels": 2048, "feat_channels": 2048, "anchor_generator": {"strides": [16]},
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor", "out_channels": 2048, "featmap_strides": [16],
                "roi_layer": {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 0},
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead", "in_channels": 2048, "roi_feat_size": 7, "num_classes": 80,
            },
        },
    },
}  # fmt: skip


def merged(base: dict, changes: dict) -> dict:
    """Joins dicts of settings as both libraries do; ``_delete_`` is mmdetection's, in whose place nothing is kept."""
    base = {} if changes.get("_delete_") else base
    joined = {
        key: merged(base.get(key, {}), value) if isinstance(value, dict) else value for key, value in changes.items()
    }
    return {key: value for key, value in (base | joined).items() if key != "_delete_"}


def assert_pixels_suit_torchvision(mean: list[float], std: list[float], rgb: bool) -> None:
    """Both libraries feed BGR of 0 to 255 by default."""
    normalisation = normalisation_of("torchvision:FILE")
    assert rgb and not normalisation.bgr
    assert torch.allclose(torch.tensor([mean, std]), torch.tensor([normalisation.mean, normalisation.std]) * 255)


def modules() -> dict[str, ModuleType]:
    """Returns the modules that the page imports, by name."""
    names: dict[str, dict[str, Any]] = {
        "detectron2": {},
        "detectron2.layers": {"ShapeSpec": ShapeSpec},
        "detectron2.modeling": {
            "BACKBONE_REGISTRY": Registry(), "ROI_HEADS_REGISTRY": Registry(), "Backbone": Backbone,
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


def run_in_detectron2(names: dict[str, Any], settings: dict) -> None:
    """Builds what the page registers as detectron2 does, from its settings, and takes two proposals through it."""
    defaults = {"ROI_BOX_HEAD": {"NUM_FC": 0, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2"}}
    cfg = spaces(merged({"MODEL": defaults, "INPUT": {"FORMAT": "BGR"}}, settings))
    model = cfg.MODEL
    assert_pixels_suit_torchvision(model.PIXEL_MEAN, model.PIXEL_STD, cfg.INPUT.FORMAT == "RGB")
    backbone = names["BACKBONE_REGISTRY"][model.BACKBONE.NAME](cfg, ShapeSpec(channels=3))
    assert isinstance(backbone, Backbone)
    shapes = backbone.output_shape()
    assert [(shape.channels, shape.stride) for shape in (shapes["cls"], shapes["loc"])] == [(512, 16), (512, 8)]
    assert model.RPN.IN_FEATURES == ["cls"]  # anchors of the defaults are those of one map
    heads = names["ROI_HEADS_REGISTRY"][model.ROI_HEADS.NAME](cfg, shapes)
    proposals = [SimpleNamespace(proposal_boxes=Boxes(torch.tensor([[3.0, 4, 40, 50], [0, 0, 20, 20]])))]
    maps = backbone(torch.rand(1, 3, 64, 96))
    assert set(heads.train()._forward_box(maps, proposals)) == {"loss_cls", "loss_box_reg"}
    scores, deltas = heads.eval()._forward_box(maps, proposals)
    assert scores.shape == (2, 4) and deltas.shape == (2, 12)
    other_scores, other_deltas = heads._forward_box(maps | {"loc": maps["loc"] + 1}, proposals)
    assert torch.equal(other_scores, scores) and not torch.equal(other_deltas, deltas)


def spaces(settings: dict) -> SimpleNamespace:
    """Makes the keys of a dict, and of those in it, attributes."""
    return SimpleNamespace(**{k: spaces(v) if isinstance(v, dict) else v for k, v in settings.items()})


def run_in_mmdetection(names: dict[str, Any], settings: dict) -> None:
    """Builds the detector of the page's config as mmdetection does, and takes two RoIs through it in both modes."""
    (base,) = settings["_base_"]
    model = merged(BASES[base], settings["model"])
    pixels = model.pop("data_preprocessor")
    assert_pixels_suit_torchvision(pixels["mean"], pixels["std"], pixels["bgr_to_rgb"])
    detector = FasterRCNN(**model)
    rois = torch.tensor([[0.0, 3, 4, 40, 50], [0, 0, 0, 20, 20]])
    for training in (True, False):
        detector.train(training)
        maps = detector.backbone(torch.rand(1, 3, 64, 96))
        assert [tuple(feature.shape) for feature in maps] == [(1, 512, 4, 6), (1, 512, 8, 12)]
        assert len(detector.rpn_head(maps)) == 1
        head = detector.roi_head
        found, other = head._bbox_forward(maps, rois), head._bbox_forward((maps[0], maps[1] + 1), rois)
        assert found["cls_score"].shape == (2, 81) and found["bbox_pred"].shape == (2, 320)
        assert found["bbox_feats"].shape == (2, 512, 7, 7)
        assert torch.equal(other["cls_score"], found["cls_score"])
        assert not torch.equal(other["bbox_pred"], found["bbox_pred"])
    loaded: list[tuple] = []
    names["load_weights"] = lambda *given: loaded.append(given)
    detector.init_weights()
    assert loaded == [(detector.backbone.split, "torchvision:FILE")]
