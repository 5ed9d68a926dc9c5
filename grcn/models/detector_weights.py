"""Maps the tensors of torchvision's detectors on a pyramid to our layer names.

Faster R-CNN on ResNet-FPN, both releases, and the box part of Mask R-CNN. Files of 2019 have older names
(``inner_blocks.0.weight`` for ``inner_blocks.0.0.weight``, ``rpn.head.conv.weight`` for ``rpn.head.conv.0.0.weight``),
which torchvision renames when it loads them: both are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from grcn.catalog import COCO_CLASSES
from grcn.errors import CheckpointError
from grcn.fileio import few
from grcn.models.box_heads import TaskHeads
from grcn.models.class_rows import BOX_ROWS, PREDICTORS, ClassRows, place_rows
from grcn.models.detector import Detector
from grcn.models.features import Backbone
from grcn.models.layer_names import COUNTER, NORM, layer_name

TRUNK = "backbone.body."
_PYRAMID, _RPN, _HEAD = "backbone.fpn.", "rpn.head.", "roi_heads.box_head."
# Parts of other tasks than boxes.
_OTHERS = ("roi_heads.mask_", "roi_heads.keypoint_")


def has_pyramid(state: Mapping[str, Tensor]) -> bool:
    """Returns whether tensors are those of a whole detector on a pyramid."""
    return any(key.startswith(_PYRAMID) for key in state)


def names_of(state: Mapping[str, Tensor], trunk: Mapping[str, str]) -> dict[str, str]:
    """Maps the keys that a detector's file must have to our layer names; the four tensors of a batch norm as in
    :func:`grcn.models.layer_names.torchvision_names`.

    Args:
        state: the file's tensors, which show its release and age.
        trunk: the classifier's keys, without those of the detector.
    """
    norms = any(key.startswith(f"{_PYRAMID}inner_blocks.0.1.") for key in state)
    old = f"{_PYRAMID}inner_blocks.0.weight" in state
    convs = len({key.split(".")[3] for key in state if re.match(rf"{_RPN}conv\.\d+\.0\.", key)})
    names = {TRUNK + key: name for key, name in trunk.items()}

    def layer(place: str, ours: str, norm: str | None = None) -> None:
        names[f"{place}.weight"] = f"{ours}.weight"
        if norm is None:
            names[f"{place}.bias"] = f"{ours}.bias"
        else:
            names.update({f"{norm}.{kind}": f"{ours}.norm_{kind}" for kind in NORM})

    for index in range(4):
        for kind, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
            place = f"{_PYRAMID}{kind}.{index}"
            layer(place if old else f"{place}.0", f"{ours}{index + 2}", f"{place}.1" if norms else None)
    layer(f"{_RPN}conv" if f"{_RPN}conv.weight" in state else f"{_RPN}conv.0.0", "rpn.conv")
    for index in range(1, convs):
        layer(f"{_RPN}conv.{index}.0", f"rpn.further.{index - 1}")
    layer(f"{_RPN}cls_logits", "rpn.cls_logits")
    layer(f"{_RPN}bbox_pred", "rpn.bbox_pred")
    if any(key.startswith(f"{_HEAD}0.") for key in state):
        for index in range(4):
            layer(f"{_HEAD}{index}.0", f"convs.{index}", f"{_HEAD}{index}.1")
        layer(f"{_HEAD}5", "fc6")
    else:
        layer(f"{_HEAD}fc6", "fc6")
        layer(f"{_HEAD}fc7", "fc7")
    for predictor in PREDICTORS:
        layer(f"roi_heads.box_predictor.{predictor.rpartition('.')[2]}", predictor)
    return names


def parts_of(
    state: Mapping[str, Tensor], trunk: Mapping[str, str], alone: bool
) -> tuple[dict[str, str], dict[str, Tensor], list[str]]:
    """Splits a detector's file into its parts.

    Args:
        state, trunk: as in :func:`names_of`.
        alone: take only the backbone.

    Returns:
        The expected keys with their layer names; the tensors to load, except those of no use to any detector here; and
        the parts that have no place in the model, such as ``roi_heads.mask_head``.
    """
    names = names_of(state, trunk)
    if alone:
        names = {key: name for key, name in names.items() if key.startswith("backbone.")}
        left = {key.partition(".")[0] for key in state} - {"backbone"}
    else:
        left = {".".join(key.split(".")[:2]) for key in state if key.startswith(_OTHERS)}
    others = tuple(f"{part}." for part in left)
    wanted = {key: value for key, value in state.items() if not key.startswith(others) and not key.endswith(COUNTER)}
    return names, wanted, sorted(left)


def fitted(
    values: Mapping[str, Tensor],
    model: Detector | Backbone,
    source: str,
    classes: Sequence[str] | None,
    same_as: Mapping[str, str] | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Fits a file's values to a model: places the rows of its classes, and drops parts that differ in the model.

    Args:
        values: those of the file, by layer name, norms folded.
        model: the detector, or a backbone alone.
        source: name of the file, for messages.
        classes, same_as: as in :func:`grcn.models.weights.load_weights`.

    Returns:
        The values to copy, by layer name, and remarks for the report.

    Raises:
        CheckpointError: the pyramid or the RPN differs.
    """
    own = {layer_name(name): tensor for name, tensor in model.state_dict().items()}
    own_backbone = model if isinstance(model, Backbone) else model.backbone
    needed = {layer_name(name) for name in own_backbone.state_dict()}
    remarks: list[str] = []
    settings = _settings_of(values)
    kept = dict(values)
    if isinstance(model, Detector):
        needed |= {name for name in own if name.startswith("rpn.")}
        if _head_fits(values, model.roi_heads.heads):
            rows = _rows(values, own, source, classes, same_as)
            kept = kept if rows is None else rows.placed(values, own)
            if not _box_regressor_fits(model.roi_heads.heads):
                kept = {name: value for name, value in kept.items() if not name.startswith(PREDICTORS[1])}
                remarks.append("its box regressor is another, the model's is new")
            remarks.append("rows of all classes kept, in their order" if rows is None else str(rows))
        else:
            kept = {
                name: value for name, value in values.items() if not name.startswith(("fc", "convs.", "roi_heads."))
            }
            remarks.append(f"its box head is another, the model's is new (for its own set {settings})")
        if not _anchors_are_torchvisions(model):
            remarks.append("its RPN was trained with other anchors; for its own see configs/_base/coco_fpn.yaml")
    missing, surplus = sorted(needed - kept.keys()), sorted(kept.keys() - own.keys())
    if missing or surplus:
        found = f"has no {few(missing)}" if missing else f"has {few(surplus)}, which the model has not"
        raise CheckpointError(f"{source}: {found}; set {settings}")
    return kept, remarks


