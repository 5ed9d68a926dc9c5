"""The heads behind RoI pooling: hidden layers ``R``, classifier ``S`` and box regressor ``B`` (paper, Sec. 3.2).

Shapes: ``R`` RoIs of the batch as rows, ``L`` rows of the localization pass, ``K`` classes including background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn import rng
from grcn.models.fused_conv import ConvReLU
from grcn.models.memory_format import to_memory_format
from grcn.models.resnet import FrozenNormConv, Units


class Hidden(nn.Module):
    """Hidden layers of a task: maps RoI features ``[R, C, s, s]`` to ``[R, out_features]``.

    They are also called with the random keys of the rows, int64 ``[R]``, which those without dropout do not read.
    """

    out_features: int


class TwoMLPHead(Hidden):
    """Two fully connected layers with ReLU and dropout: VGG16's fc6 and fc7."""

    def __init__(self, in_features: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, dim)
        self.fc7 = nn.Linear(dim, dim)
        self.dropout = dropout
        self.out_features = dim

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps RoI features ``[R, C, s, s]`` to ``[R, dim]``; ``keys`` int64 ``[R]`` draw training's dropout masks."""
        masks: Sequence[Tensor | None] = (None, None)
        if self.training and self.dropout > 0:
            if keys is None:
                raise ValueError("dropout in training needs a random key for each row")
            masks = dropout_masks(keys, 2, self.out_features, self.dropout).unbind()
        for linear, mask in zip((self.fc6, self.fc7), masks, strict=True):
            x = F.relu(linear(x.flatten(1)), inplace=True)
            if mask is not None:
                x = x * mask * (1 / (1 - self.dropout))
        return x


def dropout_masks(keys: Tensor, layers: int, units: int, probability: float) -> Tensor:
    """Draws which units dropout keeps: bool ``[layers, R, units]``, a hash of the row's key ``[R]`` and the unit.

    A RoI's mask thus depends on its sample, pass and slot only, not on the other RoIs of the batch or on the device.
    """
    numbers = torch.arange(layers * units, device=keys.device).view(layers, 1, units)
    return rng.hash_on(keys[None, :, None], numbers) >= int(probability * 2**63)


class ConvHead(Hidden):
    """Two convolutions with ReLU, which the paper tried on ResNet-det (Sec. 4.3); 3x3 and the mean are our choice."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvReLU(in_channels, dim, 3)
        self.conv2 = ConvReLU(dim, dim, 3)
        self.out_features = dim

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps RoI features ``[R, C, s, s]`` to ``[R, dim]``."""
        x = to_memory_format(x, "train_units" if self.training else "eval")
        return self.conv2(self.conv1(x)).mean((2, 3))


class ConvFCHead(Hidden):
    """3x3 convolutions with frozen norms and ReLU, then one fully connected layer: the head of torchvision's
    ``fasterrcnn_resnet50_fpn_v2``, which has four (Wu and He, Group Normalization, Sec. 5.2)."""

    def __init__(self, in_channels: int, size: int, dim: int, convs: int = 4) -> None:
        super().__init__()
        self.convs = nn.ModuleList(FrozenNormConv(in_channels, in_channels, 3) for _ in range(convs))
        self.fc6 = nn.Linear(in_channels * size**2, dim)
        self.out_features = dim

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps RoI features ``[R, C, size, size]`` to ``[R, dim]``."""
        x = to_memory_format(x, "train_units" if self.training else "eval")
        for conv in self.convs:
            x = conv(x, relu=True)
        return F.relu(self.fc6(x.flatten(1)), inplace=True)


class Conv5Head(Hidden):
    """A ResNet's conv5 on every RoI, and the mean over its grid: the usual head of a ResNet (paper, Sec. 4.2)."""

    def __init__(self, units: Units, out_features: int) -> None:
        super().__init__()
        self.units = units
        self.out_features = out_features

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps RoI features ``[R, C, s, s]`` to ``[R, out_features]``."""
        return self.units(to_memory_format(x, "train_units" if self.training else "eval")).mean((2, 3))


class TaskHeads(nn.Module):
    """Hidden layers and the two predictors.

    Args:
        hidden: makes the hidden layers of a task, ``"cls"`` or ``"loc"``; those of the two may be of different kinds
            where ``tasks`` is ``"separate"`` (Double-Head).
        num_classes: ``K``, background included.
        tasks: ``"shared"``: one set of hidden layers for both tasks; ``"separate"``: one each (detect-RF);
            ``"ensemble"``: two sets whose outputs are joined for both predictors, without separating the tasks
            (detect-S).
        class_agnostic: regress one box for all classes, instead of one for each.

    Raises:
        ValueError: unknown ``tasks``.
    """

    def __init__(
        self,
        hidden: Callable[[str], Hidden],
        num_classes: int,
        tasks: str = "shared",
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        if tasks not in ("shared", "separate", "ensemble"):
            raise ValueError(f"unknown tasks {tasks!r}; choose shared, separate or ensemble")
        self.tasks = tasks
        self.cls = hidden("cls")
        self.loc = hidden("loc") if tasks == "separate" else None
        self.second = hidden("cls") if tasks == "ensemble" else None
        of_cls = self.cls.out_features * (2 if tasks == "ensemble" else 1)
        of_loc = of_cls if self.loc is None else self.loc.out_features
        self.cls_score = nn.Linear(of_cls, num_classes)
        self.bbox_pred = nn.Linear(of_loc, 4 if class_agnostic else num_classes * 4)

    def deltas(self, hidden: Tensor) -> Tensor:
        """Regresses from hidden units ``[R, ...]`` of localization: ``[R, K, 4]``, or the same for all of ``K``."""
        return self.bbox_pred(hidden).unflatten(1, (-1, 4)).expand(-1, self.cls_score.out_features, -1)

    def hidden(self, task: str, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Runs the hidden layers of a task on RoI features ``[R, C, s, s]``."""
        if task == "loc" and self.loc is not None:
            return self.loc(x, keys)
        if self.second is not None:
            return torch.cat([self.cls(x, keys), self.second(x, None if keys is None else rng.hash_tensor(keys, 1))], 1)
        return self.cls(x, keys)

    def hidden_both(self, cls_in: Tensor, loc_in: Tensor, cls_keys: Tensor, loc_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Runs both passes, ``[R, ...]`` and ``[L, ...]``; weights they share are read once, for all rows together."""
        if self.loc is not None:
            return self.cls(cls_in, cls_keys), self.loc(loc_in, loc_keys)
        rows = self.hidden("cls", torch.cat([cls_in, loc_in]), torch.cat([cls_keys, loc_keys]))
        return rows[: len(cls_in)], rows[len(cls_in) :]
