"""Pretrained ImageNet weights: named entries that own their normalisation and stride layout, loaded strictly.

An entry is one of torchvision's names (downloaded once into torch's hub folder) or a local ``.pt``, ``.pth`` or
``.npz`` file behind the name of its layout, ``torchvision:FILE`` or ``caffe:FILE``. Both layouts use torchvision's
key names (``features.N.weight``, ``layer3.5.conv2.weight``). They differ in what the first layer expects, RGB in 0-1
with ImageNet's mean and deviation or BGR in 0-255 minus the channel means, and in where a ResNet is strided: in the
second convolution of a unit (torchvision) or in the first (MSRA's release for Caffe).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights, ResNet101_Weights, VGG16_Weights, WeightsEnum

from grcn.archive import appearance, cause, check_archive, is_archive, read_file, unusable
from grcn.errors import CheckpointError

from .detector import Detector
from .features import Backbone
from .resnet import RESNET_UNITS
from .transform import Normalisation
from .vgg import VGG16_BLOCKS, SplitVGG

TORCHVISION = Normalisation()
CAFFE = Normalisation(mean=(103.939 / 255, 116.779 / 255, 123.68 / 255), std=(1 / 255, 1 / 255, 1 / 255), bgr=True)
# The convolutions of the Caffe release as torchvision ships them: converted to RGB in 0-1, so the deviation is 1/255.
CAFFE_RGB = Normalisation(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))

_LAYOUTS = {"torchvision": TORCHVISION, "caffe": CAFFE}
_NAMED = {"IMAGENET1K_V1": TORCHVISION, "IMAGENET1K_V2": TORCHVISION, "IMAGENET1K_FEATURES": CAFFE_RGB}
_RELEASES: dict[str, type[WeightsEnum]] = {
    "vgg16": VGG16_Weights,
    "resnet50": ResNet50_Weights,
    "resnet101": ResNet101_Weights,
}
# Of the batch norms of torchvision and of Caffe alike.
_EPS = 1e-5
_COUNTER = ".num_batches_tracked"
_NORM = ("weight", "bias", "running_mean", "running_var")


def normalisation_of(entry: str | None) -> Normalisation:
    """Returns what the weights of ``entry`` expect of their input; no weights: torchvision's. Reads no file."""
    if entry is None:
        return TORCHVISION
    if entry in _NAMED:
        return _NAMED[entry]
    layout = entry.partition(":")[0]
    if layout in _LAYOUTS and ":" in entry:
        return _LAYOUTS[layout]
    names = ", ".join(_NAMED)
    raise CheckpointError(f"model.weights: unknown entry {entry!r}; use {names}, torchvision:FILE or caffe:FILE")


def stride_in_of(entry: str | None) -> str:
    """Returns the convolution in which ResNets with the weights of ``entry`` are strided: ``"conv3x3"`` or
    ``"conv1x1"``."""
    return "conv1x1" if normalisation_of(entry) is CAFFE else "conv3x3"


@dataclass(frozen=True)
class LoadReport:
    """What became of each weight and key."""

    source: str
    loaded: list[str]
    new: list[str]
    ignored: list[str]

    def __str__(self) -> str:
        return (
            f"{self.source}: {len(self.loaded)} weights loaded, {len(self.new)} new ({_names(self.new)}), "
            f"{len(self.ignored)} keys of the file not needed ({_names(self.ignored)})"
        )


