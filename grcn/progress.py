"""Progress bars on stderr: redrawn in a terminal, and a line a minute where it goes to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS = 60.0
_LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} to go, {rate_fmt}{postfix}"


class _Lines:
    """A stream on which each state of a bar is a line of its own, once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            self._stream.write(f"{line}\n")
            self._last = line

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(
    iterable: Iterable[Any] | None = None, desc: str = "", total: int | None = None, **options: Any
) -> tqdm:
    """Returns a progress bar. Of less than a minute a file gets the end only, or nothing with ``leave=False``.

    Args:
        iterable: what to go through; None for a bar that is updated by hand.
        desc: what is going on.
        total: how many there will be.
        options: others of tqdm.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc, total, dynamic_ncols=True, **options)
    # A delay leaves out the line of the start.
    options = {"bar_format": _LINE, "delay": 1e-9, **options}
    return tqdm(iterable, desc, total, file=_Lines(sys.stderr), mininterval=_SECONDS, maxinterval=_SECONDS, **options)
