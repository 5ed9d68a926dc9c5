"""Damaged and foreign checkpoints: never used, and reported in one line with exit code 4."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pytest
from damage import damage, is_clear
from foreign import foreign, named, refusal

from grcn.engine import checkpoint
from grcn.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.width=4", "model.head.dim=8", "model.rpn.channels=8", "data.train_images=4", "data.test_images=2",
    "train.batch=1", "train.steps=1", "train.warmup=0", "eval.pictures=0", "run.workers=0", "run.threads=1",
    "run.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config and the checkpoint of a finished run of a tiny detector."""
    folder = tmp_path_factory.mktemp("trained")
    config = ROOT / "configs/shapes/grcn_tiny.yaml"
    result = programs.call("tools/train.py", "--config", config, "--output-dir", "run", *SMALL, folder=folder)
    assert result.code == 0, result.stderr
    (path,) = (folder / "run/checkpoints").glob("step_*.pt")
    return folder / "run/config.yaml", path


# ---------------------------------------------------------------- damage


def fates(path: Path, good: bytes, chance: random.Random, count: int) -> Iterator[tuple[bytes, str]]:
    """Yields damaged contents, and what loading them ends in: a message, "the same" or "another state"."""
    name = path.name if checkpoint._NAME.fullmatch(path.name) else ""
    original = checkpoint.save(path.parent / "again", checkpoint.load(path), keep=1).name
    for _ in range(count):
        contents = damage(good, chance)
        path.write_bytes(contents)
        try:
            state = checkpoint.load(path)
        except CheckpointError as error:
            yield contents, str(error)
        else:
            same = not name and checkpoint.save(path.parent / "again", state, keep=1).name == original
            yield contents, "the same" if same else "another state"


def test_damaged_checkpoints_are_never_used(
    trained: tuple[Path, Path], tmp_path: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    """A file without a digest in its name is accepted where what is damaged holds nothing: the state is the same."""
    good, count = trained[1].read_bytes(), 1000 if faults > 1 else 50
    refused = harmless = 0
    for name in (trained[1].name, "model.pt"):
        path = tmp_path / name
        path.write_bytes(good)
        for contents, fate in fates(path, good, random.Random(name), count):
            (tmp_path / "last").write_bytes(contents)
            assert fate != "another state", f"{name}: {tmp_path / 'last'}"
            refused += fate != "the same"
            harmless += fate == "the same"
            assert fate == "the same" or is_clear(fate), fate
    assert harmless < count / 2 and refused + harmless == 2 * count
    record_property(
        "faults", f"damaged checkpoints: {refused} of {2 * count} refused in one line, {harmless} are what they were"
    )


def test_without_the_verification_damage_is_used(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: torch itself returns other weights for most damage that does not shorten the file."""
    monkeypatch.setattr(checkpoint, "_verify", lambda path, contents: None)
    path = tmp_path / trained[1].name
    good = trained[1].read_bytes()
    path.write_bytes(good)
    found = [fate for _, fate in fates(path, good, random.Random(1), 60)]
    assert found.count("another state") > 15


def test_the_newest_whole_checkpoint_is_found(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints"
    state, chance = checkpoint.load(trained[1]), random.Random(0)
    whole = checkpoint.save(folder, {**state, "step": 5}, keep=9)
    for step in (6, 7, 8, 9):
        path = checkpoint.save(folder, {**state, "step": step}, keep=9)
        path.write_bytes(damage(path.read_bytes(), chance))
    (folder / f"step_00000010-{'0' * 16}.pt").mkdir()
    (folder / "last").write_text("step_00000099.pt")
    (folder / "step_latest.pt").write_text("nothing")
    found = checkpoint.newest(folder)
    assert found is not None and found[0] == whole and found[1]["step"] == 5
    whole.write_bytes(b"")
    (folder / "step_latest.pt").unlink()
    args = ("--config", trained[0], "--output-dir", tmp_path / "run", "--resume")
    programs.assert_contract(programs.call("tools/train.py", *args, folder=tmp_path), 4, "no usable checkpoint among 6")


# ---------------------------------------------------------------- foreign files


def test_foreign_files_are_named(
    trained: tuple[Path, Path], tmp_path: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    config, good = trained
    cases = foreign(good.read_bytes())
    for number, (name, (contents, message)) in enumerate(cases.items()):
        path = named(tmp_path, contents)
        assert message in refusal(lambda path=path: checkpoint.load(path)), name
        if name != "another step":
            plain = path.rename(tmp_path / "model.pt")
            assert message in refusal(lambda path=plain: checkpoint.load(path)), name
        if faults > 1 or number % 8 == 0:
            args = ("--config", config, "--checkpoint", named(tmp_path, contents), "--output-dir", "out")
            programs.assert_contract(programs.call("tools/eval.py", *args, folder=tmp_path), 4, message)
    record_property("faults", f"files that are no checkpoint: {2 * len(cases)} of {2 * len(cases)} identified")


def test_a_checkpoint_of_another_program_is_named(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """The training loop is used as a library too, with records of other kinds."""
    state = checkpoint.load(trained[1])
    for key, value in (("config", {"lr": 1}), ("classes", None), ("data_fingerprint", 3)):
        path = checkpoint.save(tmp_path, {**state, key: value}, keep=9)
        args = ("--config", trained[0], "--checkpoint", path, "--output-dir", tmp_path / "out")
        programs.assert_contract(programs.call("tools/eval.py", *args, folder=tmp_path), 4, path.name, f"no {key}")


def test_classes_of_other_names_or_order_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """They may fit every shape."""
    config, state = trained[0], checkpoint.load(trained[1])
    for classes in (state["classes"][::-1], [*state["classes"], "more"], state["classes"][:-1]):
        path = checkpoint.save(tmp_path, {**state, "classes": classes}, keep=9)
        args = ("--config", config, "--resume-from", path, "--output-dir", tmp_path / "new")
        result = programs.call("tools/train.py", *args, folder=tmp_path)
        programs.assert_contract(result, 4, path.name, "has other classes")
        args = ("--config", config, "--checkpoint", path, "--output-dir", tmp_path / "out")
        programs.assert_contract(programs.call("tools/eval.py", *args, folder=tmp_path), 4, path.name, "classes")


def test_what_is_no_file_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for name, message in (("pipe.pt", "no such file"), ("none.pt", "no such file"), (".", "a folder"), ("\x1b\n", "")):
        args = ("--config", trained[0], "--checkpoint", tmp_path / name, "--output-dir", tmp_path / "out")
        programs.assert_contract(programs.call("tools/eval.py", *args, folder=tmp_path), 4, message)
