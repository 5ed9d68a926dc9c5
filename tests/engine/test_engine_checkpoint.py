from __future__ import annotations

import copy
import errno
import io
import logging
import os
import resource
import signal
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from grcn.engine import checkpoint
from grcn.engine.checkpoint import restore
from grcn.errors import CheckpointError, EnvironmentFault


def state_of(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "format": checkpoint.FORMAT,
        "step": step,
        "model": {"a.weight": torch.randn(5, 7, generator=generator), "a.bias": torch.arange(3)},
        "optimizer": {"state": {}, "param_groups": []},
        "losses": [[0.5, 1.5]],
        "config": {"lr": 0.1, "k": [1, None, (2,)]},
    }


def assert_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) <= 300
    assert str(error).isprintable()


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "new" / "folder", state_of(12), keep=2)
    assert path.name.startswith("step_00000012-")
    found = checkpoint.newest(path.parent)
    assert found is not None and found[0] == path
    torch.testing.assert_close(found[1], state_of(12), rtol=0, atol=0)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    """Pickle tells one string from an equal one; a run that was continued has both."""
    new = {**state_of(3), "schedule": "lr", "model": OrderedDict(state_of(3)["model"])}
    loaded = checkpoint.load(checkpoint.save(tmp_path / "a", new, keep=1))
    mixed = {**new, "schedule": loaded["schedule"], "model": loaded["model"]}
    names = [checkpoint.save(tmp_path / "b", state, keep=1).name for state in (new, loaded, mixed)]
    assert len(set(names)) == 1

    plain = [io.BytesIO(), io.BytesIO()]
    torch.save({**new, "model": loaded["model"]}, plain[0])
    torch.save(mixed, plain[1])
    assert plain[0].getvalue() != plain[1].getvalue(), "torch.save alone tells them apart"


def test_views_are_saved_and_only_plain_types(tmp_path: Path) -> None:
    column = torch.arange(12.0).reshape(3, 4)[:, 1]
    loaded = checkpoint.load(checkpoint.save(tmp_path, {**state_of(1), "column": column}, keep=1))
    assert loaded["column"].tolist() == [1, 5, 9]
    with pytest.raises(TypeError, match="PosixPath"):
        checkpoint.save(tmp_path, {**state_of(2), "path": tmp_path}, keep=1)


def test_a_snapshot_shares_nothing_and_saves_to_the_same_bytes(tmp_path: Path) -> None:
    """Tensors of more than a piece of the buffer among them, and equal strings that are two objects."""
    large = torch.arange(2**18 + 3.0)
    name = "".join(["a", ".weight"])
    state = {**state_of(1), "large": large, "again": [name, (large[:2].clone(),)], "layout": torch.ones(2, 3).t()}
    copy = checkpoint.snapshot(state)
    paths = [checkpoint.save(tmp_path / f"{number}", value, keep=1) for number, value in enumerate((state, copy))]
    assert paths[0].name == paths[1].name
    plain = io.BytesIO()
    torch.save(copy, plain)
    assert checkpoint._digest(plain.getvalue()) in paths[1].name, "the pieces are put together as they came"
    large.zero_()
    state["model"]["a.bias"] += 1
    state["losses"][0][0] = 7.0
    state["again"].clear()
    assert checkpoint.save(tmp_path / "2", copy, keep=1).name == paths[1].name
    with pytest.raises(TypeError, match="PosixPath"):
        checkpoint.snapshot({"path": tmp_path})


def test_keeps_the_newest(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-step_00000001-0123456789abcdef.pt").write_bytes(b"left by a killed run")
    (tmp_path / "notes.txt").write_text("mine")
    later = checkpoint.save(tmp_path, state_of(900), keep=2)
    for step in (10, 9, 11, 100):
        path = checkpoint.save(tmp_path, state_of(step), keep=2)
        os.utime(path, (2e9 - step, 2e9 - step))  # clocks lie; steps do not
    names = sorted(file.name for file in tmp_path.iterdir())
    assert [name[:13] for name in names] == [
        "notes.txt",
        "step_00000011",
        "step_00000100",
        "step_00000900",
    ]
    assert later.exists(), "a checkpoint of a later step is not this run's to remove"


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "missing") is None


def test_torch_alone_would_accept_damage(tmp_path: Path) -> None:
    """Why there is a digest: torch.load returns other weights for most flipped bits."""
    path = checkpoint.save(tmp_path, state_of(5), keep=1)
    contents = bytearray(path.read_bytes())
    place = contents.index(state_of(5)["model"]["a.weight"].numpy().tobytes())
    contents[place] ^= 1
    path.write_bytes(contents)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoint.load(path)


