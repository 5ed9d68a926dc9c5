"""Tests that need a GPU: a step does not synchronize with it, and the guard works there too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grcn.engine import distributed
from grcn.engine.average import WeightAverage
from grcn.engine.recorder import Recorder
from grcn.engine.train import train
from grcn.errors import NonFiniteError

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


class Quiet(nn.Module):
    """A model that never synchronizes with the device by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        features = self.conv(torch.stack(images))
        return {"mean": features.mean(), "square": features.square().mean()}


def batches(modes: dict[int, str], poisoned: int = 0) -> Iterator[tuple[list[Tensor], list[Any]]]:
    """Yields batches; before step ``k`` of ``modes`` it sets torch's debug mode for synchronizations."""
    for step in range(1, 100):
        image = torch.full((3, 16, 16), torch.nan if step == poisoned else step / 100).pin_memory()
        if step in modes:
            torch.cuda.set_sync_debug_mode(modes[step])
        yield [image], [{"image_id": step}]


def fit(folder: Path, data: Iterator[Any], adamw: bool = False, **options: Any) -> tuple[Quiet, WeightAverage]:
    with distributed.process_group("cuda") as device:
        torch.manual_seed(0)
        model = Quiet().to(device)
        average = WeightAverage(model, 0.9)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        if adamw:
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        settings: dict[str, Any] = {"steps": 20, "clip_grad_norm": 1.0, **options}
        try:
            recorder = Recorder(folder, log_every=10)
            train(model, data, optimizer, recorder, lr_at=lambda step: 0.1, ema=average, **settings)
        except NonFiniteError as error:
            assert "step 13:" in str(error) and "images 13;" in str(error)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return model, average


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("adamw", [False, True])
def test_a_step_never_waits_for_the_device(tmp_path: Path, amp: torch.dtype | None, adamw: bool) -> None:
    fit(tmp_path, batches({3: "error", 10: "default", 12: "error", 20: "default"}), adamw, amp=amp)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("adamw", [False, True])
def test_non_finite_step_never_reaches_the_weights(tmp_path: Path, adamw: bool) -> None:
    stopped = fit(tmp_path / "a", batches({}, poisoned=13), adamw)
    reference = fit(tmp_path / "b", batches({}), adamw, steps=12)
    for one, other in zip(stopped, reference, strict=True):  # the weights, and their average
        for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert [path.name[:13] for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["step_00000012"]
    assert not (tmp_path / "a" / "checkpoints").exists()
