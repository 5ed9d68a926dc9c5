"""Messages and progress bars on stderr: redrawn in a terminal, one line a minute in a file."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS = 60.0
_UP = "\x1b[A"  # tqdm's way back from a bar below another, which a file has not
_LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} to go, {rate_fmt}{postfix}"


class _Stderr:
    """Standard error that drops output, instead of failing, when its reader has exited or its disk is full.

    The run matters more than its messages. Under the shell's ``2>&-`` there is no stream at all.
    """

    def __init__(self) -> None:
        self._stream: TextIO | None = sys.stderr

    def write(self, text: str) -> int:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __eq__(self, other: object) -> bool:  # tqdm clears the bars on the stream of a message
        return self._stream == getattr(other, "_stream", other)

    def __hash__(self) -> int:
        return hash(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lines:
    """A stream that writes each state of a bar once, on its own line."""

    def __init__(self, stream: _Stderr) -> None:
        self._lines, self._last = stream, ""

    def write(self, text: str) -> None:
        line = text.replace(_UP, "").strip()
        if line and line != self._last:
            self._lines.write(f"{line}\n")
            self._last = line

    def flush(self) -> None:
        self._lines.flush()


class _AboveProgressBar(logging.Handler):
    """Prints messages on stderr without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=_Stderr())


def start_logging() -> None:
    """Prints messages of the logger ``grcn`` on stderr, in rank 0 only; for programs, which the library is not."""
    logger = logging.getLogger("grcn")
    handler: logging.Handler = logging.NullHandler()
    if os.environ.get("RANK", "0") == "0":  # as torchrun sets it
        handler = _AboveProgressBar()
        handler.setFormatter(logging.Formatter("grcn: %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def progress_bar(
    iterable: Iterable[Any] | None = None, desc: str = "", total: int | None = None, **options: Any
) -> tqdm:
    """Returns a progress bar. Of less than a minute a file gets the end only, or nothing with ``leave=False``.

    Args:
        iterable: what to go through; None for a bar that is updated by hand.
        desc: label of the bar.
        total: number of items.
        options: further options of tqdm.
    """
    stream = _Stderr()
    if stream.isatty():
        return tqdm(iterable, desc, total, file=stream, dynamic_ncols=True, **options)
    # A delay suppresses the first line.
    options = {"bar_format": _LINE, "delay": 1e-9, **options}
    return tqdm(iterable, desc, total, file=_Lines(stream), mininterval=_SECONDS, maxinterval=_SECONDS, **options)
