"""Names of weights without their place, so that models that split or freeze at different places share values; and
torchvision's names for them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from grcn.catalog import RESNET_UNITS, VGG16_BLOCKS

# The tensors of a batch norm.
NORM = ("weight", "bias", "running_mean", "running_var")
COUNTER = ".num_batches_tracked"
# Prefix for the layers of a timm network, whose names may be those of our heads.
FOREIGN = "body."


def layer_name(parameter: str) -> str:
    """Returns a parameter's name without its place: ``conv5_1.weight`` for ``backbone.loc.conv5_1.weight``.

    Copies of one layer in several branches or stages, and one layer in models that split at different places, share
    it. A layer of a timm network is ``body.stages_0…`` wherever it is.
    """
    parameter = in_first_stage(parameter)
    parameter = re.sub(r"^(backbone\.)?(body\.(network|layers)|(cls|loc)\.tail\.layers)\.", FOREIGN, parameter)
    return re.sub(
        r"^(backbone\.)?(frozen|trunk|fork|twice|cls|loc)\.|^roi_heads\.heads\.(cls|loc|second)\.(units\.)?",
        "",
        parameter,
    )


def in_first_stage(parameter: str) -> str:
    """Returns the name that a parameter of a cascade's stage, or of a second RPN, has in the first; other names stay
    as they are."""
    return re.sub(r"^(roi_heads\.)(following\.)+|^(rpn\.)auxiliary\.", r"\1\3", parameter)


def under_names_of(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a detector's weights under the names of one with other stages frozen that is otherwise the same.

    A trained stage that both tasks share is in ``trunk`` or in ``cls``. A weight without such a counterpart keeps its
    name.
    """
    names = model.state_dict().keys()

    def own(name: str) -> str:
        place, _, layer = name.removeprefix("backbone.").partition(".")
        others = {"frozen": ("trunk", "cls"), "trunk": ("frozen",), "cls": ("frozen",)}.get(place, ())
        moved = (f"backbone.{other}.{layer}" for other in others if name.startswith("backbone."))
        return name if name in names else next((other for other in moved if other in names), name)

    return {own(name): tensor for name, tensor in weights.items()}


def torchvision_names(network: str) -> dict[str, str]:
    """Maps torchvision's keys of ``vgg16``, ``resnet50`` or ``resnet101`` to layer names (:func:`layer_name`).

    ``features.0.weight`` is ``conv1_1.weight``, and ``layer3.5.conv2.weight`` is ``layer3_5.conv2.weight``; the four
    tensors of a batch norm go to the convolution that precedes it, such as ``layer3_5.conv2.norm_running_var``.
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
        names |= {f"{norm}.{kind}": f"{name}.norm_{kind}" for kind in NORM}
    return names
