"""One writer for each run folder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from grcn.errors import EnvironmentFault


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keeps a second process from writing to a run's folder, for as long as the context is open.

    A POSIX record lock: it vanishes with the process however that ends, and forked workers do not
    inherit it (``flock`` would outlive a killed trainer in its workers). Nothing else may open the
    file: closing it anywhere in the process releases the lock.

    Raises:
        EnvironmentFault: another process holds it, or the file system has no locks.
    """
    path = folder / ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise EnvironmentFault(f"{path}: cannot lock ({error.strerror}); use another file system") from error
            holder = os.read(descriptor, 300).decode(errors="replace").strip() or "another process"
            raise EnvironmentFault(f"{folder}: in use by {holder}; stop that run or choose another folder") from None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(descriptor)
