"""Downloads one file over HTTP, resuming broken transfers and trying several addresses in turn.

A partial download lies in ``<name>.part``, and ``<name>.part.json`` records which version of the file it is of. A
server is asked to continue that version only (RFC 9110, section 13.1.5), so that two versions are never mixed. The
file gets its name once its checksum is right. Publishers gave MD5 checksums, which detect damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import Any

from grcn.errors import DataError, EnvironmentFault, named, one_line

logger = logging.getLogger("grcn")

# Called with the stage, the bytes done and their total. An exception from it ends the work, which can be resumed.
Report = Callable[[str, int, int], None]

_CHUNK = 2**20  # bytes at most between two reports
_ATTEMPTS = 5  # in a row, at one address
_PROGRESS = 2**20  # bytes of progress after which the count of attempts is reset
_BUSY = {408, 425, 429}  # and all from 500 on: statuses that may change within a minute


class Unreachable(EnvironmentFault):
    """No address provides the file."""


class _Unusable(Exception):
    """An address does not have the file."""


class _Dropped(Exception):
    """A transfer ended early and may be tried again.

    Attributes:
        connected: whether the server was reached at all.
    """

    def __init__(self, message: str, connected: bool = True) -> None:
        super().__init__(message)
        self.connected = connected


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    size: int,
    md5: str,
    report: Report,
    timeout: float = 30.0,
    pause: float = 1.0,
) -> None:
    """Downloads a file, unless it is there; after a failure, a kill or an error of ``report`` it can be called again.

    Args:
        urls: addresses with http or https, in the order in which they are tried.
        target: path of the file; its folder exists.
        size: of the whole file, in bytes.
        md5: its checksum, in hex.
        timeout: seconds without a byte, after which a connection counts as dropped.
        pause: seconds before the first new attempt; each further one waits twice as long.

    Raises:
        DataError: the downloaded file has another checksum. It is deleted.
        Unreachable: no address provides the file.
        OSError: it cannot be written.
    """
    part, wrong, reason = part_of(target), None, "no address is known"
    if target.exists():
        wrong = difference(target, size, md5, report)
        if wrong is None:
            return
        target.unlink()
        logger.warning("%s", one_line(f"{target}: deleted ({wrong})"))
    damage = None
    for url in urls:
        whole = False  # whether all of it came from this address
        while not whole:
            whole = not _kept(part)[0]
            try:
                _download(url, part, size, report, timeout, pause)
            except _Unusable as error:
                reason = f"{url.partition('//')[2].partition('/')[0]}: {error}"
                logger.info("%s", one_line(f"{url}: {error}"))
                break
            damage = difference(part, size, md5, report)
            if damage is None:
                part.replace(target)
                discard(target)
                return
            discard(target)
            logger.warning("%s", one_line(f"{url}: {damage}; deleted"))
    if damage is not None:
        raise DataError(f"{target}: deleted ({damage}); try again, or another --mirror, or pass an intact --archive")
    raise Unreachable(f"{target.name}: no mirror has this file ({reason}); check the network, or pass it by --archive")


def part_of(target: Path) -> Path:
    """Returns the path of a file's partial download."""
    return target.with_name(f"{target.name}.part")


def discard(target: Path) -> None:
    """Removes the partial download of a file."""
    part_of(target).unlink(missing_ok=True)
    _notes(part_of(target)).unlink(missing_ok=True)


def difference(path: Path, size: int, md5: str, report: Report) -> str | None:
    """Describes how a file differs from this size in bytes and this MD5; None if it does not."""
    found = path.stat().st_size
    if found != size:
        return f"got {found} bytes, not {size}"
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report("checking", done, size)
    return None if digest.hexdigest() == md5 else f"got MD5 {digest.hexdigest()}, not {md5}"


