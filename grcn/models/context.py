"""Context attention: each RoI's features look at the whole image (paper, Sec. 3.3, eq. 1).

Shapes: ``N`` images, ``R`` RoIs of an image, ``C`` channels, ``s x s`` cells of a RoI, ``t x t`` of the pooled image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ContextAttention(nn.Module):
    """Adds attention over its image to every cell of every RoI: ``P + softmax(P W_P (V W_K)^T / sqrt(k)) V``.

    ``P`` are the cells of a RoI and ``V`` those of the image, both as rows. As ``P W_P (V W_K)^T = P (V W_K
    W_P^T)^T``, both projections are folded into the image's ``t * t`` keys once per image, and no RoI is ever
    projected. With several heads, each attends with its own slice of the projections and fills its own slice of the
    channels. (With normalised queries RoIs are projected: lengths do not fold.)

    How sharp this softmax is depends on the scale of the features, which the weights decide: it may begin even, or all
    on one cell. With normalised queries and keys it does not.

    Args:
        channels: ``C`` of the RoI and image features.
        dim: width ``k`` of the projections; None: ``channels``.
        heads: number of heads; divides ``dim`` and ``channels``.
        value: project the attended features by ``W_V`` (the paper discards it: "slightly performance improvement").
        norm: ``"none"``: eq. 1; ``"qk"``: queries and keys of length one, and a learned factor in place of ``1 /
            sqrt(k)`` (Henry et al., Query-Key Normalization for Transformers), which starts at their ``log2(L^2 - L)``
            for ``L`` cells.
        gate: ``"none"``: eq. 1; ``"zero"``: the added term has a learned factor that starts at zero, so that the
            model starts as the one without context.
        cells: ``t * t``.

    Raises:
        ValueError: ``heads`` does not divide ``dim`` and ``channels``; an unknown ``norm`` or ``gate``.
    """

    def __init__(
        self,
        channels: int,
        dim: int | None = None,
        heads: int = 1,
        value: bool = False,
        norm: str = "none",
        gate: str = "none",
        cells: int = 196,
    ) -> None:
        super().__init__()
        dim = channels if dim is None else dim
        if dim % heads or channels % heads:
            raise ValueError(f"{heads} heads must divide both dim ({dim}) and the channels ({channels})")
        if norm not in ("none", "qk") or gate not in ("none", "zero"):
            raise ValueError(f"norm must be none or qk, and gate none or zero (got {norm!r} and {gate!r})")
        self.heads = heads
        self.query = nn.Linear(channels, dim, bias=False)
        self.key = nn.Linear(channels, dim, bias=False)
        self.value = nn.Linear(channels, channels, bias=False) if value else None
        start = math.log2(max(2, cells * (cells - 1)))
        self.temperature = nn.Parameter(torch.tensor(start)) if norm == "qk" else None
        self.gate = nn.Parameter(torch.tensor(0.0)) if gate == "zero" else None

    def forward(self, roi_features: Tensor, image_features: Tensor) -> Tensor:
        """Adds context.

        Args:
            roi_features: ``[N * R, C, s, s]``, the RoIs of image 0 first.
            image_features: ``[N, C, t, t]``, each image pooled as one RoI.

        Returns:
            ``[N * R, C, s, s]``.
        """
        attended = self.attended(roi_features, image_features)
        return roi_features + (attended if self.gate is None else self.gate * attended)

    def attended(self, roi_features: Tensor, image_features: Tensor) -> Tensor:
        """Returns the attended features of each cell of each RoI, which :meth:`forward` adds; same shapes."""
        cells = roi_features.flatten(2).transpose(1, 2)
        context = image_features.flatten(2).transpose(1, 2)
        queries, keys, scale = self._queries_and_keys(cells, context)
        values = context if self.value is None else self.value(context)
        values = values.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
        return out.transpose(1, 2).reshape_as(cells).transpose(1, 2).reshape_as(roi_features)

    def attention(self, roi_features: Tensor, image_features: Tensor) -> Tensor:
        """Computes the attention weights of each cell of a RoI, which :meth:`forward` never materializes.

        Args:
            roi_features, image_features: as in :meth:`forward`.

        Returns:
            ``[N * R, heads, s * s, t * t]``; the weights of a cell sum to one.
        """
        cells = roi_features.flatten(2).transpose(1, 2)
        queries, keys, scale = self._queries_and_keys(cells, image_features.flatten(2).transpose(1, 2))
        return (queries @ keys.mT * scale).softmax(-1).unflatten(2, (-1, cells.shape[1])).transpose(1, 2).flatten(0, 1)

    def _queries_and_keys(self, cells: Tensor, context: Tensor) -> tuple[Tensor, Tensor, float]:
        """Returns queries ``[N, heads, R * s * s, d]``, keys ``[N, heads, t * t, d]`` and the factor of their products.

        Args:
            cells: rows of the RoIs, ``[N * R, s * s, C]``.
            context: rows of the images, ``[N, t * t, C]``.
        """
        images, _, channels = context.shape
        rows = cells.reshape(images, -1, channels)
        if self.temperature is None:
            scale = (self.query.out_features // self.heads) ** -0.5
            return rows[:, None].expand(-1, self.heads, -1, -1), self.folded_keys(context), scale
        queries, keys = (
            F.normalize(projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2), dim=-1)
            for projection, x in ((self.query, rows), (self.key, context))
        )
        return queries * self.temperature, keys, 1.0

    def folded_keys(self, context: Tensor) -> Tensor:
        """Returns ``V W_K W_P^T`` per head, ``[N, heads, t * t, C]``, from the image's rows ``[N, t * t, C]``."""
        keys = self.key(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return torch.matmul(keys, self.query.weight.unflatten(0, (self.heads, -1)))
