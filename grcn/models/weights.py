"""Pretrained weights: named entries with their normalisation and stride layout, loaded strictly.

An entry is one of torchvision's names (downloaded once into torch's hub folder) or a local ``.pt``, ``.pth`` or
``.npz`` file prefixed by its layout, ``torchvision:FILE`` or ``caffe:FILE``. Both layouts use torchvision's
key names (``features.N.weight``, ``layer3.5.conv2.weight``). They differ in what the first layer expects, RGB in 0-1
with ImageNet's mean and deviation or BGR in 0-255 minus the channel means, and in where a ResNet is strided: in the
second convolution of a unit (torchvision) or in the first (MSRA's release for Caffe).

A file of a timm network is ``timm:FILE``, under timm's own keys (``stages.0.blocks.0.conv_dw.weight``).

A file of one of torchvision's detectors on a ResNet's pyramid (``backbone.body.layer3.5.conv2.weight``) gives all its
parts to a model with a pyramid (:mod:`grcn.models.detector_weights`), and only its trunk to others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torchvision.models import ResNet50_Weights, ResNet101_Weights, VGG16_Weights, WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_Weights,
)

from grcn.catalog import NAMED_WEIGHTS, RELEASES, RESNET_UNITS, WEIGHT_LAYOUTS
from grcn.errors import CheckpointError
from grcn.fileio import fetch, few, read_file, read_tensors, unusable
from grcn.models import detector_weights
from grcn.models.detector import Detector
from grcn.models.detector_weights import TRUNK
from grcn.models.features import Backbone
from grcn.models.layer_names import COUNTER, FOREIGN, NORM, layer_name, torchvision_names
from grcn.models.pyramid import PyramidResNet
from grcn.models.timm_backbone import TimmPyramid, timm_key
from grcn.models.transform import Normalisation
from grcn.models.vgg import SplitVGG

TORCHVISION = Normalisation()
CAFFE = Normalisation(mean=(103.939 / 255, 116.779 / 255, 123.68 / 255), std=(1 / 255, 1 / 255, 1 / 255), bgr=True)
# The convolutions of the Caffe release as torchvision ships them: converted to RGB in 0-1, so the deviation is 1/255.
CAFFE_RGB = Normalisation(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))

_EXPECTED = {"torchvision": TORCHVISION, "caffe": CAFFE, "caffe_rgb": CAFFE_RGB}
_CLASSIFIERS: dict[str, type[WeightsEnum]] = {
    "vgg16": VGG16_Weights,
    "resnet50": ResNet50_Weights,
    "resnet101": ResNet101_Weights,
}
_DETECTORS: dict[str, WeightsEnum] = {
    "COCO_V1": FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
    "COCO_V2": FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}
# The eps of batch norms, in torchvision and in Caffe, except for these releases, whose frozen norms have none in
# torchvision; the last part of a release's name is the beginning of its SHA-256.
_EPS = 1e-5
_WITHOUT_EPS = tuple(
    Path(weights.url).stem.rpartition("-")[2]
    for weights in (
        FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
        MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
        KeypointRCNN_ResNet50_FPN_Weights.COCO_V1,
        RetinaNet_ResNet50_FPN_Weights.COCO_V1,
    )
)
# The fix for a weight of another shape, by the prefix of its layer's name.
_REMEDIES = {
    "fc": "match head.dim and roi.size, or use weights of the convolutions alone",
    "rpn.": "match rpn.channels and the number of anchors.sizes and anchors.ratios",
    "lateral": "match pyramid.channels",
    "roi_heads.": "match head.dim",
    "": "use weights of this network",
}
_TIMM = "timm:"


def normalisation_of(entry: str | None) -> Normalisation:
    """Returns the normalisation that the weights of ``entry`` expect; without weights, torchvision's. Reads no file.

    For a timm network it is its backbone's ``normalisation``.
    """
    if entry is None or entry.startswith(_TIMM):  # a network of timm has its own
        return TORCHVISION
    if entry in NAMED_WEIGHTS:
        return _EXPECTED[NAMED_WEIGHTS[entry]]
    layout = entry.partition(":")[0]
    if layout in WEIGHT_LAYOUTS and ":" in entry:
        return _EXPECTED[layout]
    names = ", ".join(NAMED_WEIGHTS)
    raise CheckpointError(
        f"model.weights: unknown entry {entry!r}; use {names}, torchvision:FILE, caffe:FILE or timm:FILE"
    )


def stride_in_of(entry: str | None) -> str:
    """Returns the convolution in which ResNets with the weights of ``entry`` are strided: ``"conv3x3"`` or
    ``"conv1x1"``."""
    return "conv1x1" if normalisation_of(entry) is CAFFE else "conv3x3"


@dataclass(frozen=True)
class LoadReport:
    """Outcome of loading: what happened to each weight of the model and each key of the file.

    Attributes:
        source: the entry's name, or its file.
        loaded, new: weights of the model that have values of the file, and those that do not.
        ignored: keys of the file that match no weight of the model.
        left: parts of a whole detector that the model has no place for.
        remarks: further notes, such as which classes' rows were kept.
    """

    source: str
    loaded: list[str]
    new: list[str]
    ignored: list[str]
    left: list[str]
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{self.source}: {len(self.loaded)} weights loaded, {len(self.new)} new ({few(self.new)}), "
            f"{len(self.ignored)} keys of the file not needed ({few(self.ignored)})",
            *self.remarks,
        ]
        return "; ".join([*parts, *([f"left: {', '.join(self.left)}"] if self.left else [])])


def load_weights(
    model: Detector | Backbone,
    entry: str,
    classes: Sequence[str] | None = None,
    same_as: Mapping[str, str] | None = None,
) -> LoadReport:
    """Loads pretrained weights; parts that exist once per task all start from the same weights.

    From a whole detector for a model with a pyramid, the rows of the predictors go to the classes of the same names.

    Args:
        model: a detector of ``grcn.build.build_model`` on VGG16, a ResNet, a pyramid or a network of timm, built for
            weights of this layout; or a backbone alone, whose input the caller normalises (:func:`normalisation_of`).
        entry: as ``model.weights``: ``IMAGENET1K_V1``, ``IMAGENET1K_V2``, ``IMAGENET1K_FEATURES``, ``COCO_V1``,
            ``COCO_V2``, ``torchvision:FILE``, ``caffe:FILE`` or ``timm:FILE``.
        classes: names of the model's labels 1..C. None: rows are loaded as they are, where there are as many.
        same_as: for some of these, their name among the file's classes, such as COCO's ``airplane`` for ``aeroplane``.

    Raises:
        CheckpointError: the file is missing or unreadable; a key is unexpected or has another shape; a weight inside
            the entry's coverage (every convolution and norm, and VGG16's fc6 and fc7 where the file has them) is
            missing; the model has no pretrained weights or was built for another normalisation or stride layout; a
            detector's file is of another pyramid or RPN.
        ValueError: not as many ``classes`` as the model has.
    """
    if isinstance(model, Detector) and classes is not None:
        count = model.roi_heads.heads.cls_score.out_features - 1
        if len(classes) != count:
            raise ValueError(f"classes must name the {count} classes of the model (got {len(classes)} names)")
    normalisation = normalisation_of(entry)
    backbone = model if isinstance(model, Backbone) else model.backbone
    if isinstance(backbone, TimmPyramid) and entry.startswith(_TIMM):
        return _load_timm(model, backbone, entry)
    network = _network(backbone)
    state, source, digest = _read(entry, f"{network}_fpn" if isinstance(backbone, PyramidResNet) else network)
    # Weights for another normalisation or stride would load, and be worthless.
    fits = getattr(backbone, "stride_in", stride_in_of(entry)) == stride_in_of(entry)
    if not fits or (isinstance(model, Detector) and model.transform.normalisation != normalisation):
        raise CheckpointError(f"{source}: the model was built for weights of another layout; set model.weights={entry}")
    whole = isinstance(backbone, PyramidResNet) and detector_weights.has_pyramid(state)
    names, remarks, need = torchvision_names(network), [], network
    if whole:
        _check_layout(source, entry)
        need = f"a Faster R-CNN on a pyramid of {network}"
        names, wanted, left = detector_weights.parts_of(state, names, alone=model is backbone)
        remarks += ["of a detector its backbone alone"] * (model is backbone)
    else:
        state, left = _trunk(state, source, entry)
        remarks += ["a detector, of which only the trunk is taken"] * bool(left)
        wanted = {key: value for key, value in state.items() if not _is_classifier(key, network)}
    if entry == "IMAGENET1K_FEATURES":  # this release fills its classifier with NaN
        wanted = {key: value for key, value in wanted.items() if key.startswith("features.")}
    if unexpected := sorted(set(wanted) - set(names)):
        raise CheckpointError(f"{source}: unexpected keys ({few(unexpected)}); need {need} under torchvision's names")
    if fault := unusable(wanted):
        raise CheckpointError(f"{source}: {fault}; use other weights, or drop this key from the file")
    optional = () if whole or "classifier.0.weight" in wanted else ("fc6.", "fc7.")
    missing = [key for key, name in names.items() if key not in wanted and not name.startswith(optional or "-")]
    if missing:
        raise CheckpointError(f"{source}: {few(missing)} missing; this is not {need}, or the file is incomplete")
    eps = 0.0 if digest.startswith(_WITHOUT_EPS) else _EPS
    covered = _fold_norms({names[key]: value.float() for key, value in wanted.items()}, source, eps)
    if whole:
        covered, more = detector_weights.fitted(covered, model, source, classes, same_as)
        remarks += more
    loaded, new = _copy(model, covered, source)
    used = {_layer(layer_name(name)) for name in loaded}
    ignored = [key for key in state if key not in wanted or _layer(names[key]) not in used]
    ignored = [key for key in ignored if not key.endswith(COUNTER) and not key.startswith(tuple(left))]
    return LoadReport(source, loaded, new, sorted(ignored), left, tuple(remarks))


def _load_timm(model: Detector | Backbone, backbone: TimmPyramid, entry: str) -> LoadReport:
    """Loads a timm file into its network, and into the tasks' copies of its last stages."""
    path = Path(os.path.expanduser(entry.removeprefix(_TIMM)))
    state = read_tensors(path, read_file(path, "give model.weights=timm:FILE an existing file"))
    layers = {layer_name(name) for name in backbone.state_dict()}
    keys = {layer: timm_key(layer.removeprefix(FOREIGN), state) for layer in layers if layer.startswith(FOREIGN)}
    if missing := sorted(key for key in keys.values() if key not in state):
        raise CheckpointError(f"{path}: {few(missing)} missing; this is not timm's {backbone.name}")
    if fault := unusable({key: state[key] for key in keys.values()}):
        raise CheckpointError(f"{path}: {fault}; use other weights")
    loaded, new = _copy(model, {layer: state[key] for layer, key in keys.items()}, str(path))
    ignored = sorted(key for key in state.keys() - set(keys.values()) if not key.endswith(COUNTER))
    return LoadReport(str(path), loaded, new, ignored, [])


