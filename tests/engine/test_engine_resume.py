"""Real processes, killed and signalled, end with the bytes of one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_run import finish, launch, messages, results
from waiting import wait_for

from grcn.errors import PREEMPTED

RUN: dict[str, Any] = {"steps": 40, "dropout": 0.3, "ema": 0.9}
SCRIPT = Path(__file__).parents[1] / "toy_run.py"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("straight")
    assert finish(launch({**RUN, "folder": str(folder)})) == [0]
    return results(folder)


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:13]) for path in folder.glob("checkpoints/step_*.pt")), default=0)


def test_program_killed_stopped_and_continued(tmp_path: Path, straight: dict[str, bytes]) -> None:
    arguments = json.dumps({**RUN, "folder": str(tmp_path), "pause": 0.2})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *sys.path])}
    program = subprocess.Popen([sys.executable, SCRIPT, arguments], env=environment)
    wait_for(lambda: newest_step(tmp_path) >= 6, program)
    program.kill()
    assert program.wait() == -signal.SIGKILL

    reached = newest_step(tmp_path)
    processes = launch({**RUN, "folder": str(tmp_path), "pause": 0.2})
    wait_for(lambda: newest_step(tmp_path) > reached, *processes)
    os.kill(processes[0].pid, signal.SIGTERM)
    assert finish(processes) == [PREEMPTED]
    assert reached < newest_step(tmp_path) < 40
    logged = messages(tmp_path)
    saved = f"grcn: stopped by a signal; step {newest_step(tmp_path)} is saved, run again with --resume"
    assert sorted(logged) == ["grcn: SIGTERM: stopping; a second one ends the process at once", saved]

    assert finish(launch({**RUN, "folder": str(tmp_path)})) == [0]
    assert results(tmp_path) == straight


def test_finished_run_is_left_alone(tmp_path: Path, straight: dict[str, bytes]) -> None:
    for _ in range(2):
        assert finish(launch({**RUN, "folder": str(tmp_path)})) == [0]
        assert results(tmp_path) == straight
    times = [path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()]
    assert finish(launch({**RUN, "folder": str(tmp_path)})) == [0]
    assert times == [path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()]


@pytest.mark.parametrize("change", [{"eval_every": 4}, {"checkpoint_every": 1}, {"checkpoint_every": 40}])
def test_intervals_do_not_change_the_weights(
    tmp_path: Path, straight: dict[str, bytes], change: dict[str, int]
) -> None:
    assert finish(launch({**RUN, "folder": str(tmp_path), **change})) == [0]
    assert results(tmp_path)["name"] == straight["name"]


def test_log_is_of_whole_intervals(straight: dict[str, bytes]) -> None:
    entries = [json.loads(line) for line in straight["log"].splitlines()]
    losses = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in losses] == list(range(5, 41, 5))
    assert [entry["step"] for entry in entries if "metrics" in entry] == [10, 20, 30, 40]
    for entry in losses:
        assert list(entry) == ["step", "lr", "loss", "loss_score", "loss_box", "grad_norm"]
        np.testing.assert_allclose(entry["loss"], entry["loss_score"] + entry["loss_box"], rtol=1e-12)
