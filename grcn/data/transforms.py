"""Decodes image files and flips images with their boxes."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from grcn.data.table import Table, read_bytes, shown
from grcn.errors import DataError

# What Pillow's readers raise on a broken file; UnidentifiedImageError is an OSError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError,
           TypeError, struct.error, zlib.error)  # fmt: skip


class FileImages:
    """Reads the images of a table from their files: row -> uint8 [3, H, W], RGB, as displayed.

    Args:
        table: every file it names must exist.

    Raises:
        DataError: a file is missing, or (when called) broken or not of the table's size.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        _check_files(table)

    def __call__(self, row: int) -> Tensor:
        path = self.table.path(row)
        image = read_image(path)
        height, width = self.table.sizes[row].tolist()
        if image.shape[1:] != (height, width):
            got = f"got {image.shape[2]} x {image.shape[1]}, annotated {width} x {height}"
            with Image.open(path) as stored:
                unrotated = stored.size == (width, height)
            remedy = "annotate the image as its EXIF orientation turns it" if unrotated else "fix it"
            raise DataError(f"{path}: image size differs from its annotation ({got}); {remedy}")
        return image


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Reads an image file as uint8 RGB [3, H, W], turned as its EXIF orientation says.

    The content decides the format, not the name. The pixels lie in memory as Pillow decodes them,
    channels last. Grey becomes three equal channels, alpha is
    dropped, of 16 bits the high 8 are kept, of an animation the first frame.

    Raises:
        DataError: no such file, not an image, truncated, over Pillow's limit of 179 megapixels, or
            of 32 bits per channel, which has no agreed scale.
    """
    data = read_bytes(path, "check the folder and the annotation")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(_rgb(image)).permute(2, 0, 1)
    except Image.DecompressionBombError:
        raise DataError(f"{path}: image is too large to be real; replace or shrink it") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image (starts with {shown(data[:12])}); fix it") from None
    except _BROKEN as error:
        what = str(error) or type(error).__name__
        raise DataError(f"{path}: image cannot be decoded ({shown(what, 120)}); fix it") from None


def horizontal_flip(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrors an image [..., H, W] and its boxes [N, 4], absolute xyxy, left to right."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=1)


def _rgb(image: Image.Image) -> np.ndarray:
    """Decodes an opened image as uint8 [H, W, 3]."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"32 bits per channel, mode {image.mode}")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _check_files(table: Table) -> None:
    """Lists every folder once, which is faster than asking for each file of a large data set."""
    folders: dict[str, set[str]] = {}
    missing = []
    for row in range(len(table)):
        folder, name = os.path.split(table.path(row))
        if folder not in folders:
            folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in folders[folder]:
            missing.append((folder, name))
    if missing:
        folder, name = missing[0]
        count = f"{len(missing)} of {len(table)} images"
        alike = [other for other in folders[folder] if other.lower() == name.lower()]
        remedy = f"rename {shown(min(alike))}" if alike else "add them or set data.root"
        path = os.path.join(folder, name)
        raise DataError(f"{path}: no such image (got {count} missing); {remedy}")
