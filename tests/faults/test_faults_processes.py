"""The real program in two processes, of which one or both are killed: the other exits soon, the run resumes exactly."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from programs import ROOT, RUN, Outcome, assert_contract, left, outcome, signal_at, start
from sabotage import full_disk
from waiting import HANG, wait_for

from grcn.errors import PREEMPTED, DataError, EnvironmentFault


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def listens(port: str) -> bool:
    """Whether a process waits for others at a port."""
    tables = (Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    return any(re.search(rf":{int(port):04X} \S+ 0A ", table) for table in tables)


def launch(
    folder: Path,
    *settings: object,
    patches: dict[int, Callable[[], None]] | None = None,
    variables: dict[str, str] | None = None,
) -> list[Any]:
    """Starts two processes of one run, as torchrun does."""
    common = {**(variables or {}), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = ["tools/train.py", *RUN, "--output-dir", folder / "run", *settings]
    return [
        start(
            *command, folder=folder, patch=(patches or {}).get(rank), name=f"rank{rank}",
            variables={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]  # fmt: skip


def has_begun(log: Path) -> bool:
    return log.exists() and "grcn: " in log.read_text()


def finish(processes: list[Any], folder: Path) -> list[Outcome]:
    for process in processes:
        process.join(HANG)
        if process.is_alive():
            process.kill()
            process.join()
    return [outcome("train", [], process, folder, f"rank{rank}") for rank, process in enumerate(processes)]


def pair(folder: Path, *settings: object, **options: Any) -> list[Outcome]:
    folder.mkdir(exist_ok=True)
    return finish(launch(folder, *settings, **options), folder)


@pytest.mark.parametrize("victims", [(0,), (1,), (0, 1)], ids=["first", "second", "both"])
def test_killed_pairs_end_as_if_nothing_had_happened(
    tmp_path: Path, faults: int, record_property: Callable[[str, object], None], victims: tuple[int, ...]
) -> None:
    if faults == 1 and victims != (1,):
        pytest.skip("make faults does it")
    assert [result.code for result in pair(tmp_path / "straight")] == [0, 0]
    began = time.monotonic()
    assert [result.code for result in pair(tmp_path / "again")] == [0, 0]
    seconds = time.monotonic() - began
    expected = left(tmp_path / "straight/run")
    assert left(tmp_path / "again/run") == expected
    chance = random.Random(len(victims) + victims[0])
    kills, slowest = 0, 0.0
    for number in range(faults):
        folder = tmp_path / f"pair{number}"
        struck = 0
        while not struck:  # a machine that was busier when the seconds were taken
            shutil.rmtree(folder, ignore_errors=True)
            for _ in range(2):
                results, took = killed_pair(folder, victims, chance.uniform(0.0, 0.4 * seconds))
                slowest = max(slowest, took)
                struck += sum(results[rank].code == -signal.SIGKILL for rank in victims)
            seconds /= 1 if struck else 2
        kills += struck
        assert [result.code for result in pair(folder)] == [0, 0]
        assert left(folder / "run") == expected, f"pair {number}"
        shutil.rmtree(folder)
    what = f"SIGKILL of {victims} of 2 processes: {kills} kills in {faults} runs, {faults} ended the same"
    record_property("faults", f"{what}; the other ended within {slowest:.1f} s")


def killed_pair(folder: Path, victims: tuple[int, ...], seconds: float) -> tuple[list[Outcome], float]:
    """Kills processes so many seconds after a run has begun; returns how both ended, and in how many seconds."""
    folder.mkdir(exist_ok=True)
    log = folder / "rank0.err"
    log.unlink(missing_ok=True)
    processes = launch(folder)
    wait_for(partial(has_begun, log), processes[0])  # before, none can know of the other
    processes[0].join(seconds)
    for rank in victims:
        processes[rank].kill()
    killed = time.monotonic()
    results = finish(processes, folder)
    took = time.monotonic() - killed
    for rank, result in enumerate(results):
        fatal = results[1 - rank].code == -signal.SIGKILL
        if rank not in victims and fatal and result.code:  # it may just have finished
            assert_contract(result, EnvironmentFault.exit_code, f"process {rank} of 2: another process exited")
    return results, took


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_ends_both_and_is_reported(tmp_path: Path, rank: int) -> None:
    results = pair(tmp_path, patches={rank: broken_image})
    assert_contract(results[rank], DataError.exit_code, "image 7 is broken")
    assert_contract(results[1 - rank], EnvironmentFault.exit_code, "another process exited")


def broken_image() -> None:
    """A patch: every image is broken, once training has begun."""
    from grcn.data.synthetic.dataset import ShapesImages

    def read(self: ShapesImages, row: int) -> Any:
        raise DataError("image 7 is broken; fix it")

    ShapesImages.__call__ = read  # type: ignore[method-assign]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_at_the_start_of_one_process_is_reported_once(tmp_path: Path, rank: int) -> None:
    results = pair(tmp_path, patches={rank: no_annotations})
    assert [result.code for result in results] == [DataError.exit_code] * 2
    assert_contract(results[0], DataError.exit_code, "no annotations here")
    assert results[1].stderr == ""


@pytest.mark.parametrize("every", [3, 100])
def test_a_checkpoint_that_cannot_be_written_ends_both(tmp_path: Path, every: int) -> None:
    """It is raised at the next checkpoint, or where both wait before they evaluate."""
    setting = f"train.checkpoint_every={every}"
    results = pair(tmp_path, setting, patches={0: partial(full_disk, "step_*.pt", 100)})
    failed = f"step_{min(every, 6):08d}-"
    assert_contract(results[0], EnvironmentFault.exit_code, failed, "cannot save", os.strerror(errno.ENOSPC))
    assert (results[1].code, results[1].stderr) == (EnvironmentFault.exit_code, "")
    assert [result.code for result in pair(tmp_path, setting)] == [0, 0]
    assert pair(tmp_path / "straight", setting)[0].code == 0
    assert left(tmp_path / "run") == left(tmp_path / "straight/run")


def no_annotations() -> None:
    """A patch: this machine does not have the data."""
    from grcn.build import training

    def load(*args: Any) -> Any:
        raise DataError("data/train.json: no annotations here; copy them")

    training.build_train_split = load


def test_a_silent_process_is_given_up(tmp_path: Path) -> None:
    hang = partial(signal_at, "grcn.models.detector:Detector.forward", signal.SIGSTOP, 3)
    processes = launch(tmp_path, "run.timeout=15", patches={1: hang})
    processes[0].join(HANG)
    processes[1].kill()
    results = finish(processes, tmp_path)
    assert_contract(results[0], EnvironmentFault.exit_code, "did not respond within 15 s", "run.timeout")


def test_a_process_that_waits_for_others_ends_at_a_second_signal(tmp_path: Path) -> None:
    """It waits in torch, where no handler of Python's is called."""
    port = free_port()
    alone = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    process = start("tools/train.py", *RUN, "--output-dir", tmp_path / "run", folder=tmp_path, variables=alone)
    wait_for(partial(listens, port), process)
    os.kill(process.pid, signal.SIGTERM)
    wait_for(lambda: "a second one ends the process" in (tmp_path / "program.err").read_text(), process)
    time.sleep(0.2)  # sooner, it is taken for the same request
    os.kill(process.pid, signal.SIGTERM)
    process.join(HANG)
    assert process.exitcode == 128 + signal.SIGTERM