def load_weights(model: Detector | Backbone, entry: str) -> LoadReport:
    """Loads pretrained weights; parts that exist once per task all start from the same weights.

    Args:
        model: a detector of ``grcn.build.build_model`` on VGG16, ResNet50 or ResNet101, built for weights of this
            layout; or a backbone alone, whose input the caller normalises (:func:`normalisation_of`).
        entry: see the head of this file.

    Raises:
        CheckpointError: the file is missing or unreadable; a key is unexpected or has another shape; a weight inside
            the entry's coverage (every convolution and norm, and VGG16's fc6 and fc7 where the file has them) is
            missing; the model has no pretrained weights or was built for another normalisation or stride layout.
    """
    normalisation = normalisation_of(entry)
    backbone = model if isinstance(model, Backbone) else model.backbone
    network = _network(backbone)
    state, source = _read(entry, network)
    if entry == "IMAGENET1K_FEATURES":  # this release fills its classifier with NaN
        wanted = {key: value for key, value in state.items() if key.startswith("features.")}
    else:
        wanted = {key: value for key, value in state.items() if not _is_classifier(key, network)}
    names = torchvision_names(network)
    if unexpected := sorted(set(wanted) - set(names)):
        raise CheckpointError(
            f"{source}: unexpected keys ({_names(unexpected)}); need {network} under torchvision's names"
        )
    if fault := unusable(wanted):
        raise CheckpointError(f"{source}: {fault}; use other weights, or drop this key from the file")
    optional = () if "classifier.0.weight" in wanted else ("fc6.", "fc7.")
    missing = [key for key, name in names.items() if key not in wanted and not name.startswith(optional or "-")]
    if missing:
        raise CheckpointError(f"{source}: {_names(missing)} missing; this is not {network}, or the file is incomplete")
    covered = _fold_norms({names[key]: value.float() for key, value in wanted.items()}, source)
    # Weights behind another normalisation or stride would fit, and be worth nothing.
    fits = getattr(backbone, "stride_in", stride_in_of(entry)) == stride_in_of(entry)
    if not fits or (isinstance(model, Detector) and model.transform.normalisation != normalisation):
        raise CheckpointError(f"{source}: the model was built for weights of another layout; set model.weights={entry}")
    loaded, new = _copy(model, covered, source)
    used = {layer_name(name).rsplit(".", 1)[0] for name in loaded}
    ignored = [key for key in state if key not in wanted or names[key].rsplit(".", 1)[0] not in used]
    return LoadReport(source, loaded, new, sorted(key for key in ignored if not key.endswith(_COUNTER)))


def layer_name(parameter: str) -> str:
    """Returns a parameter's name without its place: ``conv5_1.weight`` for ``backbone.loc.conv5_1.weight``.

    Copies of one layer in several branches, and one layer in models that split at different places, share it.
    """
    return re.sub(
        r"^(backbone\.)?(frozen|trunk|fork|twice|cls|loc)\.|^roi_heads\.heads\.(cls|loc|second)\.(units\.)?",
        "",
        parameter,
    )


def _copy(model: Detector | Backbone, covered: dict[str, Tensor], source: str) -> tuple[list[str], list[str]]:
    """Copies values into every weight of their layer; returns the weights that got some, and the others."""
    loaded, new = [], []
    for name, tensor in model.state_dict().items():
        own = layer_name(name)
        if own not in covered:
            new.append(name)
            continue
        if covered[own].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: {own} is {list(covered[own].shape)}, the model's {name} is {list(tensor.shape)}; "
                + ("match head.dim and roi.size, or use weights of the convolutions alone" if own.startswith("fc")
                   else "use weights of this network")
            )  # fmt: skip
        tensor.copy_(covered[own])
        loaded.append(name)
    return loaded, new


def _is_classifier(key: str, network: str) -> bool:
    """Tells ImageNet's classifier, and the counters of its batch norms, from what a detector has a use for."""
    classifier = "classifier.6." if network == "vgg16" else "fc."
    return key.startswith(classifier) or key.endswith(_COUNTER)


def torchvision_names(network: str) -> dict[str, str]:
    """Maps torchvision's keys of ``vgg16``, ``resnet50`` or ``resnet101`` to layer names (:func:`layer_name`).

    ``features.0.weight`` is ``conv1_1.weight``, and ``layer3.5.conv2.weight`` is ``layer3_5.conv2.weight``; the four
    tensors of a batch norm go to the convolution in front of it, as ``layer3_5.conv2.norm_running_var``.
    """
    return _vgg16_names() if network == "vgg16" else _resnet_names(RESNET_UNITS[network])


def _vgg16_names() -> dict[str, str]:
    names, index = {}, 0
    for block, widths in enumerate(VGG16_BLOCKS, start=1):
        for number in range(1, len(widths) + 1):
            names[f"features.{index}"] = f"conv{block}_{number}"
            index += 2  # its ReLU
        index += 1  # the block's pooling
    names.update({"classifier.0": "fc6", "classifier.3": "fc7"})
    return {f"{key}.{kind}": f"{name}.{kind}" for key, name in names.items() for kind in ("weight", "bias")}


