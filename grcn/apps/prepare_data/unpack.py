"""Unpacks an archive of which nothing is believed: only plain files and folders, and only below one new folder.

``tarfile`` and ``zipfile`` guard against some of what an archive can do to a disk, in some versions of Python. So
neither writes anything here: they list the entries and hand out bytes, all entries are judged before the first byte is
written, and each file is made anew.
"""

from __future__ import annotations

import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from grcn.apps.prepare_data.download import Report
from grcn.data.faults import fault, is_contained
from grcn.errors import EnvironmentFault, is_of_the_machine, named

MAX_ENTRIES = 2**20  # COCO's train2014 has 82,784
_BLOCK = 4096  # bytes: what a small file takes on most disks
_CHUNK = 2**20  # bytes at most between two reports

# What the two modules raise for bytes that are no archive, or no longer one.
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, struct.error, ValueError, OverflowError)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


@dataclass(frozen=True)
class _Entry:
    """A file of an archive, or with ``open`` None a folder."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None] | None


def unpack(archive: Path, folder: Path, *, limit: int, report: Report) -> int:
    """Unpacks an archive into a folder that does not exist yet. After an error or a kill, remove what is there of it.

    Modes, owners and times of the entries are not taken over. The checksums of a zip archive's entries are verified.

    Args:
        archive: ``*.zip``, or a tar archive, which is not compressed.
        limit: bytes that all files together may have.

    Returns:
        the number of files.

    Raises:
        DataError: the archive is broken, has more than ``limit`` bytes, or an entry is anything but a plain file or
            folder below the archive's own; nothing has been written unless it is broken.
        EnvironmentFault: the disk has too little space.
    """
    with _entries(archive) as entries:
        _check_names(archive, entries)
        files = [entry for entry in entries if entry.open]
        total = sum(entry.size for entry in files)
        if total > limit:
            raise fault(archive, "unpacks to {} bytes, over the {} of this data set; use another copy", total, limit)
        check_space(folder.parent, total + len(entries) * _BLOCK)
        folder.mkdir()
        done = 0
        for entry in entries:
            place = folder / entry.name
            if entry.open is None:
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            done = _copy(entry, place, partial(report, "unpacking"), done, total)
    return len(files)


def check_space(folder: Path, needed: int) -> None:
    """Makes sure that a disk has this many bytes.

    Raises:
        EnvironmentFault: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentFault(
            f"{folder}: too little space ({needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free); "
            "free some or choose another folder"
        )


def _copy(entry: _Entry, place: Path, report: Callable[[int, int], None], done: int, total: int) -> int:
    """Writes a file; returns how many bytes are done then."""
    assert entry.open is not None
    source = entry.open()
    if source is None:
        raise ValueError(f"no contents of {entry.name!r:.60}")
    end = done + entry.size
    with source, named(place), place.open("xb") as file:
        while chunk := source.read(_CHUNK):
            done += len(chunk)
            if done > end:
                break
            file.write(chunk)
            report(done, total)
    if done != end:
        raise ValueError(f"{entry.name!r:.60} is not as long as its entry says")
    return done


@contextmanager
def _entries(path: Path) -> Iterator[list[_Entry]]:
    """Opens an archive and lists it; what is wrong with its bytes while it is open becomes a DataError."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as zipped:
                yield [_zip_entry(path, zipped, info) for info in zipped.infolist()]
        else:
            with tarfile.open(path, "r:") as tar:
                yield [_tar_entry(path, tar, member) for member in _listed(path, tar)]
    except (*_BROKEN, OSError, RuntimeError, NotImplementedError) as error:
        if is_of_the_machine(error) or (isinstance(error, OSError) and error.filename is not None):
            raise
        raise fault(
            path, "not a sound archive (got {}); use another copy", str(error) or type(error).__name__
        ) from None


def _listed(path: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(tar):
        if number == MAX_ENTRIES:
            raise fault(path, "over {} entries; use another copy", MAX_ENTRIES)
        yield member


def _tar_entry(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    if member.isdir():
        return _Entry(member.name, 0, None)
    if member.type not in _PLAIN or member.issparse() or member.size < 0:
        raise fault(path, "an entry is no plain file or folder (got {}); use another copy", member.name)
    return _Entry(member.name, member.size, partial(tar.extractfile, member))


def _zip_entry(path: Path, zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    if info.is_dir():
        return _Entry(info.filename, 0, None)
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made elsewhere than on Unix
    if kind not in (0, stat.S_IFREG) or info.flag_bits & 1:  # the flag: encrypted
        raise fault(path, "an entry is no plain file or folder (got {}); use another copy", info.filename)
    return _Entry(info.filename, info.file_size, partial(zipped.open, info))


def _check_names(path: Path, entries: list[_Entry]) -> None:
    """Refuses names that lead elsewhere, and files that would be written twice or into each other."""
    if len(entries) > MAX_ENTRIES:
        raise fault(path, "over {} entries; use another copy", MAX_ENTRIES)
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for entry in entries:
        place = PurePosixPath(entry.name)
        if entry.open is None and place == PurePosixPath():
            continue  # "./", the archive's own folder
        if not is_contained(entry.name) or "\\" in entry.name:
            raise fault(path, "an entry leads out of its folder (got {}); use another copy", entry.name)
        folders.update(place.parents)
        if entry.open is None:
            folders.add(place)
        elif place in files:
            raise fault(path, "an entry is there twice (got {}); use another copy", entry.name)
        else:
            files.add(place)
    both = files & folders
    if both:
        raise fault(path, "an entry is both file and folder (got {}); use another copy", str(min(both)))
