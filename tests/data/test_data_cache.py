"""Annotations from the cache: the same tables, warnings and errors, whatever happened to the source or the cache."""

from __future__ import annotations

import gzip
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import HANG

import grcn
from grcn.data import coco, coco_json
from grcn.data.annotations import Annotations
from grcn.data.faults import Notes
from grcn.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/grcn"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files that were parsed, not taken from the cache."""
    paths: list[Path] = []
    parse = coco_json.parse

    def counted(path: Path, data: bytes) -> Any:
        paths.append(path)
        return parse(path, data)

    monkeypatch.setattr(coco_json, "parse", counted)
    yield paths


def document(**changes: Any) -> dict[str, Any]:
    """Fifty images, some under one name, and objects in any order, of which some are dropped or clipped."""
    random = np.random.default_rng(0)
    corner, side = random.uniform(0, 60, (2, 300, 2)).round(2)
    side[::50] = 0
    annotations = [
        {"id": 900 - k, "image_id": 7 * int(random.integers(50)), "category_id": int(random.choice([90, 3, 18]))}
        | {"bbox": [*corner[k].tolist(), *side[k].tolist()], "segmentation": [[1, 2, 3, 4]]}
        | ({"area": float(side[k].prod() / 3), "iscrowd": int(k % 9 == 0)} if k % 4 else {})
        for k in range(300)
    ]
    images = [{"id": 7 * k, "file_name": f"Bücher/{k % 48}.jpg", "width": 90, "height": 80} for k in range(50)]
    categories = [{"id": 90, "name": "Katze"}, {"id": 3, "name": "katze"}, {"id": 18, "name": "犬"}]
    return {"images": images, "annotations": annotations, "categories": categories} | changes


def write(root: Path, content: Any = None) -> Path:
    path = root / "annotations/instances_train.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content or document()))
    return path


def assert_same(table: Annotations, other: Annotations) -> None:
    assert table.fingerprint() == other.fingerprint()
    assert (table.name, table.root, table.classes) == (other.name, other.root, other.classes)
    assert {k: v.dtype for k, v in vars(table).items() if isinstance(v, np.ndarray)} == {
        k: v.dtype for k, v in vars(other).items() if isinstance(v, np.ndarray)
    }


@pytest.mark.parametrize("classes", [None, ["犬", "katze", "Katze"]])
def test_tables_and_warnings_are_those_of_the_first_time(tmp_path, cache, parsed, caplog, classes):
    write(tmp_path)
    first = coco.load(tmp_path, ["train"], classes)
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert {level for level, _ in said} == {logging.WARNING} and len(said) == 4
    caplog.clear()
    assert len(list(cache.iterdir())) == len(parsed) == 1
    assert_same(first, coco.load(tmp_path, ["train"], classes))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == said
    assert len(parsed) == 1


def test_one_cache_serves_all_choices_of_classes_and_its_errors_are_the_same(tmp_path, parsed):
    write(tmp_path)
    assert coco.load(tmp_path, ["train"]).classes == ("katze", "犬", "Katze")
    assert coco.load(tmp_path, ["train"], ["Katze", "katze", "犬"]).classes == ("Katze", "katze", "犬")
    assert len(parsed) == 1
    for _ in range(2):
        with pytest.raises(DataError, match="unknown class .got 'katze'"):
            coco.load(tmp_path, ["train"], ["Katze"])


def test_relative_and_linked_paths_name_their_files_as_asked(tmp_path, monkeypatch, parsed):
    write(tmp_path)
    whole = coco.load(tmp_path, ["train"])
    monkeypatch.chdir(tmp_path)
    table = coco.load(".", ["train"])
    assert table.root == "." and table.fingerprint() == whole.fingerprint()
    assert len(parsed) == 1


