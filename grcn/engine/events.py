"""Events for TensorBoard (extra ``tb``): a copy of the log, which a run can do without."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grcn.errors import EnvironmentFault

logger = logging.getLogger("grcn")


def check_tensorboard() -> None:
    """Raises an EnvironmentFault if TensorBoard is not installed."""
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'grcn[tb]', or set it to false"
        raise EnvironmentFault(f"run.tensorboard: tensorboard is not installed; {remedy}") from error


class Events:
    """Scalars in a folder that ``tensorboard --logdir`` shows.

    Written at once and without a thread, so that a killed process loses none. Each start of a run that has something
    to say writes a file of its own, at whose beginning TensorBoard forgets what earlier ones say of later steps.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """Names the folder, and the step after which events will come; nothing is written yet."""
        self._folder, self._step = folder, step
        self._file: Any = None
        self._failed = False

    def write(self, kind: str, step: int, values: Mapping[str, float | None]) -> None:
        """Writes ``kind/name`` for each value that is one; what the disk refuses is a warning, once."""
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
