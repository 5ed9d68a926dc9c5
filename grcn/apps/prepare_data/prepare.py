"""Downloads, verifies and unpacks a published data set into a folder laid out as the readers expect.

Each archive goes through three steps, and each step ends with a rename: downloaded (``.prepared/<archive>``), unpacked
(``.prepared/<archive>.unpacked``), moved into the root and recorded in a stamp (``.prepared/<archive>.json``). After a
kill at any moment, the next start resumes after the last rename.
"""

from __future__ import annotations

import filecmp
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from grcn.apps.prepare_data.download import Unreachable, difference, discard, fetch, part_of
from grcn.apps.prepare_data.published import Archive, DataSet, Split
from grcn.apps.prepare_data.unpack import check_space, unpack
from grcn.engine.signals import StopSignals
from grcn.errors import ConfigError, DataError
from grcn.fileio import run_lock, write_durably
from grcn.progress import progress_bar

logger = logging.getLogger("grcn")

_WORK = ".prepared"
_SLACK = 2  # the sizes of the unpacked image archives are known to a few percent only
_LISTS = "ImageSets"  # VOC's lists of images


def prepare(
    data_set: DataSet,
    root: Path,
    *,
    archives: Sequence[Path] = (),
    mirrors: Sequence[str] = (),
    keep: bool = False,
    stop: StopSignals,
) -> list[tuple[Split, Split]]:
    """Brings a data set into a folder, or only its missing parts.

    Args:
        archives: local files that need no download. They are verified, and stay where they are.
        mirrors: folders on the web that have the archives, instead of the publisher's.
        keep: keep the archives that were downloaded.
        stop: checked often; after a signal, the work done so far stays and can be resumed.

    Returns:
        each split as published and as found; images agree, objects may lack empty boxes, which the reader drops.

    Raises:
        ConfigError: a file of ``archives`` does not belong to this data set.
        DataError: an archive is damaged, a file in the folder is another one, or a split is not as published.
        EnvironmentFault: no network, no space, or another process is preparing the same folder.
    """
    at_hand = _recognise(data_set, archives)
    work = root / _WORK
    with run_lock(work):
        pending = _pending(root, data_set)
        index = work / f"index-{data_set.name}.json"
        found = None if pending else _read_index(index, data_set)
        if found is None:
            _check_space(root, pending, at_hand, keep)
            for archive in pending:
                urls = [f"{url.rstrip('/')}/{archive.name}" for url in mirrors or archive.urls]
                try:
                    _provide(root, archive, at_hand.get(archive.name), urls, keep, stop)
                except Unreachable:
                    for missing in pending[pending.index(archive) :]:
                        logger.info("to download by hand: %s%s (MD5 %s)", missing.urls[0], missing.name, missing.md5)
                    raise
            found = _index(data_set, root, stop)
            _write(index, {"archives": _archives(data_set), "splits": [asdict(split) for split in found]})
    return list(zip(data_set.splits, found, strict=True))


