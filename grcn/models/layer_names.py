"""Names of weights without their place, so that models that split or freeze at different places can share values."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn


def layer_name(parameter: str) -> str:
    """Returns a parameter's name without its place: ``conv5_1.weight`` for ``backbone.loc.conv5_1.weight``.

    Copies of one layer in several branches, and one layer in models that split at different places, share it.
    """
    return re.sub(
        r"^(backbone\.)?(frozen|trunk|fork|twice|cls|loc)\.|^roi_heads\.heads\.(cls|loc|second)\.(units\.)?",
        "",
        parameter,
    )


def under_names_of(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a detector's weights under the names of another that has other stages frozen, and is otherwise alike.

    A stage that is trained, and that both tasks share, stands in ``trunk`` or in ``cls``. What has no such counterpart
    keeps its name.
    """
    names = model.state_dict().keys()

    def own(name: str) -> str:
        place, _, layer = name.removeprefix("backbone.").partition(".")
        others = {"frozen": ("trunk", "cls"), "trunk": ("frozen",), "cls": ("frozen",)}.get(place, ())
        moved = (f"backbone.{other}.{layer}" for other in others if name.startswith("backbone."))
        return name if name in names else next((other for other in moved if other in names), name)

    return {own(name): tensor for name, tensor in weights.items()}
