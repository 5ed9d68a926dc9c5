"""Fused convolution, sum and ReLU: one call where torch has one; affects speed only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grcn import boxes

# oneDNN's convolution with fused post-operations, as torch.compile calls it. It fails on a CPU without bfloat16
# multiplication, where a plain convolution is emulated.
_IS_SUPPORTED = (
    torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
)
_ONE_CALL = getattr(torch.ops.mkldnn, "_convolution_pointwise", None) if _IS_SUPPORTED else None


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: int = 0,
    plus: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Computes a convolution, adds a map to it and takes ReLU of the sum.

    Under autocast on a CPU, without a graph, this is one call. It rounds to bfloat16 once, where three operations
    round twice, so with ``plus`` the result may differ by one rounding. Without autocast it is identical bit by bit.

    Args:
        x: ``[N, in_channels, H, W]``.
        weight: ``[channels, in_channels, k, k]``.
        bias: ``[channels]``.
        plus: a map of the shape of the result.
        relu: whether to take ReLU.

    Returns:
        ``[N, channels, H', W']``.
    """
    if _is_faster_in_one_call(x, plus, relu):
        assert _ONE_CALL is not None
        args = [padding] * 2, [stride] * 2, [1, 1], 1
        x, weight = x.bfloat16(), weight.bfloat16()
        bias = None if bias is None else bias.bfloat16()
        if plus is None:
            return _ONE_CALL(x, weight, bias, *args, "relu", [], "")
        return _ONE_CALL.binary(x, plus.bfloat16(), weight, bias, *args, "add", 1.0, "relu" if relu else None, [], "")
    out = F.conv2d(x, weight, bias, stride, padding)
    if plus is not None:
        out.add_(plus)
    return F.relu(out, inplace=True) if relu else out


def _is_faster_in_one_call(x: Tensor, plus: Tensor | None, relu: bool) -> bool:
    # A CPU's operator, which cannot be exported either: an export runs as if on a GPU.
    if _ONE_CALL is None or torch.is_grad_enabled() or not boxes.sync_is_free(x):
        return False
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return False
    # Sums are fused in channels_last only; in other formats torch fails.
    return relu if plus is None else _is_channels_last(x) and _is_channels_last(plus)


def _is_channels_last(x: Tensor) -> bool:
    """Returns whether a map is in channels_last only; one of a single cell or channel is also contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class ConvReLU(nn.Conv2d):
    """A convolution of stride 1, padded so that the map keeps its size, and ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__(in_channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, in_channels, H, W]`` to ``[N, channels, H, W]``."""
        return conv2d(x, self.weight, self.bias, padding=self.weight.shape[2] // 2, relu=True)
