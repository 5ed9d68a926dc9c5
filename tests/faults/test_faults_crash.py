"""The real program killed at every step of writing its files; and power lost, when what was not synced is gone."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import RUN, call, left, signal_at, undisturbed

from grcn.engine import checkpoint
from grcn.errors import CheckpointError

# What writes, renames and removes files: the protocol of checkpoints, the log and the results of evaluations.
PLACES = (
    "os:fsync",
    "os:link",
    "pathlib:Path.replace",
    "pathlib:Path.unlink",
    "grcn.engine.log:MetricsLog._write_line",
)
PLACES += ("grcn.engine.checkpoint:save", "grcn.fileio:write_durably", "grcn.engine.checkpoint:_prune")


def die_on_the_way(nth: int, share: float) -> None:
    """A patch: of the ``nth`` file that is to replace another a share is written, and there the process dies."""
    real = Path.open
    files = iter(range(1, 1000))

    class Torn(io.FileIO):
        def write(self, contents: Any) -> int:
            super().write(contents[: int(share * len(contents))])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

    def torn_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.name.startswith(".tmp-") and next(files) == nth:
            return Torn(path, "w")
        return real(path, mode, *args, **kwargs)

    Path.open = torn_open  # type: ignore[method-assign,assignment]


def count_calls(path: Path) -> None:
    """A patch: writes down how often each place is met by the time a program has finished."""
    counts: Counter[str] = Counter()
    for place in PLACES:
        module, _, name = place.partition(":")
        owner = __import__(module, fromlist=["_"])
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
        real = getattr(owner, name.split(".")[-1])

        def counted(*args: Any, _real: Any = real, _place: str = place, **kwargs: Any) -> Any:
            counts[_place] += 1
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.write(descriptor, json.dumps(counts).encode())
            os.close(descriptor)
            return _real(*args, **kwargs)

        setattr(owner, name.split(".")[-1], counted)


def test_killed_while_it_writes(tmp_path: Path, faults: int, record_property: Callable[[str, object], None]) -> None:
    expected = undisturbed(tmp_path / "straight")
    command = ["tools/train.py", *RUN, "--output-dir"]
    patch = partial(count_calls, tmp_path / "counts.json")
    assert call(*command, tmp_path / "counted", folder=tmp_path, patch=patch).code == 0
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["grcn.engine.checkpoint:save"] == 4 and counts["os:fsync"] > 10
    points: list[tuple[str, Callable[[], None]]] = [
        (f"{'after' if after else 'before'} {place} #{nth}", partial(signal_at, place, signal.SIGKILL, nth, after))
        for place, calls in counts.items()
        for nth in range(1, calls + 1)
        for after in (False, True)
    ]
    points += [
        (f"{share:.0%} written of file #{nth}", partial(die_on_the_way, nth, share))
        for nth in range(1, counts["pathlib:Path.replace"] - counts["os:link"] + 1)  # a link replaces too, unwritten
        for share in (0.0, 0.5)
    ]
    chosen = points if faults > 1 else random.Random(0).sample(points, 3)
    wrong = []
    for name, patch in chosen:
        folder = tmp_path / "run"
        killed = call(*command, folder, folder=tmp_path, patch=patch).code
        again = call(*command, folder, folder=tmp_path).code
        if (killed, again) != (-signal.SIGKILL, 0) or left(folder) != expected:
            wrong.append((name, killed, again))
        shutil.rmtree(folder)
    assert not wrong
    record_property("faults", f"crash points of writing: {len(chosen)} of {len(chosen)} ended the same")


class Disk:
    """Watches what is done to the files of a folder, and tells what may be left of them when power is lost.

    What was not brought to the disk is gone: the contents of a file, and renames and removals, of which any number of
    the first may have arrived.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contents: dict[str, bytes] = {}  # of files that were synced, by any name that they have had
        self.durable: dict[str, bytes] = {}  # the folder as it was last synced
        self.pending: list[tuple[str, str]] = []  # renames (from, to) and removals (name, "")
        self.states: list[
            tuple[dict[str, bytes], int]
        ] = []  # every folder that may be left, and the saves done by then
        self.saves = 0
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            real = getattr(owner, name)
            monkeypatch.setattr(
                owner, name, partial(self._call, name, real) if owner is os else self._method(name, real)
            )

    def _method(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *args, **kwargs: self._call(name, real, path, *args, **kwargs)

    def _call(self, name: str, real: Callable[..., Any], target: Any, *args: Any, **kwargs: Any) -> Any:
        result = real(target, *args, **kwargs)
        if name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{target}"))
            if path.is_dir():
                self.durable, self.pending = self._after(len(self.pending)), []
            else:
                self.contents[path.name] = path.read_bytes()
        elif name == "replace":
            self.pending.append((target.name, args[0].name))
        else:
            self.pending.append((target.name, ""))
        self.states += [(self._after(arrived), self.saves) for arrived in range(len(self.pending) + 1)]
        return result

    def _after(self, arrived: int) -> dict[str, bytes]:
        files = dict(self.durable)
        for old, new in self.pending[:arrived]:
            files.pop(old, None)
            if new:
                files[new] = self.contents.get(old, b"")
        return files


@pytest.mark.parametrize("forgotten", ["nothing", "files", "folders"])
def test_power_lost_while_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None], forgotten: str
) -> None:
    """Whenever power is lost, the last checkpoint that was saved is there. A control: without a sync it is not."""
    disk = Disk(monkeypatch)
    watched = os.fsync

    def forgetful(descriptor: int) -> None:
        kind = "folders" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "files"
        if kind != forgotten:
            watched(descriptor)

    monkeypatch.setattr(os, "fsync", forgetful)
    for step in range(1, 6):
        state = {"format": checkpoint.FORMAT, "step": step, "model": {"w": torch.full((9,), float(step))}}
        checkpoint.save(tmp_path / "run", {**state, "optimizer": {}, "losses": []}, keep=2)
        disk.saves = step
    monkeypatch.undo()
    lost = 0
    for number, (files, saves) in enumerate(disk.states):
        folder = tmp_path / f"disk{number}"
        folder.mkdir()
        for name, contents in files.items():
            (folder / name).write_bytes(contents)
        try:
            found = checkpoint.newest(folder)
        except CheckpointError:
            found = None
        lost += saves > 0 and (found is None or found[1]["step"] < saves)
    assert (lost == 0) == (forgotten == "nothing")
    if not lost:
        record_property(
            "faults", f"power loss: {len(disk.states)} of {len(disk.states)} disks hold the last checkpoint"
        )
