"""Converts images to RGB tensors: files, and images in the memory of a program."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from torch import Tensor

from grcn.data.annotations import Annotations
from grcn.data.faults import fault, read_bytes

# Larger images are refused by their header, before memory is allocated for their pixels.
MOST_PIXELS = 100_000_000

# Everything that to_rgb_tensor accepts.
Picture = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray | Tensor

# An image whose largest value is below this one of 255 is nearly black: one of 12 bits that is read as one of 16.
DARK = 16
# If all 16-bit images of a data set stay below this value, as those of 14 bits do, they do not use all bits.
UNUSED = 64

# Called with the number of bits that a 16-bit image uses, if that leaves it nearly black.
OnDark = Callable[[int], None]

# The usual formats of photographs and drawings. Pillow opens more, some of which start other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")

_ORIENTATION = 0x0112  # EXIF's tag
# Names under which Pillow keeps it, or a text that it reads it from.
_WITH_ORIENTATION = frozenset(("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"))

# Errors of Pillow's readers on a broken file, and on a closed one (AssertionError); UnidentifiedImageError is an
# OSError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError,
           TypeError, AssertionError, struct.error, zlib.error)  # fmt: skip


class FileImages:
    """Reads the images of a table from their files: row -> uint8 [3, H, W], RGB, as displayed.

    Folders and files may be symbolic links, see :func:`grcn.data.faults.is_contained`.

    Args:
        table: every file it names must exist.
        bits: as in :func:`read_image`.

    Raises:
        DataError: a file is missing, or (when called) broken or not of the table's size.
    """

    def __init__(self, table: Annotations, bits: int | None = None) -> None:
        self.table = table
        self.bits = bits
        _check_files(table)

    def __call__(self, row: int) -> Tensor:
        return read_row(self.table, row, self.bits)


def read_row(table: Annotations, row: int, bits: int | None = None) -> Tensor:
    """Reads the image of a row of a table, uint8 RGB [3, H, W]; ``bits`` as in :func:`read_image`.

    Raises:
        DataError: as in :func:`read_image`; or the image is not of the table's size.
    """
    path = table.path(row)
    image = read_image(path, bits=bits)
    height, width = table.sizes[row].tolist()
    if image.shape[1:] != (height, width):
        with _open(path) as stored:
            unrotated = stored.size == (width, height)
        remedy = "mind EXIF orientation" if unrotated else "fix it"
        what = f"image size (got {{}} x {{}}) is not the annotated {{}} x {{}}; {remedy}"
        raise fault(path, what, image.shape[2], image.shape[1], width, height, kind="image-size")
    return image


def read_image(
    path: str | os.PathLike[str],
    remedy: str = "check the folder and the annotation",
    bits: int | None = None,
    on_dark: OnDark | None = None,
) -> Tensor:
    """Reads an image file as uint8 RGB [3, H, W], with its EXIF orientation applied.

    The content decides the format, not the name. The pixels lie in memory as Pillow decodes them, channels last.
    Grey becomes three equal channels, alpha is dropped, of 16 bits the high 8 are kept, of an animation the first
    frame.

    Args:
        path: path of the file.
        remedy: ends the message where there is none.
        bits: how many of its 16 bits a grey image uses, of which the high 8 are kept; larger values become white.
            None: all 16. In colour images, Pillow itself keeps the high 8 of 16.
        on_dark: see :data:`OnDark`.

    Raises:
        DataError: no such file, not an image of :data:`FORMATS`, truncated, over 100 megapixels, or of
            32 bits per channel, which has no agreed scale.
    """
    return _decode(read_bytes(path, remedy), path, bits, on_dark)


def to_rgb_tensor(image: Picture, bits: int | None = None, on_dark: OnDark | None = None) -> Tensor:
    """Returns an image as RGB tensor [3, H, W], uint8, or float in 0-1 if it was such a tensor.

    The same picture gives the same pixels as the name of a file, its bytes, the opened file and the Pillow image:
    with the EXIF orientation applied, see :func:`read_image`. The input is never changed, and only a tensor is shared.

    Args:
        image: name of a file; bytes of one; a file opened with ``"rb"``, which is read from its beginning; a Pillow
            image; an array uint8 or uint16, in RGB [H, W, 3], with alpha [H, W, 4], which is dropped, or grey [H, W] or
            [H, W, 1], which is repeated; an RGB tensor [3, H, W], uint8 or float in 0-1.
        bits, on_dark: as in :func:`read_image`; also for arrays of uint16.

    Raises:
        DataError: a file or a Pillow image is refused, as by :func:`read_image`.
        ValueError: an array or a tensor of another shape or type, or without a pixel.
        TypeError: any other type.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, "check the path", bits, on_dark)
    if isinstance(image, bytes | bytearray | memoryview):
        return _decode(bytes(image), "image", bits, on_dark)
    if isinstance(image, Image.Image):
        with _faults(place := getattr(image, "filename", "") or "image"):
            _check_pixels(image)
            found = _rgb(ImageOps.exif_transpose(image), bits, on_dark)
        return _as_tensor(found, place)
    if isinstance(image, np.ndarray):
        return _as_tensor(_array_rgb(np.asarray(image), bits, on_dark), "array")
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
            raise ValueError(f"a tensor must be uint8 or float [3, H, W] (got {image.dtype} {list(image.shape)})")
        return _with_pixels(image, "tensor")
    if hasattr(image, "read"):
        return _decode(_contents(image), getattr(image, "name", "image"), bits, on_dark)
    got = "None" if image is None else type(image).__name__
    known = "the name of a file, its bytes or the opened file, a Pillow image, an array or a tensor"
    raise TypeError(f"an image must be {known} (got {got})")


