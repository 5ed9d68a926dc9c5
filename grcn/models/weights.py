"""Pretrained ImageNet weights: named entries that own their normalisation and coverage, loaded strictly.

An entry is one of torchvision's names (downloaded once into torch's hub folder) or a local ``.pt``, ``.pth`` or
``.npz`` file behind the name of its layout, ``torchvision:FILE`` or ``caffe:FILE``. Both layouts use torchvision's
key names (``features.N.weight``); they differ in what the first layer expects: RGB in 0-1 with ImageNet's mean and
deviation, or BGR in 0-255 minus the channel means.
"""

from __future__ import annotations

import re
import urllib.error
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights

from grcn.errors import CheckpointError

from .transform import Normalisation
from .vgg import VGG16_BLOCKS

TORCHVISION = Normalisation()
CAFFE = Normalisation(mean=(103.939 / 255, 116.779 / 255, 123.68 / 255), std=(1 / 255, 1 / 255, 1 / 255), bgr=True)
# The convolutions of the Caffe release as torchvision ships them: converted to RGB in 0-1, so the deviation is 1/255.
CAFFE_RGB = Normalisation(mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255))

_LAYOUTS = {"torchvision": TORCHVISION, "caffe": CAFFE}
_NAMED = {"IMAGENET1K_V1": TORCHVISION, "IMAGENET1K_FEATURES": CAFFE_RGB}


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


@dataclass(frozen=True)
class LoadReport:
    """What became of each parameter and key."""

    source: str
    loaded: list[str]
    new: list[str]
    ignored: list[str]

    def __str__(self) -> str:
        return (
            f"{self.source}: {len(self.loaded)} parameters loaded, {len(self.new)} new ({_names(self.new)}), "
            f"{len(self.ignored)} keys of the file not needed ({_names(self.ignored)})"
        )


def load_weights(model: nn.Module, entry: str) -> LoadReport:
    """Loads pretrained weights into a VGG16 detector; parts that exist once per task all start from the same weights.

    Args:
        model: a detector of ``grcn.build.build_model``.
        entry: see the head of this file.

    Raises:
        CheckpointError: the file is missing or unreadable; a key is unexpected or has another shape; a parameter
            inside the
            entry's coverage (the 13 convolutions, and fc6 and fc7 where the file has them) is missing.
    """
    normalisation_of(entry)
    state, source = _read(entry)
    if entry == "IMAGENET1K_FEATURES":  # this release fills its classifier with NaN
        wanted = {key: value for key, value in state.items() if key.startswith("features.")}
    else:
        wanted = {key: value for key, value in state.items() if not key.startswith("classifier.6.")}
    known = _vgg16_names()
    unexpected = sorted(set(wanted) - set(known))
    if unexpected:
        raise CheckpointError(f"{source}: unexpected keys ({_names(unexpected)}); need VGG16 under torchvision's names")
    covered = {known[key]: value for key, value in wanted.items()}
    for key, value in wanted.items():
        if not value.isfinite().all():
            raise CheckpointError(f"{source}: {key} is not finite; use other weights, or drop this key from the file")
    loaded, new = [], []
    for name, parameter in model.named_parameters():
        own = layer_name(name)
        if own in covered:
            if covered[own].shape != parameter.shape:
                raise CheckpointError(
                    f"{source}: {own} is {list(covered[own].shape)}, the model's {name} is {list(parameter.shape)}; "
                    "match head.dim and roi.size, or use weights of the convolutions alone"
                )
            with torch.no_grad():
                parameter.copy_(covered[own])
            loaded.append(name)
        elif own.startswith("conv") or (own.startswith("fc") and "fc6.weight" in covered):
            raise CheckpointError(f"{source}: no weights for {own}; the file is incomplete")
        else:
            new.append(name)
    return LoadReport(source, loaded, new, sorted(set(state) - set(wanted)))


def layer_name(parameter: str) -> str:
    """Returns a parameter's name without its place: ``conv5_1.weight`` for ``backbone.loc.conv5_1.weight``.

    Copies of one layer in several branches, and one layer in models that split at different places, share it.
    """
    return re.sub(r"^backbone\.(frozen|trunk|cls|loc)\.|^roi_heads\.heads\.(cls|loc|second)\.", "", parameter)


def _vgg16_names() -> dict[str, str]:
    """Maps torchvision's VGG16 keys to layer names: ``features.0.weight`` -> ``conv1_1.weight``."""
    names, index = {}, 0
    for block, widths in enumerate(VGG16_BLOCKS, start=1):
        for number in range(1, len(widths) + 1):
            names[f"features.{index}"] = f"conv{block}_{number}"
            index += 2  # its ReLU
        index += 1  # the block's pooling
    names.update({"classifier.0": "fc6", "classifier.3": "fc7"})
    return {f"{key}.{kind}": f"{name}.{kind}" for key, name in names.items() for kind in ("weight", "bias")}


def _read(entry: str) -> tuple[dict[str, Tensor], str]:
    if entry in _NAMED:
        url = VGG16_Weights[entry].url
        place = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
        try:
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            ), entry
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{entry}: cannot load {url} ({_short(error)}); put the file at {place}") from error
    path = Path(entry.partition(":")[2])
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}, str(path)
        return torch.load(path, map_location="cpu", weights_only=True), str(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; give model.weights=LAYOUT:FILE an existing one") from error
    except Exception as error:  # whatever a damaged or foreign file makes numpy, zip or pickle raise
        raise CheckpointError(f"{path}: not a readable .npz or .pt file of tensors ({_short(error)})") from error


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:80] if str(error) else type(error).__name__


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "none"