def _settings_of(values: Mapping[str, Tensor]) -> str:
    """Returns the settings of the model that a file's values belong to."""
    norm = "frozen" if "lateral2.scale" in values else "none"
    head = "conv_fc" if "convs.0.weight" in values else "fc"
    convs = 1 + sum(name.startswith("rpn.further.") and name.endswith("weight") for name in values)
    return f"model.pyramid.norm={norm} model.rpn.convs={convs} model.head.kind={head}"


def _head_fits(values: Mapping[str, Tensor], heads: TaskHeads) -> bool:
    """Returns whether the hidden layers of a file are those of a model, and are all that its classifier reads."""
    theirs = {name for name in values if name.startswith(("fc", "convs."))}
    return theirs == heads.cls.state_dict().keys() and heads.tasks != "ensemble"


def _box_regressor_fits(heads: TaskHeads) -> bool:
    """Returns whether boxes are regressed for each class, and from hidden layers of the classifier's kind."""
    return (heads.loc is None or type(heads.loc) is type(heads.cls)) and heads.bbox_pred.out_features > BOX_ROWS


def _rows(
    values: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    source: str,
    classes: Sequence[str] | None,
    same_as: Mapping[str, str] | None,
) -> ClassRows | None:
    """Finds which rows to keep; None for all as they are."""
    theirs, ours = (len(tensors[f"{PREDICTORS[0]}.weight"]) for tensors in (values, own))
    counts = [len(values[f"{predictor}.{kind}"]) for predictor in PREDICTORS for kind in ("weight", "bias")]
    if counts != [theirs, theirs, 4 * theirs, 4 * theirs]:
        raise CheckpointError(f"{source}: its predictors are of different classes ({counts} rows); use other weights")
    names = _classes_of(theirs)
    if theirs == ours and (classes is None or names is None):
        return None
    if classes is None:
        counted = f"of {theirs} classes with the background (the model has {ours})"
        raise CheckpointError(f"{source}: {counted}; pass the names of the model's")
    rows = place_rows(names or (), classes, same_as)
    # As many classes as COCO has, but none of COCO's names: the file was trained on this data.
    return None if theirs == ours and not any(rows.source[1:]) else rows


def _classes_of(rows: int) -> tuple[str, ...] | None:
    """Returns the names of the labels 1..C of a file with this many rows: COCO's; None where they are unknown."""
    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {len(COCO_CLASSES) + 1: COCO_CLASSES, len(categories): tuple(categories[1:])}.get(rows)


def _anchors_are_torchvisions(model: Detector) -> bool:
    """Returns whether a model has the anchors that torchvision's released detectors were trained with."""
    anchors = model.rpn.anchors
    usual = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)), (0.5, 1.0, 2.0), "torchvision"
    return (anchors.sizes, anchors.ratios, anchors.layout) == usual
