"""The runs of a study: planned, kept separate, completed by real processes, stopped and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import HANG, wait_for

from grcn.apps.reproduce import runs, slurm
from grcn.apps.reproduce.rows import Row
from grcn.config.files import dump_config, load_config
from grcn.engine.signals import Stopped, StopSignals
from grcn.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[3]
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
    assert not any(run.is_done() or run.steps_done() for run in planned)


def test_a_scale_shortens_steps_milestones_and_warmup(tmp_path):
    given = ["train.steps=1000", "train.schedule=step", "train.lr_steps=[600, 900]", "train.warmup=40"]
    train = runs.plan(ROWS[:1], [0], tmp_path, given, scale=0.1)[0].settings.train
    assert (train.steps, train.lr_steps, train.warmup) == (100, (60, 90), 4)


def test_a_run_keeps_the_precision_that_it_chose(tmp_path):
    run = runs.plan(ROWS[:1], [0], tmp_path, [*QUICK, "run.amp=auto"])[0]
    run.folder.mkdir(parents=True)
    for amp in ("bf16", "none"):
        (run.folder / "config.yaml").write_text(dump_config(load_config(run.row.config, [*QUICK, f"run.amp={amp}"])))
        assert runs.plan(ROWS[:1], [0], tmp_path, [*QUICK, "run.amp=auto"])
    with pytest.raises(ConfigError, match="run.amp: none -> bf16"):
        runs.plan(ROWS[:1], [0], tmp_path, [*QUICK, "run.amp=bf16"])


def test_a_folder_that_holds_another_run_is_refused(tmp_path):
    run = runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.settings))
    assert runs.plan(ROWS[:1], [0], tmp_path, [*QUICK, "run.workers=1"])  # which changes no result
    for other in ("train.lr=0.5", "data.test_images=7", "data.test=val", "data.seed=1"):
        with pytest.raises(
            ConfigError,
            match=f"(?s)seed0: holds a run under other settings.* or give the same settings.*{other.partition('=')[0]}",
        ):
            runs.plan(ROWS[:1], [0], tmp_path, [*QUICK, other])


def test_what_cannot_be_compared_is_refused(tmp_path):
    run = runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0]
    run.folder.mkdir(parents=True)
    log, config, environment = (run.folder / name for name in ("metrics.jsonl", "config.yaml", "env.json"))

    def refused(error, match, rows=ROWS[:1], **options):
        with pytest.raises(error, match=match):
            runs.plan(rows, [0], tmp_path, options.pop("overrides", QUICK), **options)

    log.write_text('{"step": 3, "metrics": {}}\n')
    refused(DataError, "config.yaml: missing")
    config.write_text(dump_config(run.settings))
    refused(DataError, "results.json: missing, though the run is finished")
    run.results.parent.mkdir(parents=True)
    run.results.write_text("{}")
    for flag in ("--init", "--allow-changes"):
        environment.write_text(json.dumps({"flags": [flag]}))
        refused(ConfigError, f"not trained by its config alone .got {flag}")
    environment.write_text(json.dumps({"flags": ["--torchvision"]}))
    refused(ConfigError, "holds the other detector")
    environment.write_text("{")
    refused(DataError, "env.json: damaged")
    environment.unlink()
    assert runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0].is_done()

    separate = Row("detect-F", ROWS[1].config, torchvision=True)
    refused(ConfigError, "detect_f_tiny.yaml is not torchvision's FasterRCNN; set model.split=none", [separate])
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(f"base: {ROOT}/configs/_base/shapes.yaml\ndata: {{test_images: 7}}\n")
    refused(ConfigError, "tested on other images.*data.test_images: 7, not 500", [ROWS[1], Row("x", elsewhere)])


def test_runs_are_brought_to_their_end_and_not_done_again(tmp_path, stop):
    planned = runs.plan(ROWS, [0, 1], tmp_path, QUICK)
    assert runs.execute(planned, TOY, 3, stop) == {}
    assert all(run.is_done() and run.steps_done() == 3 for run in planned)
    logs = [(run.folder / "metrics.jsonl").read_text() for run in planned]
    assert [len(text.splitlines()) for text in logs] == [4] * 4


@pytest.mark.parametrize("decay,started", [(0.6, 1), (0.45, 4)])
def test_a_mistake_stops_the_study_and_a_divergence_does_not(decay, started, tmp_path, stop):
    planned = runs.plan(ROWS, [0, 1], tmp_path, [*QUICK, f"train.weight_decay={decay}"])
    failed = runs.execute(planned, TOY, 1, stop)
    assert len(failed) == started
    assert set(failed.values()) == {(2 if decay > 0.5 else 6, "step 1: as bad as it gets; do not")}
    assert sum(run.folder.exists() for run in planned) == started


def test_the_words_of_an_earlier_start_are_not_taken_for_those_of_the_last(tmp_path, stop):
    run = runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "train.log").write_text("grcn: error: disk full; free space\n")
    failing = [sys.executable, "-c", "raise KeyError('of today')"]
    assert runs.execute([run], failing, 1, stop) == {run.folder: (1, "exit code 1 (KeyError: 'of today')")}


def test_a_run_that_dies_without_a_word_is_reported_by_its_last_line(tmp_path, stop):
    run = runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0]
    dying = [sys.executable, "-c", "import os, sys; print('so far', flush=True); os.kill(os.getpid(), 9)"]
    assert runs.execute([run], dying, 1, stop) == {run.folder: (-9, "exit code -9 (so far)")}


def test_a_signal_stops_the_processes_and_the_next_start_continues_them(tmp_path):
    slow = ["train.steps=20000", "train.lr=0.01"]
    planned = runs.plan(ROWS, [0], tmp_path, slow)

    def signal_when_running():
        wait_for(lambda: all(run.steps_done() > 3 for run in planned))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=signal_when_running, daemon=True).start()
    with StopSignals() as stop, pytest.raises(Stopped) as stopped:
        runs.execute(planned, TOY, 2, stop)
    assert stopped.value.code == 75
    done = [run.steps_done() for run in planned]
    assert all(3 < steps < 20000 for steps in done)
    faster = ["train.steps=20000", "train.lr=0.000001"]
    for run in planned:
        settings = load_config(run.row.config, [*faster, "run.seed=0"])
        (run.folder / "config.yaml").write_text(dump_config(settings))
    quick = runs.plan(ROWS, [0], tmp_path, faster)
    assert runs.execute(quick, TOY, 2, StopSignals()) == {}
    lines = (planned[0].folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 20001), 20000]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process of its parent's death")
def test_no_run_continues_after_its_study_was_killed(tmp_path):
    program = (
        "from pathlib import Path; from grcn.apps.reproduce import runs; from grcn.engine.signals import StopSignals\n"
        "from grcn.apps.reproduce.rows import Row\n"
        f"planned = runs.plan([Row('', Path({str(ROWS[0].config)!r}))], [0], Path({str(tmp_path)!r}),"
        " ['train.steps=100000', 'train.lr=0.01'])\n"
        f"runs.execute(planned, {TOY!r}, 1, StopSignals())"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)})
    run = runs.plan(ROWS[:1], [0], tmp_path, ["train.steps=100000", "train.lr=0.01"])[0]
    wait_for(lambda: run.steps_done() > 2, process)
    process.kill()
    process.wait()
    wait_for((run.folder / "saved").exists)
    assert run.steps_done() < 100000


def test_processes_share_the_cores_and_the_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [runs._share(slot, 3, "auto") for slot in range(3)] == [
        {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": name} for name in ("2", "5", "2")
    ]
    assert runs._share(1, 3, "cuda:1") == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert runs._share(0, 1, "auto") == {"OMP_NUM_THREADS": "8"}


def test_runs_are_submitted_as_jobs(tmp_path):
    """By submitit, with its executor for this machine in place of SLURM's."""
    pytest.importorskip("submitit")
    good = runs.plan(ROWS[:1], [0], tmp_path, QUICK)[0]
    bad = runs.plan(ROWS[:1], [1], tmp_path, [*QUICK, "train.weight_decay=0.6"])[0]
    # 30 seconds before its time is up, a job is preempted, however far it has got.
    jobs = slurm.submit([good, bad], TOY, tmp_path / "jobs", "local", {"timeout_min": 60})
    assert jobs[0].result() == 0 and good.is_done()
    with pytest.raises(Exception, match="exit code 2; see .*train.log"):
        jobs[1].result()


def test_a_job_lets_its_training_save_before_it_is_continued_elsewhere(tmp_path):
    """As submitit does it: ``checkpoint`` runs in a signal handler of the job's process, which then ends."""
    run = runs.plan(ROWS[:1], [0], tmp_path, ["train.steps=100000", "train.lr=0.01"])[0]
    program = (
        "import signal, sys; from grcn.apps.reproduce import slurm\n"
        f"job = slurm.Job({[*TOY, *runs.arguments(run)]!r}, {str(run.folder / 'train.log')!r})\n"
        "def preempted(*_):\n    job.checkpoint()\n    sys.exit(-1)\n"
        "signal.signal(signal.SIGUSR1, preempted)\njob()"
    )
    job = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)})
    wait_for(lambda: run.steps_done() > 2, job)
    job.send_signal(signal.SIGUSR1)
    job.wait(HANG)
    assert (run.folder / "saved").read_text() == str(run.steps_done())
