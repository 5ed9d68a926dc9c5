"""Validates an output picture's path early, and writes the picture atomically."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

from PIL import Image

from grcn import fileio
from grcn.errors import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg")


def check_output(path: Path) -> None:
    """Checks, before anything is computed, that a picture can be written, and makes its folder.

    Raises:
        ConfigError: the name is not a picture's, or is a folder's.
        OSError: nothing can be written there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output {path}: not a picture's name; end it in {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise ConfigError(f"--output {path}: is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))


def write_picture(picture: Image.Image, path: Path) -> None:
    """Replaces a file, whose suffix sets the format; a crash leaves the old picture or the new one, complete."""
    encoded = io.BytesIO()
    picture.save(encoded, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=92)
    fileio.write_durably(path, encoded.getbuffer())
