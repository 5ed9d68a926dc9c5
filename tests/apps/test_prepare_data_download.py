"""Downloads from a real server that fails in every way, and archives that are not what they should be."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from downloads import Answer, Server, has, noise, tar, tree, zipped
from waiting import HANG

from grcn.apps.prepare_data import download
from grcn.apps.prepare_data.download import Unreachable, fetch
from grcn.apps.prepare_data.unpack import unpack
from grcn.errors import DataError, EnvironmentFault

BODY = noise(300_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server({"/file": BODY}) as running:
        yield running


def get(target: Path, *urls: str, **options: Any) -> list[tuple[str, int, int]]:
    """Fetches the file; returns what was reported."""
    reported: list[tuple[str, int, int]] = []
    settings = {"size": len(BODY), "md5": MD5, "timeout": HANG, "pause": 0.001} | options
    fetch(urls, target, report=lambda *said: reported.append(said), **settings)
    assert tree(target.parent) == {target.name: BODY}
    return reported


def asked(server: Server) -> list[tuple[int, int]]:
    """First byte asked for, and status, of every request."""
    return [(int((request.start or "bytes=0-")[6:-1]), request.status) for request in server.requests]


def test_a_file_arrives_and_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    reported = get(tmp_path / "file", f"{server.url}file")
    assert reported[0] == ("download", 0, len(BODY)) and reported[-1] == ("checking", len(BODY), len(BODY))
    assert {stage for stage, _, _ in reported} == {"download", "checking"} and asked(server) == [(0, 200)]
    get(tmp_path / "file", f"{server.url}file")
    assert len(server.requests) == 1


@pytest.mark.parametrize("reset", [False, True])
def test_a_dropped_connection_is_continued(server: Server, tmp_path: Path, reset: bool) -> None:
    """Where it broke off: no byte comes twice."""
    part = tmp_path / "file.part"
    server.plan = [  # ended once all has arrived, since a reset loses what lies waiting
        Answer(cut=100_000, reset=reset, until=lambda: has(part, 100_000)),
        Answer(cut=50_000, reset=reset, until=lambda: has(part, 150_000)),
    ]
    get(tmp_path / "file", f"{server.url}file")
    assert asked(server) == [(0, 200), (100_000, 206), (150_000, 206)]
    assert [request.version for request in server.requests] == [None, f'"{MD5}"', f'"{MD5}"']


def test_silence_counts_as_a_dropped_connection(server: Server, tmp_path: Path) -> None:
    end = threading.Event()
    server.plan = [Answer(cut=100_000, until=end.is_set), Answer(cut=0, until=end.is_set)]
    get(tmp_path / "file", f"{server.url}file", timeout=1.0)
    end.set()
    assert not server.impatient
    starts, statuses = zip(*asked(server), strict=True)
    assert len(starts) >= 3 and sorted(starts) == list(starts)  # a busy server may seem silent, too
    assert statuses[0] == 200 and set(statuses[1:]) == {206}


def test_a_server_without_ranges_or_validators_starts_over(server: Server, tmp_path: Path) -> None:
    server.plan = [Answer(cut=100_000), Answer(ranges=False, cut=200_000), Answer(ranges=False)]
    get(tmp_path / "file", f"{server.url}file")
    assert asked(server) == [(0, 200), (100_000, 200), (200_000, 200)]
    server.requests.clear()
    server.plan = [Answer(validators=False, cut=100_000), Answer(validators=False)]
    (tmp_path / "file").unlink()
    get(tmp_path / "file", f"{server.url}file")
    assert asked(server) == [(0, 200), (0, 200)]


def test_a_file_that_changed_in_between_is_not_glued_together(server: Server, tmp_path: Path) -> None:
    old = noise(len(BODY), seed=1)
    server.plan = [Answer(body=old, cut=100_000)]
    get(tmp_path / "file", f"{server.url}file")
    assert asked(server) == [(0, 200), (100_000, 200)]
    server.plan = [Answer(body=old, cut=100_000), Answer(careless=True)]
    (tmp_path / "file").unlink()
    reported = get(tmp_path / "file", f"{server.url}file")
    assert asked(server)[2:] == [(0, 200), (100_000, 206), (0, 200)]
    assert [stage for stage, done, total in reported if done == total].count("checking") == 1


def test_attempts_end_where_nothing_more_arrives(server: Server, tmp_path: Path) -> None:
    server.usual = Answer(cut=0)
    server.plan = [Answer(cut=100_000)]
    with pytest.raises(Unreachable, match=r"broke off after 100000 of 300000 bytes"):
        get(tmp_path / "file", f"{server.url}file")
    assert len(server.requests) == 5
    assert (tmp_path / "file.part").read_bytes() == BODY[:100_000]
    server.usual = Answer()
    get(tmp_path / "file", f"{server.url}file")
    assert asked(server)[-1] == (100_000, 206)


def test_attempts_are_counted_anew_while_it_grows(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten interruptions are too many in a row, but not on the way."""
    monkeypatch.setattr(download, "_PROGRESS", 10_000)
    server.plan = [Answer(cut=25_000) for _ in range(10)]
    get(tmp_path / "file", f"{server.url}file")
    assert len(server.requests) == 11


