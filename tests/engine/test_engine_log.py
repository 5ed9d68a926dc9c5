from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from grcn.engine.log import MetricsLog, start_logging, write_environment


def test_continues_after_a_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    with MetricsLog(path, 0) as metrics:
        for step in (10, 20, 30):
            metrics.write(step, {"loss": 1 / step})
        assert metrics.write_evaluation(20, {"ap": 0.25}) == {"ap": 0.25}
    kept = path.read_bytes().splitlines(keepends=True)
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # killed in the middle of a line

    with MetricsLog(path, 20) as metrics:
        assert path.read_bytes() == b"".join([kept[0], kept[1], kept[3]])
        assert metrics.evaluation(20) == {"ap": 0.25}
        assert metrics.evaluation(10) is None
        metrics.write(30, {"loss": 1 / 30})
        metrics.sync()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 20, 30]
    assert json.loads(path.read_text().splitlines()[0])["loss"] == 0.1

    with MetricsLog(path, 0):
        assert path.read_bytes() == b""


def test_only_json_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", 0) as metrics:
        assert metrics.write_evaluation(1, {"a": float("nan"), "b": None}) == {"a": None, "b": None}
        with pytest.raises(ValueError):
            metrics.write(2, {"loss": float("inf")})
    written = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert written == {"step": 1, "metrics": {"a": None, "b": None}}


def test_environment(tmp_path: Path) -> None:
    write_environment(tmp_path / "env.json", torch.device("cpu"), {"memory_format": {"backbone": "channels_last"}})
    environment = json.loads((tmp_path / "env.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["command"] == sys.argv
    assert environment["memory_format"] == {"backbone": "channels_last"}
    assert environment["threads"] == torch.get_num_threads()


def test_messages_do_not_tear_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("grcn")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    try:
        start_logging()
        with tqdm(total=3, file=sys.stderr) as bar:
            bar.update()
            logger.info("in between")
            bar.update()
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "grcn: in between\n" in captured.err
