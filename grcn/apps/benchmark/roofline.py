"""Roofline model: the minimum time in which a device could do the arithmetic of some work, by its own limits.

An operator takes at least its operations divided by the device's rate, and its bytes, each argument read and each
result written once, divided by its bandwidth (Williams et al., Roofline). Both limits are measured on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from grcn.apps.benchmark.floor import seconds

_PRODUCT_SIDE, _COPIED_BYTES = {"cuda": 8192, "cpu": 1024}, {"cuda": 2**30, "cpu": 2**27}


class Limits(NamedTuple):
    """Limits of a device: operations and bytes per second."""

    flops: float
    bytes: float


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measures the rate of a product of large square matrices, two operations for each multiply-accumulate, and of a
    copy; the best of five runs."""
    side = _PRODUCT_SIDE[device.type]
    factor = torch.randn(side, side, device=device, dtype=dtype)
    memory = torch.zeros(_COPIED_BYTES[device.type] // 4, device=device)
    copy = torch.empty_like(memory)
    product = min(seconds(lambda: factor @ factor, device) for _ in range(5))
    copying = min(seconds(lambda: copy.copy_(memory), device) for _ in range(5))
    return Limits(2 * side**3 / product, 2 * 4 * memory.numel() / copying)


def roofline_ms(work: Callable[[], object], limits: Limits) -> float:
    """Runs ``work`` once; returns the minimum milliseconds that its convolutions, products and attention take."""
    with _Costs(limits) as costs:
        work()
    return 1000 * costs.seconds


class _Costs(TorchDispatchMode):
    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits, self.seconds = limits, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if flops := _flops(func, args, kwargs, found):
            tensors = [value for value in tree_leaves((args, kwargs, found)) if isinstance(value, Tensor)]
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.seconds += max(flops / self.limits.flops, moved / self.limits.bytes)
        return found


def _flops(func: Any, args: Any, kwargs: Any, found: Any) -> int:
    """Counts the operations of a call; 0 for one that is no convolution, product or attention."""
    if func._schema.name == "mkldnn::_convolution_pointwise":  # unknown to torch's counter
        weight = args[2 if func._schema.overload_name == "binary" else 1]
        return 2 * weight[0].numel() * found.numel()
    count = flop_registry.get(func.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=found))