def _resnet_names(units: tuple[int, ...]) -> dict[str, str]:
    pairs = {("conv1", "bn1"): "stem.conv1"}
    for stage, count in enumerate(units, start=1):
        for number in range(count):
            place, own = f"layer{stage}.{number}", f"layer{stage}_{number}"
            for k in (1, 2, 3):
                pairs[f"{place}.conv{k}", f"{place}.bn{k}"] = f"{own}.conv{k}"
            if number == 0:
                pairs[f"{place}.downsample.0", f"{place}.downsample.1"] = f"{own}.downsample"
    names = {f"{conv}.weight": f"{name}.weight" for (conv, _), name in pairs.items()}
    for (_, norm), name in pairs.items():
        names |= {f"{norm}.{kind}": f"{name}.norm_{kind}" for kind in _NORM}
    return names


def _network(backbone: Backbone) -> str:
    """Returns torchvision's name of the network that a backbone is made from."""
    if isinstance(backbone, SplitVGG):
        return "vgg16"
    found = [name for name in _RELEASES if RESNET_UNITS.get(name) == getattr(backbone, "units", ())]
    if not found:
        raise CheckpointError("model.weights: this backbone has no pretrained weights; set null")
    return found[0]


def _fold_norms(values: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Replaces the four tensors of each batch norm by the scale and shift that they amount to."""
    folded = {name: value for name, value in values.items() if ".norm_" not in name}
    for layer in (name.removesuffix(".norm_weight") for name in values if name.endswith(".norm_weight")):
        norm = [values[f"{layer}.norm_{kind}"].double() for kind in _NORM]
        channels = values[f"{layer}.weight"].shape[:1]
        if any(tensor.shape != channels for tensor in norm) or not (norm[3] >= 0).all():
            raise CheckpointError(
                f"{source}: the batch norm behind {layer} is not one of {channels[0]} channels with variances; "
                "use weights of this network"
            )
        weight, bias, mean, variance = norm
        scale = weight / (variance + _EPS).sqrt()
        folded[f"{layer}.scale"], folded[f"{layer}.shift"] = scale.float(), (bias - mean * scale).float()
    return folded


def _read(entry: str, network: str) -> tuple[dict[str, Tensor], str]:
    if entry in _NAMED:
        if entry not in _RELEASES[network].__members__:
            raise CheckpointError(f"model.weights: there is no {entry} for {network}; use IMAGENET1K_V1")
        path = _fetch(entry, _RELEASES[network][entry].url)
        contents = read_file(path, "remove it and run again")
        if not hashlib.sha256(contents).hexdigest().startswith(path.stem.rpartition("-")[2]):
            raise CheckpointError(f"{path}: damaged (its SHA-256 is not that in its name); remove it and run again")
        return _tensors(path, contents), entry
    path = Path(entry.partition(":")[2])
    return _tensors(path, read_file(path, "give model.weights=LAYOUT:FILE an existing file")), str(path)


def _fetch(entry: str, url: str) -> Path:
    """Downloads a release into torch's hub folder, unless it is there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for a tool's result
                torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except Exception as error:  # whatever the network makes urllib raise
        raise CheckpointError(f"{entry}: cannot load {url} ({cause(error)}); put the file at {path}") from error
    return path


def _tensors(path: Path, contents: bytes) -> dict[str, Tensor]:
    """Reads tensors out of what a file holds, after making sure that unpacking it is harmless."""
    try:
        if is_archive(contents):  # torch's own old format, in which some releases are, is none
            check_archive(contents, compressed=path.suffix == ".npz")
        elif path.suffix == ".npz" or not contents.startswith(b"\x80"):
            raise ValueError(appearance(contents))
        if path.suffix == ".npz":
            with np.load(io.BytesIO(contents), allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        state = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes numpy, zip or pickle raise
        remedy = "use another, or download it again"
        raise CheckpointError(
            f"{path}: not a readable .npz or .pt file of tensors ({cause(error)}); {remedy}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        keys = f" of {_names([str(key) for key in state])}" if isinstance(state, dict) else ""
        raise CheckpointError(f"{path}: holds a {type(state).__name__}{keys}, not tensors; save the state_dict alone")
    return state


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "none"
