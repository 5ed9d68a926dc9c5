"""Every signal in every phase: the exit code says what to do, and the continued run ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from programs import RUN, assert_contract, call, left, signal_at, undisturbed
from sabotage import full_disk
from waiting import HANG, wait_for

from grcn.errors import INTERRUPTED, PREEMPTED, EnvironmentFault

# Where a signal strikes: the phase, the function that is then called, and which of its calls.
PHASES = (
    ("start", "grcn.run.train:train", 1),
    ("reading data", "grcn.build.training:build_test_split", 1),
    ("building", "grcn.build.training:build_optimizer", 1),
    ("warm-up", "grcn.models.detector:Detector.forward", 1),
    ("training", "grcn.models.detector:Detector.forward", 5),
    ("saving", "grcn.fileio:write_durably", 2),
    ("evaluating", "grcn.models.roi_heads:RoIHeads.shortlist", 2),
    ("scoring", "grcn.run.train:score", 1),
)
CODES = {
    signal.SIGTERM: PREEMPTED,
    signal.SIGUSR1: PREEMPTED,
    signal.SIGHUP: PREEMPTED,
    signal.SIGINT: INTERRUPTED,
}


def test_every_signal_in_every_phase(
    tmp_path: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    settings = ["train.checkpoint_every=100", "train.warmup=4"]  # what is kept, is kept for the signal
    expected = undisturbed(tmp_path / "straight", *settings)
    command = ["tools/train.py", *RUN, "--output-dir", tmp_path / "run", *settings]
    cases = [(number, *phase) for phase in PHASES for number in CODES]
    chosen = cases if faults > 1 else cases[1::9]
    wrong = []
    for number, phase, place, nth in chosen:
        stopped = call(*command, folder=tmp_path, patch=partial(signal_at, place, number, nth))
        saved = [path.name for path in tmp_path.glob("run/checkpoints/*")]
        at_start = phase in ("start", "reading data", "building")
        lines = [line for line in stopped.stderr.splitlines() if line.startswith("grcn: stopped by a signal; ")]
        claimed = [f"step_{int(step):08d}" for step in re.findall(r"step (\d+) is saved", stopped.stderr)]
        again = call(*command, folder=tmp_path)
        if (
            (stopped.code, len(lines), not saved) != (CODES[number], 1, at_start)
            or not {name[:13] for name in saved}.issuperset(claimed)
            or "Traceback" in stopped.stderr
            or (again.code, left(tmp_path / "run")) != (0, expected)
        ):
            wrong.append((signal.Signals(number).name, phase, stopped, saved, again.code))
        shutil.rmtree(tmp_path / "run")
    assert not wrong
    record_property("faults", f"signals by phases: {len(chosen)} of {len(chosen)} ended with their code and continued")


def stopped_on_a_full_disk() -> None:
    """A patch: a signal comes, and the checkpoint for it does not fit."""
    full_disk("step_*.pt", 100)
    signal_at("grcn.models.detector:Detector.forward", signal.SIGTERM, 2)


def test_a_checkpoint_that_cannot_be_written_is_not_reported_as_saved(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path / "straight")
    command = ["tools/train.py", *RUN, "--output-dir", tmp_path / "run"]
    result = call(*command, folder=tmp_path, patch=stopped_on_a_full_disk)
    assert_contract(result, EnvironmentFault.exit_code, "step_00000002-", "cannot save", "--resume")
    assert "is saved" not in result.stderr
    assert call(*command, folder=tmp_path).code == 0
    assert left(tmp_path / "run") == expected


def deaf() -> None:
    """A patch: signals are noted and never looked at, as where a loop forgets to."""
    from grcn.engine.signals import StopSignals

    StopSignals.code = property(lambda self: 0, lambda self, code: None)  # type: ignore[assignment,misc]
    signal_at("grcn.models.detector:Detector.forward", signal.SIGTERM, 5)


def test_the_check_sees_a_loop_that_does_not_look(tmp_path: Path) -> None:
    command = ["tools/train.py", *RUN, "--output-dir", tmp_path / "run"]
    assert call(*command, folder=tmp_path, patch=deaf).code == 0


def twice(first: int, second: int) -> None:
    """A patch: two signals, one after the other, in the middle of saving."""
    from grcn import fileio

    real = fileio.write_durably

    def write(path: Path, contents: memoryview) -> None:
        if path.suffix == ".pt":
            os.kill(os.getpid(), first)
            wait_for(lambda: "a second one ends the process" in Path("program.err").read_text())
            time.sleep(0.2)  # sooner, it is taken for the same request
            os.kill(os.getpid(), second)
            time.sleep(HANG)
        real(path, contents)

    fileio.write_durably = write


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_nothing_is_lost(tmp_path: Path, number: int) -> None:
    expected = undisturbed(tmp_path / "straight")
    command = ["tools/train.py", *RUN, "--output-dir", tmp_path / "run"]
    assert call(*command, folder=tmp_path, patch=partial(twice, signal.SIGTERM, number)).code == 128 + number
    assert call(*command, folder=tmp_path).code == 0
    assert left(tmp_path / "run") == expected


def test_an_evaluation_of_a_checkpoint_is_given_up_and_can_be_repeated(tmp_path: Path) -> None:
    undisturbed(tmp_path)
    (weights,) = tmp_path.glob("run/checkpoints/step_00000012-*")
    command = ["tools/eval.py", "--config", tmp_path / "run/config.yaml", "--checkpoint", weights]
    for place in ("grcn.run.evaluate:evaluate", "grcn.models.roi_heads:RoIHeads.shortlist"):
        stopped = call(*command, folder=tmp_path, patch=partial(signal_at, place, signal.SIGTERM))
        assert (stopped.code, stopped.stdout) == (PREEMPTED, "")
        assert "grcn: stopped by a signal; run it again, training with --resume" in stopped.stderr.splitlines()
    assert call(*command, folder=tmp_path).code == 0


def test_under_nohup_a_hangup_changes_nothing(tmp_path: Path) -> None:
    command = ["tools/train.py", *RUN, "--output-dir", tmp_path / "run"]
    assert call(*command, folder=tmp_path, patch=hang_up_ignored).code == 0


def hang_up_ignored() -> None:
    """A patch: as nohup starts a program, to which the terminal's hangup comes all the same."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal_at("grcn.models.detector:Detector.forward", signal.SIGHUP, 5)


def test_a_stopped_process_continues(tmp_path: Path) -> None:
    """SIGSTOP and SIGCONT, as a scheduler suspends a job."""
    expected = undisturbed(tmp_path / "straight")
    command = ["tools/train.py", *RUN, "--output-dir", tmp_path / "run"]
    assert call(*command, folder=tmp_path, patch=suspend).code == 0
    assert left(tmp_path / "run") == expected


def suspend() -> None:
    """A patch: the process is suspended for a second at its fifth forward pass."""
    if not os.fork():  # a child that wakes its parent
        os.execlp("sh", "sh", "-c", f"while kill -CONT {os.getppid()}; do sleep 1; done")
    signal_at("grcn.models.detector:Detector.forward", signal.SIGSTOP, 5)
