"""Signals that ask a run to stop: a flag that loops poll, and the exit that carries its code."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from ..errors import INTERRUPTED, PREEMPTED

_EXIT_CODES = {
    signal.SIGTERM: PREEMPTED,
    signal.SIGUSR1: PREEMPTED,
    signal.SIGHUP: PREEMPTED,
    signal.SIGINT: INTERRUPTED,
}


class Stopped(SystemExit):
    """A signal ended the run, which can be continued; ``code`` is 75, or 130 after SIGINT."""


class StopSignals:
    """Turns SIGTERM, SIGUSR1, SIGHUP and SIGINT into ``code``; a second one ends the process.

    Enter it in the main thread, around everything that a signal may interrupt. In forked workers,
    which a terminal's Ctrl-C reaches too, nothing happens, so that the step in progress can be
    finished. SIGHUP stays ignored under ``nohup``.

    Attributes:
        code: 0, or the exit code that the first signal asks for.
    """

    def __init__(self) -> None:
        self.code = 0
        self._first = 0.0
        # A scheduler may signal every process, and torchrun passes its own on: that is one request.
        self._one_request = 5.0 if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    def __enter__(self) -> StopSignals:
        self._process = os.getpid()
        self._previous = {number: signal.getsignal(number) for number in _EXIT_CODES}
        for number, previous in self._previous.items():
            if not (number == signal.SIGHUP and previous == signal.SIG_IGN):
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if not self.code:
            self.code = _EXIT_CODES[signal.Signals(number)]
            self._first = time.monotonic()
        elif time.monotonic() - self._first >= self._one_request:
            os._exit(128 + number)
