"""Cross-field rules of a config: settings that conflict, and settings without effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from grcn.catalog import (
    NAMED_WEIGHTS,
    PYRAMID_MAPS,
    PYRAMID_SPLITS,
    RELEASES,
    RESNET_UNITS,
    RESNET_WIDTH,
    TINY_BLOCKS,
    VGG16_BLOCKS,
    VGG_SPLITS,
    WEIGHT_LAYOUTS,
)

if TYPE_CHECKING:
    from grcn.config.model_schema import ModelConfig
    from grcn.config.schema import Config


def check_model(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yields the conflicting settings of a model, as dotted keys, each with its problem and fix."""
    yield from _wrong_split(model)
    yield from _wrong_levels(model)
    yield from _wrong_heads(model)
    if model.rpn.reads == "both" and _one_map(model):
        what = "both needs maps of each task, and with split: none there is one (got both)"
        yield "rpn.reads", f"{what}; set cls, or a split"
    for key in ("width", "norm"):
        if not model.is_tiny and (value := getattr(model, key)) != type(model).model_fields[key].default:
            yield key, f"only the tiny backbones have one (got {value} with {model.backbone}); remove it"
    channels = _channels(model)
    if model.context.on != "none" and channels % model.context.heads:
        yield (
            "context.heads",
            f"must divide the {channels} channels of the map (got {model.context.heads}); choose a divisor",
        )
    yield from _wrong_weights(model)
    if model.freeze is not None and model.freeze > (most := _most_frozen(model)):
        strides = "" if model.has_pyramid else f" and strides {model.cls.stride} and {model.loc.stride}"
        yield (
            "freeze",
            f"{model.backbone} with split: {model.split}{strides} has {most} stages that can be frozen, those before "
            f"the tasks' own layers (got {model.freeze}); lower it",
        )


