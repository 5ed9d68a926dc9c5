"""Data sets from their archives to readable folders: disturbed, killed and repeated, with the same result."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import programs
import pytest
from downloads import Answer, Published, Server, become, has, noise, tiny_coco, tiny_voc, tree
from waiting import HANG, wait_for

from grcn.apps.prepare_data.download import Unreachable
from grcn.apps.prepare_data.prepare import prepare, tabulate
from grcn.apps.prepare_data.published import DATA_SETS, Split
from grcn.engine.signals import StopSignals
from grcn.errors import ConfigError, DataError, EnvironmentFault
from grcn.fileio import run_lock

TOOL = "tools/prepare_data.py"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy on the way to the server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({}) as running:
        yield running


def published(server: Server, kind: Any = tiny_voc) -> Published:
    tiny = kind(server.url)
    server.files = tiny.served
    return tiny


def run(tiny: Published, root: Path, **options: Any) -> list[Split]:
    return [found for _, found in prepare(tiny.data_set, root, stop=StopSignals(), **options)]


def written(tiny: Published, folder: Path, kind: Any = tiny_voc) -> dict[str, bytes]:
    """What an undisturbed start leaves."""
    with Server(tiny.served) as server:
        run(kind(server.url), folder / "undisturbed")
    return tree(folder / "undisturbed")


@pytest.mark.parametrize("kind", [tiny_voc, tiny_coco])
def test_a_data_set_lies_as_its_reader_expects(server: Server, tmp_path: Path, kind: Any) -> None:
    tiny = published(server, kind)
    assert run(tiny, tmp_path / "data") == list(tiny.data_set.splits)
    left = {path.name for path in (tmp_path / "data/.prepared").iterdir()}
    assert left == {".lock", f"index-{tiny.data_set.name}.json", *(f"{name}.json" for name in tiny.archives)}
    for split in tiny.data_set.splits:
        table = tiny.data_set.load(tmp_path / "data", [split.name])
        assert all(Path(table.path(row)).stat().st_size >= 20_000 for row in range(len(table)))


def test_a_second_start_does_nothing(server: Server, tmp_path: Path) -> None:
    tiny = published(server)
    run(tiny, tmp_path)
    asked, before = len(server.requests), tree(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    assert run(replace_load(tiny), tmp_path) == list(tiny.data_set.splits)
    assert len(server.requests) == asked and tree(tmp_path) == before
    assert times == {path: path.stat().st_mtime_ns for path in times}


def replace_load(tiny: Published) -> Published:
    """The same data set with a reader that fails."""

    def load(*_: object) -> Any:
        raise AssertionError("read again")

    return Published(replace(tiny.data_set, load=load), tiny.archives)


def test_what_was_removed_comes_back(server: Server, tmp_path: Path) -> None:
    tiny = published(server)
    run(tiny, tmp_path)
    before = tree(tmp_path)
    (tmp_path / "VOC2007/ImageSets/Main/test.txt").unlink()
    run(tiny, tmp_path)
    assert tree(tmp_path) == before and [request.path for request in server.requests].count("/test.tar") == 2


def test_archives_at_hand_are_verified_and_left_alone(server: Server, tmp_path: Path) -> None:
    tiny = published(server)
    (tmp_path / "hand").mkdir()
    paths = [tmp_path / "hand" / name for name in tiny.archives]
    for path in paths:
        path.write_bytes(tiny.archives[path.name])
    run(tiny, tmp_path / "data", archives=paths[:1])
    assert [request.path for request in server.requests] == ["/test.tar"]
    assert tree(tmp_path / "hand") == tiny.archives
    paths[1].write_bytes(tiny.archives["test.tar"][:-1] + b"x")
    with pytest.raises(DataError, match=r"test.tar: damaged, or another file \(got MD5 .*; pass an intact one"):
        run(tiny, tmp_path / "other", archives=paths)
    assert paths[1].exists()
    with pytest.raises(ConfigError, match="mine.tar: not an archive of tiny; pass trainval.tar, test.tar"):
        run(tiny, tmp_path / "other", archives=[tmp_path / "mine.tar"])
    with pytest.raises(DataError, match="test.tar: no such file"):
        run(tiny, tmp_path / "other", archives=[tmp_path / "test.tar"])


def test_mirrors_replace_the_publisher_and_archives_are_kept_if_asked(server: Server, tmp_path: Path) -> None:
    tiny = tiny_voc()  # whose own address is closed
    server.files = {f"/copy{name}": contents for name, contents in tiny.served.items()}
    run(tiny, tmp_path, mirrors=[f"{server.url}empty", f"{server.url}copy/"], keep=True)
    assert [request.status for request in server.requests] == [404, 200] * 2
    for name, contents in tiny.archives.items():
        assert (tmp_path / ".prepared" / name).read_bytes() == contents
    run(tiny, tmp_path)  # without the flag: nothing is done, so nothing is removed
    assert (tmp_path / ".prepared/test.tar").exists()


def test_without_a_network_there_is_another_way(tmp_path: Path) -> None:
    tiny = tiny_voc()
    with pytest.raises(Unreachable, match="trainval.tar: no mirror has this file .127.0.0.1:9: .*pass it by --archive"):
        run(tiny, tmp_path)


def test_too_small_a_disk_is_reported_before_the_download(server: Server, tmp_path: Path) -> None:
    tiny = published(server)
    huge = tuple(replace(archive, unpacked=10**15) for archive in tiny.data_set.archives)
    with pytest.raises(EnvironmentFault, match=r"too little space \(2000000.0 GB needed, \d+.\d GB free\); free some"):
        run(Published(replace(tiny.data_set, archives=huge), tiny.archives), tmp_path)
    assert not server.requests


def test_other_files_in_the_way_are_not_overwritten(server: Server, tmp_path: Path) -> None:
    """Nor links. Equal files are no hindrance, and the list of a split is not there before its images."""
    tiny = published(server)
    mine = tmp_path / "data/VOC2007/JPEGImages/000004.jpg"
    mine.parent.mkdir(parents=True)
    for make in (lambda: mine.write_bytes(b"mine"), lambda: mine.symlink_to("nowhere")):
        make()
        with pytest.raises(DataError, match=r"000004.jpg: exists and differs from the archive.s; move it away"):
            run(tiny, tmp_path / "data")
        assert os.path.lexists(mine) and not (tmp_path / "data/VOC2007/ImageSets/Main/test.txt").exists()
        mine.unlink()
    mine.write_bytes(noise(40_000, seed=4))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data/VOC2007/ImageSets").rename(tmp_path / "lists")
    (tmp_path / "data/VOC2007/ImageSets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="ImageSets: exists and differs"):
        run(tiny, tmp_path / "data")
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "data/VOC2007/ImageSets").unlink()
    (tmp_path / "lists").rename(tmp_path / "data/VOC2007/ImageSets")
    asked = len(server.requests)
    run(tiny, tmp_path / "data")
    assert len(server.requests) == asked and tree(tmp_path / "data") == written(tiny, tmp_path)


def test_other_numbers_than_the_published_are_an_error(server: Server, tmp_path: Path) -> None:
    tiny = published(server)
    splits = (Split("VOC2007/trainval", 3, 99), Split("VOC2007/test", 7, 3))
    other = Published(replace(tiny.data_set, splits=splits), tiny.archives)
    with pytest.raises(DataError, match=r"VOC2007/test is not as published \(got 2 images, not 7\); remove VOC2007"):
        run(other, tmp_path)
    (tmp_path / "VOC2007/JPEGImages/000002.jpg").unlink()
    with pytest.raises(DataError, match="000002.jpg: no such file; remove"):
        run(tiny, tmp_path)


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    process = programs.CONTEXT.Process(target=hold, args=(tmp_path / ".prepared", tmp_path / "held"))
    process.start()
    try:
        wait_for((tmp_path / "held").exists, process)
        with pytest.raises(EnvironmentFault, match=rf"in use by process {process.pid} on "):
            run(published(server), tmp_path)
    finally:
        process.kill()
        process.join()
    run(published(server), tmp_path)


def hold(folder: Path, sign: Path) -> None:
    with run_lock(folder):
        sign.touch()
        time.sleep(HANG)


MOMENTS = [
    ("grcn.apps.prepare_data.download:_read", 2, False),
    ("grcn.apps.prepare_data.download:difference", 1, False),
    ("grcn.apps.prepare_data.download:discard", 1, False),
    ("grcn.apps.prepare_data.prepare:unpack", 1, False),
    ("tarfile:TarFile.extract", 4, False),
    ("tarfile:TarFile.extract", 11, True),
    ("os:sync", 1, False),
    ("grcn.apps.prepare_data.prepare:_move", 1, False),
    ("grcn.apps.prepare_data.prepare:_move", 1, True),
    ("grcn.apps.prepare_data.prepare:_move", 3, True),
    ("grcn.apps.prepare_data.prepare:_write", 1, False),
    ("grcn.apps.prepare_data.prepare:_write", 1, True),
    ("grcn.apps.prepare_data.prepare:_write", 2, False),
    ("grcn.apps.prepare_data.prepare:_index", 1, False),
    ("grcn.apps.prepare_data.prepare:_write", 3, False),
]


def test_killed_at_any_moment_it_continues(server: Server, tmp_path: Path) -> None:
    """The result is that of an undisturbed start, to the byte."""
    tiny = published(server)
    expected = written(tiny, tmp_path)
    processes = []
    for number, (place, nth, after) in enumerate(MOMENTS):
        patch = partial(programs.signal_at, place, signal.SIGKILL, nth, after)
        process = programs.CONTEXT.Process(target=become, args=(tiny.data_set, tmp_path / str(number), patch))
        process.start()
        processes.append(process)
    for number, process in enumerate(processes):
        process.join()
        assert process.exitcode == -signal.SIGKILL, MOMENTS[number]
        run(tiny, tmp_path / str(number))
        assert tree(tmp_path / str(number)) == expected, MOMENTS[number]


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_ended_in_the_middle_of_a_download_it_continues(
    server: Server, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """By a signal from outside, while the server is silent for a moment."""
    tiny = published(server)
    signalled = threading.Event()
    server.plan = [Answer(cut=50_000, until=signalled.is_set)]
    process = programs.CONTEXT.Process(target=become, args=(tiny.data_set, tmp_path / "data", None))
    process.start()
    part = tmp_path / "data/.prepared/trainval.tar.part"
    wait_for(lambda: has(part, 50_000), process)
    os.kill(process.pid, number)
    signalled.set()
    process.join(HANG)
    assert process.exitcode == code and part.stat().st_size >= 50_000
    run(tiny, tmp_path / "data")
    resumed = server.requests[1]
    assert int(resumed.start[6:-1]) >= 50_000 and resumed.status == 206
    assert tree(tmp_path / "data") == written(tiny, tmp_path)


def test_the_table_sets_found_beside_published() -> None:
    counts = [
        (Split("val2014", 40504, 291875), Split("val2014", 40504, 291874)),
        (Split("a", 2, None), Split("a", 2, 1)),
    ]
    lines = tabulate(counts).splitlines()
    assert [line.split() for line in lines] == [
        ["split", "images", "published", "objects", "published"],
        ["val2014", "40,504", "40,504", "291,874", "291,875"],
        ["a", "2", "2", "1", "–"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_what_is_published_is_well_formed() -> None:
    for name, data_set in DATA_SETS.items():
        assert data_set.name == name and sum(split.images for split in data_set.splits) > 20_000
        for archive in data_set.archives:
            assert len(bytes.fromhex(archive.md5)) == 16 and archive.name.endswith((".tar", ".zip"))
            assert all(url.endswith("/") and url.startswith("http") for url in archive.urls)
            assert 0.9 * archive.size < archive.unpacked


def test_the_tool_reports_mistakes_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other.tar").touch()
    root = ["--root", tmp_path / "data"]
    for code, named, *args in (
        (2, "invalid choice: 'voc2008'", "voc2008", *root),
        (2, "required: --root", "voc"),
        (2, "no address with http", "voc", *root, "--mirror", "file:///etc"),
        (2, "other.tar: not an archive of voc", "voc", *root, "--archive", tmp_path / "other.tar"),
        (3, "val2014.zip: no such file", "coco2014", *root, "--archive", tmp_path / "val2014.zip"),
        (2, "other.tar: not an archive of voc", *root, "voc", "--archive", tmp_path / "other.tar"),
        (3, "voc", "--root", "voc", "--test", "0.2", "--format", "voc", "split"),
        (5, "Not a directory", "voc", "--root", tmp_path / "file"),
    ):
        programs.assert_contract(programs.call(TOOL, *args, folder=tmp_path), code, named)


needs_space = pytest.mark.skipif(
    shutil.disk_usage(tempfile.gettempdir()).free < 6e9, reason="the tool wants the space of all VOC"
)


@needs_space
def test_the_tool_without_a_network_names_the_files_to_download(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # so that nobody else listens there
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}/pascal"
        args = ["voc", "--root", tmp_path / "data", "--mirror", closed]
        result = programs.call(TOOL, *args, folder=tmp_path, variables={"no_proxy": "127.0.0.1"})
    named = "VOCtrainval_06-Nov-2007.tar: no mirror has this file (127.0.0.1:"
    programs.assert_contract(result, 5, named, "or pass it by --archive")
    for archive in DATA_SETS["voc"].archives:
        assert f"{archive.urls[0]}{archive.name} (MD5 {archive.md5})" in result.stderr


@needs_space
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_tool_handles_signals(server: Server, tmp_path: Path, number: signal.Signals, code: int) -> None:
    archive = DATA_SETS["voc"].archives[0]
    server.files[f"/{archive.name}"] = bytes(50_000)
    signalled = threading.Event()
    server.plan = [Answer(length=archive.size, until=signalled.is_set)]
    args = ["voc", "--root", tmp_path / "data", "--mirror", server.url]
    process = programs.start(TOOL, *args, folder=tmp_path, variables={"no_proxy": "127.0.0.1"})
    part = tmp_path / f"data/.prepared/{archive.name}.part"
    wait_for(lambda: has(part, 50_000), process)
    os.kill(process.pid, number)
    signalled.set()
    process.join(HANG)
    result = programs.outcome(TOOL, args, process, tmp_path)
    assert result.code == code and part.stat().st_size == 50_000, result
    assert "stopped by a signal; run it again" in result.stderr and "Traceback" not in result.stderr
