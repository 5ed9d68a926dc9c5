"""torchvision's detectors on a pyramid as weights of ours: what each tensor of such a file is called here.

Faster R-CNN on ResNet-FPN, both releases, and the box part of Mask R-CNN. Files of 2019 have older names
(``inner_blocks.0.weight`` for ``inner_blocks.0.0.weight``, ``rpn.head.conv.weight`` for ``rpn.head.conv.0.0.weight``),
which torchvision renames when it loads them: both are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from grcn.catalog import COCO_CLASSES
from grcn.errors import CheckpointError
from grcn.fileio import few
from grcn.models.class_rows import ClassRows, place_rows
from grcn.models.detector import Detector
from grcn.models.features import Backbone
from grcn.models.layer_names import layer_name

TRUNK = "backbone.body."
PREDICTORS = ("roi_heads.heads.cls_score", "roi_heads.heads.bbox_pred")
_PYRAMID, _RPN, _HEAD = "backbone.fpn.", "rpn.head.", "roi_heads.box_head."
# What a backbone alone has no place for, by layer name.
_BEHIND = ("rpn.", "fc", "convs.", "roi_heads.")
# Parts of other tasks than boxes.
_OTHERS = ("roi_heads.mask_", "roi_heads.keypoint_")


def has_pyramid(state: Mapping[str, Tensor]) -> bool:
    """Tells whether tensors are of a whole detector on a pyramid."""
    return any(key.startswith(_PYRAMID) for key in state)


def names_of(state: Mapping[str, Tensor], trunk: Mapping[str, str]) -> dict[str, str]:
    """Maps the keys of a detector's file to layer names of ours; the four tensors of a batch norm as those of
    :func:`grcn.models.layer_names.torchvision_names`.

    Args:
        state: the file's tensors.
        trunk: the classifier's keys, without those of the detector.
    """
    layers: dict[str, str] = {}
    for index in range(4):
        for kind, ours in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
            place = f"{_PYRAMID}{kind}.{index}"
            # The convolution and its norm; or, in old files, the convolution itself.
            layers |= {f"{place}.0": f"{ours}{index + 2}", f"{place}.1": f"{ours}{index + 2}.norm"}
            layers[place] = f"{ours}{index + 2}"
    for index in range(2):
        layers[f"{_RPN}conv.{index}.0"] = "rpn.conv" if index == 0 else f"rpn.further.{index - 1}"
    layers |= {f"{_RPN}conv": "rpn.conv", f"{_RPN}cls_logits": "rpn.cls_logits", f"{_RPN}bbox_pred": "rpn.bbox_pred"}
    for index in range(4):
        layers |= {f"{_HEAD}{index}.0": f"convs.{index}", f"{_HEAD}{index}.1": f"convs.{index}.norm"}
    layers |= {f"{_HEAD}fc6": "fc6", f"{_HEAD}fc7": "fc7", f"{_HEAD}5": "fc6"}
    layers |= {"roi_heads.box_predictor.cls_score": PREDICTORS[0], "roi_heads.box_predictor.bbox_pred": PREDICTORS[1]}
    names = {TRUNK + key: name for key, name in trunk.items()}
    for key in state:
        place, _, kind = key.rpartition(".")
        if place in layers and kind != "num_batches_tracked":
            ours = layers[place]
            names[key] = f"{ours}_{kind}" if ours.endswith(".norm") else f"{ours}.{kind}"
    return names


def of_other_tasks(state: Mapping[str, Tensor]) -> list[str]:
    """Returns the parts of a detector that have nothing to do with boxes, as ``roi_heads.mask_head``."""
    return sorted({".".join(key.split(".")[:2]) for key in state if key.startswith(_OTHERS)})


def fitted(
    values: Mapping[str, Tensor],
    model: Detector | Backbone,
    source: str,
    classes: Sequence[str] | None,
    same_as: Mapping[str, str] | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Fits a file's values to a model: places the rows of its classes, and drops what the model has otherwise.

    Args:
        values: of the file, by layer name, norms folded.
        model: the detector, or a backbone alone.
        source: of the file, for messages.
        classes, same_as: as of :func:`grcn.models.weights.load_weights`.

    Returns:
        What to copy, by layer name, and remarks for the report.

    Raises:
        CheckpointError: the pyramid or the RPN is another.
    """
    own = {layer_name(name): tensor for name, tensor in model.state_dict().items()}
    own_backbone = model if isinstance(model, Backbone) else model.backbone
    needed = {layer_name(name) for name in own_backbone.state_dict()}
    remarks: list[str] = []
    settings = _settings_of(values)
    if isinstance(model, Backbone):
        kept = {name: value for name, value in values.items() if not name.startswith(_BEHIND)}
        remarks.append("of a detector its backbone alone")
    else:
        needed |= {name for name in own if name.startswith("rpn.")}
        kept, of_head = dict(values), ("fc", "convs.", "roi_heads.")
        if not _head_fits(values, own, model.roi_heads.heads.tasks):
            kept = {name: value for name, value in values.items() if not name.startswith(of_head)}
            remarks.append(f"its box head is another, the model's is new (for its own set {settings})")
        else:
            theirs, ours = (len(tensors[f"{PREDICTORS[0]}.weight"]) for tensors in (values, own))
            rows = _rows(theirs, ours, source, classes, same_as)
            for name in (f"{predictor}.{kind}" for predictor in PREDICTORS for kind in ("weight", "bias")):
                kept[name] = values[name] if rows is None else rows.placed(values[name], own[name])
            remarks.append("rows of all classes kept, in their order" if rows is None else str(rows))
        if not _anchors_are_torchvisions(model):
            remarks.append("its RPN was trained with other anchors; for its own see configs/_base/coco_fpn.yaml")
    missing, surplus = sorted(needed - kept.keys()), sorted(kept.keys() - own.keys())
    if missing or surplus:
        found = f"has no {few(missing)}" if missing else f"has {few(surplus)}, which the model has not"
        raise CheckpointError(f"{source}: {found}; set {settings}")
    return kept, remarks


