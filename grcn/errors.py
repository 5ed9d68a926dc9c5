"""Defines the errors and exit codes of the command line, and prints a user's mistake in one line.

Every tool ends with one of these codes::

    0 ok · 1 unexpected · 2 config or arguments · 3 data · 4 checkpoint
    5 environment (disk, permission, device, memory) · 6 non-finite loss or gradient
    75 stopped by a signal, checkpoint saved · 130 interrupted, checkpoint saved
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

PREFIX = "grcn: error: "
LONGEST_LINE = 300
PREEMPTED = 75
INTERRUPTED = 130


class ArgumentParser(argparse.ArgumentParser):
    """A parser that reports errors as all of grcn does: one line, exit code 2.

    Its name is that of the command, also under ``python -m grcn``, which argparse would show instead.
    """

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog=prog or os.path.basename(sys.argv[0]), **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


class UserError(Exception):
    """A mistake or fault that the user can act on. The message is one line: where, what (got X); fix.

    Attributes:
        shared: all processes of a run raise this error, so only the first one of each machine prints it.
    """

    exit_code = 1
    shared = False


class ConfigError(UserError):
    """The config file, an override or a command-line argument is wrong. May hold several lines, one per problem."""

    exit_code = 2
    shared = True


class DataError(UserError):
    """An image, an annotation or a list of the data set is missing or wrong."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint or weights file is missing, damaged, or belongs to another model."""

    exit_code = 4


class EnvironmentFault(UserError):
    """The machine fails: disk, permission, device or memory."""

    exit_code = 5


class NonFiniteError(UserError):
    """A loss or a gradient is NaN or infinite. The weights are those of the last finite step."""

    exit_code = 6
    shared = True


# The operating system's faults that our code cannot fix, whatever file they affect.
_PATH_ERRNOS = {
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM),
}
_MACHINE_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT),
}
_OTHER_PATH = "free space, fix access or choose another path"
_FEWER = "free memory or lower run.workers"
_REMEDIES = {
    errno.EMFILE: "raise the limit with ulimit -n, or lower run.workers",
    errno.ENOMEM: _FEWER,
    errno.EAGAIN: _FEWER,
    errno.ESTALE: "check the network disk and run again",
    errno.ETIMEDOUT: "check the network disk and run again",
}

# OpenMP threads that wait for each other spin, by default for milliseconds: beside other processes, which may hold the
# core of the thread that they wait for, a step then takes up to 25 times as long. So they spin for microseconds.
_SPINS = "1000"

_SMALLER = "lower model.image.short or, in training, train.batch, or raise train.accumulate"
# Torch raises faults of the machine as plain RuntimeErrors: a part of their text, and the message to print instead.
_RUNTIME_FAULTS = {
    "out of memory": ("out of memory", _SMALLER),
    "DefaultCPUAllocator": ("out of memory", _SMALLER),
    "DataLoader worker (pid": ("a DataLoader worker died, usually out of memory", "lower run.workers"),
    "DataLoader timed out": ("a DataLoader worker timed out", "check the disk, or raise run.timeout"),
}


def main(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command and exits with the documented code; a user's mistake is one line on stderr.

    OpenMP threads spin briefly while they wait for each other, unless the user's environment sets how long. OpenMP
    reads it when torch is imported.

    Args:
        command: imports torch itself, if it needs it; returns the exit code, or None for 0. An exception that is
            neither a :class:`UserError` nor a fault of the machine is a bug of ours: it keeps its traceback and exits
            with 1.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    try:
        code = command() or 0
        if sys.stdout is not None:  # None under the shell's >&-
            sys.stdout.flush()
    except UserError as error:
        code = error.exit_code
        _tell(error, *(str(error).split("\n") if isinstance(error, ConfigError) else [str(error)]))
    except BrokenPipeError:  # the reader of the result has exited
        code = EnvironmentFault.exit_code
        _silence(1)
    except OSError as error:
        if error.errno not in _PATH_ERRNOS | _MACHINE_ERRNOS:
            raise
        code = EnvironmentFault.exit_code
        _tell(error, f"{error.filename or 'system'}: {error.strerror}; {_REMEDIES.get(error.errno, _OTHER_PATH)}")
    except MemoryError as error:
        code = EnvironmentFault.exit_code
        _tell(error, f"out of memory; {_SMALLER}")
    except RuntimeError as error:
        known = _known_fault(error)
        if known is None:
            raise
        code = EnvironmentFault.exit_code
        what, remedy = known
        _tell(error, f"{what} ({' '.join(str(error).split())[:100]}); {remedy}")
    except KeyboardInterrupt as error:
        code = INTERRUPTED
        _tell(error, "interrupted; run it again")
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:  # keep the exit code, which Python's own failing flush would change
        _silence(2)
    sys.exit(code)


def one_line(text: str, limit: int = LONGEST_LINE - len(PREFIX)) -> str:
    """Makes a message safe to print on a terminal, whatever names and values of the user it quotes.

    Unprintable characters are escaped. A text that is too long loses its middle, since it begins with the place and
    ends with the fix.
    """
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    if len(text) <= limit:
        return text
    end = limit // 2
    return f"{text[: limit - end - 1]}…{text[-end:]}"


def is_of_the_machine(error: Exception) -> bool:
    """Returns whether the machine is at fault, not the file that is being read: memory, disk, network, limits."""
    if isinstance(error, OSError):
        return error.errno in _MACHINE_ERRNOS
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _known_fault(error) is not None)


def _known_fault(error: RuntimeError) -> tuple[str, str] | None:
    return next((known for text, known in _RUNTIME_FAULTS.items() if text in str(error)), None)


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the name of the file that was written to an error of the operating system, which a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def _silence(descriptor: int) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _tell(error: BaseException, *lines: str) -> None:
    printed_by_another = getattr(error, "shared", False) and os.environ.get("LOCAL_RANK", "0") != "0"
    if sys.stderr is not None and not printed_by_another:  # stderr is None under the shell's 2>&-
        try:
            for line in lines:
                print(PREFIX + one_line(line), file=sys.stderr, flush=True)
        except OSError:  # nobody reads stderr
            _silence(2)
