"""Caches the parsed contents of a large file in the user's cache folder, so that it is parsed once.

The folder is ``$XDG_CACHE_HOME/grcn``, or ``~/.cache/grcn``; it may be removed at any time. A cache file is named by
the SHA-256 of the whole source, not its time: a changed source never yields old boxes, and copies share a cache file.
A second SHA-256, of the cache file itself, detects damage. Where the folder cannot be written, everything works and
nothing is kept.
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
        path: a file.
        kind: names ``parse`` and its version.
        remedy: the fix named where ``path`` cannot be read.
        parse: its arrays hold no Python objects. Its errors are passed on, and nothing is kept.

    Raises:
        DataError: ``path`` cannot be read.
    """
    folder = _folder()
    kept = _fetch(folder, kind, path) if folder else None
    if kept is not None:
        return kept
    contents = read_bytes(path, remedy)
    arrays = parse(contents)
    if folder:
        _keep(folder / _name(kind, hashlib.sha256(contents)), arrays)
    return arrays


def _folder() -> Path | None:
    """Returns the cache folder; None for a user without a home."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(folder):  # which the standard says to ignore
        folder = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(folder, "grcn") if os.path.isabs(folder) else None


def _name(kind: str, source: hashlib._Hash) -> str:
    return f"{kind}-{source.hexdigest()[:32]}"


def _fetch(folder: Path, kind: str, source: Path) -> dict[str, np.ndarray] | None:
    """Returns the cached arrays of a file; None where there are none, or they are damaged."""
    try:
        contents = (folder / _name(kind, _digest(source))).read_bytes()
        rest = memoryview(contents)[_DIGEST:]
        if hashlib.sha256(rest).digest() != contents[:_DIGEST]:
            return None
        with np.load(io.BytesIO(rest), allow_pickle=False) as arrays:
            return dict(arrays)
    except OSError:
        return None


def _digest(path: Path) -> hashlib._Hash:
    """Returns the SHA-256 of a file, read by the megabyte: the file may be larger than its cached arrays."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(2**20))
    if path.is_file():  # a pipe would block for ever
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(buffer):
                digest.update(buffer[:size])
    return digest


def _keep(place: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a cache file under a temporary name and renames it: other processes see a whole one, or none."""
    buffer = io.BytesIO()
    np.savez(buffer, **cast(Any, arrays))  # whose names are none of its options
    rest = buffer.getbuffer()
    temporary = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
            temporary = Path(file.name)
            file.write(hashlib.sha256(rest).digest())
            file.write(rest)
        temporary.replace(place)
    except OSError as error:
        logger.info("%s", one_line(f"{place.parent}: not written ({error.strerror}); nothing is kept"))
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)