def _settings_of(values: Mapping[str, Tensor]) -> str:
    """Returns the settings of the model that a file's values are of."""
    norm = "frozen" if "lateral2.scale" in values else "none"
    head = "conv_fc" if "convs.0.weight" in values else "fc"
    convs = 1 + sum(name.startswith("rpn.further.") and name.endswith("weight") for name in values)
    return f"model.pyramid.norm={norm} model.rpn.convs={convs} model.head.kind={head}"


def _head_fits(values: Mapping[str, Tensor], own: Mapping[str, Tensor], tasks: str) -> bool:
    """Tells whether the hidden layers of a file are those of a model, and are all that its predictors read."""
    theirs, ours = (
        {name for name in names if name.startswith(("fc", "convs."))} for names in (values.keys(), own.keys())
    )
    return theirs == ours and tasks != "ensemble"


def _rows(
    theirs: int, ours: int, source: str, classes: Sequence[str] | None, same_as: Mapping[str, str] | None
) -> ClassRows | None:
    """Finds which rows to keep; None for all as they are. Counts include the background."""
    names = _classes_of(theirs)
    if theirs == ours and (classes is None or names is None):
        return None
    if classes is None:
        raise CheckpointError(f"{source}: of {theirs - 1} classes (the model has {ours - 1}); pass the model's names")
    return place_rows(names or (), classes, same_as)


def _classes_of(rows: int) -> tuple[str, ...] | None:
    """Returns the names of the labels 1..C of a file with this many rows: COCO's; None where nobody knows."""
    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return {len(COCO_CLASSES) + 1: COCO_CLASSES, len(categories): tuple(categories[1:])}.get(rows)


def _anchors_are_torchvisions(model: Detector) -> bool:
    """Tells whether a model has the anchors that torchvision's released detectors were trained with."""
    anchors = model.rpn.anchors
    usual = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)), (0.5, 1.0, 2.0), "torchvision"
    return (anchors.sizes, anchors.ratios, anchors.layout) == usual
