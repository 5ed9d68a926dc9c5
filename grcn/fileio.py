"""Files of weights, judged by their bytes before anything in them is unpacked or unpickled.

Half a megabyte of a zip archive can unpack to a gigabyte of zeros, and neither torch nor numpy looks before it does so.
Nor does torch compare checksums: it returns other weights where a bit has flipped.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from grcn.errors import CheckpointError, is_of_the_machine, one_line

# A detector has some thousand tensors; to list a million entries takes gigabytes.
MAX_ENTRIES = 2**16
# Trained weights hardly compress, and those of 16 bits stored as 64 to a fifth: a file that grows more holds none.
EXPANSION = 10

_ENTRY = b"PK\x01\x02"  # what each entry of an archive's directory starts with
_START = b"PK\x03\x04"
# What zipfile raises for bytes that are not a zip archive, or no longer one.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError),
    *(struct.error, zlib.error, OverflowError, IndexError),
)
_KINDS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
}
_FORMATS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive",
    b"\x80": "a pickle or an old file of torch",
    b"\x93NUMPY": "a numpy array",
    b"version https://git-lfs": "a pointer of Git LFS, without the file",
    b"<": "a web page or XML",
    b"{": "JSON text",
}


def read_file(path: Path, remedy: str) -> bytes:
    """Reads a regular file whole.

    Raises:
        CheckpointError: there is none, or it may not be read; ends in ``remedy``.
        OSError: the machine fails.
    """
    try:
        if not path.is_file():  # a pipe would block for ever
            raise CheckpointError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; {remedy}")
        return path.read_bytes()
    except OSError as error:
        if is_of_the_machine(error):
            raise
        raise CheckpointError(f"{path}: cannot read ({error.strerror}); {remedy}") from error


def is_archive(contents: bytes) -> bool:
    """Whether torch and numpy read a file as a zip archive."""
    return contents.startswith(_START)


def appearance(contents: bytes) -> str:
    """Says what a file looks like, for a message."""
    if contents.count(0) == len(contents):
        return "only zeros" if contents else "empty"
    start = contents[:64].lstrip()
    for signature, name in _FORMATS.items():
        if start.startswith(signature):
            return f"looks like {name}"
    if contents[8:9] == b"{" and int.from_bytes(contents[:8], "little") < len(contents):
        return "looks like safetensors"
    return f"starts with {contents[:8]!r}"


def cause(error: Exception) -> str:
    """Says in a few words what torch or numpy met in a file."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own message advises to trust the file
        return "a broken pickle, or one of more than tensors and plain types"
    return one_line((str(error) or type(error).__name__).partition("\n")[0], 100)


def unusable(tensors: Mapping[str, Tensor]) -> str | None:
    """Says which tensor out of a file is not to be computed with, and why; None if all are sound."""
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in _KINDS:
            return f"{key} is of a kind that is not read ({tensor.dtype}, {tensor.layout})"
        # With strides of zero a few bytes pose as any number of values, which every operation would write out.
        if tensor.numel() > tensor.untyped_storage().nbytes():
            return f"{key} has more values than are stored"
        if not tensor.isfinite().all():
            return f"{key} is not finite"
    return None


def check_archive(contents: bytes, *, compressed: bool = False, checksums: bool = True) -> None:
    """Makes sure that a zip archive may be unpacked.

    Args:
        compressed: accept compressed entries, up to :data:`EXPANSION` times the size of the file in all. Otherwise all
            are to be stored as they are, as torch does, and to take no more than the file has.
        checksums: verify the contents of the entries too.

    Raises:
        ValueError: what is wrong.
    """
    if contents.count(_ENTRY) > MAX_ENTRIES:
        raise ValueError(f"over {MAX_ENTRIES} entries in its archive")
    try:
        archive = zipfile.ZipFile(io.BytesIO(contents))
    except _ZIP_ERRORS as error:
        raise ValueError("an archive cut off" if is_archive(contents) else appearance(contents)) from error
    entries = archive.infolist()
    if min((entry.header_offset for entry in entries), default=0):
        # Readers disagree about which of two archives such a file is.
        raise ValueError("an archive behind something else")
    if not compressed and any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("compressed, which torch.save never does")
    size = sum(entry.file_size for entry in entries)
    if size > len(contents) * (EXPANSION if compressed else 1):
        raise ValueError(f"{len(contents)} bytes that unpack to {size}")
    try:
        broken = archive.testzip() if checksums else None
    except _ZIP_ERRORS as error:
        raise ValueError("an archive whose entries cannot be read") from error
    if broken is not None:
        raise ValueError(f"wrong checksum of {broken!r:.60}")
