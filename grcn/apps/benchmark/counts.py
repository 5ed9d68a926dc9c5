"""Counts the kernels, synchronizations and uploads of a step, operator by operator; needs no clock and no GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from grcn import boxes

# Operators whose output size or Python value depends on data: on a GPU they synchronize the host.
_WAITS = {
    *("nonzero", "_local_scalar_dense", "masked_select", "_unique2", "unique_dim", "unique_consecutive"),
    *("equal", "is_nonzero", "nms", "item", "bincount", "histc", "repeat_interleave"),
}
# Methods that bring values to the host, which are no operators on a CPU.
_FETCHES = {"tolist", "numpy", "cpu", "__array__"}
# Operators that only view memory in another way, or allocate it: they launch no kernel.
_VIEWS = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "view_as", "permute", "transpose", "t", "slice", "select"),
    *("unsqueeze", "squeeze", "squeeze_", "expand", "detach", "alias", "as_strided", "split", "split_with_sizes"),
    *("unbind", "chunk", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "unfold"),
}


def count(work: Callable[[], object]) -> dict[str, int]:
    """Counts the kernels, synchronizations and uploads of ``work`` on a GPU. On a CPU it runs the forms for a GPU."""
    with boxes.as_if_on_gpu(), DispatchCounter() as counter:
        with FetchCounter() as fetches:
            work()
    waits = counter.waits.total() + fetches.found
    return {"kernels": counter.kernels, "waits": waits, "uploads": counter.uploads}


class FetchCounter(TorchFunctionMode):
    """Counts the calls that would bring values of a GPU to the host and are no operators on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += getattr(func, "__name__", "") in _FETCHES
        return func(*args, **(kwargs or {}))


class DispatchCounter(TorchDispatchMode):
    """Counts the operators that run inside a ``with`` block, forward and backward.

    Attributes:
        waits: those that would synchronize the host with a GPU, by name; indexing by a mask is ``index``.
        uploads: tensors made of Python numbers, which would be copied to a GPU.
        kernels: operators that compute or copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.uploads = 0
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        # Writing one number by a mask is a fill, which does not synchronize.
        masked = name in ("index", "index_put", "index_put_") and not (name != "index" and args[2].numel() == 1)
        if name in _WAITS or (masked and any(_is_mask(index) for index in args[1])):
            self.waits[name] += 1
        self.uploads += name == "lift_fresh"
        self.kernels += name not in _VIEWS
        return func(*args, **(kwargs or {}))


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Counts the bytes that ``forward`` keeps for its backward pass, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept.setdefault(place, tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
