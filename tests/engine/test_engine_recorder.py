"""Checkpoints written while training continues: their contents, the calls that wait for them, and their errors."""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import ToyDetector, batches
from waiting import HANG

from grcn import fileio
from grcn.engine import checkpoint
from grcn.engine.average import WeightAverage
from grcn.engine.recorder import Recorder
from grcn.engine.train import train
from grcn.errors import EnvironmentFault, NonFiniteError


class Counting(ToyDetector):
    """Has a buffer that each step changes in place."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, images: Any, targets: Any = None) -> Any:
        self.calls += 1
        return super().forward(images, targets)


def fit(folder: Path, steps: int, data: Any = None, adamw: bool = False, done: Any = None, **options: Any) -> None:
    """Trains and saves every third step; ``done`` gets each step that is done."""
    torch.manual_seed(0)
    model = Counting()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, fused=True)
    if adamw:
        optimizer = torch.optim.AdamW(weights, lr=0.1, fused=True)
    if done is not None:
        optimizer.register_step_post_hook(lambda *_: done.append(len(done) + 1))
    train(
        model, batches() if data is None else data, optimizer, Recorder(folder, log_every=10), steps=steps,
        lr_at=lambda step: 0.1, ema=WeightAverage(model, 0.9), checkpoint_every=3, **options,
    )  # fmt: skip


def in_the_background(
    monkeypatch: pytest.MonkeyPatch, until: threading.Event, first: Callable[[], object] = bool
) -> None:
    """Has each checkpoint begin late, when ``until`` is set, and calls ``first`` there."""
    save = checkpoint.save

    def late(*args: Any) -> Path:
        assert threading.current_thread() is not threading.main_thread()
        assert until.wait(HANG)
        first()
        return save(*args)

    monkeypatch.setattr(checkpoint, "save", late)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set while the recorder waits for a checkpoint that is being written, or is left."""
    event = threading.Event()
    wait, leave = Recorder._wait, Recorder.__exit__

    def announced(self: Recorder) -> None:
        event.set()
        wait(self)
        event.clear()

    def left(self: Recorder, *error: Any) -> None:
        event.set()
        leave(self, *error)

    monkeypatch.setattr(Recorder, "_wait", announced)
    monkeypatch.setattr(Recorder, "__exit__", left)
    return event


@pytest.mark.parametrize("adamw", [False, True])
def test_training_continues_and_does_not_change_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: threading.Event, adamw: bool
) -> None:
    """As late as can be: the bytes are those of a run that waits for each checkpoint at once."""
    done: list[int] = []
    written: list[int] = []
    with monkeypatch.context() as patch:
        save = Recorder.save
        patch.setattr(Recorder, "save", lambda self, *state: (save(self, *state), self.finish_saving()))
        fit(tmp_path / "waits", 8, adamw=adamw)
    in_the_background(monkeypatch, waiting, lambda: written.append(done[-1]))
    fit(tmp_path / "run", 8, adamw=adamw, done=done)
    assert written == [6, 8, 8], "each after the steps up to the next wait"
    ours, theirs = ({path.name for path in (tmp_path / name / "checkpoints").iterdir()} for name in ("run", "waits"))
    assert ours == theirs and len(ours) == 3, "a name has the digest of the bytes"


def test_an_evaluation_waits_for_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: threading.Event
) -> None:
    def evaluate(step: int) -> dict[str, float]:
        assert checkpoint.latest_step(tmp_path / "checkpoints") == step
        return {}

    in_the_background(monkeypatch, waiting)
    fit(tmp_path, 6, evaluate=evaluate, eval_every=2)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("steps", "options", "until"),
    [
        (9, {}, 6),  # the next checkpoint
        (3, {}, 3),  # the end
        (9, {"eval_every": 3, "evaluate": lambda step: pytest.fail("evaluated")}, 3),
    ],
)
def test_an_error_comes_up_where_the_checkpoint_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, options: dict[str, Any], until: int
) -> None:
    done: list[int] = []
    monkeypatch.setattr(fileio, "write_durably", full)
    message = rf"step_00000003-.*: cannot save \(got {os.strerror(errno.ENOSPC)}; .* free space .*--resume"
    with pytest.raises(EnvironmentFault, match=message) as caught:
        fit(tmp_path, steps, done=done, **options)
    assert done[-1] == until
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_an_error_does_not_replace_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned = 4 * 4  # the first image of step 5
    monkeypatch.setattr(fileio, "write_durably", full)
    with caplog.at_level(logging.WARNING, "grcn"), pytest.raises(NonFiniteError, match="step 5: "):
        fit(tmp_path, 9, batches(poison=poisoned))
    [record] = caplog.records
    assert "cannot save" in record.getMessage() and "step_00000003-" in record.getMessage()


def test_nobody_leaves_before_the_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: threading.Event
) -> None:
    in_the_background(monkeypatch, waiting)
    with pytest.raises(ValueError, match="batches ended"):
        fit(tmp_path, 9, islice(batches(), 4))
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 3


def test_a_wait_that_is_interrupted_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C, in a program of one's own that leaves it to Python."""
    leaving, leave = threading.Event(), Recorder.__exit__

    def interrupted(wait: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Future[Path]) -> Any:
            if not leaving.is_set():
                raise KeyboardInterrupt
            return wait(self)

        return call

    def left(self: Recorder, *error: Any) -> None:
        leaving.set()
        leave(self, *error)

    for name in ("exception", "result"):
        monkeypatch.setattr(Future, name, interrupted(getattr(Future, name)))
    monkeypatch.setattr(Recorder, "__exit__", left)
    in_the_background(monkeypatch, leaving)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 9)
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 3


def test_the_copy_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = checkpoint.save
    copies: list[weakref.ref[torch.Tensor]] = []

    def watched(folder: Path, state: Any, keep: int) -> Path:
        copies.append(weakref.ref(state["model"]["box.weight"]))
        return save(folder, state, keep)

    monkeypatch.setattr(checkpoint, "save", watched)
    model = ToyDetector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    before = set(threading.enumerate())
    with Recorder(tmp_path) as recorder:
        recorder.save(1, model, optimizer)
        recorder.finish_saving()
        for thread in set(threading.enumerate()) - before:
            thread.join()
        assert copies[0]() is None


@pytest.mark.parametrize("keep", [0, -1])
def test_a_recorder_keeps_at_least_one_checkpoint(tmp_path: Path, keep: int) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        Recorder(tmp_path, keep=keep)
