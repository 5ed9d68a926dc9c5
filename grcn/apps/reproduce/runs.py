"""Plans the runs of a study, tracks their progress, and executes them in separate processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from grcn.apps.reproduce.checks import check_runs, holds_another
from grcn.apps.reproduce.rows import Row
from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.engine.log import is_evaluated, last_entry
from grcn.engine.signals import Stopped, StopSignals
from grcn.errors import PREFIX, NonFiniteError
from grcn.progress import progress_bar

_POLL = 0.5  # seconds between looks at the processes


@dataclass(frozen=True)
class Trial:
    """A row of the table trained with one seed, in its own folder.

    Attributes:
        kept: file that keeps its results when the folder is gone; None for none.
        elsewhere: its folder holds a run of other settings, and is not read, since its results are kept.
    """

    row: Row
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    settings: Config
    kept: Path | None = None
    elsewhere: bool = False

    @property
    def name(self) -> str:
        """Name of the model that is trained."""
        return self.row.name

    @property
    def results(self) -> Path:
        """The file of the last evaluation."""
        return self.folder / "eval" / f"step_{self.settings.train.steps}" / "results.json"

    @property
    def detections(self) -> Path:
        """The file of what that evaluation scored."""
        return self.results.with_name("detections.json")

    def steps_done(self) -> int:
        """Returns the last step in its log; 0 for a run that has not begun."""
        return min(int(last_entry(self.folder / "metrics.jsonl").get("step", 0)), self.settings.train.steps)

    def is_done(self) -> bool:
        """Whether all steps are done and evaluated, by its log."""
        return not self.elsewhere and is_evaluated(self.folder / "metrics.jsonl", self.settings.train.steps)

    def is_kept(self) -> bool:
        """Whether its results are kept."""
        return self.kept is not None and self.kept.exists()


def plan(
    rows: Sequence[Row],
    seeds: Iterable[int],
    root: Path,
    overrides: Sequence[str] = (),
    scale: float = 1.0,
    results: Path | None = None,
) -> list[Trial]:
    """Lists the runs of each row with each seed, in ``root/<name>/seed<k>``, seed by seed; rows of one name share them.

    Args:
        overrides: ``key=value`` for all runs.
        scale: multiplies the steps of each config, its milestones and its warm-up, after the overrides.
        results: folder in which results are kept, ``<results>/<name>/seed<k>.json``.

    Raises:
        UserError: a setting is wrong, or :func:`grcn.apps.reproduce.checks.check_runs` finds a fault.
    """
    runs = []
    for seed in dict.fromkeys(seeds):
        for name, row in {row.name: row for row in rows}.items():
            own = (*overrides, *_scaled(load_config(row.config, overrides), scale), f"run.seed={seed}")
            kept = None if results is None else results / name / f"seed{seed}.json"
            run = Trial(row, seed, root / name / f"seed{seed}", own, load_config(row.config, own), kept)
            runs.append(replace(run, elsewhere=run.is_kept() and holds_another(run)))
    check_runs(runs)
    return runs


def _scaled(cfg: Config, scale: float) -> tuple[str, ...]:
    """Returns the overrides that make a schedule ``scale`` times as long."""
    if scale == 1:
        return ()
    train = cfg.train
    milestones = ", ".join(str(max(1, round(step * scale))) for step in train.lr_steps)
    steps = max(1, round(train.steps * scale))
    return f"train.steps={steps}", f"train.lr_steps=[{milestones}]", f"train.warmup={round(train.warmup * scale)}"


def execute(runs: Sequence[Trial], command: Sequence[str], jobs: int, stop: StopSignals) -> dict[Path, tuple[int, str]]:
    """Runs all to their end, each in its own process, ``jobs`` at a time; shows their progress.

    After a run that diverges, the others still run; after any other fault no further ones start, because they would
    fail too.

    Args:
        command: starts a training, such as ``[python, -m, grcn, train]``.
        jobs: processes at a time. They share the cores and, where there are several, the GPUs.
        stop: signals on which the processes save their step and end.

    Returns:
        The exit code and last message of each process that failed, by folder.

    Raises:
        Stopped: a signal came.
    """
    waiting, broken = list(runs), False
    failed: dict[Path, tuple[int, str]] = {}
    slots = set(range(jobs))
    active: dict[int, tuple[subprocess.Popen[bytes], Trial, int]] = {}
    total = sum(run.settings.train.steps for run in runs)
    done = sum(run.steps_done() for run in runs)
    with progress_bar(desc=f"{len(runs)} runs", total=total, initial=done, unit="step") as bar:
        while active or (waiting and not broken and not stop.code):
            while waiting and slots and not broken and not stop.code:
                slot, run = min(slots), waiting.pop(0)
                slots.remove(slot)
                log_size = _size(run.folder / "train.log")
                active[slot] = _start(run, command, slot, jobs), run, log_size
            time.sleep(_POLL)
            for slot, (process, run, log_size) in list(active.items()):
                if (code := process.poll()) is None:
                    continue
                del active[slot]
                slots.add(slot)
                if code and not stop.code:
                    failed[run.folder] = code, _last_words(run.folder / "train.log", log_size, code)
                    broken = broken or code != NonFiniteError.exit_code
            bar.set_postfix(running=len(active), waiting=len(waiting), failed=len(failed), refresh=False)
            bar.update(sum(run.steps_done() for run in runs) - bar.n)
            if stop.code:
                for process, *_ in active.values():
                    process.send_signal(signal.SIGTERM)
                for process, *_ in active.values():
                    process.wait()
    if stop.code:
        raise Stopped(stop.code)
    return failed


def _start(run: Trial, command: Sequence[str], slot: int, jobs: int) -> subprocess.Popen[bytes]:
    """Starts the process of a run, or continues it; its output is appended to ``train.log`` in its folder."""
    run.folder.mkdir(parents=True, exist_ok=True)
    prepare = None
    if sys.platform == "linux":  # no run continues unseen after a kill -9 of this process
        # The library is loaded here, since little is safe between fork and exec. 1 is PR_SET_PDEATHSIG.
        prepare = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM)
    with (run.folder / "train.log").open("ab") as log:
        return subprocess.Popen(
            [*command, *arguments(run)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **_share(slot, jobs, run.settings.run.device)},
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
            preexec_fn=prepare,
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def arguments(run: Trial) -> list[str]:
    """Returns the arguments of ``grcn train`` for a run, which start it or continue it."""
    flags = ["--torchvision"] if run.row.torchvision else []
    return ["--config", str(run.row.config), "--output-dir", str(run.folder), "--resume", *flags, *run.overrides]


def _share(slot: int, jobs: int, device: str) -> dict[str, str]:
    """Returns the variables that give a process its part of the cores and, where there are several, a GPU.

    Args:
        device: ``run.device``; one with a number, such as ``cuda:1``, is that GPU for all.
    """
    # Where the process may run on some of the machine's cores only, they are those it has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))}
    gpus = [] if ":" in device else _gpus()
    return share | {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else share


def _gpus() -> list[str]:
    """Returns the names of the visible GPUs, as in ``CUDA_VISIBLE_DEVICES``."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _last_words(log: Path, start: int, code: int) -> str:
    """Returns the error that a process ended with, or its exit code and last line.

    Args:
        log: of the run.
        start: how long it was when the process started.
    """
    text = log.read_bytes()[start:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    reported = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
    if code > 1 and reported:
        return "; ".join(reported)
    last = lines[-1].strip() if lines else "no output"
    return f"exit code {code} ({last})"
