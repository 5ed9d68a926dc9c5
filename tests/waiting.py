"""Waits for other processes. The time this takes means nothing, since a machine may be slow or busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

HANG = 600.0  # seconds, after which the awaited event will not come


def wait_for(condition: Callable[[], bool], *processes: Any) -> None:
    """Polls until the condition holds.

    Args:
        processes: of subprocess or multiprocessing; when one has ended, the condition holds or never will.
    """
    limit = time.monotonic() + HANG
    while True:
        running = all(map(_is_running, processes))  # before the condition, which an end may fulfil
        if condition():
            return
        assert running, "a process ended too early"
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)


def _is_running(process: Any) -> bool:
    return process.is_alive() if hasattr(process, "is_alive") else process.poll() is None
