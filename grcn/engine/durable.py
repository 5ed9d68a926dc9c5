"""Files that are replaced whole, and are on the disk when that is said."""

from __future__ import annotations

import os
from pathlib import Path

from grcn.errors import named


def write_durably(path: Path, contents: bytes | memoryview) -> None:
    """Replaces a file; after a crash at any moment the old one or the new one is there, whole."""
    temporary = path.parent / f".tmp-{path.name}"
    try:
        with named(path), temporary.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Brings what a file holds, or which files a folder holds, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
