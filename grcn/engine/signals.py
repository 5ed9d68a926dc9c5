"""Stop signals: a flag that loops poll, and an exit that carries the code."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

from grcn.errors import INTERRUPTED, PREEMPTED

logger = logging.getLogger("grcn")

_EXIT_CODES = {
    signal.SIGTERM: PREEMPTED,
    signal.SIGUSR1: PREEMPTED,
    signal.SIGHUP: PREEMPTED,
    signal.SIGINT: INTERRUPTED,
}


class Stopped(SystemExit):
    """A signal ended the run, which can be continued; ``code`` is 75, or 130 after SIGINT."""


def give_up(code: int) -> NoReturn:
    """Raises :class:`Stopped` with this code, where nothing needs saving, and logs it."""
    logger.info("stopped by a signal; run it again, training with --resume")
    raise Stopped(code)


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
        # A scheduler may signal every process, and parents forward theirs: that is one request.
        passed_on = {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"} & os.environ.keys()
        self._one_request = 5.0 if passed_on else 0.05

    def __enter__(self) -> StopSignals:
        self._process = os.getpid()
        self._previous = {number: signal.getsignal(number) for number in _EXIT_CODES}
        for number, previous in self._previous.items():
            if not (number == signal.SIGHUP and previous == signal.SIG_IGN):
                signal.signal(number, self._handle)
        received, arrive = os.pipe()
        os.set_blocking(arrive, False)
        self._arrive = arrive
        self._previous_wakeup = signal.set_wakeup_fd(arrive)
        threading.Thread(target=self._end_at_second, args=(received,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._arrive)  # which ends the thread
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def check(self) -> None:
        """Gives up after a signal; for use where only this process works and nothing needs saving."""
        if self.code:
            give_up(self.code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process and not self.code:
            self.code = _EXIT_CODES[signal.Signals(number)]

    def _end_at_second(self, received: int) -> None:
        """Waits for signals in a thread, since the main one runs no handler while it waits for other processes."""
        first = None
        while number := os.read(received, 1):
            if number[0] not in _EXIT_CODES:
                continue
            if first is None:
                first = time.monotonic()
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    name = signal.Signals(number[0]).name
                    logger.info("%s: stopping; a second one ends the process at once", name)
            elif time.monotonic() - first >= self._one_request:
                os._exit(128 + number[0])
        os.close(received)
