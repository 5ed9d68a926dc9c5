"""The heads behind RoI pooling: hidden layers ``R``, classifier ``S`` and box regressor ``B`` (paper, Sec. 3.2, Fig.
1).

Shapes: ``R`` RoIs of the batch as rows, ``L`` rows of the localization pass, ``K`` classes including background.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn import rng


class TwoMLPHead(nn.Module):
    """Two fully connected layers with ReLU and dropout: VGG16's fc6 and fc7."""

    def __init__(self, in_features: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, dim)
        self.fc7 = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        """Maps RoI features ``[R, C, s, s]`` to ``[R, dim]``; ``keys`` int64 ``[R]`` draw the dropout masks in
        training."""
        for layer, linear in enumerate((self.fc6, self.fc7)):
            x = F.relu(linear(x.flatten(1)), inplace=True)
            if self.training and self.dropout > 0:
                if keys is None:
                    raise ValueError("dropout in training needs a random key for each row")
                x = drop(x, self.dropout, rng.hash_tensor(keys, layer))
        return x


def drop(x: Tensor, probability: float, keys: Tensor) -> Tensor:
    """Zeroes each unit of ``x`` ``[R, D]`` with a probability and scales the rest; the mask is a hash of ``keys``
    ``[R]`` and unit.

    So a RoI's mask depends on its sample, pass and slot only, not on the other RoIs of the batch or on the device.
    """
    units = torch.arange(x.shape[1], device=x.device)
    keep = rng.hash_tensor(keys[:, None], units) >= int(probability * 2**63)
    return x * keep * (1 / (1 - probability))


class TaskHeads(nn.Module):
    """Hidden layers and the two predictors.

    Args:
        in_features: ``C * s * s`` of a pooled RoI.
        dim: width of the hidden layers.
        num_classes: ``K``, background included.
        dropout: probability behind each hidden layer.
        tasks: ``"shared"``: one set of hidden layers for both tasks; ``"separate"``: one each (detect-RF);
            ``"ensemble"``: two sets whose outputs are joined for both predictors, without parting the tasks
            (detect-S).
    """

    def __init__(
        self, in_features: int, dim: int, num_classes: int, dropout: float = 0.5, tasks: str = "shared"
    ) -> None:
        super().__init__()
        self.tasks = tasks
        self.cls = TwoMLPHead(in_features, dim, dropout)
        self.loc = TwoMLPHead(in_features, dim, dropout) if tasks == "separate" else None
        self.second = TwoMLPHead(in_features, dim, dropout) if tasks == "ensemble" else None
        joined = 2 * dim if tasks == "ensemble" else dim
        self.cls_score = nn.Linear(joined, num_classes)
        self.bbox_pred = nn.Linear(joined, num_classes * 4)

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
