"""The real program killed at every step of writing its files; and power lost, when what was not synced is gone."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial, reduce
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import RUN, call, left, signal_at, undisturbed
from waiting import wait_for

from grcn.engine import checkpoint
from grcn.engine.log import MetricsLog, last_entry
from grcn.engine.recorder import Recorder
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


# A run whose checkpoints are overtaken: there are steps between them, and no evaluation that waits.
OVERTAKEN = ["train.steps=18", "train.checkpoint_every=6", "train.eval_every=0", "train.log_every=1", "train.keep=1"]


def die_on_the_way(nth: int, share: float, start: str = ".tmp-") -> None:
    """A patch: of the ``nth`` file that is to replace another a share is written, and there the process dies."""
    real = Path.open
    files = iter(range(1, 1000))

    class Torn(io.FileIO):
        def write(self, contents: Any) -> int:
            super().write(contents[: int(share * len(contents))])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

    def torn_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.name.startswith(start) and next(files) == nth:
            return Torn(path, "w")
        return real(path, mode, *args, **kwargs)

    Path.open = torn_open  # type: ignore[method-assign,assignment]


def wrap_places(wrapped: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts what ``wrapped`` returns for its name and its function in each place."""
    for place in PLACES:
        module, _, name = place.partition(":")
        *parents, name = name.split(".")
        owner = reduce(getattr, parents, import_module(module))
        setattr(owner, name, wrapped(place, getattr(owner, name)))


