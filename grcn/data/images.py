"""Decodes image files and flips images with their boxes."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from grcn.data.annotations import Annotations
from grcn.data.faults import fault, read_bytes

# Larger images are refused by their header, before memory is taken for their pixels.
MOST_PIXELS = 100_000_000

# What photographs and drawings come as. Pillow opens more, of which some start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")

_ORIENTATION = 0x0112  # EXIF's tag

# What Pillow's readers raise on a broken file; UnidentifiedImageError is an OSError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError,
           TypeError, struct.error, zlib.error)  # fmt: skip


class FileImages:
    """Reads the images of a table from their files: row -> uint8 [3, H, W], RGB, as displayed.

    Folders and files may be symbolic links, see :func:`grcn.data.faults.is_contained`.

    Args:
        table: every file it names must exist.

    Raises:
        DataError: a file is missing, or (when called) broken or not of the table's size.
    """

    def __init__(self, table: Annotations) -> None:
        self.table = table
        _check_files(table)

    def __call__(self, row: int) -> Tensor:
        return read_row(self.table, row)


def read_row(table: Annotations, row: int) -> Tensor:
    """Reads the image of a row of a table, uint8 RGB [3, H, W].

    Raises:
        DataError: as :func:`read_image`; or the image is not of the table's size.
    """
    path = table.path(row)
    image = read_image(path)
    height, width = table.sizes[row].tolist()
    if image.shape[1:] != (height, width):
        with _open(path) as stored:
            unrotated = stored.size == (width, height)
        remedy = "mind EXIF orientation" if unrotated else "fix it"
        what = f"image size (got {{}} x {{}}) is not the annotated {{}} x {{}}; {remedy}"
        raise fault(path, what, image.shape[2], image.shape[1], width, height, kind="image-size")
    return image


def read_image(path: str | os.PathLike[str], remedy: str = "check the folder and the annotation") -> Tensor:
    """Reads an image file as uint8 RGB [3, H, W], turned as its EXIF orientation says.

    The content decides the format, not the name. The pixels lie in memory as Pillow decodes them,
    channels last. Grey becomes three equal channels, alpha is
    dropped, of 16 bits the high 8 are kept, of an animation the first frame.

    Args:
        path: of the file.
        remedy: ends the message where there is none.

    Raises:
        DataError: no such file, not an image of :data:`FORMATS`, truncated, over 100 megapixels, or of
            32 bits per channel, which has no agreed scale.
    """
    data = read_bytes(path, remedy)
    try:
        with _open(io.BytesIO(data)) as image:
            return torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    except Image.DecompressionBombError as error:
        what = "image has over 100 megapixels (got {}); shrink or replace it"
        raise fault(path, what, str(error), kind="image-large") from None
    except UnidentifiedImageError:
        raise fault(path, "not an image (starts with {}); save it as JPEG or PNG", data[:12]) from None
    except _BROKEN as error:
        what = str(error) or type(error).__name__
        raise fault(path, "image cannot be decoded (got {}); replace it", what) from None


class Header(NamedTuple):
    """What the beginning of an image file says, nothing decoded.

    Attributes:
        size: (height, width) as stored.
        mode: Pillow's name of the channels: ``RGB``, ``L`` for grey, ``CMYK``, ``I;16``.
        orientation: the EXIF tag, 1 for an image that is stored as displayed.
    """

    size: tuple[int, int]
    mode: str
    orientation: int


def read_header(file: str | io.BytesIO) -> Header | None:
    """Reads the header of an image; None where :func:`read_image` would refuse it, and say why."""
    try:
        with _open(file) as image:
            # Of other formats than these, Pillow must decode an image to find its tags.
            tags = image.getexif() if image.format in ("JPEG", "MPO", "WEBP", "TIFF") else {}
            turn = tags.get(_ORIENTATION, 1)
            return Header((image.height, image.width), image.mode, turn if turn in range(1, 9) else 1)
    except (Image.DecompressionBombError, *_BROKEN):
        return None


def _open(file: str | io.BytesIO) -> Image.Image:
    """Reads the header of an image and decodes nothing yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of a limit somewhat below ours
        image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height}")
    return image


def _rgb(image: Image.Image) -> np.ndarray:
    """Decodes an opened image as uint8 [H, W, 3]."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"32 bits per channel, mode {image.mode}")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def missing_rows(table: Annotations) -> list[int]:
    """Returns the rows whose files do not exist.

    Every folder is listed once, which is faster than asking for each file of a large data set.
    """
    folders: dict[str, frozenset[str]] = {}
    missing = []
    for row in range(len(table)):
        folder, name = os.path.split(table.path(row))
        if folder not in folders:
            folders[folder] = _list(folder)
        if name not in folders[folder]:
            missing.append(row)
    return missing


def _check_files(table: Annotations) -> None:
    missing = missing_rows(table)
    if missing:
        folder, name = os.path.split(table.path(missing[0]))
        count = f"{len(missing)} of {len(table)} images"
        alike = sorted(other for other in _list(folder) if other.lower() == name.lower())
        remedy = "rename {}" if alike else "add them or set data.root"
        raise fault(os.path.join(folder, name), f"no such image ({count} missing); {remedy}", *alike[:1])


def _list(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder) if os.path.isdir(folder) else ())
    except OSError as error:
        raise fault(folder, f"{error.strerror}; give access to it") from None
