"""Faults of the machine during a run: full disks, lost folders, dead workers, too little memory."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from programs import RUN, Outcome, assert_contract, call, left, signal_at, start, undisturbed
from sabotage import full_disk
from waiting import HANG, wait_for

from grcn.errors import EnvironmentFault

CODE = EnvironmentFault.exit_code


def train(folder: Path, *settings: object, **options: Any) -> Outcome:
    return call("tools/train.py", *RUN, "--output-dir", folder / "run", *settings, folder=folder, **options)


def test_a_full_disk_at_any_file(tmp_path: Path, faults: int, record_property: Callable[[str, object], None]) -> None:
    """The file that does not fit is named, no partial file remains, and the run continues when there is space."""
    more = ["eval.pictures=1", "eval.protocols=[voc, coco]", "eval.voc_iou=[0.5]"]
    expected = undisturbed(tmp_path, *more)
    files = ["config.yaml", "env.json", "metrics.jsonl", "step_*.pt"]
    files += [f"{path.stem}*{path.suffix}" for path in (tmp_path / "run/eval/step_12").iterdir()]
    cases = [("metrics.jsonl", 0), *((name, 100) for name in sorted(files))]
    chosen = cases if faults > 1 else [("step_*.pt", 100)]
    for name, free in chosen:
        shutil.rmtree(tmp_path / "run")
        result = train(tmp_path, *more, patch=partial(full_disk, name, free))
        assert_contract(result, CODE, str(tmp_path / "run"), os.strerror(errno.ENOSPC), "free space")
        assert not list((tmp_path / "run").rglob(".tmp-*"))
        assert train(tmp_path, *more).code == 0
        assert left(tmp_path / "run") == expected
    record_property("faults", f"full disk: {len(chosen)} of {len(chosen)} writes reported and continued to the same")


def test_a_run_that_could_not_write_its_config_can_be_started_again(tmp_path: Path) -> None:
    """The folder holds nothing that looks like a run."""
    new = [word for word in RUN if word != "--resume"]
    args = ("tools/train.py", *new, "--output-dir", tmp_path / "run")
    result = call(*args, folder=tmp_path, patch=partial(full_disk, "config.yaml", 100))
    assert_contract(result, CODE, "config.yaml")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert call(*args, folder=tmp_path).code == 0


def test_a_full_disk_at_the_picture_of_inputs_is_a_warning(tmp_path: Path) -> None:
    settings = ["eval.pictures=1", "train.steps=1", "train.eval_every=0"]
    result = train(tmp_path, *settings, patch=partial(full_disk, "inputs.png", 100))
    assert result.code == 0 and f"no vis/inputs.png ({os.strerror(errno.ENOSPC)})" in result.stderr
    assert not list((tmp_path / "run/vis").iterdir())


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file/run", Path("/proc/run")):
        result = call("tools/train.py", *RUN, "--output-dir", folder, folder=tmp_path)
        assert_contract(result, CODE, str(folder))
    result = call("tools/train.py", *RUN, "--output-dir", tmp_path / "file", folder=tmp_path)
    assert_contract(result, 2, "not a folder")


def remove_folder(folder: Path) -> None:
    """A patch: the checkpoints are removed while the run continues."""
    from grcn.engine import checkpoint

    save = checkpoint.save

    def save_after(*args: Any) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return save(*args)

    checkpoint.save = save_after


def test_checkpoints_removed_on_the_way_are_made_anew(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path / "straight")
    assert train(tmp_path, patch=partial(remove_folder, tmp_path / "run/checkpoints")).code == 0
    assert left(tmp_path / "run") == expected


def test_odd_folder_names_and_clocks(tmp_path: Path) -> None:
    folder = tmp_path / "ein Lauf, größer als 'vorher'" / ("x" * 100)
    folder.mkdir(parents=True)
    expected = undisturbed(tmp_path / "straight")
    kill = partial(signal_at, "grcn.engine.checkpoint:save", signal.SIGKILL, 3)
    assert train(folder, patch=kill).code == -signal.SIGKILL
    for age, path in enumerate(sorted((folder / "run/checkpoints").iterdir())):
        os.utime(path, (4e9 - age * 1e6, 4e9 - age * 1e6))
    assert train(folder).code == 0
    assert left(folder / "run") == expected


def worker_dies() -> None:
    """A patch: the process that reads image 5 is killed, as for lack of memory."""
    from grcn.data.synthetic.dataset import ShapesImages

    read, parent = ShapesImages.__call__, os.getpid()

    def deadly(self: ShapesImages, row: int) -> Any:
        if row == 5 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, row)

    ShapesImages.__call__ = deadly  # type: ignore[method-assign]


def worker_hangs() -> None:
    """A patch: an image never comes, as from a disk on the network."""
    from grcn.data.synthetic.dataset import ShapesImages

    ShapesImages.__call__ = lambda self, row: time.sleep(HANG)  # type: ignore[method-assign,assignment]


def test_workers_that_die_or_hang(tmp_path: Path) -> None:
    assert_contract(train(tmp_path, "run.workers=1", patch=worker_dies), CODE, "worker died", "run.workers")
    shutil.rmtree(tmp_path / "run")
    result = train(tmp_path, "run.workers=1", "run.timeout=1.5", patch=worker_hangs)
    assert_contract(result, CODE, "worker timed out", "run.timeout")


def test_workers_end_with_a_killed_run_and_hold_no_lock(tmp_path: Path) -> None:
    command = ["tools/train.py", *RUN, "--output-dir", tmp_path / "run", "run.workers=2"]
    suspend = partial(signal_at, "grcn.models.detector:Detector.forward", signal.SIGSTOP, 5)
    process = start(*command, folder=tmp_path, patch=suspend)
    wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists(), process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: len(workers.read_text().split()) == 2, process)
    pids = workers.read_text().split()
    process.kill()
    process.join()
    assert train(tmp_path).code == 0, "the lock went with the process"
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def few_descriptors() -> None:
    """A patch: the limit of open files is low, as in many shells."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 6, hard))