def test_a_changed_file_is_noticed_even_with_its_old_size_and_time(tmp_path, parsed):
    path = write(tmp_path)
    old = path.stat()
    before = coco.load(tmp_path, ["train"])
    path.write_text(path.read_text().replace('"width": 90', '"width": 91', 1))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    after = coco.load(tmp_path, ["train"])
    assert before.sizes[0].tolist() == [80, 90] and after.sizes[0].tolist() == [80, 91]
    assert_same(after, coco.load(tmp_path, ["train"]))
    assert len(parsed) == 2


def test_a_broken_file_is_an_error_each_time_and_not_kept(tmp_path, cache):
    write(tmp_path)
    coco.load(tmp_path, ["train"])
    (kept,) = cache.iterdir()
    contents = kept.read_bytes()
    path = write(tmp_path, document(categories=[{"id": 1, "name": "cow"}]))
    for _ in range(2):
        with pytest.raises(DataError, match="category_id: unknown"):
            coco.load(tmp_path, ["train"])
    assert kept.read_bytes() == contents
    path.unlink()
    with pytest.raises(DataError, match="no such file; set data.root"):
        coco.load(tmp_path, ["train"])
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a file"):
        coco.load(tmp_path, ["train"])


def test_what_was_read_as_meant_is_counted_and_refused_from_the_cache_too(tmp_path, parsed):
    content = document()
    for record in content["annotations"]:
        record["iscrowd"] = bool(record.get("iscrowd"))
    path = write(tmp_path, content)
    counted = []
    for _ in range(2):
        notes = Notes()
        coco.load(tmp_path, ["train"], notes=notes)
        counted.append((notes.counts, notes.places))
    kind = "values of annotations/iscrowd other than 0 and 1"
    assert counted[0] == counted[1] and counted[0][0] == {kind: 300}
    assert len(counted[0][1][kind]) == 20 and counted[0][1][kind][0].startswith(f"{path}#/annotations/0/iscrowd: ")
    (tmp_path / "copy/annotations").mkdir(parents=True)
    write(tmp_path / "copy", content)
    with pytest.raises(DataError, match=r"copy/.*#/annotations/0/iscrowd: .* other than 0 and 1 are refused"):
        coco.load(tmp_path / "copy", ["train"], notes=Notes(strict=True))
    assert len(parsed) == 1


@pytest.mark.parametrize("order", [("train", "train:packed.json.gz"), ("train:packed.json.gz", "train")])
def test_the_cache_of_a_gzipped_file_does_not_keep_how_it_was_called(tmp_path, parsed, order):
    path = write(tmp_path, document())
    path.write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "packed.json.gz").write_bytes(path.read_bytes())
    kind = "gzipped files that are not called so"
    for split in order:
        notes = Notes()
        coco.load(tmp_path, [split], notes=notes)
        assert notes.counts == ({kind: 1} if split == "train" else {})
    assert len(parsed) == 1