def count_calls(path: Path) -> None:
    """A patch: writes down how often each place is met by the time a program has finished."""
    counts: Counter[str] = Counter()
    lock = threading.Lock()  # a checkpoint is written while training goes on

    def wrapped(place: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            with lock:
                counts[place] += 1
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.write(descriptor, json.dumps(counts).encode())
                os.close(descriptor)
            return real(*args, **kwargs)

        return counted

    wrap_places(wrapped)


def overtake(path: Path, fatal: int = 0) -> None:
    """A patch: before and after each place that the thread that saves meets, training gets a step further, or to where
    it waits for the checkpoint.

    Args:
        path: gets a line for each: the place, and the line of the log that training has got to.
        fatal: number of that at which the process dies; 0 for none.
    """
    lines, waiting = count(1), threading.Event()
    reached = [0]
    write, wait = MetricsLog._write_line, Recorder._wait

    def counting(self: MetricsLog, entry: Mapping[str, object]) -> None:
        write(self, entry)
        reached[0] = next(lines)

    def announced(self: Recorder) -> None:
        waiting.set()
        wait(self)
        waiting.clear()

    def meet(name: str) -> None:
        before = reached[0]
        wait_for(lambda: waiting.is_set() or reached[0] > before)
        with path.open("a") as file:
            file.write(f"{name} {reached[0]}\n")
        if len(path.read_text().splitlines()) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(place: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def met(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                return real(*args, **kwargs)
            meet(f"before {place}")
            result = real(*args, **kwargs)
            meet(f"after {place}")
            return result

        return met

    wrap_places(wrapped)
    MetricsLog._write_line, Recorder._wait = counting, announced  # type: ignore[method-assign]


def overtake_on_the_way(path: Path, nth: int, share: float) -> None:
    """A patch: the process dies where a share of the ``nth`` checkpoint is written, and training is further."""
    overtake(path)
    die_on_the_way(nth, share, ".tmp-step_")


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


def test_killed_while_later_steps_run(
    tmp_path: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    """The log is ahead of the newest checkpoint by then, and is cut back."""
    expected = undisturbed(tmp_path / "straight", *OVERTAKEN)
    command = ["tools/train.py", *RUN, *OVERTAKEN, "--output-dir", tmp_path / "run"]
    met = tmp_path / "met"
    assert call(*command, folder=tmp_path, patch=partial(overtake, met)).code == 0
    assert left(tmp_path / "run") == expected
    names = [line.rsplit(" ", 1)[0] for line in met.read_text().splitlines()]
    first, second, third = [n for n, name in enumerate(names, 1) if name == "before grcn.engine.checkpoint:save"]
    assert names.count("after pathlib:Path.replace") == 3 and "after pathlib:Path.unlink" in names[second:third]
    points = [(names[n - 1], partial(overtake, met, n)) for n in range(first, third)]  # the run waits for the third one
    points += [
        (f"{share:.0%} written", partial(overtake_on_the_way, met, n, share)) for n in (1, 2) for share in (0, 0.5)
    ]
    chosen = points if faults > 1 else random.Random(0).sample(points, 2)
    wrong = []
    for name, patch in chosen:
        shutil.rmtree(tmp_path / "run")
        met.unlink()
        killed = call(*command, folder=tmp_path, patch=patch).code
        saved, logged = checkpoint.latest_step(tmp_path / "run/checkpoints"), last_entry(tmp_path / "run/metrics.jsonl")
        again = call(*command, folder=tmp_path).code
        if (killed, again) != (-signal.SIGKILL, 0) or logged["step"] <= saved or left(tmp_path / "run") != expected:
            wrong.append((name, killed, again, saved, logged))
    assert not wrong
    record_property("faults", f"crash points behind training: {len(chosen)} of {len(chosen)} ended the same")


class Disk:
    """Watches operations on the files of a folder, and yields the states that may remain when power is lost.

    Everything that was not synced is lost: the contents of a file, and renames and removals, of which any number of
    the first may have reached the disk.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.contents: dict[str, bytes] = {}  # of files that were synced, by any name that they have had
        self.durable: dict[str, bytes] = {}  # the folder as it was last synced
        self.pending: list[tuple[str, str]] = []  # renames (from, to) and removals (name, "")
        self.states: list[
            tuple[dict[str, bytes], bytes, int]
        ] = []  # every folder that may be left, the log beside it, and the step of the last checkpoint waited for
        self.saved = 0
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
        log = self.contents.get("metrics.jsonl", b"")
        self.states += [(self._after(arrived), log, self.saved) for arrived in range(len(self.pending) + 1)]
        return result

    def _after(self, arrived: int) -> dict[str, bytes]:
        files = dict(self.durable)
        for old, new in self.pending[:arrived]:
            files.pop(old, None)
            if new:
                files[new] = self.contents.get(old, b"")
        return files


@pytest.mark.parametrize("forgotten", ["nothing", "files", "folders", "log"])
def test_power_lost_while_it_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None], forgotten: str
) -> None:
    """Whenever power is lost, the last checkpoint that was waited for is there, or a later one, and the log up to its
    step, which comes to the disk as late as can be. A control: without a sync they are not.
    """
    disk = Disk(monkeypatch)
    watched = os.fsync

    def forgetful(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        kind = "folders" if path.is_dir() else "log" if path.name == "metrics.jsonl" else "files"
        if kind == "log" and recorder._writing is not None:
            recorder._writing.exception()
        if kind != forgotten:
            watched(descriptor)

    monkeypatch.setattr(os, "fsync", forgetful)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    recorder = Recorder(tmp_path / "run", keep=2)
    with recorder:
        for step in range(1, 7):
            recorder.losses.add(["loss"], torch.ones(1), torch.ones(()), [])
            recorder.log(step, 0.1)
            recorder.finish_saving()
            disk.saved = step - 1
            recorder.save(step, model, optimizer)
    monkeypatch.undo()
    lost = 0
    for number, (files, log, saved) in enumerate(disk.states):
        folder = tmp_path / f"disk{number}"
        folder.mkdir()
        for name, contents in files.items():
            (folder / name).write_bytes(contents)
        try:
            found = checkpoint.newest(folder)
        except CheckpointError:
            found = None
        step = 0 if found is None else found[1]["step"]
        lost += step < saved or len(log.splitlines()) < step
    assert (lost == 0) == (forgotten == "nothing")
    if not lost:
        record_property(
            "faults", f"power loss: {len(disk.states)} of {len(disk.states)} disks hold the last checkpoint"
        )