def test_errors_of_a_server_pass_or_lead_to_the_next_address(server: Server, tmp_path: Path) -> None:
    server.plan = [Answer(status=500), Answer(status=503), Answer(status=429)]
    get(tmp_path / "file", f"{server.url}file")
    assert [status for _, status in asked(server)] == [500, 503, 429, 200]
    (tmp_path / "file").unlink()
    server.requests.clear()
    server.plan = [Answer(status=403)]
    get(tmp_path / "file", f"{server.url}file", f"{server.url}missing", "http://127.0.0.1:9/file", f"{server.url}file")
    assert [(request.path, request.status) for request in server.requests] == [
        ("/file", 403), ("/missing", 404), ("/file", 200),
    ]  # fmt: skip


def test_a_redirect_is_followed_and_keeps_the_range(server: Server, tmp_path: Path) -> None:
    server.plan = [Answer(location="/file"), Answer(cut=100_000), Answer(location="/file")]
    get(tmp_path / "file", f"{server.url}moved")
    assert asked(server) == [(0, 302), (0, 200), (100_000, 302), (100_000, 206)]
    assert [request.path for request in server.requests] == ["/moved", "/file"] * 2


def test_a_redirect_to_a_local_file_is_not_followed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(BODY)
    server.usual = Answer(location=f"file://{tmp_path}/secret")
    (tmp_path / "in").mkdir()
    with pytest.raises(Unreachable):
        get(tmp_path / "in/file", f"{server.url}moved")
    assert tree(tmp_path / "in") == {}


