"""Runs as jobs of a cluster, by submitit (extra ``slurm``)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PREEMPTED, EnvironmentFault
from .runs import Run, arguments


@dataclass(frozen=True)
class Job:
    """A training as submitit runs it: continued in a new job when the cluster takes its machine away."""

    command: tuple[str, ...]
    log: str

    def __call__(self) -> int:
        """Trains; returns the exit code, 75 if the run was stopped and has to be continued."""
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            code = subprocess.run(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            ).returncode
        if code not in (0, PREEMPTED):
            raise RuntimeError(f"exit code {code}; see {self.log}")
        return code

    def checkpoint(self) -> Any:
        """Called by submitit before the job ends; the training got the same signal and saves its step."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(
    runs: Sequence[Run], command: Sequence[str], folder: Path, cluster: str, parameters: dict[str, Any]
) -> list[Any]:
    """Submits each run as a job with one task.

    Args:
        command: starts a training, as ``[python, tools/train.py]``.
        folder: where submitit keeps its scripts and logs.
        cluster: ``slurm``, or ``local`` to try it out on this machine.
        parameters: of submitit's ``update_parameters``, as ``{"timeout_min": 720, "slurm_partition": "gpu"}``.

    Returns:
        submitit's jobs.

    Raises:
        EnvironmentFault: submitit is not installed, or there is no such cluster.
    """
    try:
        import submitit
    except ImportError as error:
        raise EnvironmentFault("--submit needs submitit, which is not installed; pip install 'grcn[slurm]'") from error
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # a training saves and stops at it; it would die of USR2
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
    except RuntimeError as error:
        raise EnvironmentFault(f"--submit {cluster}: {error}; run it where sbatch is, or without --submit") from error
    executor.update_parameters(name="grcn", tasks_per_node=1, **parameters)
    with executor.batch():
        jobs = [
            executor.submit(Job((*command, *arguments(run)), str(run.folder.absolute() / "train.log"))) for run in runs
        ]
    return jobs