def _download(url: str, part: Path, size: int, report: Report, timeout: float, pause: float) -> None:
    """Completes a partial download, with further attempts as long as it grows."""
    connected, failures, furthest = False, 0, _kept(part)[0]
    while True:
        try:
            return _receive(url, part, size, report, timeout)
        except _Dropped as error:
            done = _kept(part)[0]
            failures = 1 if done > furthest + _PROGRESS else failures + 1
            connected, furthest = connected or error.connected, max(done, furthest)
            if not connected or failures == _ATTEMPTS:
                raise _Unusable(str(error)) from error
            logger.info("%s", one_line(f"{url}: {error}; trying again"))
        until = time.monotonic() + pause * 2 ** (failures - 1)
        while time.monotonic() < until:
            report("download", done, size)
            time.sleep(min(0.1, pause))


def _receive(url: str, part: Path, size: int, report: Report, timeout: float) -> None:
    """Sends one request, for the missing rest of a partial download."""
    done, notes = _kept(part)
    report("download", done, size)
    if done == size:
        return
    headers = {"Range": f"bytes={done}-", "If-Range": notes["validator"]} if done else {}
    with _open(url, headers, part, timeout) as response:
        version = {"validator": _validator(response), "size": size}
        if response.status == 206:
            start, total = _range(response)
            if start != done or version["validator"] not in (notes.get("validator"), None):
                _notes(part).unlink(missing_ok=True)
                raise _Dropped("the file changed")
        else:
            done, total = 0, response.length
        if total not in (size, None):
            raise _Unusable(f"another file (got {total} bytes, not {size})")
        with named(part), part.open("ab" if done else "wb", buffering=0) as file:
            if not done:
                _note(part, version)
            while chunk := _read(response):
                done += len(chunk)
                if done > size:
                    raise _Unusable(f"another file (got over {size} bytes)")
                file.write(chunk)
                report("download", done, size)
            os.fsync(file.fileno())
    if done < size:
        raise _Dropped(f"the connection broke off after {done} of {size} bytes")


def _open(url: str, headers: dict[str, str], part: Path, timeout: float) -> HTTPResponse:
    # Unlike urlopen, without handlers for local files and FTP, to which a server might redirect.
    opener = urllib.request.OpenerDirector()
    for handler in (
        *(urllib.request.ProxyHandler, urllib.request.UnknownHandler, urllib.request.HTTPHandler),
        *(urllib.request.HTTPSHandler, urllib.request.HTTPRedirectHandler),
        *(urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor),
    ):
        opener.add_handler(handler())
    try:
        return opener.open(urllib.request.Request(url, headers={"User-Agent": "grcn", **headers}), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file has become shorter
            _notes(part).unlink(missing_ok=True)
        elif error.code < 500 and error.code not in _BUSY:
            raise _Unusable(f"HTTP {error.code}") from error
        raise _Dropped(f"HTTP {error.code}") from error
    except (ValueError, InvalidURL) as error:
        raise _Unusable(str(error)) from error
    except urllib.error.URLError as error:  # no connection
        reason = error.reason
        raise _Dropped(getattr(reason, "strerror", None) or str(reason), connected=False) from error
    except (OSError, HTTPException) as error:
        raise _Dropped(str(error) or type(error).__name__) from error


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a broken chunked encoding
        raise _Dropped(str(error) or type(error).__name__) from error


def _validator(response: HTTPResponse) -> str | None:
    """Returns a validator of this version of the file, a strong ETag or else Last-Modified; None without both."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _range(response: HTTPResponse) -> tuple[int, int | None]:
    """Returns the first byte of a partial response and the size of the whole file; (-1, None) if not given."""
    with suppress(ValueError):
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        if unit == "bytes":
            return int(span.partition("-")[0]), int(total)
    return -1, None


def _kept(part: Path) -> tuple[int, dict[str, Any]]:
    """Returns how many bytes of a partial download can be resumed, and the notes about them."""
    try:
        notes = json.loads(_notes(part).read_bytes())
        done = part.stat().st_size
        return (done, notes) if isinstance(notes["validator"], str) and done <= notes["size"] else (0, {})
    except (OSError, ValueError, TypeError, KeyError):
        return 0, {}


def _note(part: Path, version: dict[str, Any]) -> None:
    """Records which version a partial download is of; a crash leaves the whole note or none, for an empty part."""
    path = _notes(part)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(version))
    temporary.replace(path)


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")
