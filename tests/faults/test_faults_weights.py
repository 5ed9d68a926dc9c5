"""Damaged and foreign files of pretrained weights: never used, and reported in one line with exit code 4."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from damage import damage, is_clear
from foreign import bomb, foreign, read_weights, refusal, saved
from support import small_detector

from grcn import fileio as archive
from grcn.errors import CheckpointError
from grcn.models import weights
from grcn.models.layer_names import layer_name
from grcn.models.vgg import SplitVGG
from grcn.models.weights import load_weights


def backbone() -> SplitVGG:
    return small_detector().backbone


def weights_of(model: SplitVGG) -> dict[str, torch.Tensor]:
    """Returns what a file for a backbone holds, in torchvision's names; layers that it lacks are one number."""
    own = {layer_name(name): tensor for name, tensor in model.state_dict().items()}
    names = weights.torchvision_names("vgg16")
    return {key: own.get(name, torch.zeros(1)) for key, name in names.items() if not name.startswith("fc")}


def test_damaged_weights_are_never_used(
    tmp_path: Path, faults: int, record_property: Callable[[str, object], None]
) -> None:
    torch.manual_seed(0)
    state = weights_of(backbone())
    count, refused, harmless = 100 if faults > 1 else 10, 0, 0
    arrays = {key: value.numpy() for key, value in state.items()}
    for name, save in (("w.pt", torch.save), ("w.npz", np.savez), ("c.npz", np.savez_compressed)):
        path, chance = tmp_path / name, random.Random(name)
        save(*((state, path) if name == "w.pt" else (path,)), **({} if name == "w.pt" else arrays))
        good, expected = path.read_bytes(), backbone()
        report = load_weights(expected, f"torchvision:{path}")
        assert len(report.loaded) > 5
        for _ in range(count):
            path.write_bytes(damage(good, chance))
            model = backbone()
            try:
                load_weights(model, f"torchvision:{path}")
            except CheckpointError as error:
                assert is_clear(str(error)), error
                refused += 1
            else:
                harmless += 1
                for key, tensor in expected.state_dict().items():
                    assert torch.equal(model.state_dict()[key], tensor), (name, key)
    assert refused > 2 * harmless
    record_property(
        "faults", f"damaged weights: {refused} of {3 * count} refused in one line, {harmless} are what they were"
    )


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    for name, (contents, _) in foreign(saved({"format": 1, "step": 1, "model": {"a": torch.zeros(1)}})).items():
        for ending in ("pt", "npz"):
            path = tmp_path / f"w.{ending}"
            path.write_bytes(contents)
            assert str(path) in refusal(lambda path=path: read_weights(f"caffe:{path}")), name
    (tmp_path / "folder").mkdir()
    for name, message in (("folder", "a folder"), ("none.pt", "no such file")):
        assert message in refusal(lambda name=name: read_weights(f"caffe:{tmp_path / name}"))


@pytest.mark.parametrize("name", ["none.pt", "page.pt", "bomb.pt", "cut.npz", "list.pt"])
def test_the_tool_ends_with_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "page.pt").write_text("<!DOCTYPE html>")
    (tmp_path / "bomb.pt").write_bytes(bomb())
    (tmp_path / "cut.npz").write_bytes(bomb()[:-50])
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    (tmp_path / "c.yaml").write_text(
        f"model: {{weights: 'caffe:{name}', head: {{dim: 8}}}}\ntrain: {{steps: 1}}\nrun: {{device: cpu, workers: 0}}\n"
        "data: {format: shapes, train_images: 2, test_images: 2}\n"
    )
    programs.assert_contract(programs.call("tools/train.py", "--config", "c.yaml", folder=tmp_path), 4, name)


def test_trained_weights_shrink_less_than_is_allowed(tmp_path: Path) -> None:
    """What the limit of a compressed file rests on: even 16-bit weights stored as 64 stay far from it."""
    values = {"a": torch.randn(2**18, generator=torch.Generator().manual_seed(0)).half().double().numpy()}
    np.savez_compressed(tmp_path / "w.npz", **values)
    assert 8 * 2**18 / (tmp_path / "w.npz").stat().st_size < archive.EXPANSION / 1.5
    archive.check_archive((tmp_path / "w.npz").read_bytes(), compressed=True)


def test_a_release_is_verified_by_the_digest_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub/checkpoints/vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    for contents in (b"", b"<html>", saved(weights_of(backbone()))):
        path.write_bytes(contents)
        assert "damaged" in refusal(lambda: read_weights("IMAGENET1K_V1"))
