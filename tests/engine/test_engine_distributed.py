"""Two processes joined by gloo train and evaluate as one does."""

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
import torch
from toy_run import IMAGES, finish, launch, messages
from waiting import HANG, wait_for

from grcn.engine import checkpoint, distributed
from grcn.errors import EnvironmentFault, NonFiniteError

RUN: dict[str, Any] = {
    "steps": 12,
    "double": True,
    "log_every": 4,
    "eval_every": 6,
    "checkpoint_every": 5,
    "ema": 0.8,
}


def final_state(folder: Path) -> dict[str, Any]:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert finish(launch({**RUN, "folder": str(folder)})) == [0]
    return folder


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_as_one(tmp_path: Path, alone: Path, accumulate: int) -> None:
    """Every fourth image has no boxes, and with accumulation a whole micro-batch of one process."""
    assert finish(launch({**RUN, "folder": str(tmp_path), "accumulate": accumulate}, 2)) == [0, 0]
    ours, theirs = final_state(tmp_path), final_state(alone)
    assert ours["step"] == 12
    for name, tensor in theirs["model"].items():
        torch.testing.assert_close(ours["model"][name], tensor, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours["ema"], theirs["ema"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], rtol=1e-11, atol=1e-13)
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path, alone)]
    for one, other in zip(*logs, strict=True):
        a, b = json.loads(one), json.loads(other)
        assert a.pop("metrics", {}) == pytest.approx(b.pop("metrics", {}), rel=1e-6)
        assert a == pytest.approx(b, rel=1e-11)


def test_every_image_is_evaluated_once(tmp_path: Path, alone: Path) -> None:
    assert IMAGES % 2, "shares of unequal size are the case in point"
    assert finish(launch({**RUN, "folder": str(tmp_path)}, 2)) == [0, 0]
    for step in (6, 12):
        one, two = (np.load(folder / f"step_{step}.npz") for folder in (alone, tmp_path))
        assert one["rows"].tolist() == two["rows"].tolist() == sorted(one["rows"])
        assert len(set(one["rows"])) >= 2
        np.testing.assert_allclose(one["boxes"], two["boxes"], rtol=1e-6)
        np.testing.assert_allclose(one["scores"], two["scores"], rtol=1e-6)


def test_non_finite_image_of_one_process_stops_both(tmp_path: Path) -> None:
    poisoned = 4 * 6 + 3  # the last image of step 7 belongs to process 1
    processes = launch({**RUN, "folder": str(tmp_path), "poison": poisoned}, 2)
    assert finish(processes) == [NonFiniteError.exit_code] * 2
    [line] = messages(tmp_path)
    assert line.startswith("grcn: error: step 7: loss or gradient not finite") and "images 24 25 26 27;" in line
    assert not (tmp_path / "stderr_1.txt").read_text(), "one process reports it for all"
    assert final_state(tmp_path)["step"] == 6


def test_error_of_the_main_process_reaches_all(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_00000001-0123456789abcdef.pt").write_bytes(b"damaged")
    assert finish(launch({**RUN, "folder": str(tmp_path)}, 2)) == [4, 4]
    assert "skipped" in (tmp_path / "stderr_0.txt").read_text()
    assert not (tmp_path / "stderr_1.txt").read_text()


def test_torchvisions_detector_on_two_processes(tmp_path: Path) -> None:
    """Images without boxes reach one process alone, and no parameter goes without gradient."""
    options = {"folder": str(tmp_path), "steps": 2, "batch": 2, "detector": "faster_rcnn"}
    assert finish(launch(options, 2)) == [0, 0]


def test_torchrun_forwards_a_signal_that_came_already(tmp_path: Path) -> None:
    """As when a scheduler signals every process: one request, which the run handles once."""
    tests = Path(__file__).parents[1]
    slow = {"steps": 1000, "checkpoint_every": 1, "pause": 0.5}
    options = json.dumps({**RUN, **slow, "folder": str(tmp_path)})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), *sys.path])}
    torchrun = subprocess.Popen(
        [*command, tests / "toy_run.py", options], env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any(tmp_path.glob("checkpoints/step_*")), torchrun)
    os.kill(int((tmp_path / ".lock").read_text().split()[1]), signal.SIGTERM)
    torchrun.terminate()
    _, stderr = torchrun.communicate(timeout=HANG)
    stopped = [line for line in stderr.splitlines() if line.startswith("grcn: stopped by a signal")]
    assert stopped == [
        f"grcn: stopped by a signal; step {final_state(tmp_path)['step']} is saved, run again with --resume"
    ]


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "cpu", "got 2 of 2"),
        ({"RANK": "one"}, "cpu", "RANK is not a whole number"),
        ({}, "gpu", "no such device"),
        ({}, "cuda:99", "cuda:99 is missing"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "cuda:0", "cannot share"),
    ],
)
def test_wrong_surroundings(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], device: str, message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentFault, match=message), distributed.process_group(device):
        pass


def test_one_process_needs_no_group() -> None:
    with distributed.process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        values = torch.rand(3)
        assert distributed.mean(values) is values
        assert distributed.maximum(3) == 3
        assert distributed.gather("a") == ["a"]
        assert distributed.on_main(lambda: 5) == 5
