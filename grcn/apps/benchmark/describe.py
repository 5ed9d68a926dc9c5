"""Lists a model's parameters and multiply-accumulates by part, without running it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from grcn.build import build_model, usual_classes
from grcn.config.model_schema import ModelConfig
from grcn.config.schema import Config, ShapesDataConfig
from grcn.models.detector import Detector, count_parameters
from grcn.models.features import TASKS, Backbone, Maps, strides_as_text
from grcn.models.roi_heads import RoIHeads


@dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        name: of the part.
        parameters: of its convolutions, linear layers, biases and norms, frozen ones too; those it shares with a part
            above it are counted there.
        gmac: 10^9 multiply-accumulates of one forward pass in evaluation.
    """

    name: str
    parameters: int
    gmac: float


def describe(cfg: ModelConfig, num_classes: int, height: int = 600, width: int = 1000, rois: int = 300) -> list[Part]:
    """Lists the parts of a model and their costs, without computing anything.

    Args:
        cfg: the ``model`` section.
        num_classes: including background.
        height, width: of an image as the network sees it, pixels; padded as the model pads it.
        rois: number of RoIs that both tasks' heads run on. In training and, on a CPU, at test the localization pass
            runs on fewer.

    Returns:
        The parts that the model has. Products are counted as they are computed: those of the context with its
        projections folded into the keys.
    """
    with torch.device("meta"):
        return _parts(build_model(cfg, num_classes), cfg, height, width, rois)


def _parts(model: Detector, cfg: ModelConfig, height: int, width: int, rois: int) -> list[Part]:
    model.eval()
    with torch.device("meta"):
        image = torch.empty(1, 3, *model.transform.padded(height, width))
        cls_map = torch.empty(1, model.backbone.feature_specs["cls"].channels, 1, 1)
    pooled = cls_map.expand(rois, -1, cfg.roi.size, cfg.roi.size)
    whole = cls_map.expand(-1, -1, cfg.context.size, cfg.context.size)

    parts, features = _backbone_parts(model.backbone, image)
    of_rpn = _gmac(lambda: [model.rpn.layers(map_) for map_ in features[model.rpn.reads]])
    parts.append(Part("RPN", count_parameters(model.rpn), of_rpn))
    for number, stage in enumerate(stages := model.roi_heads.stages(), start=1):
        found = _stage_parts(stage, pooled, whole)
        parts += [replace(part, name=f"stage {number}, {part.name}") for part in found] if len(stages) > 1 else found
    return parts


def _stage_parts(stage: RoIHeads, pooled: torch.Tensor, whole: torch.Tensor) -> list[Part]:
    """Describes the context and the heads of a stage, on pooled RoIs and a pooled image."""
    heads, parts = stage.heads, []
    for task, context in stage.context.items():
        parts.append(Part(f"context/{task}", count_parameters(context), _gmac(partial(context, pooled, whole))))
    own = count_parameters(heads.loc) if heads.loc is not None else 0
    classify = _gmac(lambda: heads.cls_score(heads.hidden("cls", pooled)))
    regress = _gmac(lambda: heads.bbox_pred(heads.hidden("loc", pooled)))
    regressor = count_parameters(heads.bbox_pred)
    if stage.separate_loc_pass:
        parts.append(Part("head, cls pass", count_parameters(heads) - own - regressor, classify))
        parts.append(Part("head, loc pass", own + regressor, regress))
    else:
        hidden = _gmac(lambda: heads.hidden("cls", pooled))
        parts.append(Part("head", count_parameters(heads), classify + regress - hidden))
    return parts


def costs(cfg: Config) -> tuple[list[Part], dict[str, tuple[int, ...]]]:
    """Describes a config's model at its own image size; returns the parts and the strides of the maps by task."""
    classes = len(usual_classes(cfg.data)) + 1
    with torch.device("meta"):
        model = build_model(cfg.model, classes)
    parts = _parts(model, cfg.model, *image_size(cfg), cfg.model.rpn.post_nms_test)
    return parts, {task: model.backbone.feature_specs[task].strides for task in TASKS}


def image_size(cfg: Config) -> tuple[int, int]:
    """Returns height and width of the largest image that a config's network sees; those of shapes are square."""
    short, longest = cfg.model.image.largest, cfg.model.image.max
    return (short, short) if isinstance(cfg.data, ShapesDataConfig) else (short, longest)


def table(parts: list[Part], strides: dict[str, tuple[int, ...]]) -> str:
    """Formats a description as text.

    Args:
        parts: of :func:`describe`.
        strides: of the maps, by task.
    """
    rows = [*parts, Part("all", sum(p.parameters for p in parts), sum(p.gmac for p in parts))]
    lines = [f"{'':>24}{'parameters':>14}{'GMAC':>9}"]
    digits = 1 if rows[-1].gmac >= 10 else 3
    lines += [f"{part.name:>24}{part.parameters:>14,}{part.gmac:>9.{digits}f}" for part in rows]
    return "\n".join([*lines, "strides: " + ", ".join(f"{task} {strides_as_text(strides[task])}" for task in TASKS)])


def as_json(parts: list[Part], strides: dict[str, tuple[int, ...]]) -> dict[str, object]:
    """Puts a description into plain types."""
    return {
        "parameters": sum(part.parameters for part in parts),
        "gmac": sum(part.gmac for part in parts),
        "parts": [asdict(part) for part in parts],
        "strides": {task: list(strides[task]) for task in TASKS},
    }


def _backbone_parts(backbone: Backbone, image: torch.Tensor) -> tuple[list[Part], dict[str, Maps]]:
    """Describes a backbone, and returns its maps of an image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = backbone(image)
    counts = {name: sum(of.values()) / 2e9 for name, of in counter.get_flop_counts().items()}
    kind = type(backbone).__name__
    groups = {
        "trunk": ("frozen", "body", "trunk") + (("cls",) if backbone.shared else ()),
        "shared, both strides": ("fork", "twice"),
        "cls branch": () if backbone.shared else ("cls",),
        "loc branch": ("loc",),
    }
    parts = []
    for name, members in groups.items():
        chains = [getattr(backbone, member, None) for member in members]
        size = sum(count_parameters(chain) for chain in chains if chain is not None)
        if size > 0:
            parts.append(Part(name, size, sum(counts.get(f"{kind}.{member}", 0.0) for member in members)))
    return parts, features


def _gmac(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2e9