def _contents(file: BinaryIO) -> bytes:
    """Reads an opened file whole, as Pillow does: from its beginning, if it is seekable."""
    if file.seekable():
        file.seek(0)
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError('an image file must be opened with "rb" (got one of text)')
    return data


def _decode(data: bytes, place: object, bits: int | None, on_dark: OnDark | None) -> Tensor:
    with _faults(place):
        try:
            opened = _open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise fault(place, "not an image (starts with {}); save it as JPEG or PNG", data[:12]) from None
        with opened as image:
            ImageOps.exif_transpose(image, in_place=True)
            return torch.from_numpy(_rgb(image, bits, on_dark)).permute(2, 0, 1)


@contextmanager
def _faults(place: object) -> Iterator[None]:
    """Turns Pillow's error for an image into a fault."""
    try:
        yield
    except Image.DecompressionBombError as error:
        what = "image has over 100 megapixels (got {}); shrink or replace it"
        raise fault(place, what, str(error), kind="image-large") from None
    except _BROKEN as error:
        what = str(error) or type(error).__name__
        raise fault(place, "image cannot be decoded (got {}); replace it", what) from None


def _array_rgb(array: np.ndarray, bits: int | None, on_dark: OnDark | None) -> np.ndarray:
    """Copies an array as uint8 [H, W, 3], whatever its strides."""
    layers = array[:, :, None] if array.ndim == 2 else array
    is_known = array.dtype.kind == "u" and array.dtype.itemsize <= 2
    if not is_known or layers.ndim != 3 or layers.shape[2] not in (1, 3, 4):
        expected = "uint8 or uint16, [H, W, 3] in RGB or [H, W] in grey"
        raise ValueError(f"an array must be {expected} (got {array.dtype} {list(array.shape)})")
    if array.dtype.itemsize == 2:
        layers = _eight_bits(layers, bits, on_dark)
    return np.repeat(layers, 3, axis=2) if layers.shape[2] == 1 else np.array(layers[:, :, :3], order="C")


def _as_tensor(array: np.ndarray, what: str) -> Tensor:
    return _with_pixels(torch.from_numpy(array).permute(2, 0, 1), what)


def _with_pixels(image: Tensor, what: str) -> Tensor:
    if not image.numel():
        raise ValueError(f"{what}: an image must have pixels (got {image.shape[2]} x {image.shape[1]})")
    return image


class Header(NamedTuple):
    """Header of an image file, read without decoding.

    Attributes:
        size: (height, width) as stored.
        mode: Pillow's name of the channels: ``RGB``, ``L`` for grey, ``CMYK``, ``I;16``.
        orientation: the EXIF tag, 1 for an image that is stored as displayed.
    """

    size: tuple[int, int]
    mode: str
    orientation: int

    @property
    def displayed_size(self) -> tuple[int, int]:
        """(height, width) of the image as displayed, which is what :func:`read_image` returns."""
        return self.size[::-1] if self.orientation > 4 else self.size


def read_header(file: str | io.BytesIO) -> Header | None:
    """Reads the header of an image; None where :func:`read_image` would refuse it, with the reason."""
    try:
        with _open(file) as image:
            if _has_32_bits(image):
                return None
            # In other formats than these, Pillow must decode an image to find tags that it has not yet read.
            known = image.format in ("JPEG", "MPO", "WEBP", "TIFF") or not _WITH_ORIENTATION.isdisjoint(image.info)
            turn = image.getexif().get(_ORIENTATION, 1) if known else 1
            size = image.height, image.width
            if isinstance(image, TiffImageFile):  # its size already has the orientation applied
                size = image.tag_v2[IMAGELENGTH], image.tag_v2[IMAGEWIDTH]
            return Header(size, image.mode, turn if turn in range(1, 9) else 1)
    except (Image.DecompressionBombError, *_BROKEN):
        return None


def _open(file: str | io.BytesIO) -> Image.Image:
    """Reads the header of an image and decodes nothing yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Pillow's limit is somewhat below ours
        image = Image.open(file, formats=FORMATS)
    _check_pixels(image)
    return image


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise Image.DecompressionBombError(f"{image.width} x {image.height}")


def _rgb(image: Image.Image, bits: int | None, on_dark: OnDark | None) -> np.ndarray:
    """Decodes an opened image as uint8 [H, W, 3]."""
    if _has_32_bits(image):
        raise ValueError(f"32 bits per channel, mode {image.mode}")
    if image.mode == "I":  # a 16-bit PGM, whose values Pillow has scaled to all 16 bits
        bits = on_dark = None
    if image.mode.startswith("I"):
        grey = _eight_bits(np.asarray(image), bits, on_dark)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _has_32_bits(image: Image.Image) -> bool:
    return image.mode == "F" or (image.mode == "I" and image.format != "PPM")


def _eight_bits(values: np.ndarray, bits: int | None, on_dark: OnDark | None) -> np.ndarray:
    """Keeps the high 8 of the bits in use of 16-bit values."""
    low = (bits or 16) - 8
    if on_dark is not None and 0 < (largest := int(values.max(initial=0))) < DARK << low:
        on_dark(largest.bit_length())
    return np.minimum(values >> low, 255).astype(np.uint8)


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
