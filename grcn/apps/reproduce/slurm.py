"""Submits runs as jobs of a cluster, by submitit (extra ``slurm``)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grcn.apps.reproduce.runs import Trial, arguments
from grcn.errors import PREEMPTED, ConfigError, EnvironmentFault


class Job:
    """A training run by submitit, continued in a new job when the cluster preempts it."""

    def __init__(self, command: Sequence[str], log: str) -> None:
        self.command, self.log = list(command), log
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Trains; returns the exit code, 75 if the run was stopped and has to be continued."""
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _wait(self.process.pid)
        code = self.process.wait()
        if code not in (0, PREEMPTED):
            raise RuntimeError(f"exit code {code}; see {self.log}")
        return code

    def checkpoint(self) -> Any:
        """Lets the training save its step and stop; called by submitit's signal handler before the job ends."""
        import submitit

        if self.process is not None:
            os.kill(self.process.pid, signal.SIGTERM)
            _wait(self.process.pid)
        return submitit.helpers.DelayedSubmission(Job(self.command, self.log))


def _wait(process: int) -> None:
    """Waits for a child's end without reaping it, so that a signal handler may wait while its thread does."""
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)


def submit(
    runs: Sequence[Trial], command: Sequence[str], folder: Path, cluster: str, parameters: dict[str, Any]
) -> list[Any]:
    """Submits each run as a job with one task.

    Args:
        command: starts a training, such as ``[python, -m, grcn, train]``.
        folder: where submitit keeps its scripts and logs.
        cluster: ``slurm``, or ``local`` to try it out on this machine.
        parameters: of submitit's ``update_parameters``, such as ``{"timeout_min": 720, "slurm_partition": "gpu"}``.

    Returns:
        submitit's jobs.

    Raises:
        EnvironmentFault: submitit is not installed, or there is no such cluster.
        ConfigError: submitit knows no such parameter.
    """
    try:
        import submitit
    except ImportError as error:
        raise EnvironmentFault("--submit needs submitit, which is not installed; pip install 'grcn[slurm]'") from error
    # Where the cluster signals all processes, the training gets it too: it stops at USR1 and would die of USR2.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
    except RuntimeError as error:
        raise EnvironmentFault(f"--submit {cluster}: {error}; run it where sbatch is, or without --submit") from error
    try:
        executor.update_parameters(name="grcn", tasks_per_node=1, **parameters)
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise ConfigError(f"--slurm: {error}; see submitit's parameters") from error
    with executor.batch():
        jobs = [
            executor.submit(Job((*command, *arguments(run)), str(run.folder.absolute() / "train.log"))) for run in runs
        ]
    return jobs
