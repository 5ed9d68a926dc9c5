"""File access: atomic writes, a lock on a run's folder, and safe reading of weights.

Files of weights are checked by their bytes before anything in them is unpacked or unpickled. Half a megabyte of a zip
archive can unpack to a gigabyte of zeros, and neither torch nor numpy checks this first. Nor does torch compare
checksums: it returns wrong weights where a bit has flipped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import os
import pickle
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from grcn.errors import CheckpointError, EnvironmentFault, is_of_the_machine, named, one_line

if TYPE_CHECKING:  # imported where it is used: torch takes seconds to import, and some tools do not need it
    from torch import Tensor

# A detector has some thousand tensors; listing a million entries takes gigabytes.
MAX_ENTRIES = 2**16
# Trained weights hardly compress; 16-bit ones stored as 64 shrink to a fifth: a file that grows more holds none.
EXPANSION = 10

_ENTRY = b"PK\x01\x02"  # the start of each entry of an archive's directory
_START = b"PK\x03\x04"
# The errors of zipfile for bytes that are not, or no longer, a zip archive.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, ValueError),
    *(struct.error, zlib.error, OverflowError, IndexError),
)
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


def write_durably(path: Path, contents: bytes | memoryview) -> None:
    """Replaces a file; after a crash at any moment, either the old or the new one is there, whole."""
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
    """Syncs the contents of a file, or the list of files in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a run's folder while the context is open.

    A POSIX record lock: it is released however the process ends, and forked workers do not
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


def next_free(folder: Path) -> Path:
    """Returns the folder, or the first of ``folder-2``, ``folder-3``, ... that does not exist."""
    names = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([folder], names) if not name.exists())


def read_file(path: Path, remedy: str) -> bytes:
    """Reads a regular file whole.

    Raises:
        CheckpointError: there is none, or it may not be read; the message ends in ``remedy``.
        OSError: the machine is at fault.
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
    """Describes what a file looks like, for a message."""
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
    """Describes in a few words what torch or numpy found in a file."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own message advises to trust the file
        return "a broken pickle, or one of more than tensors and plain types"
    return one_line((str(error) or type(error).__name__).partition("\n")[0], 100)


def unusable(tensors: Mapping[str, Tensor]) -> str | None:
    """Describes the first tensor of a file that is unusable, and why; None if all are sound."""
    import torch

    kinds = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    kinds |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.dtype not in kinds:
            return f"{key} is of a kind that is not read ({tensor.dtype}, {tensor.layout})"
        # With strides of zero a few bytes stand for any number of values, which every operation would materialize.
        if tensor.numel() > tensor.untyped_storage().nbytes():
            return f"{key} has more values than are stored"
        if not tensor.isfinite().all():
            return f"{key} is not finite"
    return None


def check_archive(contents: bytes, *, compressed: bool = False, checksums: bool = True) -> None:
    """Makes sure that a zip archive may be unpacked.

    Args:
        compressed: accept compressed entries, up to :data:`EXPANSION` times the size of the file in all. Otherwise all
            must be stored uncompressed, as torch does, and take no more bytes than the file has.
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


def fetch(entry: str, url: str) -> Path:
    """Downloads a release into torch's hub folder, unless it is there.

    Args:
        entry: its name, for messages.
        url: its address, whose last part has the beginning of the file's SHA-256.

    Raises:
        CheckpointError: the network fails, or what comes is something else.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            seen = sys.stderr is not None and sys.stderr.isatty()  # an unseen progress bar could fail the download
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for a tool's result
                torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2], progress=seen)
    except Exception as error:  # whatever the network makes urllib raise
        raise CheckpointError(f"{entry}: cannot load {url} ({cause(error)}); put the file at {path}") from error
    return path


def read_tensors(path: Path, contents: bytes) -> dict[str, Tensor]:
    """Reads tensors out of what a file holds, after making sure that unpacking it is harmless.

    Raises:
        CheckpointError: it is damaged, or not a flat dict of tensors.
    """
    import numpy as np
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(contents)
        if is_archive(contents):  # torch's old format, which some releases use, is not an archive
            check_archive(contents, compressed=path.suffix == ".npz")
        elif path.suffix == ".npz" or not contents.startswith(b"\x80"):
            raise ValueError(appearance(contents))
        if path.suffix == ".npz":
            with np.load(io.BytesIO(contents), allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays.files}
        state = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes numpy, zip or pickle raise
        remedy = "use another, or download it again"
        raise CheckpointError(
            f"{path}: not a readable .npz, .pt or .safetensors file of tensors ({cause(error)}); {remedy}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        keys = f" of {few([str(key) for key in state])}" if isinstance(state, dict) else ""
        raise CheckpointError(f"{path}: holds a {type(state).__name__}{keys}, not tensors; save the state_dict alone")
    return state


def few(names: Sequence[str]) -> str:
    """Lists the first few of some names."""
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "none"
