"""Unpacks an archive with the standard library: only plain files and folders, and only below one new folder.

All entries are checked before the first byte is written.
"""

from __future__ import annotations

import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from grcn.apps.prepare_data.download import Report
from grcn.data.faults import fault, is_contained
from grcn.errors import EnvironmentFault, is_of_the_machine, named

MAX_ENTRIES = 2**20  # COCO's train2014 has 82,784
_BLOCK = 4096  # bytes: what a small file takes on most disks

# Exceptions of the two modules for bytes that are not an archive, or a damaged one; not all OSErrors mean that.
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, struct.error, ValueError, OverflowError),
    *(RuntimeError, OSError),
)


class _Entry(NamedTuple):
    name: str
    size: int
    is_file: bool
    is_folder: bool
    write: Callable[..., object]  # takes ``path``, the folder


def unpack(archive: Path, folder: Path, *, limit: int, report: Report) -> int:
    """Unpacks an archive into a folder that does not exist yet. After an error or a kill, remove the folder.

    Owners of the entries are not restored; modes and times of a tar archive's are. The checksums of a zip archive's
    entries are verified.

    Args:
        archive: ``*.zip``, or an uncompressed tar archive.
        limit: maximum total size of all files, in bytes.
        report: called after each entry.

    Returns:
        the number of files.

    Raises:
        DataError: the archive is broken, has more than ``limit`` bytes, or an entry is not a plain file or folder
            inside the archive's own; nothing has been written unless it is broken.
        EnvironmentFault: the disk has too little space, or this Python is too old.
    """
    if not hasattr(tarfile, "data_filter"):
        raise EnvironmentFault("Python: unpacks archives unsafely; update it to 3.11.4 or later")
    with named(folder), _entries(archive) as entries:
        for entry in entries:
            _check(archive, entry)
        _check_places(archive, entries)
        total = sum(entry.size for entry in entries)
        if total > limit:
            raise fault(archive, "unpacks to {} bytes, over the {} of this data set; use another copy", total, limit)
        check_space(folder.parent, total + len(entries) * _BLOCK)
        folder.mkdir()
        done = 0
        for entry in entries:
            entry.write(path=folder)
            done += entry.size
            report("unpacking", done, total)
    return sum(entry.is_file for entry in entries)


def check_space(folder: Path, needed: int) -> None:
    """Checks that a disk has this many free bytes.

    Raises:
        EnvironmentFault: it does not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentFault(
            f"{folder}: too little space ({needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free); "
            "free some or choose another folder"
        )


@contextmanager
def _entries(path: Path) -> Iterator[list[_Entry]]:
    """Opens an archive and lists it; faults in its bytes while it is open become a DataError."""
    try:
        with zipfile.ZipFile(path) if path.suffix == ".zip" else tarfile.open(path, "r:") as archive:
            found = _of_zip(archive) if isinstance(archive, zipfile.ZipFile) else _of_tar(archive)
            entries = list(islice(found, MAX_ENTRIES + 1))
            if len(entries) > MAX_ENTRIES:
                raise fault(path, "over {} entries; use another copy", MAX_ENTRIES)
            yield entries
    except _BROKEN as error:
        if is_of_the_machine(error) or isinstance(error, (FileExistsError, FileNotFoundError, PermissionError)):
            raise
        raise fault(
            path, "not an intact archive (got {}); use another copy", str(error) or type(error).__name__
        ) from None


def _of_tar(archive: tarfile.TarFile) -> Iterator[_Entry]:
    for member in archive:
        write = partial(archive.extract, member, filter="data")
        yield _Entry(member.name, member.size, member.isreg(), member.isdir(), write)


def _of_zip(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive was not made on Unix
        is_file = not info.is_dir() and kind in (0, stat.S_IFREG)
        write = partial(zipfile.ZipFile.extract, archive, info)
        yield _Entry(info.filename, info.file_size, is_file, info.is_dir(), write)


def _check(path: Path, entry: _Entry) -> None:
    """Refuses entries that are not files or folders, and names that lead elsewhere, which the modules would shorten."""
    if not (entry.is_file or entry.is_folder):
        raise fault(path, "an entry is no plain file or folder (got {}); use another copy", entry.name)
    is_root = not PurePosixPath(entry.name).parts  # "./", the archive's own folder
    if not is_root and (not is_contained(entry.name) or "\\" in entry.name):
        raise fault(path, "an entry leads out of its folder (got {}); use another copy", entry.name)


def _check_places(path: Path, entries: list[_Entry]) -> None:
    """Refuses entries that would be written over or into each other."""
    places = [PurePosixPath(entry.name) for entry in entries if entry.is_file]
    folders = {PurePosixPath(entry.name) for entry in entries if entry.is_folder}
    folders.update(parent for place in places for parent in place.parents)
    for place, count in Counter(places).items():
        if count > 1:
            raise fault(path, "an entry appears twice (got {}); use another copy", str(place))
        if place in folders:
            raise fault(path, "an entry is both file and folder (got {}); use another copy", str(place))