def test_too_many_open_files(tmp_path: Path) -> None:
    assert_contract(train(tmp_path, "run.workers=8", patch=few_descriptors), CODE, "ulimit -n", "run.workers")


def little_memory() -> None:
    """A patch: the process may take 300 MB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 300 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def test_too_little_memory_is_found_before_the_first_step(tmp_path: Path) -> None:
    """The first batch of small images fits, the largest possible one does not: a dry run reports it."""
    command = ["tools/train.py", *RUN, "model.image={short: 1500, max: 1500}", "--dry-run"]
    result = call(*command, folder=tmp_path, patch=little_memory)
    assert_contract(result, CODE, "out of memory", "train.batch", "model.image.short")
    assert not (tmp_path / "runs").exists()


def test_a_missing_device(tmp_path: Path) -> None:
    assert_contract(train(tmp_path, "run.device=cuda:77"), CODE, "cuda:77", "use cpu")


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    first = start("tools/train.py", *RUN, "--output-dir", tmp_path / "run", "train.steps=2000", folder=tmp_path)
    wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists(), first)
    result = train(tmp_path, name="second")
    first.kill()
    first.join()
    host = os.uname().nodename
    assert_contract(result, CODE, f"in use by process {first.pid} on {host}")


def nobody_listens() -> None:
    """A patch: the reader of stdout and stderr has exited, as after the terminal was closed."""
    for descriptor in (1, 2):
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, descriptor)


def no_room_for_messages() -> None:
    """A patch: stderr goes to a disk that is full."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


@pytest.mark.parametrize(("patch", "code"), [(nobody_listens, CODE), (no_room_for_messages, 0)])
def test_training_continues_when_nobody_reads_its_output(tmp_path: Path, patch: Callable[[], None], code: int) -> None:
    expected = undisturbed(tmp_path / "straight")
    assert train(tmp_path, patch=patch).code == code, "only the result on stdout must be reported"
    assert left(tmp_path / "run") == expected
    if patch is no_room_for_messages:
        assert train(tmp_path, "train.lr=fast", patch=patch).code == 2


def no_memory_to_fork() -> None:
    """A patch: a process for reading images cannot be started."""

    def fork() -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    os.fork = fork


def test_a_worker_that_cannot_start(tmp_path: Path) -> None:
    result = train(tmp_path, "run.workers=1", patch=no_memory_to_fork)
    assert_contract(result, CODE, os.strerror(errno.ENOMEM), "run.workers")


def bug_in_a_worker() -> None:
    """A patch: reading an image meets a mistake of ours."""
    from grcn.data.synthetic.dataset import ShapesImages

    def read(self: ShapesImages, row: int) -> Any:
        raise RuntimeError("a mistake of ours")

    ShapesImages.__call__ = read  # type: ignore[method-assign]


def test_a_bug_in_a_worker_is_not_the_machines(tmp_path: Path) -> None:
    result = train(tmp_path, "run.workers=1", patch=bug_in_a_worker)
    assert result.code == 1 and "Traceback" in result.stderr and "a mistake of ours" in result.stderr


def test_the_check_sees_a_fault_that_is_not_caught(tmp_path: Path) -> None:
    """A control: without its rule, a dead worker ends in a traceback and exit code 1."""
    result = train(tmp_path, "run.workers=1", patch=worker_dies_unknown)
    with pytest.raises(AssertionError):
        assert_contract(result, CODE)


def worker_dies_unknown() -> None:
    """A patch: as above, in a program that does not know torch's words for it."""
    from grcn import errors

    worker_dies()
    errors._RUNTIME_FAULTS.clear()
