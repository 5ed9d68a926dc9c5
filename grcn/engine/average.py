"""Exponential moving average of the weights, which often detects better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from grcn.engine import checkpoint


class WeightAverage(AveragedModel):
    """An exponential moving average of a model's weights and buffers over the steps of a training.

    The values are those of torch's ``get_ema_multi_avg_fn(decay)``, which could skip a step only after a host-device
    synchronisation.

    Attributes:
        module: the model with the averaged weights, to evaluate. It starts as a copy, with the weights of the first
            step as its first average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copies a model that is on its device.

        Args:
            decay: between 0 and 1; each step brings the average nearer to the weights by the rest.
        """
        super().__init__(model, multi_avg_fn=self._approach, use_buffers=True)
        self.decay = decay

    def update(self, model: nn.Module, skip: Tensor) -> None:
        """Adds the weights of a step, unless ``skip`` is 1, which only the device reads."""
        self._skip = skip
        self.update_parameters(model)

    @torch.no_grad()
    def _approach(self, averages: Any, values: Any, count: Any) -> None:
        """Moves averages of one device and type towards their values in place."""
        if averages[0].is_floating_point():
            rate = (1 - self.decay) * (1 - self._skip.to(averages[0]))
            torch._foreach_lerp_(averages, values, [rate] * len(averages))
        else:  # counters are copied
            torch._foreach_copy_(averages, values)

    def state(self) -> dict[str, Any]:
        """Returns the state that a checkpoint holds."""
        return {"model": self.module.state_dict(), "steps": int(self.n_averaged)}

    def restore(self, state: Mapping[str, Any], model: nn.Module, path: Path | None = None) -> None:
        """Continues the average of a checkpoint or, where it has none, starts from the model that it was loaded into.

        Raises:
            CheckpointError: the average is of another model.
        """
        average = state.get("ema", {"model": model.state_dict(), "steps": 0})
        checkpoint.restore({"step": state["step"], "model": average["model"]}, self.module, path=path)
        self.n_averaged.fill_(average["steps"])
