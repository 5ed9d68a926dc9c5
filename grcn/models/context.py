"""Context attention: each RoI's features look at the whole image (paper, Sec. 3.3, eq. 1).

Shapes: ``N`` images, ``R`` RoIs of an image, ``C`` channels, ``s x s`` cells of a RoI, ``t x t`` cells of the pooled
    image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContextAttention(nn.Module):
    """Adds to every cell of every RoI what attention finds in its image: ``P + softmax(P W_P (V W_K)^T / sqrt(k)) V``.

    ``P`` are the cells of a RoI and ``V`` those of the image, both as rows. As ``P W_P (V W_K)^T = P (V W_K
    W_P^T)^T``, both projections are folded into the image's ``t * t`` keys once per image, and no RoI is ever
    projected. With several heads, each attends with its own slice of the projections and fills its own slice of the
    channels.

    Args:
        channels: ``C`` of the RoI and image features.
        dim: width ``k`` of the projections; None: ``channels``.
        heads: number of heads; divides ``dim`` and ``channels``.
        value: project the attended features by ``W_V`` (the paper discards it: "slightly performance improvement").
    """

    def __init__(self, channels: int, dim: int | None = None, heads: int = 1, value: bool = False) -> None:
        super().__init__()
        dim = channels if dim is None else dim
        if dim % heads or channels % heads:
            raise ValueError(f"{heads} heads must divide both dim ({dim}) and the channels ({channels})")
        self.heads = heads
        self.query = nn.Linear(channels, dim, bias=False)
        self.key = nn.Linear(channels, dim, bias=False)
        self.value = nn.Linear(channels, channels, bias=False) if value else None

    def forward(self, roi_features: Tensor, image_features: Tensor) -> Tensor:
        """Adds context.

        Args:
            roi_features: ``[N * R, C, s, s]``, the RoIs of image 0 first.
            image_features: ``[N, C, t, t]``, each image pooled as one RoI.

        Returns:
            ``[N * R, C, s, s]``.
        """
        images, channels = image_features.shape[:2]
        cells = roi_features.flatten(2).transpose(1, 2)
        queries = cells.reshape(images, 1, -1, channels)
        context = image_features.flatten(2).transpose(1, 2)
        values = context if self.value is None else self.value(context)
        out = F.scaled_dot_product_attention(
            queries.expand(-1, self.heads, -1, -1),
            self.folded_keys(context),
            values.unflatten(-1, (self.heads, -1)).transpose(1, 2),
            scale=self._scale,
        )
        attended = out.transpose(1, 2).reshape_as(cells).transpose(1, 2)
        return roi_features + attended.reshape_as(roi_features)

    def attention(self, roi_features: Tensor, image_features: Tensor) -> Tensor:
        """Computes the softmax of eq. 1, which :meth:`forward` never holds: where each cell of a RoI looks.

        Args:
            roi_features, image_features: as of :meth:`forward`.

        Returns:
            ``[N * R, heads, s * s, t * t]``; the weights of a cell sum to one.
        """
        images, channels = image_features.shape[:2]
        cells = roi_features.flatten(2).transpose(1, 2)
        keys = self.folded_keys(image_features.flatten(2).transpose(1, 2))
        logits = cells.reshape(images, 1, -1, channels) @ keys.mT * self._scale
        return logits.softmax(-1).unflatten(2, (-1, cells.shape[1])).transpose(1, 2).flatten(0, 1)

    @property
    def _scale(self) -> float:
        return (self.query.out_features // self.heads) ** -0.5

    def folded_keys(self, context: Tensor) -> Tensor:
        """Returns ``V W_K W_P^T`` per head, ``[N, heads, t * t, C]``, from the image's rows ``[N, t * t, C]``."""
        keys = self.key(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return torch.matmul(keys, self.query.weight.unflatten(0, (self.heads, -1)))
