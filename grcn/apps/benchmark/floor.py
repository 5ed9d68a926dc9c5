"""Arithmetic floor: times the convolutions, matrix products and attention of some work alone.

They are recorded while the work runs, with their shapes and types, and repeated on random numbers, in the same memory
formats or, if that is faster, with all maps in channels_last or all contiguous: a format that suits the machine badly
is not part of the floor. The rest of the work's time goes to everything else: element-wise layers, pooling, boxes,
memory, Python. On a GPU they are launched one by one, as in the work, so the floor of small layers is their launch
time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from grcn.apps.benchmark.parts import timed

_ARITHMETIC = {
    *("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm"),
    "mkldnn::_convolution_pointwise",
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_efficient_attention_backward"),
    *("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_cudnn_attention_backward"),
}


_Call = tuple[Any, Any, Any]  # an operator, its arguments and its keyword arguments


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.buffers: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name.removeprefix("aten::") in _ARITHMETIC:
            self.calls.append((func, *self._stand_ins(args, kwargs)))
        return func(*args, **kwargs)

    def _stand_ins(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Replaces tensors by random ones of the same layout; calls share them, so that they need little memory."""
        uses: dict[tuple[Any, ...], int] = {}

        def stand_in(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            looks = (tuple(value.shape), value.stride(), value.dtype, value.device)
            uses[looks] = uses.get(looks, 0) + 1  # the two factors of a product are not the same memory
            place = (*looks, uses[looks])
            if place not in self.buffers:
                # Several elements of an expanded tensor share one place in memory.
                last = sum((side - 1) * stride for side, stride in zip(*looks[:2], strict=True))
                memory = torch.zeros(last + 1, dtype=value.dtype, device=value.device)
                memory = memory.normal_() if value.is_floating_point() else memory
                self.buffers[place] = memory.as_strided(*looks[:2])
            return self.buffers[place]

        return tree_map(stand_in, args), tree_map(stand_in, kwargs)


def record_floor(work: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """Runs ``work`` once; returns a function that repeats its arithmetic alone, forward and backward if it had both."""
    with _Recorder() as recorder:
        work()

    forms = (torch.channels_last, torch.contiguous_format)
    recorded = [recorder.calls, *(_laid_out(recorder.calls, form) for form in forms)]
    floors = [partial(_repeat, calls) for calls in recorded]
    return min(floors, key=lambda floor: min(seconds(floor, device) for _ in range(2)))


@torch.no_grad()
def _repeat(calls: list[_Call]) -> None:
    for func, args, kwargs in calls:
        func(*args, **kwargs)


def _laid_out(calls: list[_Call], form: torch.memory_format) -> list[_Call]:
    """Copies calls with the maps and weights of convolutions in one memory format; fused sums keep theirs."""
    copies: dict[int, Tensor] = {}  # of tensors that calls share

    def lay_out(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != 4:
            return value
        if id(value) not in copies:
            copies[id(value)] = value.contiguous(memory_format=form)
        return copies[id(value)]

    return [
        (func, *(tree_map(lay_out, (args, kwargs)) if _has_maps(func) else (args, kwargs)))
        for func, args, kwargs in calls
    ]


def _has_maps(func: Any) -> bool:
    return "convolution" in func._schema.name and func._schema.overload_name != "binary"


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Times ``work`` once: on a CPU by CPU time, whatever else the machine does."""
    by_clock, computed = timed(work, device)
    return by_clock if device.type == "cuda" else computed
