"""Runs the tools in separate processes, each forked from a server that has imported torch: a start takes 50 ms."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from waiting import HANG

ROOT = Path(__file__).resolve().parents[1]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["grcn.run.train", "torchvision.ops", "torchvision.models.detection", "torch.distributed", "tqdm", "hotcoco"]
)


# A run of seconds whose end, to the byte, must not depend on what happened on the way.
RUN = [
    "--config", ROOT / "configs/shapes/grcn_tiny_resnet.yaml", "--resume", "model.width=8",
    "model.image={short: 64, max: 64}", "model.roi.size=4", "model.roi.batch=16", "model.rpn.post_nms_test=20",
    "model.context.size=4", "data.size=64", "data.train_images=16", "data.test_images=4", "train.batch=2",
    "train.warmup=0", "train.steps=12", "train.log_every=4", "train.schedule=step", "train.checkpoint_every=3",
    "train.eval_every=6", "eval.pictures=0", "eval.protocols=[coco]", "run.workers=0", "run.threads=1",
    "run.device=cpu",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a program ended; ``code`` is negative after a signal."""

    command: str
    code: int
    stdout: str
    stderr: str


def start(
    tool: str,
    *args: object,
    folder: Path,
    patch: Callable[[], None] | None = None,
    variables: dict[str, str] | None = None,
    name: str = "program",
) -> Any:
    """Starts ``tools/train.py`` or another in ``folder``, where ``<name>.out`` and ``<name>.err`` get what it writes.

    Args:
        patch: of an importable module; called before the tool, to put something out of order.
        variables: of the environment.
    """
    process = CONTEXT.Process(target=_become, args=(tool, [str(arg) for arg in args], folder, patch, variables, name))
    process.start()
    return process


def call(tool: str, *args: object, folder: Path, **options: Any) -> Outcome:
    """Runs a tool to its end; see :func:`start`. One that hangs is killed."""
    process = start(tool, *args, folder=folder, **options)
    process.join(HANG)
    if process.is_alive():
        process.kill()
        process.join()
    return outcome(tool, args, process, folder, options.get("name", "program"))


def outcome(tool: str, args: Sequence[object], process: Any, folder: Path, name: str = "program") -> Outcome:
    """Reads the output of a program that has exited."""
    written = [folder / f"{name}.{kind}" for kind in ("out", "err")]
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in written]
    return Outcome(shlex.join([tool, *map(str, args)]), process.exitcode, *texts)


def left(folder: Path) -> dict[str, bytes]:
    """Reads what a run leaves in ``folder``. The newest checkpoint has the SHA-256 of its bytes in its name."""
    newest = max((folder / "checkpoints").glob("step_*.pt"))
    results = sorted(folder.glob("eval/step_*/results.json"))
    return {
        "checkpoint": newest.name.encode(),
        "log": (folder / "metrics.jsonl").read_bytes(),
        "results": b"".join(path.read_bytes() for path in results),
        "best": b" ".join(path.name.encode() for path in folder.glob("best-*.pt")),
    }


def undisturbed(folder: Path, *settings: object) -> dict[str, bytes]:
    """Does :data:`RUN` in ``folder`` and returns what it leaves when nothing happens to it."""
    folder.mkdir(exist_ok=True)
    result = call("tools/train.py", *RUN, "--output-dir", folder / "run", *settings, folder=folder)
    assert result.code == 0, result.stderr
    return left(folder / "run")


def assert_contract(result: Outcome, code: int, *named: str) -> None:
    """Asserts the contract of every failure: its exit code, one clear line with a fix, and nothing else.

    Only a config may have several lines, one per problem.
    """
    report = f"{result.command}\nexit {result.code}, expected {code}\n{result.stdout}{result.stderr}"
    assert result.code == code, report
    lines = [line for line in result.stderr.splitlines() if line.startswith("grcn: error: ")]
    assert len(lines) == 1 or (code == 2 and lines), report
    for line in lines:
        assert len(line) <= 300 and line.isprintable(), report
    assert any("; " in line for line in lines), f"no remedy\n{report}"
    for text in named:
        assert any(text in line for line in lines), f"does not name {text!r}\n{report}"
    assert "Traceback" not in result.stderr and not result.stdout, report


def signal_at(place: str, number: int, nth: int = 1, after: bool = False) -> None:
    """A patch: the process signals itself before, or after, the ``nth`` call of ``module:function``."""
    module, _, path = place.partition(":")
    *parents, name = path.split(".")
    owner = reduce(getattr, parents, import_module(module))
    real = getattr(owner, name)
    calls = count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        due = next(calls) == nth
        if due and not after:
            os.kill(os.getpid(), number)
        result = real(*args, **kwargs)
        if due and after:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, call)


def _become(
    tool: str,
    args: list[str],
    folder: Path,
    patch: Callable[[], None] | None,
    variables: dict[str, str] | None,
    name: str,
) -> None:
    for number, kind in ((1, "out"), (2, "err")):
        descriptor = os.open(folder / f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    os.environ.update(variables or {})
    os.chdir(folder)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests themselves run under nohup
    if patch is not None:
        patch()
    sys.argv = [tool, *args]
    runpy.run_path(str(ROOT / tool), run_name="__main__")