def damages(contents: bytes) -> Iterator[bytes]:
    yield b""
    yield contents[:20]
    yield contents[: len(contents) // 2]
    yield contents + b"\0"
    for place in range(0, len(contents), len(contents) // 40):
        yield contents[:place] + bytes([contents[place] ^ 4]) + contents[place + 1 :]


def test_a_damaged_cache_is_ignored_and_rewritten(tmp_path, cache, parsed):
    write(tmp_path)
    table = coco.load(tmp_path, ["train"])
    (kept,) = cache.iterdir()
    contents = kept.read_bytes()
    for damaged in damages(contents):
        kept.write_bytes(damaged)
        parsed.clear()
        assert_same(table, coco.load(tmp_path, ["train"]))
        assert len(parsed) == 1 and kept.read_bytes() == contents
    assert list(cache.iterdir()) == [kept]


def test_another_version_does_not_read_it(tmp_path, parsed, monkeypatch):
    write(tmp_path)
    coco.load(tmp_path, ["train"])
    monkeypatch.setattr(coco, "FORMAT", "coco-0")
    coco.load(tmp_path, ["train"])
    assert len(parsed) == 2


@pytest.mark.parametrize("obstacle", ["a file", "a folder in its place"])
def test_where_nothing_can_be_written_it_works_and_says_so(tmp_path, cache, caplog, obstacle):
    caplog.set_level(logging.INFO)
    write(tmp_path)
    table = coco.load(tmp_path, ["train"])
    (kept,) = cache.iterdir()
    kept.unlink()
    if obstacle == "a file":
        cache.rmdir()
        cache.touch()
    else:
        kept.mkdir()
    for _ in range(2):
        caplog.clear()
        assert_same(table, coco.load(tmp_path, ["train"]))
        assert f"{cache}: not written" in caplog.text
    assert obstacle == "a file" or list(cache.iterdir()) == [kept]


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="permissions of POSIX")
def test_a_read_only_folder(tmp_path, cache):
    write(tmp_path)
    cache.mkdir(parents=True, mode=0o500)
    tmp_path.chmod(0o755)  # relative to which the files can be read by anybody
    program = f"""
import os
from grcn.data import coco
os.chdir({str(tmp_path)!r})
cache = os.environ.pop("XDG_CACHE_HOME")
coco.load(".", ["train"])  # imports all that it needs, also from folders that not everybody may read
os.environ["XDG_CACHE_HOME"] = cache
if os.getuid() == 0:  # who may write anywhere
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(*(coco.load(".", ["train"]).fingerprint() for _ in range(2)))
"""
    said = run(program, os.environ | {"HOME": str(tmp_path)}).split()
    assert list(cache.iterdir()) == []
    assert said == 2 * [coco.load(tmp_path, ["train"]).fingerprint()]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOME": "home"}, "home/.cache/grcn"),
        ({"HOME": "home", "XDG_CACHE_HOME": "relative"}, "home/.cache/grcn"),
        ({"HOME": "home", "XDG_CACHE_HOME": ""}, "home/.cache/grcn"),
        ({"HOME": "home", "XDG_CACHE_HOME": "{}/other"}, "other/grcn"),
        ({"HOME": "missing"}, "missing/.cache/grcn"),
        ({}, None),
    ],
)
def test_where_the_cache_is(tmp_path, variables, expected):
    """Without HOME and without an entry in the list of users there is no cache."""
    write(tmp_path)
    (tmp_path / "home").mkdir()
    absolute = {k: str(tmp_path / v) if k == "HOME" else v.format(tmp_path) for k, v in variables.items()}
    program = f"""
import pwd
def nobody(*args): raise KeyError
pwd.getpwuid = nobody
from grcn.data import coco
print(*(coco.load({str(tmp_path)!r}, ["train"]).fingerprint() for _ in range(2)))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")} | absolute
    assert run(program, environment).split() == 2 * [coco.load(tmp_path, ["train"]).fingerprint()]
    found = {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("coco-*")} - {"cache/grcn"}
    assert found == ({expected} if expected else set())


def test_processes_that_write_at_once_leave_one_whole_file(tmp_path, cache):
    write(tmp_path)
    program = f"""
from grcn.data import cache, coco
fetch, cache._fetch = cache._fetch, lambda *args: None
tables = {{coco.load({str(tmp_path)!r}, ["train"]).fingerprint() for _ in range(10)}}
cache._fetch = fetch
tables |= {{coco.load({str(tmp_path)!r}, ["train"]).fingerprint() for _ in range(10)}}
print(*tables)
"""
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=path()) for _ in range(3)]
    said = {process.communicate(timeout=HANG)[0].strip() for process in processes}
    assert said == {coco.load(tmp_path, ["train"]).fingerprint()}
    assert len(list(cache.iterdir())) == 1


def path(environment: Any = None) -> dict[str, str]:
    """The environment in which a program finds this package."""
    folder = str(Path(grcn.__file__).parents[1])
    return {**(os.environ if environment is None else environment), "PYTHONPATH": os.pathsep.join([folder, *sys.path])}


def run(program: str, environment: Any) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=path(environment),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
