"""The real program killed at random moments: what it leaves in the end is what it leaves undisturbed, to the byte.

``make faults`` does many of these; with the other tests there is one for each number of workers.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grcn import errors, run
from grcn.configfile import load_config
from grcn.engine import checkpoint

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "model.width=8", "model.head.dim=16", "model.image={short: 64, max: 64}", "data.size=64", "data.train_images=16",
    "data.test_images=4", "train.batch=2", "train.warmup=0", "train.steps=12", "train.log_every=4", "eval.pictures=0",
    "train.schedule=step", "train.checkpoint_every=3", "train.eval_every=6", "run.threads=1", "run.device=cpu",
]  # fmt: skip
KILLS = 3  # of one run, before it may end


def train(folder: Path, workers: int) -> None:
    """Is one process: trains from whatever it finds."""
    cfg = load_config(ROOT / "configs/shapes/grcn_tiny_resnet.yaml", [*SETTINGS, f"run.workers={workers}"])
    errors.run(lambda: run.train(cfg, folder, resume=True) and 0)


def start(folder: Path, workers: int) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["grcn.run", "torchvision.ops", "tqdm", "hotcoco", "matplotlib.pyplot"])
    if not (folder.parent / "server").exists():  # starting it takes seconds that are not the run's
        context.Process(target=(folder.parent / "server").touch).start()
        while not (folder.parent / "server").exists():
            time.sleep(0.01)
    process = context.Process(target=train, args=(folder, workers))
    process.start()
    return process


def left(folder: Path) -> dict[str, bytes]:
    """Reads what must not depend on interruptions. The newest checkpoint has the SHA-256 of its bytes in its name."""
    newest = max((folder / "checkpoints").glob("step_*.pt"))
    results = sorted(folder.glob("eval/step_*/results.json"))
    return {
        "checkpoint": newest.name.encode(),
        "log": (folder / "metrics.jsonl").read_bytes(),
        "results": b"".join(path.read_bytes() for path in results),
    }


def undisturbed(folder: Path, workers: int) -> tuple[dict[str, bytes], float]:
    """Returns what a run leaves that nobody disturbs, and the seconds that it takes."""
    began = time.monotonic()
    process = start(folder, workers)
    process.join(120)
    assert process.exitcode == 0
    return left(folder), time.monotonic() - began


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_killed_runs_end_as_if_nothing_had_happened(
    tmp_path: Path, faults: int, record_property: Callable[[str, object], None], workers: int
) -> None:
    expected, first = undisturbed(tmp_path / "straight", workers)
    again, second = undisturbed(tmp_path / "again", workers)
    assert again == expected
    seconds = min(first, second)  # the first one meets cold caches
    chance = random.Random(workers)
    kills = 0
    for number in range(faults):
        folder = tmp_path / f"run{number}"
        for _ in range(KILLS):
            process = start(folder, workers)
            process.join(chance.uniform(0.0, 0.8 * seconds))
            if process.is_alive():
                process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            kills += process.exitcode != 0
        process = start(folder, workers)
        process.join(120)
        assert process.exitcode == 0
        assert left(folder) == expected, f"run {number}"
        shutil.rmtree(folder)
    record_property("faults", f"SIGKILL, {workers} workers: {kills} kills in {faults} runs, {faults} ended the same")


@pytest.mark.parametrize("forgetful", [False, True])
def test_the_comparison_sees_one_lost_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: bool) -> None:
    """A control: a run stopped half-way that continues without its momentum ends with another checkpoint."""
    load = checkpoint.load

    def lossy(path: Path) -> dict[str, Any]:
        state = load(path)
        return {**state, "optimizer": {**state["optimizer"], "state": {}}} if forgetful else state

    expected, _ = undisturbed(tmp_path / "straight", 0)
    monkeypatch.setattr(checkpoint, "load", lossy)
    threads = torch.get_num_threads()
    for steps in (6, 12):
        settings = [*SETTINGS, "run.workers=0", f"train.steps={steps}"]
        cfg = load_config(ROOT / "configs/shapes/grcn_tiny_resnet.yaml", settings)
        run.train(cfg, tmp_path / "run", resume=True, allow_changes=True)
    torch.set_num_threads(threads)
    assert (left(tmp_path / "run")["checkpoint"] == expected["checkpoint"]) == (not forgetful)
