"""What a run writes down besides weights: messages, ``metrics.jsonl`` and ``env.json``."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import DataError, NonFiniteError, named
from .checkpoint import write_durably
from .distributed import gather, is_main, mean, world_size

logger = logging.getLogger("grcn")

_LONGEST_LINE = 2**16  # bytes of metrics.jsonl; an evaluation takes 1,000


class _AboveProgressBar(logging.Handler):
    """Prints messages on stderr without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _Unheard:
    """A stream that falls silent, instead of failing, when its reader has gone or its disk is full: the run goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def start_logging() -> None:
    """Sends messages of the logger ``grcn`` to stderr, from the main process only."""
    if not isinstance(sys.stderr, _Unheard):
        sys.stderr = _Unheard(sys.stderr or open(os.devnull, "w", encoding="utf-8"))  # the shell's 2>&- leaves none
    handler = _AboveProgressBar()
    handler.setFormatter(logging.Formatter("grcn: %(message)s"))
    logger.handlers = [handler] if is_main() else [logging.NullHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def bar_seconds() -> float:
    """Returns how often a progress bar is redrawn: often in a terminal, once a minute into a file."""
    return 0.2 if sys.stderr.isatty() else 60.0


class MetricsLog:
    """``metrics.jsonl``: a JSON object per line, without clock, so that it can be reproduced.

    ``{"step": 20, "lr": 0.001, "loss": …, …}`` is the mean of the steps since the line before;
    ``{"step": 100, "metrics": {…}}`` is an evaluation. Only the main process writes.
    """

    def __init__(self, path: Path, step: int) -> None:
        """Opens the file to continue after ``step``; what is beyond it is cut off."""
        self.path = path
        self._file = None
        if is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._cut_back(step)
            self._file = path.open("a", encoding="utf-8")

    def _cut_back(self, step: int) -> None:
        if not self.path.exists():
            return
        old = self.path.read_bytes()
        new = b""
        for line in old.splitlines(keepends=True):
            entry = _entry(line)
            if entry is None:
                break  # torn by a crash: beyond all that a checkpoint counts on
            if entry["step"] <= step:
                new += line
        if new != old:
            write_durably(self.path, new)

    def evaluation(self, step: int) -> dict[str, float | None] | None:
        """Returns the metrics recorded at a step, or None. For the main process."""
        for line in self.path.read_bytes().splitlines(keepends=True):
            entry = _entry(line)
            if entry is not None and entry["step"] == step and "metrics" in entry:
                return entry["metrics"]
        return None

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Appends a line."""
        if self._file is not None:
            with named(self.path):
                self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
                self._file.flush()

    def write_evaluation(self, step: int, metrics: Mapping[str, float | None]) -> dict[str, float | None]:
        """Appends an evaluation; returns it as written: NaN (a class without objects) as null."""
        values = {
            name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
        }
        self.write(step, {"metrics": values})
        return values

    def sync(self) -> None:
        """Brings all lines to the disk: before a checkpoint that counts on them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
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


def write_environment(path: Path, device: torch.device, facts: Mapping[str, object]) -> None:
    """Writes ``env.json``: versions, device, threads, revision, command line, and ``facts``."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        name = torch.cuda.get_device_name(device)
    else:
        name = platform.processor() or platform.machine()
    environment = {
        "command": sys.argv,
        "revision": _revision(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "device": name,
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "platform": platform.platform(),
        **facts,
    }
    write_durably(path, (json.dumps(environment, indent=2) + "\n").encode())


def read_environment(folder: Path) -> dict[str, Any]:
    """Returns what a run recorded in ``env.json``; nothing where there is no such file.

    Raises:
        DataError: it is damaged.
    """
    path = folder / "env.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError):
        raise DataError(f"{path}: damaged; restore it, or remove the run's folder") from None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Returns this package's git revision, with ``+changes`` if files differ, or None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = "git describe --always --abbrev=40 --exclude=* --dirty=+changes".split()
    try:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