def _layer(name: str) -> str:
    """Returns the name of the layer that a tensor belongs to: a weight, a bias or a tensor of a norm."""
    return name.rpartition(".")[0]


def _copy(model: Detector | Backbone, covered: dict[str, Tensor], source: str) -> tuple[list[str], list[str]]:
    """Copies values into every weight of their layer; returns the weights that were set, and the others."""
    loaded, new = [], []
    for name, tensor in model.state_dict().items():
        own = layer_name(name)
        if own not in covered:
            new.append(name)
            continue
        if covered[own].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: {own} is {list(covered[own].shape)}, the model's {name} is {list(tensor.shape)}; "
                + next(remedy for layer, remedy in _REMEDIES.items() if own.startswith(layer))
            )
        tensor.copy_(covered[own])
        loaded.append(name)
    return loaded, new


def _is_classifier(key: str, network: str) -> bool:
    """Returns whether a key is of ImageNet's classifier or a counter of a batch norm, which no detector uses."""
    classifier = "classifier.6." if network == "vgg16" else "fc."
    return key.startswith(classifier) or key.endswith(COUNTER)


def _network(backbone: Backbone) -> str:
    """Returns torchvision's name for the network that a backbone is made from."""
    if isinstance(backbone, SplitVGG):
        return "vgg16"
    found = [name for name in _CLASSIFIERS if RESNET_UNITS.get(name) == getattr(backbone, "units", ())]
    if not found:
        raise CheckpointError("model.weights: this backbone has no pretrained weights; set null")
    return found[0]


