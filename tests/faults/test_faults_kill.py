"""The real program killed at random moments: it ends with the same bytes as an undisturbed run.

``make faults`` does many of these; with the other tests there is one for each number of workers.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import RUN, call, left, signal_at, start, undisturbed

from grcn.engine import checkpoint

KILLS = 3  # of one run, before it may end


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_killed_runs_end_as_if_nothing_had_happened(
    tmp_path: Path, faults: int, record_property: Callable[[str, object], None], workers: int
) -> None:
    if faults == 1 and workers in (1, 3):
        pytest.skip("make faults does it")
    setting = f"run.workers={workers}"
    expected = undisturbed(tmp_path / "straight", setting)
    began = time.monotonic()  # the first one meets cold caches
    assert undisturbed(tmp_path / "again", setting) == expected
    seconds = time.monotonic() - began
    chance = random.Random(workers)
    kills = 0
    for number in range(faults):
        folder = tmp_path / f"run{number}"
        command = ["tools/train.py", *RUN, "--output-dir", folder, setting]
        struck = 0
        while not struck:  # a machine that was busier when the seconds were taken
            shutil.rmtree(folder, ignore_errors=True)
            for _ in range(KILLS):
                process = start(*command, folder=tmp_path)
                process.join(chance.uniform(0.0, 0.6 * seconds))
                if process.is_alive():
                    process.kill()
                process.join()
                assert process.exitcode in (0, -signal.SIGKILL)
                struck += process.exitcode != 0
            seconds /= 1 if struck else 2
        kills += struck
        assert call(*command, folder=tmp_path).code == 0
        assert left(folder) == expected, f"run {number}"
        shutil.rmtree(folder)
    record_property("faults", f"SIGKILL, {workers} workers: {kills} kills in {faults} runs, {faults} ended the same")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_killed_runs_on_a_gpu_end_as_if_nothing_had_happened(
    tmp_path: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    settings = ["run.device=cuda", "run.deterministic=true"]
    expected = undisturbed(tmp_path / "straight", *settings)
    places = [("grcn.engine.checkpoint:save", nth) for nth in (1, 2, 3)]
    places += [("grcn.models.detector:Detector.forward", nth) for nth in (2, 6, 9)]
    chosen = places if faults > 1 else places[:2]
    command = ["tools/train.py", *RUN, *settings, "--output-dir", tmp_path / "run"]
    for place, nth in chosen:
        kill = partial(signal_at, place, signal.SIGKILL, nth)
        assert call(*command, folder=tmp_path, patch=kill).code == -signal.SIGKILL
        assert call(*command, folder=tmp_path).code == 0
        assert left(tmp_path / "run") == expected
        shutil.rmtree(tmp_path / "run")
    record_property("faults", f"SIGKILL on a GPU: {len(chosen)} kills, {len(chosen)} ended the same")


def forget(item: str) -> None:
    """Has every checkpoint loaded without one item."""
    load = checkpoint.load

    def lossy(path: Path) -> dict[str, Any]:
        state = load(path)
        if item == "momentum":
            return {**state, "optimizer": {**state["optimizer"], "state": {}}}
        return {**state, "losses": []} if item == "losses" else state

    checkpoint.load = lossy


@pytest.mark.parametrize("item", ["nothing", "momentum", "losses"])
def test_the_comparison_sees_one_lost_item(tmp_path: Path, item: str) -> None:
    """A control: a run killed after its second checkpoint that continues without a saved item ends with other bytes."""
    expected = undisturbed(tmp_path / "straight")
    command = ["tools/train.py", *RUN, "--output-dir", tmp_path / "run"]
    kill = partial(signal_at, "grcn.engine.checkpoint:save", signal.SIGKILL, 2, after=True)
    assert call(*command, folder=tmp_path, patch=kill).code == -signal.SIGKILL
    assert call(*command, folder=tmp_path, patch=partial(forget, item)).code == 0
    same = {key: value == expected[key] for key, value in left(tmp_path / "run").items()}
    assert same["checkpoint"] == (item != "momentum")
    assert same["log"] == (item == "nothing")