def test_tampered_bytes_are_deleted_and_named(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forged = BODY[:-1] + bytes([BODY[-1] ^ 1])
    server.files["/forged"] = forged
    with pytest.raises(DataError, match=f"file: deleted .got MD5 {hashlib.md5(forged).hexdigest()}, not {MD5}"):
        get(tmp_path / "file", f"{server.url}forged")
    assert tree(tmp_path) == {} and len(server.requests) == 1
    with caplog.at_level(logging.WARNING, "grcn"):
        get(tmp_path / "file", f"{server.url}forged", f"{server.url}file")
    assert "/forged: got MD5" in caplog.text


def test_a_part_that_was_damaged_on_the_disk_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    """From the same address: not the server is to blame."""
    server.usual = Answer(cut=0)
    server.plan = [Answer(cut=100_000)]
    with pytest.raises(Unreachable):
        get(tmp_path / "file", f"{server.url}file")
    server.usual = Answer()
    with (tmp_path / "file.part").open("r+b") as file:
        file.write(b"\0" * 4096)
    get(tmp_path / "file", f"{server.url}file")
    assert asked(server)[-2:] == [(100_000, 206), (0, 200)]


@pytest.mark.parametrize("answer", [Answer(length=400_000), Answer(body=b"<html>login</html>"), Answer(length=0)])
def test_another_file_is_recognized_by_its_length(server: Server, tmp_path: Path, answer: Answer) -> None:
    """Before it is downloaded, or where no length is sent as soon as it is too long."""
    server.plan = [answer]
    if answer.length == 0:
        answer.body = BODY + bytes(5_000_000)
    server.files["/sound"] = BODY
    reported = get(tmp_path / "file", f"{server.url}file", f"{server.url}sound")
    assert [request.path for request in server.requests] == ["/file", "/sound"]
    assert max(done for _, done, _ in reported) == len(BODY)
    assert [stage for stage, done, total in reported if done == total].count("checking") == 1


@pytest.mark.parametrize("notes", [b"", b"{", b"[]", b'{"validator": null, "size": 300000}', b'{"validator": "x"}'])
def test_a_part_of_unknown_version_is_not_continued(server: Server, tmp_path: Path, notes: bytes) -> None:
    (tmp_path / "file.part").write_bytes(noise(100_000, seed=2))
    (tmp_path / "file.part.json").write_bytes(notes)
    get(tmp_path / "file", f"{server.url}file")
    assert asked(server) == [(0, 200)]


def test_a_part_longer_than_the_file_is_not_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(noise(len(BODY) + 1))
    (tmp_path / "file.part.json").write_text(json.dumps({"validator": f'"{MD5}"', "size": len(BODY)}))
    get(tmp_path / "file", f"{server.url}file")
    assert asked(server) == [(0, 200)]


def test_what_the_report_raises_ends_it_and_it_can_be_continued(server: Server, tmp_path: Path) -> None:
    def report(stage: str, done: int, total: int) -> None:
        if done >= 100_000:
            raise SystemExit(75)

    with pytest.raises(SystemExit):
        fetch([f"{server.url}file"], tmp_path / "file", size=len(BODY), md5=MD5, report=report)
    kept = (tmp_path / "file.part").stat().st_size
    assert 100_000 <= kept
    get(tmp_path / "file", f"{server.url}file")
    assert kept == len(BODY) or asked(server)[1] == (kept, 206)


def test_no_address_at_all_and_broken_ones(tmp_path: Path) -> None:
    for urls in ([], ["http://127.0.0.1:9/file"], ["http://127.0.0.1:x/file"], ["ftp://127.0.0.1/file"]):
        with pytest.raises(
            Unreachable, match="file: no mirror has this file .*; check the network, or pass it by --ar"
        ):
            get(tmp_path / "file", *urls)
    assert tree(tmp_path) == {}


def opened(tmp_path: Path, name: str, contents: bytes, limit: int = 10**6) -> dict[str, bytes]:
    """Unpacks an archive in a folder that holds nothing else; returns what was written."""
    (tmp_path / name).write_bytes(contents)
    (tmp_path / "in").mkdir(exist_ok=True)
    seen: list[tuple[str, int, int]] = []
    count = unpack(tmp_path / name, tmp_path / "in/new", limit=limit, report=lambda *said: seen.append(said))
    files = {key: value for key, value in tree(tmp_path / "in/new").items() if (tmp_path / "in/new" / key).is_file()}
    assert count == len(files) and all(stage == "unpacking" for stage, _, _ in seen)
    if seen:
        assert seen[-1][1] == seen[-1][2] == sum(map(len, files.values()))
    return files


def test_sound_archives_unpack(tmp_path: Path) -> None:
    files = {"a/b.txt": b"text", "a/c/d.jpg": noise(3_000_000), "empty": b""}
    assert opened(tmp_path, "x.tar", tar({"./": _info(tarfile.DIRTYPE), **files}), 10**7) == files
    (tmp_path / "in/new").rename(tmp_path / "tar")
    assert opened(tmp_path, "x.zip", zipped([("a/", b""), *files.items()]), 10**7) == files
    assert not os.access(tmp_path / "in/new/a/b.txt", os.X_OK)


def _info(kind: bytes, **values: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.mode = kind, 0o777
    for name, value in values.items():
        setattr(info, name, value)
    return info


def _link_in_zip() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    return info


BAD = {
    "parent.tar": (tar({"../escaped": b"x"}), "leads out"),
    "deep.tar": (tar({"a/../../escaped": b"x"}), "leads out"),
    "absolute.tar": (tar({"/tmp/grcn-escaped": b"x"}), "leads out"),
    "backslash.tar": (tar({"..\\escaped": b"x"}), "leads out"),
    "newline.tar": (tar({"a\nb": b"x"}), "leads out"),
    "folder.tar": (tar({"../escaped": _info(tarfile.DIRTYPE)}), "leads out"),
    "symlink.tar": (tar({"link": _info(tarfile.SYMTYPE, linkname="/etc"), "link/x": b"x"}), "no plain file"),
    "hardlink.tar": (tar({"link": _info(tarfile.LNKTYPE, linkname="../../victim")}), "no plain file"),
    "device.tar": (tar({"null": _info(tarfile.CHRTYPE, devmajor=1, devminor=3)}), "no plain file"),
    "block.tar": (tar({"disk": _info(tarfile.BLKTYPE)}), "no plain file"),
    "pipe.tar": (tar({"pipe": _info(tarfile.FIFOTYPE)}), "no plain file"),
    "twice.tar": (tar({"a/b": b"x", "./a/b": b"y"}), "appears twice"),
    "into.tar": (tar({"a": b"x", "a/b": b"y"}), "both file and folder"),
    "folder_too.tar": (tar({"a": b"x", "./a": _info(tarfile.DIRTYPE)}), "both file and folder"),
    "bomb.tar": (tar({"a": bytes(2_000_000)}), "unpacks to 2000000 bytes, over the 1000000"),
    "cut.tar": (tar({"a": b"x", "b": noise(100_000)})[:50_000], "not an intact archive"),
    "text.tar": (b"<html>" * 1000, "not an intact archive"),
    "parent.zip": (zipped([("../escaped", b"x")]), "leads out"),
    "absolute.zip": (zipped([("/tmp/grcn-escaped", b"x")]), "leads out"),
    "backslash.zip": (zipped([("..\\escaped", b"x")]), "leads out"),
    "symlink.zip": (zipped([(_link_in_zip(), b"/etc")]), "no plain file"),
    "twice.zip": (zipped([("a", b"x"), ("./a", b"y")]), "appears twice"),
    "into.zip": (zipped([("a", b"x"), ("a/b", b"y")]), "both file and folder"),
    "folder_too.zip": (zipped([("a", b"x"), ("a/", b"")]), "both file and folder"),
    "bomb.zip": (zipped([(str(k), bytes(500_000)) for k in range(3)]), "unpacks to 1500000 bytes"),
    "cut.zip": (zipped([("a", noise(100_000))])[:50_000], "not an intact archive"),
    "text.zip": (b"<html>" * 1000, "not an intact archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_archives_are_refused(tmp_path: Path, name: str) -> None:
    """In one line that names them; nothing is written beside the new folder, and nothing at all but of broken ones."""
    contents, named = BAD[name]
    (tmp_path / "victim").write_bytes(b"safe")
    with pytest.raises(DataError, match=named) as caught:
        opened(tmp_path, name, contents)
    assert name in str(caught.value) and "; use another copy" in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "victim").read_bytes() == b"safe" and not Path("/tmp/grcn-escaped").exists()
    assert {path.name for path in tmp_path.iterdir()} == {name, "victim", "in"}
    assert not tree(tmp_path / "in")


def test_a_zip_that_lies_about_sizes_or_contents_is_refused(tmp_path: Path) -> None:
    """Its directory promises ten bytes where 900,000 are packed; and a flipped bit."""
    sound = zipped([("a", bytes(900_000))])
    lying = sound.replace(struct.pack("<I", 900_000), struct.pack("<I", 10))
    with pytest.raises(DataError, match="not an intact archive"):
        opened(tmp_path, "lying.zip", lying)
    assert sum(map(len, tree(tmp_path / "in").values())) <= 10
    stored = zipped([("a", noise(50_000))])
    flipped = stored[:1000] + bytes([stored[1000] ^ 1]) + stored[1001:]
    (tmp_path / "in/new").rename(tmp_path / "old")
    with pytest.raises(DataError, match="not an intact archive"):
        opened(tmp_path, "flipped.zip", flipped)


def test_a_python_that_cannot_unpack_safely_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(EnvironmentFault, match="update it to 3.11.4 or later"):
        opened(tmp_path, "x.tar", tar({"a": b"x"}))
    assert tree(tmp_path / "in") == {}


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    """The second entry is said to have a petabyte."""
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("a", b"x")
        archive.writestr("b", b"x")
        archive.filelist[1].file_size = 10**15
    with pytest.raises(EnvironmentFault, match=r"too little space \(1000000.0 GB needed, \d+.\d GB free\); free some"):
        opened(tmp_path, "huge.zip", (tmp_path / "made.zip").read_bytes(), limit=10**16)
    assert tree(tmp_path / "in") == {}
