"""Exit codes and the one-line error: what the command line tells a user who made a mistake.

Every tool ends with one of these codes::

    0 ok · 1 unexpected · 2 config or arguments · 3 data · 4 checkpoint
    5 environment (disk, permission, device, memory) · 6 non-finite loss or gradient
    75 stopped by a signal, checkpoint saved · 130 interrupted, checkpoint saved
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

PREEMPTED = 75
INTERRUPTED = 130


class UserError(Exception):
    """A mistake or fault that the user can act on. The message is one line: where, what (got X); remedy."""

    exit_code = 1


class ConfigError(UserError):
    """The config file, an override or a command-line argument is wrong. May hold several lines, one per problem."""

    exit_code = 2


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


# The operating system's faults that no code of ours can mend, whatever file they strike.
_ENVIRONMENT_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a tool's ``main`` and exits with the documented code; a user's mistake is one line on stderr.

    Args:
        main: returns the exit code, or None for 0. An exception that is neither a :class:`UserError` nor a fault of the
            machine is a bug of ours: it keeps its traceback and exits with 1.
    """
    try:
        code = main() or 0
    except UserError as error:
        code = error.exit_code
        for line in str(error).splitlines():
            print(f"grcn: error: {line}", file=sys.stderr)
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRNOS:
            raise
        code = EnvironmentFault.exit_code
        remedy = "free space, fix access or choose another path"
        print(f"grcn: error: {error.filename or 'system'}: {error.strerror}; {remedy}", file=sys.stderr)
    except RuntimeError as error:  # torch.OutOfMemoryError, or its plain parent from the allocator of the CPU
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        code = EnvironmentFault.exit_code
        remedy = "lower model.image.short or, in training, train.batch, or raise train.accumulate"
        print(f"grcn: error: out of memory ({str(error)[:100]}); {remedy}", file=sys.stderr)
    except KeyboardInterrupt:
        code = INTERRUPTED
        print("grcn: error: interrupted", file=sys.stderr)
    sys.exit(code)
