"""Logs a run: losses and metrics in ``metrics.jsonl`` and, on request, as TensorBoard events."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grcn.engine.distributed import gather, is_main, mean
from grcn.errors import EnvironmentFault, NonFiniteError, named
from grcn.fileio import write_durably

logger = logging.getLogger("grcn")

_LONGEST_LINE = 2**16  # bytes of metrics.jsonl; an evaluation takes 1,000


class MetricsLog:
    """``metrics.jsonl``: a JSON object per line, without times, so that it can be reproduced.

    ``{"step": 20, "lr": 0.001, "loss": …, …}`` is the mean of the steps since the line before;
    ``{"step": 100, "metrics": {…}}`` is an evaluation. Only the main process writes.
    """

    def __init__(self, path: Path, step: int, tensorboard: Path | None = None) -> None:
        """Opens the file to continue after ``step``; later lines are cut off.

        Args:
            tensorboard: folder that gets the same numbers as events of TensorBoard.
        """
        self.path = path
        self._file = None
        self._events = None
        if is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._cut_back(step)
            self._file = path.open("a", encoding="utf-8")
            if tensorboard is not None:
                self._events = Events(tensorboard, step)

    def _cut_back(self, step: int) -> None:
        if not self.path.exists():
            return
        old = self.path.read_bytes()
        kept = []
        for line in old.splitlines(keepends=True):
            entry = _entry(line)
            if entry is None:
                break  # torn by a crash: after everything that a checkpoint relies on
            if entry["step"] <= step:
                kept.append(line)
        new = b"".join(kept)
        if new != old:
            write_durably(self.path, new)

    def evaluations(self) -> dict[int, dict[str, float | None]]:
        """Returns the metrics on record by step. For the main process."""
        entries = map(_entry, self.path.read_bytes().splitlines(keepends=True))
        return {entry["step"]: entry["metrics"] for entry in entries if entry is not None and "metrics" in entry}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line about training."""
        self._write_line({"step": step, **values})
        if self._events is not None:
            self._events.write("train", step, values)

    def write_evaluation(self, step: int, metrics: Mapping[str, float | None]) -> dict[str, float | None]:
        """Appends an evaluation; returns it as written, with null for NaN (a class without objects)."""
        values = {
            name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
        }
        self._write_line({"step": step, "metrics": values})
        if self._events is not None:
            self._events.write("test", step, values)
        return values

    def _write_line(self, entry: Mapping[str, object]) -> None:
        if self._file is not None:
            with named(self.path):
                self._file.write(json.dumps(entry, allow_nan=False) + "\n")
                self._file.flush()

    def sync(self) -> None:
        """Syncs all lines to the disk, before a checkpoint that relies on them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            with named(self.path):
                self._file.close()


def last_entry(path: Path) -> dict[str, Any]:
    """Returns the last whole line of a ``metrics.jsonl``; empty where there is none."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_LINE))
        entries = map(_entry, reversed(file.read().splitlines(keepends=True)))
        return next((entry for entry in entries if entry is not None), {})


def is_evaluated(path: Path, step: int) -> bool:
    """Whether a ``metrics.jsonl`` ends with the evaluation of a step."""
    entry = last_entry(path)
    return "metrics" in entry and entry["step"] == step


def _entry(line: bytes) -> dict[str, Any] | None:
    """Reads a line of the log; None if it is not whole."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(entry, dict) and isinstance(entry.get("step"), int)
    return entry if whole else None


class RecentLosses:
    """Losses and gradient norms since the last line of the log, on the device until needed.

    Attributes:
        fetched: one row of numbers per step, which checkpoints carry so that the next average is of
            the whole interval.
    """

    def __init__(self, fetched: list[list[float]]) -> None:
        self.fetched = list(fetched)
        self._columns: list[str] = []
        self._pending: list[Tensor] = []
        self._image_ids: list[list[object]] = []

    def add(self, names: list[str], values: Tensor, norm: Tensor, image_ids: list[object]) -> Tensor:
        """Appends a step; returns its row: losses, averaged over processes, and gradient norm."""
        row = torch.cat([mean(values.double()), norm.double().reshape(1)])
        self._columns = [*names, "grad_norm"]
        self._pending.append(row)
        self._image_ids.append(image_ids)
        return row

    def fetch(self, step: int) -> None:
        """Copies the rows up to ``step`` to the host; a NonFiniteError comes to all processes."""
        if not self._pending:
            return
        rows = torch.stack(self._pending).tolist()
        first = step + 1 - len(rows)
        for index, row in enumerate(rows):
            if not all(map(math.isfinite, row)):
                raise self._error(first + index, row, self._image_ids[index])
        self.fetched += rows
        self._pending, self._image_ids = [], []

    def average(self, step: int) -> dict[str, float]:
        """Returns the means since the last call, by name, and the sum of the losses as ``loss``."""
        self.fetch(step)
        count = len(self.fetched)
        averages = [math.fsum(column) / count for column in zip(*self.fetched, strict=True)]
        self.fetched = []
        return {"loss": math.fsum(averages[:-1]), **dict(zip(self._columns, averages, strict=True))}

    def _error(self, step: int, row: list[float], image_ids: list[object]) -> NonFiniteError:
        pairs = zip(self._columns, row, strict=True)
        values = ", ".join(f"{name} {value:.4g}" for name, value in pairs)
        own = [number.item() if isinstance(number, Tensor) else number for number in image_ids]
        images = " ".join(str(number) for share in gather(own) for number in share)
        return NonFiniteError(
            f"step {step}: loss or gradient not finite (got {values}) on images {images[:60]}; "
            "lower train.lr, warm up or clip gradients, or check these images"
        )


def check_tensorboard() -> None:
    """Raises an EnvironmentFault if TensorBoard is not installed."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'grcn[tb]', or set it to false"
        raise EnvironmentFault(f"run.tensorboard: tensorboard is not installed; {remedy}") from error


class Events:
    """Scalars in a folder that ``tensorboard --logdir`` shows (extra ``tb``): a copy of the log.

    Written at once and without a thread, so that a killed process loses none. Each start of a run that logs anything
    writes its own file, from whose start TensorBoard drops later steps of earlier files.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Sets the folder, and the step after which events will come; nothing is written yet."""
        self._folder, self._step = folder, step
        self._file: Any = None
        self._failed = False

    def write(self, kind: str, step: int, values: Mapping[str, float | None]) -> None:
        """Writes ``kind/name`` for each value that is not None; a disk error is logged as a warning, once."""
        if self._failed:
            return
        try:
            if self._file is None:
                self._begin()
            scalars = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
            self._append(step=step, summary={"value": [{"tag": tag, "simple_value": scalars[tag]} for tag in scalars]})
        except OSError as error:
            self._failed = True
            logger.warning("%s: no more events for TensorBoard (%s)", self._folder, error.strerror or error)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}"
        self._file = (self._folder / name).open("wb", buffering=0)  # TensorBoard reads files in the order of names
        self._append(file_version="brain.Event:2")
        self._append(step=self._step + 1, session_log={"status": "START"})

    def _append(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(self._file).write(Event(wall_time=time.time(), **event).SerializeToString())
