"""The runs of a study: planned, kept apart, brought to their end by real processes, stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grcn.configfile import dump_config
from grcn.engine.signals import Stopped, StopSignals
from grcn.errors import ConfigError
from grcn.study import runs, slurm
from grcn.study.rows import Row

ROOT = Path(__file__).resolve().parents[2]
ROWS = [Row(name, ROOT / f"configs/shapes/{name}_tiny.yaml") for name in ("faster_rcnn", "detect_f")]
TOY = [sys.executable, str(Path(__file__).with_name("toy_trainer.py"))]
QUICK = ["train.steps=3", "train.lr=0.001"]


@pytest.fixture
def stop():
    """Signals that nobody sends, unless a test does."""
    return StopSignals()


def test_a_plan_has_a_folder_for_each_config_and_seed(tmp_path):
    planned = runs.plan([*ROWS, ROWS[0]], [0, 1, 0], tmp_path, QUICK)
    expected = [tmp_path / name / f"seed{seed}" for seed in (0, 1) for name in ("faster_rcnn_tiny", "detect_f_tiny")]
    assert [run.folder for run in planned] == expected
    assert [run.settings.run.seed for run in planned] == [0, 0, 1, 1]
    assert {run.settings.train.steps for run in planned} == {3}
    assert not any(run.is_finished() or run.steps_done() for run in planned)


def test_a_scale_shortens_steps_milestones_and_warmup(tmp_path):
    given = ["train.steps=1000", "train.schedule=step", "train.lr_steps=[600, 900]", "train.warmup=40"]
    train = runs.plan(ROWS[:1], [0], tmp_path, given, scale=0.1)[0].settings.train
    assert (train.steps, train.lr_steps, train.warmup) == (100, (60, 90), 4)


def test_a_folder_that_holds_another_run_is_refused(tmp_path):
    run = runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.settings))
    assert runs.plan(ROWS[:1], [0], tmp_path, [*QUICK, "run.workers=1"])  # which changes no result
    for other in ("train.lr=0.5", "data.test_images=7", "data.test=val"):
        with pytest.raises(
            ConfigError, match=f"(?s)seed0: holds a run under other settings.*{other.partition('=')[0]}"
        ):
            runs.plan(ROWS[:1], [0], tmp_path, [*QUICK, other])


def test_runs_are_brought_to_their_end_and_not_done_again(tmp_path, stop, capfd):
    planned = runs.plan(ROWS, [0, 1], tmp_path, QUICK)
    assert runs.execute(planned, TOY, 3, stop) == {}
    assert all(run.is_finished() and run.steps_done() == 3 for run in planned)
    assert "4 runs: 100%" in capfd.readouterr().err
    logs = [(run.folder / "metrics.jsonl").read_text() for run in planned]
    assert [len(text.splitlines()) for text in logs] == [4] * 4
    results = planned[0].results
    results.unlink()
    assert not planned[0].is_finished() and runs.read_results(planned[0]) is None


@pytest.mark.parametrize("decay,started", [(0.6, 1), (0.45, 4)])
def test_a_mistake_stops_the_study_and_a_divergence_does_not(decay, started, tmp_path, stop):
    planned = runs.plan(ROWS, [0, 1], tmp_path, [*QUICK, f"train.weight_decay={decay}"])
    failed = runs.execute(planned, TOY, 1, stop)
    assert len(failed) == started
    assert set(failed.values()) == {(2 if decay > 0.5 else 6, "step 1: as bad as it gets; do not")}
    assert sum(run.folder.exists() for run in planned) == started


def test_a_run_that_dies_without_a_word_is_told_by_its_last_line(tmp_path, stop):
    run = runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0]
    dying = [sys.executable, "-c", "import os, sys; print('so far', flush=True); os.kill(os.getpid(), 9)"]
    assert runs.execute([run], dying, 1, stop) == {run.folder: (-9, "exit code -9 (so far)")}


def test_a_signal_stops_the_processes_and_the_next_start_continues_them(tmp_path):
    slow = ["train.steps=400", "train.lr=0.01"]
    planned = runs.plan(ROWS, [0], tmp_path, slow)

    def signal_when_running():
        while not all(run.steps_done() > 3 for run in planned):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signal_when_running).start()
    with StopSignals() as stop, pytest.raises(Stopped) as stopped:
        runs.execute(planned, TOY, 2, stop)
    assert stopped.value.code == 75
    done = [run.steps_done() for run in planned]
    assert all(3 < steps < 400 for steps in done)
    quick = runs.plan(ROWS, [0], tmp_path, ["train.steps=400", "train.lr=0.0001"])
    assert runs.execute(quick, TOY, 2, StopSignals()) == {}
    lines = (planned[0].folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 401), 400]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process of its parent's death")
def test_no_run_goes_on_after_its_study_was_killed(tmp_path):
    program = (
        "from pathlib import Path; from grcn.study import runs; from grcn.engine.signals import StopSignals\n"
        "from grcn.study.rows import Row\n"
        f"planned = runs.plan([Row('', Path({str(ROWS[0].config)!r}))], [0], Path({str(tmp_path)!r}),"
        " ['train.steps=5000', 'train.lr=0.01'])\n"
        f"runs.execute(planned, {TOY!r}, 1, StopSignals())"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)})
    run = runs.plan(ROWS[:1], [0], tmp_path, ["train.steps=5000", "train.lr=0.01"])[0]
    while run.steps_done() < 3:
        time.sleep(0.02)
    process.kill()
    process.wait()
    time.sleep(0.3)
    steps = run.steps_done()
    time.sleep(0.2)
    assert run.steps_done() == steps < 5000


def test_processes_share_the_cores_and_the_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [runs._share(slot, 3) for slot in range(3)] == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": name} for name in ("2", "5", "2")
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert runs._share(0, 1) == {"OMP_NUM_THREADS": "8"}


def test_runs_are_submitted_as_jobs(tmp_path):
    """By submitit, with its executor for this machine in place of SLURM's."""
    pytest.importorskip("submitit")
    good = runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0]
    bad = runs.plan(ROWS[:1], [1], tmp_path, [*QUICK, "train.weight_decay=0.6"])[0]
    jobs = slurm.submit([good, bad], TOY, tmp_path / "jobs", "local", {"timeout_min": 1})
    assert jobs[0].result() == 0 and good.is_finished()
    with pytest.raises(Exception, match="exit code 2; see .*train.log"):
        jobs[1].result()
