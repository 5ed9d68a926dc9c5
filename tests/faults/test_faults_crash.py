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

from programs import RUN, call, left, signal_at, undisturbed

# What writes, renames and removes files: the protocol of checkpoints, the log and the results of evaluations.
PLACES = ("pathlib:Path.open", "os:fsync", "pathlib:Path.replace", "pathlib:Path.unlink", "os:truncate")
PLACES += ("grcn.engine.log:MetricsLog.write", "grcn.engine.checkpoint:save", "grcn.engine.checkpoint:_prune")
HALF = "half of a file written"


def die_half_way(nth: int) -> None:
    """A patch: the ``nth`` file that is to replace another is written to its half, and there the process dies."""
    real = Path.open
    files = iter(range(1, 1000))

    class Torn(io.FileIO):
        def write(self, contents: Any) -> int:
            super().write(contents[: len(contents) // 2])
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
    points += [(f"{HALF} #{nth}", partial(die_half_way, nth)) for nth in range(1, counts["pathlib:Path.replace"] + 1)]
    chosen = points if faults > 1 else random.Random(0).sample(points, 4)
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
