"""What was read of a large file, kept in the user's cache folder, so that it is parsed once.

The folder is ``$XDG_CACHE_HOME/grcn``, or ``~/.cache/grcn``; it may be removed at any time. A cache file counts only
while the SHA-256 of the whole source is the one it was made from: whatever a disk or a program that copies does to the
time of a file, nobody trains on yesterday's boxes. A second SHA-256, of the cache file itself, finds damage. Where the
folder cannot be written, everything works and nothing is kept.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from grcn.data.faults import read_bytes
from grcn.errors import one_line

logger = logging.getLogger("grcn")

_DIGEST = hashlib.sha256().digest_size


def cached(
    path: Path, kind: str, remedy: str, parse: Callable[[bytes], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns ``parse(contents of path)``, or the same arrays from the cache.

    Args:
        path: a file; its absolute path names the cache file, of which there is one for each ``kind``.
        kind: names ``parse`` and its version.
        remedy: what to do where ``path`` cannot be read.
        parse: its arrays hold no objects. Its errors are passed on, and nothing is kept.

    Raises:
        DataError: ``path`` cannot be read.
    """
    place = _place(path, kind)
    kept = _fetch(place, path) if place else None
    if kept is not None:
        return kept
    contents = read_bytes(path, remedy)
    arrays = parse(contents)
    if place:
        _keep(place, hashlib.sha256(contents).digest(), arrays)
    return arrays


def _place(path: Path, kind: str) -> Path | None:
    """Returns the cache file; None where there is no folder for it."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(folder):  # which the standard says to ignore
        folder = os.path.join(os.path.expanduser("~"), ".cache")
    if not os.path.isabs(folder):  # a user without a home
        return None
    name = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]
    return Path(folder, "grcn", f"{kind}-{name}")


def _fetch(place: Path, source: Path) -> dict[str, np.ndarray] | None:
    """Returns the arrays that were kept of a file; None where there are none, or they are damaged or out of date."""
    try:
        contents = place.read_bytes()
        rest = memoryview(contents)[_DIGEST:]
        if hashlib.sha256(rest).digest() != contents[:_DIGEST] or rest[:_DIGEST] != _digest(source):
            return None
        with np.load(io.BytesIO(rest[_DIGEST:]), allow_pickle=False) as arrays:
            return dict(arrays)
    except OSError:
        return None


def _digest(path: Path) -> bytes:
    """Returns the SHA-256 of a file, a megabyte at a time: the file may be larger than what is kept of it."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(2**20))
    if path.is_file():  # a pipe would block for ever
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(buffer[:size])
    return digest.digest()


def _keep(place: Path, source: bytes, arrays: dict[str, np.ndarray]) -> None:
    """Writes a cache file under another name and renames it: other processes see a whole one, or none."""
    buffer = io.BytesIO()
    np.savez(buffer, **cast(Any, arrays))  # whose names are none of its options
    rest = source + buffer.getbuffer()
    temporary = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(hashlib.sha256(rest).digest() + rest)
        temporary.replace(place)
    except OSError as error:
        logger.info("%s", one_line(f"{place.parent}: not written ({error.strerror}); annotations are not kept"))
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
