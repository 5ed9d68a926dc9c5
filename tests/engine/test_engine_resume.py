"""Real processes, killed and signalled, end with the bytes of one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_run import finish, launch, results, wait_for

from grcn.engine import checkpoint
from grcn.errors import INTERRUPTED, PREEMPTED, EnvironmentFault

RUN: dict[str, Any] = {"steps": 40, "dropout": 0.3}
SCRIPT = Path(__file__).parents[1] / "toy_run.py"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nobody disturbs leaves behind."""
    folder = tmp_path_factory.mktemp("straight")
    assert finish(launch({**RUN, "folder": str(folder)})) == [0]
    return results(folder)


def newest_step(folder: Path) -> int:
    return max((int(path.name[5:13]) for path in folder.glob("checkpoints/step_*.pt")), default=0)


def test_program_killed_stopped_and_continued(tmp_path: Path, straight: dict[str, bytes]) -> None:
    arguments = json.dumps({**RUN, "folder": str(tmp_path), "pause": 0.05})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *sys.path])}
    program = subprocess.Popen([sys.executable, SCRIPT, arguments], env=environment)
    wait_for(lambda: newest_step(tmp_path) >= 6)
    program.kill()
    assert program.wait() == -signal.SIGKILL

    reached = newest_step(tmp_path)
    processes = launch({**RUN, "folder": str(tmp_path), "pause": 0.05})
    wait_for(lambda: newest_step(tmp_path) > reached)
    os.kill(processes[0].pid, signal.SIGTERM)
    assert finish(processes) == [PREEMPTED]
    assert reached < newest_step(tmp_path) < 40
    assert (tmp_path / "stderr_0.txt").read_text() == (
        f"grcn: stopped by a signal; step {newest_step(tmp_path)} is saved, run again with --resume\n"
    )

    assert finish(launch({**RUN, "folder": str(tmp_path)})) == [0]
    assert results(tmp_path) == straight


@pytest.mark.parametrize("dropped", ["momentum", "losses", "step"])
def test_comparison_notices_a_dropped_item(tmp_path: Path, straight: dict[str, bytes], dropped: str) -> None:
    """The negative control of the tests above: without one saved item the results must differ."""
    processes = launch({**RUN, "folder": str(tmp_path), "pause": 0.02})
    wait_for(lambda: newest_step(tmp_path) >= 12)
    processes[0].kill()
    finish(processes)
    paths = sorted((tmp_path / "checkpoints").iterdir())
    state = checkpoint.load([path for path in paths if int(path.name[5:13]) % 5][-1])  # not just logged
    for path in paths:
        path.unlink()
    if dropped == "momentum":
        state["optimizer"]["state"] = {}
    elif dropped == "losses":
        state["losses"] = []
    else:
        state["step"] -= 1
    checkpoint.save(tmp_path / "checkpoints", state, keep=1)

    assert finish(launch({**RUN, "folder": str(tmp_path)})) == [0]
    assert results(tmp_path) != straight


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, PREEMPTED), (signal.SIGUSR1, PREEMPTED), (signal.SIGINT, INTERRUPTED)],
)
def test_signal_in_training_saves_the_step(
    tmp_path: Path, straight: dict[str, bytes], number: signal.Signals, code: int
) -> None:
    options = {**RUN, "folder": str(tmp_path), "checkpoint_every": 1000, "eval_every": 0}
    processes = launch({**options, "pause": 0.05})
    log = tmp_path / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size > 0)
    os.kill(processes[0].pid, number)
    assert finish(processes) == [code]
    assert 5 <= newest_step(tmp_path) < 40

    assert finish(launch({**options, "eval_every": 10})) == [0]
    assert results(tmp_path)["state"] == straight["state"]


def test_signal_in_evaluation(tmp_path: Path, straight: dict[str, bytes]) -> None:
    """The evaluation is given up at once, and done when the run continues."""
    processes = launch({**RUN, "folder": str(tmp_path), "eval_pause": 1.5})
    wait_for((tmp_path / "evaluating").exists)
    began = time.monotonic()
    os.kill(processes[0].pid, signal.SIGTERM)
    assert finish(processes) == [PREEMPTED]
    assert time.monotonic() - began < 5, "all five images take 7.5 s"
    assert newest_step(tmp_path) == 10

    assert finish(launch({**RUN, "folder": str(tmp_path)})) == [0]
    assert results(tmp_path) == straight


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    processes = launch({**RUN, "folder": str(tmp_path), "eval_pause": 30.0})
    wait_for((tmp_path / "evaluating").exists)
    os.kill(processes[0].pid, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(processes[0].pid, signal.SIGTERM)
    assert finish(processes, 5.0) == [128 + signal.SIGTERM]


def test_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    processes = launch({**RUN, "folder": str(tmp_path), "pause": 0.5})
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists())
    assert finish(launch({**RUN, "folder": str(tmp_path)})) == [EnvironmentFault.exit_code]
    [line] = (tmp_path / "stderr_0.txt").read_text().splitlines()
    assert f"in use by process {processes[0].pid} on " in line and len(line) <= 300
    processes[0].kill()
    finish(processes)
    with checkpoint.run_lock(tmp_path):
        pass


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