def _trunk(state: dict[str, Tensor], source: str, entry: str) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the trunk of a detector under a classifier's keys, and the other parts, if any."""
    trunk = {key.removeprefix(TRUNK): value for key, value in state.items() if key.startswith(TRUNK)}
    if not trunk:
        return state, []
    _check_layout(source, entry)
    others = (key.split(".") for key in state if not key.startswith(TRUNK))
    return trunk, sorted({".".join(part[: 2 if part[0] == "backbone" else 1]) for part in others})


def _check_layout(source: str, entry: str) -> None:
    """Refuses one of torchvision's detectors as weights of another layout."""
    if normalisation_of(entry) is not TORCHVISION:
        raise CheckpointError(f"{source}: a detector of torchvision's; set model.weights=torchvision:FILE")


def _fold_norms(values: dict[str, Tensor], source: str, eps: float) -> dict[str, Tensor]:
    """Replaces the four tensors of each batch norm by the equivalent scale and shift."""
    folded = {name: value for name, value in values.items() if ".norm_" not in name}
    for layer in (name.removesuffix(".norm_weight") for name in values if name.endswith(".norm_weight")):
        norm = [values[f"{layer}.norm_{kind}"].double() for kind in NORM]
        channels = values[f"{layer}.weight"].shape[:1]
        if any(tensor.shape != channels for tensor in norm) or not (norm[3] >= 0).all():
            raise CheckpointError(
                f"{source}: the batch norm behind {layer} is not one of {channels[0]} channels with variances; "
                "use weights of this network"
            )
        weight, bias, mean, variance = norm
        scale = weight / (variance + eps).sqrt()
        folded[f"{layer}.scale"], folded[f"{layer}.shift"] = scale.float(), (bias - mean * scale).float()
    return folded


def _read(entry: str, backbone: str) -> tuple[dict[str, Tensor], str, str]:
    """Returns tensors by key, the name of their source, and the SHA-256 of the file."""
    if entry in NAMED_WEIGHTS:
        if entry not in RELEASES[backbone]:
            raise CheckpointError(f"model.weights: there is no {entry} for {backbone}; use IMAGENET1K_V1")
        release = _DETECTORS.get(entry) or _CLASSIFIERS[backbone.removesuffix("_fpn")][entry]
        path = fetch(entry, release.url)
        contents = read_file(path, "remove it and run again")
        digest = hashlib.sha256(contents).hexdigest()
        if not digest.startswith(path.stem.rpartition("-")[2]):
            raise CheckpointError(f"{path}: damaged (its SHA-256 is not that in its name); remove it and run again")
        return read_tensors(path, contents), entry, digest
    path = Path(os.path.expanduser(entry.partition(":")[2]))
    contents = read_file(path, "give model.weights=LAYOUT:FILE an existing file")
    return read_tensors(path, contents), str(path), hashlib.sha256(contents).hexdigest()