def test_older_one_is_used_and_each_damaged_one_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [checkpoint.save(tmp_path, state_of(step), keep=5) for step in (1, 2, 3)]
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "grcn"):
        found = checkpoint.newest(tmp_path)
    assert found is not None and found[0] == paths[0] and found[1]["step"] == 1
    assert [str(path) in record.getMessage() for path, record in zip(paths[:0:-1], caplog.records, strict=True)] == [
        True,
        True,
    ]

    paths[0].write_bytes(b"")
    with pytest.raises(CheckpointError, match="no usable checkpoint among 3") as caught:
        checkpoint.newest(tmp_path)
    assert_one_line(caught.value)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"model": Bomb(canary)}, tmp_path / "bomb.pt")
    torch.save({"epoch": 1}, tmp_path / "theirs.pt")
    torch.save({**state_of(1), "format": 99}, tmp_path / "future.pt")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0 a photo")
    (tmp_path / "folder").mkdir()
    for name in ("bomb.pt", "theirs.pt", "future.pt", "photo.jpg", "folder", "missing.pt"):
        with pytest.raises(CheckpointError, match=name) as caught:
            checkpoint.load(tmp_path / name)
        assert_one_line(caught.value)
    assert not canary.exists()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate"), OSError(errno.ESTALE, "Stale file handle")],
)
def test_a_fault_of_the_machine_does_not_cost_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The newest one is sound, and to go back to an older one would lose work."""
    for step in (1, 2):
        checkpoint.save(tmp_path, state_of(step), keep=5)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(
        Path if isinstance(error, OSError) else torch, "read_bytes" if isinstance(error, OSError) else "load", fail
    )
    with pytest.raises(type(error)):
        checkpoint.newest(tmp_path)


def test_full_disk_leaves_the_old_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = checkpoint.save(tmp_path, state_of(1), keep=1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # every file is full at 1,000 bytes
        with pytest.raises(EnvironmentFault, match="MiB free") as caught:
            checkpoint.save(tmp_path, state_of(2), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert old.exists()

    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EnvironmentFault):
        checkpoint.save(tmp_path / "file" / "checkpoints", state_of(2), keep=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("0.bias"),
            "1 weights missing, 0 unexpected .first missing: 0.bias",
        ),
        (lambda weights: weights.update(other=torch.zeros(1)), "0 weights missing, 1 unexpected"),
        (
            lambda weights: weights.update({"0.weight": torch.zeros(2, 4)}),
            r"0.weight .* \(got \[2, 4\], need \[2, 3\]\)",
        ),
    ],
)
def test_weights_of_another_model(change: Any, message: str) -> None:
    layer = nn.Linear(3, 2)
    model = nn.Sequential(layer)
    weights = dict(nn.Sequential(nn.Linear(3, 2)).state_dict())
    change(weights)
    before = layer.weight.clone()
    with pytest.raises(CheckpointError, match=message) as caught:
        restore({"step": 3, "model": weights}, model)
    assert_one_line(caught.value)
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=0)


def test_another_optimizer() -> None:
    layer = nn.Linear(3, 2)
    groups: list[dict[str, Any]] = [{"params": layer.weight}, {"params": layer.bias}]
    theirs = torch.optim.SGD(groups, lr=0.1)
    state = {"step": 3, "model": layer.state_dict(), "optimizer": theirs.state_dict()}
    with pytest.raises(CheckpointError, match=r"got groups of \[1, 1\] weights, need \[2\]") as caught:
        restore(state, layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    assert_one_line(caught.value)


def test_an_optimizer_of_another_kind() -> None:
    """Its state may fit by number and shape; a setting that another release of torch has added makes no difference."""
    layer = nn.Linear(3, 2)
    theirs = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True)
    layer(torch.ones(3)).sum().backward()
    theirs.step()
    state = {"step": 3, "model": layer.state_dict(), "optimizer": theirs.state_dict()}
    with pytest.raises(CheckpointError, match="step 3: another optimizer .*momentum.*need .*betas") as caught:
        restore(state, layer, torch.optim.AdamW(layer.parameters(), fused=True))
    assert_one_line(caught.value)
    state["optimizer"]["param_groups"][0]["of_tomorrow"] = True
    restore(state, layer, torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved.pop("param_groups"), "no groups"),
        (lambda saved: saved.update(param_groups=3), "no groups"),
        (lambda saved: saved.update(param_groups=[{}]), "no groups"),
        (lambda saved: saved.update(state=[1, 2]), "no groups"),
        (lambda saved: saved["state"].pop(1), "state of 1 weights, need 2"),
        (lambda saved: saved["state"].update({7: saved["state"].pop(1)}), "no groups"),
        (lambda saved: saved["state"].update({0: saved["state"][1], 1: saved["state"][0]}), r"need \[2, 3\]"),
    ],
)
def test_a_broken_optimizer(change: Any, message: str) -> None:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True)
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    change(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        restore({"step": 3, "model": layer.state_dict(), "optimizer": saved}, layer, optimizer)
    assert_one_line(caught.value)


def test_optimizer_keeps_its_own_settings() -> None:
    """Who continues a run with another weight decay, and says so, gets it."""
    layer = nn.Linear(3, 2)
    theirs = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5, fused=True)
    layer(torch.ones(3)).sum().backward()
    theirs.step()
    state = {"step": 3, "model": layer.state_dict(), "optimizer": theirs.state_dict()}
    ours = torch.optim.SGD(layer.parameters(), lr=0.2, momentum=0.8, fused=True)
    restore(state, layer, ours)
    assert (ours.param_groups[0]["weight_decay"], ours.param_groups[0]["momentum"]) == (0.0, 0.8)
    for mine, other in zip(ours.state.values(), theirs.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], other["momentum_buffer"])
    assert len(ours.state) == 2


@pytest.mark.parametrize("order", [("saved", "restored"), ("restored", "saved")])
def test_momentum_follows_the_layout_of_the_weights(order: tuple[str, str]) -> None:
    """On a GPU weights are channels_last, on a CPU they are not; the fused update pairs them by place in memory."""
    torch.manual_seed(0)
    layers = {name: nn.Conv2d(3, 4, 3) for name in order}
    layers["saved"].load_state_dict(layers["restored"].state_dict())
    layers[order[0]].to(memory_format=torch.channels_last)
    optimizers = {
        name: torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, fused=True) for name, layer in layers.items()
    }
    images = torch.randn(2, 3, 8, 8)

    def step(name: str) -> None:
        optimizers[name].zero_grad()
        layers[name](images).square().mean().backward()
        optimizers[name].step()

    step("saved")
    state = {"step": 1, "model": layers["saved"].state_dict(), "optimizer": optimizers["saved"].state_dict()}
    restore(copy.deepcopy(state), layers["restored"], optimizers["restored"])
    step("saved")
    step("restored")
    torch.testing.assert_close(layers["restored"].weight, layers["saved"].weight)


def test_the_best_outlives_its_name_and_may_be_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    first = checkpoint.save(folder, state_of(1), keep=1)
    checkpoint.keep_best(folder, [1])
    (best,) = tmp_path.glob("best-*.pt")
    assert best.samefile(first), "no room taken as long as both are there"
    checkpoint.save(folder, state_of(2), keep=1)
    assert not first.exists() and checkpoint.load(best)["step"] == 1

    def unknown(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unknown)
    checkpoint.keep_best(folder, [2, 1])
    (copy,) = tmp_path.glob("best-*.pt")
    assert checkpoint.load(copy)["step"] == 2 and not best.exists()


def test_the_next_best_stands_in_for_one_that_is_gone(tmp_path: Path) -> None:
    """As when checkpoints were removed by hand, or the run was continued in another folder."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.save(folder, state_of(step), keep=2)
    for name in ("best-step_00000009-0123456789abcdef.pt", "best-step_00000008-0123456789abcdef.pt"):
        (tmp_path / name).touch()  # of a branch that is gone, and left by a crash
    checkpoint.keep_best(folder, [1, 3, 2])
    (best,) = tmp_path.glob("best-*.pt")
    assert checkpoint.load(best)["step"] == 3
    (folder / best.name.removeprefix("best-")).unlink()
    checkpoint.keep_best(folder, [1, 3, 2])
    assert list(tmp_path.glob("best-*.pt")) == [best]
    best.rename(tmp_path / best.name.replace("3-", "7-"))
    with pytest.raises(CheckpointError, match=r"damaged or renamed \(got step 3\)"):
        checkpoint.load(next(tmp_path.glob("best-*.pt")))


