"""Writes the log and the checkpoints of a training run, and resumes it from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grcn.engine import checkpoint, distributed
from grcn.engine.average import WeightAverage
from grcn.engine.evaluate import are_finite
from grcn.engine.log import MetricsLog, RecentLosses, logger
from grcn.errors import NonFiniteError, one_line

Metrics = dict[str, float | None]


class Recorder:
    """Saves a model in training and logs its progress.

    Every process has one and calls the same methods; rank 0 writes. Whenever it is killed, a new one that continues
    from the newest checkpoint leaves the same log and checkpoints.

    A checkpoint is written in a thread while training continues. An error is raised in all processes by the next call
    that waits for it: ``finish_saving``, ``save``, ``evaluation`` or the exit of the recorder.

    Attributes:
        step: of the checkpoint to continue from; 0 for a new training.
        losses: of the steps since the last line of the log.
        log_every: steps between its lines.
    """

    def __init__(
        self,
        folder: Path,
        *,
        state: dict[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        log_every: int = 20,
        keep: int = 3,
        best: str | None = None,
        tensorboard: bool = False,
    ) -> None:
        """Sets the folder; nothing in it changes before the recorder is entered.

        Args:
            folder: gets ``metrics.jsonl``, ``checkpoints/`` and ``best-….pt``.
            state: the checkpoint to continue from, as :func:`grcn.engine.checkpoint.load` returns it.
            record: further contents of each checkpoint: plain types.
            log_every: steps between lines of the log; only these and saving synchronize host and device.
            keep: how many checkpoints to keep, one at least.
            best: metric whose highest value marks the checkpoint to keep in addition, as ``best-….pt``.
            tensorboard: write TensorBoard's events too, into ``folder/tensorboard``.

        Raises:
            ValueError: ``keep`` is below 1: no checkpoint would be left to continue from.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1 (got {keep}); else no checkpoint is left to continue from")
        self.step: int = 0 if state is None else state["step"]
        self.losses = RecentLosses([] if state is None else state["losses"])
        self._folder, self._checkpoints = folder, folder / "checkpoints"
        self._tensorboard = folder / "tensorboard" if tensorboard else None
        self._state, self._record = state, record or {}
        self._keep, self._best = keep, best
        self._writing: Future[Path] | None = None  # in rank 0: the checkpoint that nobody has waited for
        self.log_every = log_every

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema: WeightAverage | None = None) -> None:
        """Loads the weights, the momenta and the average of the checkpoint to continue from, if there is one.

        They are removed from its ``state``, or they would stay in memory for the whole run.

        Raises:
            CheckpointError: they are of another model or optimizer; in all processes.
        """
        state, self._state = self._state, None
        if state is not None:
            distributed.together(lambda: checkpoint.restore(state, model, optimizer))
            if ema is not None:
                distributed.together(lambda: ema.restore(state, model))
            del state["model"], state["optimizer"]
            state.pop("ema", None)

    def log(self, step: int, lr: float) -> dict[str, float]:
        """Writes the learning rate and the mean losses since the last call; returns the losses."""
        averages = self.losses.average(step)
        self._log.write(step, {"lr": lr, **averages})
        return averages

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, ema: WeightAverage | None = None
    ) -> None:
        """Copies the state to the host and starts to write it as a checkpoint, which is complete after the next wait.

        It waits for the checkpoint before, so that there is one copy at a time. The copy and the bytes of the file
        take memory of twice the size of a checkpoint until it is written.

        Raises:
            NonFiniteError: a weight is not finite; nothing is written.
            EnvironmentFault: the checkpoint before could not be written.
        """
        self.losses.fetch(step)
        if not are_finite([weight for weight in model.parameters() if weight.requires_grad]):
            raise NonFiniteError(
                f"step {step}: weights overflowed, not saved; lower train.lr and run with --resume --allow-changes"
            )
        contents = {
            "format": checkpoint.FORMAT,
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "losses": self.losses.fetched,
            **self._record,
        }
        if ema is not None:
            contents["ema"] = ema.state()
        distributed.on_main(lambda: self._begin_saving(contents))

    def _begin_saving(self, contents: Mapping[str, Any]) -> None:
        self._wait()
        self._log.sync()
        writer = ThreadPoolExecutor(1)
        self._writing = writer.submit(checkpoint.save, self._checkpoints, checkpoint.snapshot(contents), self._keep)
        writer.shutdown(wait=False)  # the thread ends with the checkpoint, and none is there when workers are forked

    def finish_saving(self) -> None:
        """Waits until the checkpoint that is being written, if any, is on the disk.

        Raises:
            EnvironmentFault: it could not be written; in all processes.
        """
        distributed.on_main(self._wait)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.exception()  # if this is interrupted, the exit handles it
            writing, self._writing = self._writing, None
            writing.result()

    def evaluation(self, step: int, evaluate: Callable[[int], Mapping[str, float | None]]) -> Metrics:
        """Returns the metrics of a step that is saved; those on record, if an interrupted run got so far."""
        self.finish_saving()
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
        """Keeps the best so far, the first of ties."""
        # A recorded evaluation may be older than a change of the metric.
        scores = {step: metrics.get(str(self._best)) for step, metrics in self._log.evaluations().items()}
        known = {step: score for step, score in scores.items() if score is not None}
        checkpoint.keep_best(self._checkpoints, sorted(known, key=lambda step: (-known[step], step)))

    def __enter__(self) -> Recorder:
        """Opens the log to continue after the step of the checkpoint; later lines are cut off."""
        self._log = MetricsLog(self._folder / "metrics.jsonl", self.step, self._tensorboard)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for the checkpoint that is being written; its error is only logged if another one is being raised."""
        try:
            if kind is None:
                self.finish_saving()
            elif self._writing is not None and (error := self._writing.exception()):  # alone: others may have ended
                logger.warning("not saved: %s", one_line(str(error) or type(error).__name__))
        finally:
            self._log.close()