def test_a_device_that_is_missing_is_reported_once(tmp_path: Path) -> None:
    results = pair(tmp_path, "run.device=cuda", variables={"CUDA_VISIBLE_DEVICES": ""})
    assert_contract(results[0], EnvironmentFault.exit_code, "cuda:0 is missing")
    assert (results[1].code, results[1].stderr) == (EnvironmentFault.exit_code, "")


def test_a_batch_that_does_not_divide_leaves_nothing(tmp_path: Path) -> None:
    results = pair(tmp_path, "train.batch=3")
    assert_contract(results[0], 2, "train.batch: does not divide evenly (got batch 3, 2 processes")
    assert (results[1].code, results[1].stderr) == (2, "")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_processes_must_agree(tmp_path: Path) -> None:
    results = pair(tmp_path, patches={1: other_annotations})
    assert_contract(results[0], EnvironmentFault.exit_code, "process 1 differs from process 0 in annotations")
    assert (results[1].code, results[1].stderr) == (EnvironmentFault.exit_code, "")


def other_annotations() -> None:
    """A patch: this machine has an older copy of the annotations."""
    from grcn.data.annotations import Annotations

    Annotations.fingerprint = lambda self: "0" * 64  # type: ignore[method-assign]


def test_a_locked_folder_is_reported_once(tmp_path: Path) -> None:
    from grcn.fileio import run_lock

    with run_lock(tmp_path / "run"):
        results = pair(tmp_path)
    assert_contract(results[0], EnvironmentFault.exit_code, "in use by process")
    assert (results[1].code, results[1].stderr) == (EnvironmentFault.exit_code, "")


def test_torchrun_starts_again_and_the_run_continues(tmp_path: Path, faults: int) -> None:
    """With the variable that the README asks for, without which torchrun's restarted processes never meet."""
    if faults == 1:
        pytest.skip("takes 20 seconds; make faults does it")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command = [*torchrun, ROOT / "tools/train.py", *RUN, "--output-dir", tmp_path / "run", "train.steps=200"]
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(list(map(str, command)), env={**os.environ, **variables}, stderr=err)
    wait_for(lambda: any(tmp_path.glob("run/checkpoints/step_*")), process)
    os.kill(int((tmp_path / "run/.lock").read_text().split()[1]), signal.SIGKILL)
    assert process.wait(HANG) == 0
    stderr = (tmp_path / "err").read_text()
    assert "resuming from" in stderr and "another process exited" in stderr
    assert b'"step": 200, "metrics"' in (tmp_path / "run/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    "place", ["grcn.run.train:_build", "grcn.models.detector:Detector.forward", "grcn.run.train:score"]
)
def test_a_signal_to_one_process_stops_both(tmp_path: Path, place: str) -> None:
    rank = 0 if place.endswith("score") else 1
    results = pair(tmp_path, patches={rank: partial(signal_at, place, signal.SIGTERM)})
    assert [result.code for result in results] == [PREEMPTED, PREEMPTED]
    assert sum("stopped by a signal" in result.stderr for result in results) == 1
