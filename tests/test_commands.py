"""Every command of README.md and docs/ runs, with what ``documented.py`` changes of it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import documented
import programs
import pytest
import torch.distributed.run
from documented import ROOT
from downloads import Server
from waiting import HANG

COMMANDS = documented.commands()
SERVED = documented.published("")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    files = {name: contents for tiny in SERVED.values() for name, contents in tiny.served.items()}
    with Server(files) as running:
        yield running


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the links and files of a user who follows the pages."""
    for name in ("configs", "grcn", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder in ("photos", "more", "mine"):
        (tmp_path / folder).mkdir()
    for folder in ("photos", "more"):
        (tmp_path / folder / "a.jpg").write_bytes(documented.picture(folder))
    (tmp_path / "photo.jpg").write_bytes(documented.picture("photo"))
    (tmp_path / "mine.yaml").write_text("base: configs/_base/shapes.yaml\nmodel: {backbone: tiny, split: conv5}\n")
    documented.write_own_data(tmp_path)
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"^```yaml\n# (mine/[^\n]*)\n(.*?)^```", page, re.S | re.M):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("data", documented.SETTINGS)
def test_every_command_runs(data: str, checkout: Path, server: Server) -> None:
    mine = [line for line in COMMANDS if documented.data_of(line) == data]
    assert mine
    failures = []
    for line in mine:
        if not line.startswith(tuple(documented.EXEMPT)):
            try:
                run(line, checkout, server.url)
            except AssertionError as error:
                failures.append(str(error))
    assert not failures, "\n\n".join([f"{len(failures)} of {len(mine)} commands fail", *failures])


def run(line: str, place: Path, url: str) -> None:
    """Runs a command to its end, and tells its name if it fails."""
    variables = {"no_proxy": "127.0.0.1", "PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if line.startswith("#!"):
        run_slurm_script(line, place, variables)
        return
    words = documented.small(line, place)
    if words[0] == "torchrun":
        words[0] = torch.distributed.run.__file__
    done = programs.call(*words, folder=place, patch=partial(documented.shrink, url), variables=variables)
    assert done.code == 0, f"{line}\nran as {shlex.join(words)}\nexit code {done.code}\n{done.stdout}{done.stderr}"


def run_slurm_script(text: str, place: Path, variables: dict[str, str]) -> None:
    job = documented.stand_in_for_slurm(text, place / "bin")
    (place / "job.sh").write_text(text)
    done = subprocess.run(
        ["bash", "job.sh"],
        cwd=place,
        env={**os.environ, **variables, **job},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0 and not (place / "requeued").exists(), f"{text}\n{done.stdout}{done.stderr}"
    assert list(place.glob("runs/slurm/checkpoints/step_00000002-*.pt"))


def test_a_command_that_cannot_run_is_named(checkout: Path) -> None:
    for line in ("python tools/nothing.py --config C", "python tools/walkthrough.py --imagine"):
        with pytest.raises(AssertionError, match=line):
            run(line, checkout, "")


def test_a_file_that_no_command_has_left_is_named(tmp_path: Path) -> None:
    for name in ("step_00000002-0123.pt", "best-0123.pt"):
        word = re.sub("0+2-0123|0123", "…", name)
        with pytest.raises(AssertionError, match=re.escape(word)):
            documented.fill(word, tmp_path)
        (tmp_path / name).touch()
        assert documented.fill(word, tmp_path) == str(tmp_path / name)
    assert documented.fill("--output", tmp_path) == "--output"


def test_no_exemption_is_of_a_command_that_is_gone() -> None:
    for beginning in (*documented.EXEMPT, *documented.INSTEAD):
        assert any(line.startswith(beginning) for line in COMMANDS), beginning