def _wrong_heads(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yields kinds of heads that the backbone does not have, or that cannot be combined."""
    head, kinds = model.head, model.head.kinds
    if head.tasks == "ensemble" and (model.split != "none" or model.context.on != "none"):
        yield (
            "head.tasks",
            "ensemble joins the tasks, so they cannot separate before it "
            f"(got split: {model.split}, context.on: {model.context.on}); set both to none",
        )
    elif head.tasks == "ensemble":
        for key in ("stride", "level", "roi_scale"):
            cls, loc = getattr(model.cls, key), getattr(model.loc, key)
            if cls != loc:
                got = f"(got cls.{key}: {cls:g}, loc.{key}: {loc:g})"
                yield (
                    "head.tasks",
                    f"ensemble joins the tasks, so both must read one map {got}; set both alike",
                )
    if kinds["cls"] != kinds["loc"] and head.tasks != "separate":
        got = f"(got cls {kinds['cls']}, loc {kinds['loc']} with tasks: {head.tasks})"
        key = "head.loc" if head.loc else "head.cls"
        yield key, f"two kinds need a head of each task {got}; set head.tasks: separate"
    named = {f"head.{task}" if getattr(head, task) else "head.kind": kind for task, kind in kinds.items()}
    for key, kind in named.items():
        if kind == "conv5" and not _resnet(model):
            yield key, f"{model.backbone} has no conv5 of residual units (got conv5); set fc or conv"
        elif kind == "conv5" and model.has_pyramid:
            yield key, f"conv5 of {model.backbone} is part of the pyramid (got conv5); set fc, conv or conv_fc"
    if head.residual_dim % 4:
        yield "head.residual_dim", f"must be a multiple of 4, for residual units (got {head.residual_dim}); round it"
    if isinstance(model.cascade, str):
        if model.roi.bg_iou_low > model.roi.fg_iou:
            got = f"(got {model.roi.bg_iou_low:g})"
            yield "roi.bg_iou_low", f"must not exceed roi.fg_iou = {model.roi.fg_iou:g} {got}; lower it"
        return
    low, got = model.roi.bg_iou_low, f"(got {', '.join(f'{share:g}' for share in model.cascade)})"
    if list(model.cascade) != sorted(set(model.cascade)):
        yield "cascade", f"thresholds must rise from stage to stage {got}; sort them, each once"
    elif model.cascade[0] < low:
        yield "cascade", f"thresholds must not lie below roi.bg_iou_low = {low:g} {got}; raise them"


def _wrong_levels(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yields settings of maps of several levels that the backbone does not have, or that it needs."""
    maps = PYRAMID_MAPS if model.has_pyramid else 1
    per_map = model.anchors.per_map
    if len(per_map) != maps:
        got = "one list" if len(per_map) == 1 else f"{len(per_map)} lists"
        need = f"has {maps} maps, each with its own sizes" if maps > 1 else "has one map"
        example = "[[32], [64], [128], [256], [512]]" if maps > 1 else "one list of numbers"
        yield "anchors.sizes", f"{model.backbone} {need} (got {got}); set {example}"
    keys: dict[str, tuple[str, ...]] = {} if model.of_timm else {"timm": ("norm", "drop_path")}
    if not model.has_pyramid:
        keys |= {"cls": ("level", "last_stride"), "loc": ("level", "last_stride"), "pyramid": ("channels", "norm")}
    for name, key in ((name, key) for name, of_section in keys.items() for key in of_section):
        section, kind = getattr(model, name), "networks of timm" if name == "timm" else "pyramids"
        if (value := getattr(section, key)) != type(section).model_fields[key].default:
            yield f"{name}.{key}", f"only {kind} have it (got {value} with {model.backbone}); remove it"
    if not model.has_pyramid:
        return
    if model.of_timm:
        for task, branch in (("cls", model.cls), ("loc", model.loc)):
            if branch.last_stride != 2:
                yield f"{task}.last_stride", f"{model.backbone} keeps its stride (got 1); set {task}.level: -1"
        if model.pyramid.norm != "none":
            yield "pyramid.norm", f"only ResNets' pyramids have one (got frozen with {model.backbone}); remove it"
    if model.roi.op == "pool":
        yield "roi.op", "RoIPool reads one map, a pyramid has several (got pool); set align"
    if model.split not in ("conv5", "conv4") and model.cls.last_stride != model.loc.last_stride:
        yield (
            "loc.last_stride",
            f"with split: {model.split} both tasks share conv5, so it must equal cls.last_stride = "
            f"{model.cls.last_stride} (got {model.loc.last_stride}); set split: conv5",
        )


def without_effect(cfg: Config) -> dict[str, str]:
    """Returns the settings that have no effect beside the others, as dotted keys, and the reason of each.

    An empty list and a switch that is off are not reported.
    """
    train = cfg.train
    idle = {f"model.{key}": f"model.{reason}" for key, reason in idle_in_model(cfg.model).items()}
    if train.optimizer == "sgd":
        idle["train.betas"] = "train.optimizer is sgd"
    else:
        idle["train.momentum"] = f"train.optimizer is {train.optimizer}"
    if train.schedule == "cosine":
        keys = ("train.lr_steps", "train.gamma") if train.lr_steps else ("train.gamma",)
        idle |= dict.fromkeys(keys, "train.schedule is cosine")
    elif not train.lr_steps:
        idle["train.gamma"] = "train.lr_steps is []"
    elif train.lr_steps[0] >= train.steps:
        idle |= dict.fromkeys(("train.lr_steps", "train.gamma"), f"train.steps is {train.steps}")
    if not train.warmup:
        idle["train.warmup_factor"] = "train.warmup is 0"
    if train.bias_decay and not train.weight_decay:
        idle["train.bias_decay"] = "train.weight_decay is 0"
    if not cfg.data.augment.crop.prob:
        idle |= dict.fromkeys(("data.augment.crop.scale", "data.augment.crop.min_kept"), "data.augment.crop.prob is 0")
    if "voc" not in cfg.eval.protocols:
        idle["eval.voc_iou"] = "eval.protocols has no voc"
    if cfg.run.tf32 and cfg.run.device == "cpu":
        idle["run.tf32"] = "run.device is cpu"
    return idle


def idle_in_model(model: ModelConfig) -> dict[str, str]:
    """Returns the settings of a model that have no effect beside its others, as dotted keys, with the reasons."""
    idle = {}
    if _one_map(model):
        idle["rpn.reads"] = "split is none"
    if model.context.on == "none":
        keys = (f"context.{key}" for key in type(model.context).model_fields if key != "on")
        idle |= dict.fromkeys(keys, "context.on is none")
    if model.roi.op == "pool":
        idle |= dict.fromkeys(("roi.sampling_ratio", "roi.aligned"), "roi.op is pool")
    head, kinds = model.head, model.head.kinds
    if head.cls and head.loc:
        idle["head.kind"] = "head.cls and head.loc are set"
    named = f"head.kind is {head.kind}"
    if head.cls or head.loc:
        named = f"head.cls is {kinds['cls']} and head.loc {kinds['loc']}"
    if set(kinds.values()) <= {"conv5", "residual"}:
        idle["head.dim"] = named
    if "residual" not in kinds.values():
        idle["head.residual_dim"] = named
    if "fc" not in kinds.values():
        idle["head.dropout"] = named
    if model.cascade != "none":
        idle["roi.fg_iou"] = f"cascade is {list(model.cascade)}"
    return idle


def _one_map(model: ModelConfig) -> bool:
    """Whether both tasks read the same maps."""
    return model.split == "none" and (model.has_pyramid or model.cls.stride == model.loc.stride)


def _resnet(model: ModelConfig) -> bool:
    """Whether a network consists of stages of residual units or the like, not of VGG's blocks."""
    return model.backbone not in ("vgg16", "tiny")


def _channels(model: ModelConfig) -> int:
    """Number of channels of the maps."""
    if model.has_pyramid:
        return model.pyramid.channels
    if _resnet(model):
        return (model.width if model.is_tiny else RESNET_WIDTH) * (32 if model.backbone.endswith("_det") else 16)
    return model.width * TINY_BLOCKS[-1] if model.is_tiny else VGG16_BLOCKS[-1][-1]


def _most_frozen(model: ModelConfig) -> int:
    """Returns how many leading stages both tasks share entirely and run once."""
    if model.has_pyramid:
        return {"conv5": 4, "conv4": 3}.get(str(model.split), 5)
    strides = {model.cls.stride, model.loc.stride}
    if isinstance(model.split, int) or len(strides) > 1:  # conv4 or conv5 is split, or runs at two strides
        most = 4 if strides == {32, 16} else 3
        return min(most, VGG_SPLITS.get(str(model.split), 5) - 1)
    if model.split != "none":
        return VGG_SPLITS[model.split] - 1
    return 4 if _resnet(model) and not model.backbone.endswith("_det") else 5


def _wrong_split(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yields splits, strides and last poolings that the backbone does not have."""
    if model.has_pyramid:
        if model.split != "none" and model.split not in PYRAMID_SPLITS:
            choices = ", ".join(("none", *PYRAMID_SPLITS))
            yield "split", f"{model.backbone} has no such split (got {model.split}); choose {choices}"
    elif model.split in ("fpn", "output"):
        yield (
            "split",
            f"only pyramids split there (got {model.split} with {model.backbone}); set backbone: resnet50_fpn, or "
            "another split",
        )
    elif model.backbone in RESNET_UNITS:
        most = RESNET_UNITS[model.backbone][2]
        if model.split != "none" and not (isinstance(model.split, int) and model.split <= most):
            yield (
                "split",
                f"{model.backbone} splits off units of conv4 (got {model.split}); give none or how many, 1 to {most}",
            )
    elif isinstance(model.split, int):
        yield "split", f"{model.backbone} splits at a block (got {model.split}); give none, conv3, conv4 or conv5"
    for task, branch in (("cls", model.cls), ("loc", model.loc)):
        if _resnet(model) and branch.last_pool != "max":
            yield (
                f"{task}.last_pool",
                f"{model.backbone} has no such pooling (got {branch.last_pool}); remove it, and set "
                f"{task}.{'level: -1' if model.has_pyramid else 'stride: 8'} where the map is to be larger",
            )
        if model.has_pyramid and branch.stride != 16:
            yield (
                f"{task}.stride",
                f"a pyramid has maps of several strides (got {branch.stride}); remove it, and set {task}.level: -1 or "
                f"{task}.last_stride: 1",
            )
        if _resnet(model) and branch.stride == 32 and not model.backbone.endswith("_det"):
            yield f"{task}.stride", f"32 is of a conv5 in the backbone (got it with {model.backbone}); set 16 or 8"
        if not _resnet(model) and branch.stride != 16:
            yield (
                f"{task}.stride",
                f"only ResNets have it (got {branch.stride} with {model.backbone}); "
                f"remove it and set {task}.last_pool: none",
            )
    if not _resnet(model) and model.split == "none" and model.cls.last_pool != model.loc.last_pool:
        yield (
            "loc.last_pool",
            f"with split: none both tasks read one map, so it must equal cls.last_pool = "
            f"{model.cls.last_pool} (got {model.loc.last_pool}); set split: conv5",
        )


def _wrong_weights(model: ModelConfig) -> Iterator[tuple[str, str]]:
    if model.weights is None:
        return
    layout, _, file = model.weights.partition(":")
    if model.of_timm or layout == "timm":
        if not (model.of_timm and layout == "timm" and file):
            of_timm = "a file of its release as timm:FILE" if model.of_timm else "weights of another layout"
            yield "weights", f"{model.backbone} needs {of_timm} (got {model.weights!r}); set null or such"
        return
    if model.weights not in NAMED_WEIGHTS and not (layout in WEIGHT_LAYOUTS and file):
        choices = ", ".join((*NAMED_WEIGHTS, *(f"{name}:FILE" for name in WEIGHT_LAYOUTS)))
        path = file or model.weights
        choice = " or ".join(f"{name}:{path}" for name in WEIGHT_LAYOUTS) if "." in path else "one"
        yield "weights", f"expected null, {choices} (got {model.weights!r}); choose {choice}"
    elif model.is_tiny:
        yield (
            "weights",
            f"backbone {model.backbone} has no pretrained weights (got {model.weights!r}); set null",
        )
    elif model.weights in NAMED_WEIGHTS and model.weights not in RELEASES[model.backbone.removesuffix("_det")]:
        own = ", ".join(RELEASES[model.backbone.removesuffix("_det")])
        yield "weights", f"{model.backbone} has none of this name (got {model.weights!r}); set one of {own}"
