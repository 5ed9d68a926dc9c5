from __future__ import annotations

import json
import logging
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from grcn.engine.environment import write_environment
from grcn.engine.log import MetricsLog, check_tensorboard
from grcn.errors import EnvironmentFault
from grcn.progress import progress_bar, start_logging


def test_continues_after_a_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    with closing(MetricsLog(path, 0)) as metrics:
        for step in (10, 20, 30):
            metrics.write(step, {"loss": 1 / step})
        assert metrics.write_evaluation(20, {"ap": 0.25}) == {"ap": 0.25}
    kept = path.read_bytes().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # killed in the middle of a line

    with closing(MetricsLog(path, 20)) as metrics:
        assert path.read_bytes() == b"".join([kept[0], kept[1], kept[3]])
        assert metrics.evaluations() == {20: {"ap": 0.25}}
        metrics.write(30, {"loss": 1 / 30})
        metrics.sync()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 20, 30]
    assert json.loads(path.read_text().splitlines()[0])["loss"] == 0.1

    with closing(MetricsLog(path, 0)):
        assert path.read_bytes() == b""


def test_a_long_log_is_cut_back_at_once(tmp_path: Path) -> None:
    """With a line a step, for as long as the paper trains on COCO; copying what is kept for each took hours."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "lr": 0.001, "loss": 0.123456789}}\n' for step in range(1, 320_001)))
    with closing(MetricsLog(path, 319_999)):
        assert path.read_bytes().endswith(b'{"step": 319999, "lr": 0.001, "loss": 0.123456789}\n')


def test_only_json_is_written(tmp_path: Path) -> None:
    with closing(MetricsLog(tmp_path / "metrics.jsonl", 0)) as metrics:
        assert metrics.write_evaluation(1, {"a": float("nan"), "b": None}) == {"a": None, "b": None}
        with pytest.raises(ValueError):
            metrics.write(2, {"loss": float("inf")})
    written = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert written == {"step": 1, "metrics": {"a": None, "b": None}}


def test_tensorboard_shows_what_the_log_has(tmp_path: Path) -> None:
    """After a crash too: what the log was cut back by is not shown."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path, events = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with closing(MetricsLog(path, 0, events)):
        assert not events.exists(), "nothing to say"
    with closing(MetricsLog(path, 0, events)) as metrics:
        metrics.write(10, {"lr": 0.5, "loss": 3.0})
        metrics.write(20, {"lr": 0.5, "loss": 9.0})  # of a step that no checkpoint has
    with closing(MetricsLog(path, 10, events)) as metrics:
        metrics.write(20, {"lr": 0.25, "loss": 2.0})
        metrics.write_evaluation(20, {"coco_ap": 0.75, "coco_ap_large": float("nan")})
    shown = accumulator.EventAccumulator(str(events))
    shown.Reload()
    found = {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert found == {
        "train/lr": [(10, 0.5), (20, 0.25)],
        "train/loss": [(10, 3), (20, 2)],
        "test/coco_ap": [(20, 0.75)],
    }


def test_tensorboard_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tensorboard()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "tensorboard.summary.writer.record_writer")
    with pytest.raises(EnvironmentFault, match=r"tensorboard is not installed; pip install 'grcn\[tb\]', or"):
        check_tensorboard()


def test_events_that_cannot_be_written_stop_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with closing(MetricsLog(tmp_path / "metrics.jsonl", 0, tmp_path / "tensorboard")) as metrics:
        for step in (10, 20):
            metrics.write(step, {"loss": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/tensorboard: no more events for TensorBoard (File exists)"
    ]


def test_environment(tmp_path: Path) -> None:
    write_environment(tmp_path, torch.device("cpu"), {"memory_format": {"backbone": "channels_last"}})
    environment = json.loads((tmp_path / "env.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["commands"] == [sys.argv] and environment["flags"] == []
    assert environment["memory_format"] == {"backbone": "channels_last"}
    assert environment["threads"] == torch.get_num_threads()


def test_messages_do_not_tear_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("grcn")
    start_logging()
    with progress_bar(total=3) as bar:
        bar.update()
        logger.info("in between")
        bar.update()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "grcn: in between\n" in captured.err
