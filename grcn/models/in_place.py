"""Element-wise operations that overwrite their first argument where that saves memory and time; never a result.

A norm over channels returns a view (of a permuted tensor). To overwrite a view, autograd copies its whole gradient
three times in the backward pass, so a view is left as it is.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def relu(x: Tensor) -> Tensor:
    """Computes ReLU; ``x`` may be overwritten."""
    return F.relu(x, inplace=not x._is_view())


def add(x: Tensor, other: Tensor) -> Tensor:
    """Computes ``x + other``, of one shape; ``x`` may be overwritten."""
    return x + other if x._is_view() else x.add_(other)