def tabulate(counts: Sequence[tuple[Split, Split]]) -> str:
    """Formats the result of :func:`prepare` as lines of text."""
    rows: list[tuple[str, ...]] = [("split", "images", "published", "objects", "published")]
    for published, found in counts:
        numbers = (found.images, published.images, found.objects, published.objects)
        rows.append((published.name, *("–" if number is None else f"{number:,}" for number in numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)


def _recognise(data_set: DataSet, archives: Sequence[Path]) -> dict[str, Path]:
    names = [archive.name for archive in data_set.archives]
    for path in archives:
        if path.name not in names:
            raise ConfigError(f"{path}: not an archive of {data_set.name}; pass {', '.join(names)}")
        if not path.is_file():
            raise DataError(f"{path}: no such file; pass an existing archive or let it be downloaded")
    return {path.name: path for path in archives}


def _stamp(archive: Archive) -> dict[str, object]:
    return {"name": archive.name, "size": archive.size, "md5": archive.md5}


def _pending(root: Path, data_set: DataSet) -> list[Archive]:
    """Returns the archives that are not in place; a stamp whose files were removed is removed too."""
    pending, work = [], root / _WORK
    for archive in data_set.archives:
        stamp = work / f"{archive.name}.json"
        if _read(stamp) == _stamp(archive):
            shutil.rmtree(_unpacked(work, archive), ignore_errors=True)  # left by a kill after the stamp
            if (root / archive.makes).exists():
                continue
            stamp.unlink()
        pending.append(archive)
    return pending


def _unpacked(work: Path, archive: Archive) -> Path:
    return work / f"{archive.name}.unpacked"


def _check_space(root: Path, pending: list[Archive], at_hand: dict[str, Path], keep: bool) -> None:
    """Checks, before hours of downloading, that all of it will fit; one archive at a time unless they are kept."""
    work = root / _WORK
    waiting = [archive for archive in pending if not _unpacked(work, archive).exists()]
    missing = [archive for archive in waiting if archive.name not in at_hand and not (work / archive.name).exists()]
    sizes = []
    for archive in missing:
        part = part_of(work / archive.name)
        sizes.append(archive.size - (part.stat().st_size if part.exists() else 0))
    check_space(root, sum(archive.unpacked for archive in waiting) + (sum(sizes) if keep else max(sizes, default=0)))


def _provide(
    root: Path, archive: Archive, at_hand: Path | None, urls: list[str], keep: bool, stop: StopSignals
) -> None:
    """Brings the contents of one archive into the root."""
    work = root / _WORK
    unpacked, own = _unpacked(work, archive), work / archive.name
    if not unpacked.exists():
        with closing(_Bar(archive.name, stop)) as bar:
            if at_hand is None:
                fetch(urls, own, size=archive.size, md5=archive.md5, report=bar)
            elif (wrong := difference(at_hand, archive.size, archive.md5, bar)) is not None:
                raise DataError(f"{at_hand}: damaged, or another file ({wrong}); pass an intact one")
            unfinished = work / f"{archive.name}.unpacking"
            shutil.rmtree(unfinished, ignore_errors=True)
            count = unpack(at_hand or own, unfinished, limit=_SLACK * archive.unpacked, report=bar)
        os.sync()  # all files at once: one by one, 80,000 take minutes
        unfinished.rename(unpacked)
        logger.info("%s: %d files", archive.name, count)
    _move(unpacked / archive.inside, root)
    if not keep:
        own.unlink(missing_ok=True)
    discard(own)  # of an earlier start, without --archive
    _write(work / f"{archive.name}.json", _stamp(archive))
    shutil.rmtree(unpacked)


def _move(source: Path, target: Path) -> None:
    """Moves the contents of a folder into another, which may have some of them; nothing is overwritten.

    Lists of images come last: until a split is complete, a reader does not find it.
    """
    for path in sorted(source.iterdir(), key=lambda path: (path.name == _LISTS, path.name)):
        place = target / path.name
        if not os.path.lexists(place):
            path.rename(place)
        elif path.is_dir() and place.is_dir() and not place.is_symlink():  # a link may lead out of the root
            _move(path, place)
        elif path.is_dir() or not place.is_file() or not filecmp.cmp(path, place, shallow=False):
            raise DataError(f"{place}: exists and differs from the archive's; move it away and run again")


def _index(data_set: DataSet, root: Path, stop: StopSignals) -> list[Split]:
    """Reads all splits, as training will, which also fills the cache of annotations; returns their counts."""
    found = []
    for split in data_set.splits:
        logger.info("reading %s", split.name)
        table = data_set.load(root, [split.name])
        if len(table) != split.images:
            raise DataError(
                f"{root}: {split.name} is not as published (got {len(table)} images, not {split.images}); "
                f"remove {split.name.partition('/')[0]} and run again"
            )
        for row in range(len(table)):
            if not os.path.exists(table.path(row)):
                raise DataError(f"{table.path(row)}: no such file; remove its folder and run again")
        found.append(Split(split.name, len(table), len(table.boxes)))
        stop.check()
    return found


def _read_index(path: Path, data_set: DataSet) -> list[Split] | None:
    """Returns the last result of :func:`_index` for this data set; None without one."""
    noted = _read(path)
    if noted is None or noted.get("archives") != _archives(data_set):
        return None
    return [Split(**split) for split in noted["splits"]]


def _archives(data_set: DataSet) -> list[dict[str, object]]:
    return [_stamp(archive) for archive in data_set.archives]


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the contents of a note; None if there is none, or a damaged one."""
    with suppress(FileNotFoundError, ValueError):
        noted = json.loads(path.read_bytes())
        return noted if isinstance(noted, dict) else None
    return None


def _write(path: Path, contents: dict[str, Any]) -> None:
    write_durably(path, (json.dumps(contents, indent=2) + "\n").encode())


class _Bar:
    """A progress bar for each stage of an archive, with the time left. Each update checks for stop signals."""

    def __init__(self, name: str, stop: StopSignals) -> None:
        self._name, self._stop = name, stop
        self._stage = ""
        self._bar: tqdm | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._stop.check()
        if self._bar is None or stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = progress_bar(
                desc=f"{stage} {self._name}", total=total, initial=done, unit="B", unit_scale=True, leave=False
            )
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