def test_a_damaged_best_is_replaced(tmp_path: Path) -> None:
    """Both names are one file, so damage reaches both; then training goes over the step again."""
    path = checkpoint.save(tmp_path / "checkpoints", state_of(1), keep=1)
    checkpoint.keep_best(path.parent, [1])
    (best,) = tmp_path.glob("best-*.pt")
    (tmp_path / ".tmp-best-0123.pt").touch()  # of a crash while it was copied
    with path.open("r+b") as file:
        file.write(b"damage")
    assert path.read_bytes() == best.read_bytes()
    checkpoint.save(path.parent, state_of(1), keep=1)
    checkpoint.keep_best(path.parent, [1])
    assert checkpoint.load(best)["step"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [best.name, "checkpoints"]


def test_a_damaged_checkpoint_does_not_become_the_best(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "checkpoints", state_of(1), keep=1)
    path.write_bytes(path.read_bytes()[:-1])
    checkpoint.keep_best(path.parent, [1])
    assert not list(tmp_path.glob("best-*.pt"))


def test_a_path_that_is_no_checkpoint_names_one_that_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoints", state_of(1), keep=2)
    saved = checkpoint.save(tmp_path / "checkpoints", state_of(2), keep=2)
    for wrong in (tmp_path, saved.parent, saved.parent / "step_00000002-….pt"):
        with pytest.raises(CheckpointError, match=f"; pass an existing checkpoint, such as {saved}$"):
            checkpoint.load(wrong)
    checkpoint.keep_best(saved.parent, [1, 2])
    with pytest.raises(
        CheckpointError, match=r"a folder; pass an existing checkpoint, such as .*/best-step_00000001-[0-9a-f]{16}\.pt$"
    ):
        checkpoint.load(tmp_path)
