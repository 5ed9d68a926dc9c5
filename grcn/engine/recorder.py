"""What a training leaves in its folder: the log, checkpoints, and the best of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grcn.engine import checkpoint, distributed
from grcn.engine.evaluate import are_finite
from grcn.engine.log import MetricsLog, RecentLosses
from grcn.errors import NonFiniteError

Metrics = dict[str, float | None]


class Recorder:
    """Saves a model in training and writes down how it does.

    Every process has one and calls the same methods; the first one writes. Whatever moment it is
    killed at, a new one that begins with the newest checkpoint's step leaves the same log and
    checkpoints.

    Attributes:
        losses: of the steps since the last line of the log.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        step: int = 0,
        losses: list[list[float]],
        keep: int,
        best: str | None = None,
        tensorboard: bool = False,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens the log to continue after ``step``.

        Args:
            losses: of the checkpoint of that step.
            keep: how many checkpoints to keep.
            best: metric whose highest value marks the checkpoint to keep besides, as ``best-….pt``.
            tensorboard: write TensorBoard's events too, into ``folder/tensorboard``.
            record: what else each checkpoint holds.
        """
        self._log = MetricsLog(folder / "metrics.jsonl", step, folder / "tensorboard" if tensorboard else None)
        self._checkpoints = folder / "checkpoints"
        self._model, self._optimizer = model, optimizer
        self._keep, self._best, self._record = keep, best, record or {}
        self.losses = RecentLosses(losses)

    def log(self, step: int, lr: float) -> dict[str, float]:
        """Writes the learning rate and the mean losses since the last call; returns the losses."""
        averages = self.losses.average(step)
        self._log.write(step, {"lr": lr, **averages})
        return averages

    def save(self, step: int) -> None:
        """Writes a checkpoint.

        Raises:
            NonFiniteError: a weight is not finite; nothing is written.
        """
        self.losses.fetch(step)
        if not are_finite([weight for weight in self._model.parameters() if weight.requires_grad]):
            raise NonFiniteError(
                f"step {step}: weights overflowed, not saved; lower train.lr and run with --resume --allow-changes"
            )
        self._log.sync()
        contents = {
            "format": checkpoint.FORMAT,
            "step": step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "losses": self.losses.fetched,
            **self._record,
        }
        distributed.on_main(lambda: checkpoint.save(self._checkpoints, contents, self._keep))

    def evaluation(self, step: int, evaluate: Callable[[int], Mapping[str, float | None]]) -> Metrics:
        """Returns the metrics of a step that is saved; those on record, if an interrupted run got so far."""
        result = distributed.on_main(lambda: self._log.evaluations().get(step))
        if result is None:
            result = self._log.write_evaluation(step, evaluate(step))
            self._log.sync()
            if self._best is not None and self._best not in result:
                raise ValueError(f"best: an evaluation has no {self._best} (got {', '.join(result)})")
        if self._best is not None:
            distributed.on_main(self._keep_best)
        return result

    def _keep_best(self) -> None:
        """Keeps the best so far, the first of equals."""
        # An evaluation may be on record from before the metric was another.
        scores = {step: metrics.get(str(self._best)) for step, metrics in self._log.evaluations().items()}
        known = {step: score for step, score in scores.items() if score is not None}
        checkpoint.keep_best(self._checkpoints, sorted(known, key=lambda step: (-known[step], step)))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
