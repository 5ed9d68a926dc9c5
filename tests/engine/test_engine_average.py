"""The average of the weights: its values, and that it is skipped, saved and continued as the weights are."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from toy_run import ToyDetector, batches

from grcn.engine import checkpoint
from grcn.engine.average import WeightAverage
from grcn.engine.recorder import Recorder
from grcn.engine.train import train
from grcn.errors import CheckpointError, NonFiniteError

DECAY = 0.7


class Counting(ToyDetector):
    """Has buffers that change in training, and a loss that is infinite at one step."""

    def __init__(self, poisoned: int = 0) -> None:
        super().__init__(dropout=0.2)
        self.poisoned = poisoned
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("total", torch.tensor(0.0))

    def forward(self, images: Any, targets: Any = None) -> Any:
        losses = super().forward(images, targets)
        if targets is not None and not self.poisoned:
            self.calls += 1
            self.total += 0.5
        elif targets is not None:
            self.poisoned -= 1
            if not self.poisoned:
                losses["loss_box"] = losses["loss_box"] * math.inf
        return losses


def toy(poisoned: int = 0) -> Counting:
    torch.manual_seed(0)
    return Counting(poisoned)


def fit(model: nn.Module, folder: Path, average: WeightAverage | None, steps: int = 6, **options: Any) -> list[Any]:
    """Trains from the newest checkpoint of a folder; returns the states of the model after each step."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, fused=True)
    states: list[Any] = []
    optimizer.register_step_post_hook(lambda *_: states.append(copy.deepcopy(model.state_dict())))
    found = checkpoint.newest(folder / "checkpoints")
    state = found[1] if found else None
    data = batches(state["step"] if state else 0, double=weights[0].dtype == torch.float64)
    train(
        model, data, optimizer, Recorder(folder, state=state, log_every=10, keep=1), steps=steps,
        lr_at=lambda step: 0.1, ema=average, **options,
    )  # fmt: skip
    return states


def test_the_average_is_that_of_all_steps(tmp_path: Path) -> None:
    model = toy().double()
    average = WeightAverage(model, DECAY)
    states = fit(model, tmp_path, average)
    shares = [DECAY**5, *((1 - DECAY) * DECAY ** (5 - step) for step in range(1, 6))]
    assert sum(shares) == pytest.approx(1)
    for name, value in average.module.state_dict().items():
        if name == "calls":
            assert value == 6
        else:
            expected = torch.stack([share * state[name] for share, state in zip(shares, states, strict=True)]).sum(0)
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    assert not torch.equal(average.module.box.weight, model.box.weight)
    assert torch.equal(average.module.frozen.weight, model.frozen.weight)


def test_its_values_are_torchs(tmp_path: Path) -> None:
    model = toy()
    average = WeightAverage(model, DECAY)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    for state in fit(model, tmp_path, average):
        model.load_state_dict(state)
        theirs.update_parameters(model)
    for ours, other in zip(average.module.parameters(), theirs.module.parameters(), strict=True):
        assert torch.equal(ours, other)
    assert torch.equal(average.module.total, theirs.module.total)


@pytest.mark.parametrize("step", [1, 4])
def test_a_non_finite_step_never_reaches_it(tmp_path: Path, step: int) -> None:
    model = toy(poisoned=step)
    average = WeightAverage(model, DECAY)
    with pytest.raises(NonFiniteError, match=f"step {step}:"):
        fit(model, tmp_path / "a", average, steps=20)
    model = toy(poisoned=100)
    reference = WeightAverage(model, DECAY)
    if step > 1:
        fit(model, tmp_path / "b", reference, steps=step - 1)
    for ours, theirs in zip(average.module.parameters(), reference.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_changes_nothing_else_and_resumes_at_any_step(tmp_path: Path) -> None:
    def continued(parts: list[int], folder: Path) -> tuple[Path, dict[str, Any]]:
        for steps in parts:
            model = toy()
            fit(model, folder, WeightAverage(model, DECAY), steps)
        return checkpoint.newest(folder / "checkpoints") or pytest.fail("no checkpoint")

    path, state = continued([9], tmp_path / "straight")
    for step in range(1, 9):
        assert continued([step, 9], tmp_path / f"from_{step}")[0].read_bytes() == path.read_bytes()
    fit(toy(), tmp_path / "without", None, 9)
    _, without = checkpoint.newest(tmp_path / "without" / "checkpoints") or pytest.fail("no checkpoint")
    average = state.pop("ema")
    assert average["steps"] == 9 and state.keys() == without.keys()
    torch.testing.assert_close(state, without, rtol=0, atol=0)


def test_it_may_begin_and_end_on_the_way(tmp_path: Path) -> None:
    """As with --allow-changes: it begins with the weights that are there, and is forgotten."""
    fit(toy(), tmp_path, None, 3)
    model = toy()
    average = WeightAverage(model, DECAY)
    seen: list[torch.Tensor] = []

    def evaluate(step: int) -> dict[str, float]:
        seen.append(average.module.box.weight.detach().clone())
        return {}

    states = fit(model, tmp_path, average, 5, evaluate=evaluate, eval_every=3)
    _, before = checkpoint.newest(tmp_path / "checkpoints") or pytest.fail("no checkpoint")
    assert before["ema"]["steps"] == 2
    expected = torch.lerp(states[0]["box.weight"], states[1]["box.weight"], 1 - DECAY)
    torch.testing.assert_close(seen[-1], expected)
    assert len(seen) == 2 and not torch.equal(seen[0], seen[1])
    fit(toy(), tmp_path, None, 6)
    _, after = checkpoint.newest(tmp_path / "checkpoints") or pytest.fail("no checkpoint")
    assert after["step"] == 6 and "ema" not in after


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (3, "no average"),
        ({"model": {}}, "no average"),
        ({"model": {"box.weight": torch.tensor([math.nan])}, "steps": 3}, "box.weight is not finite"),
    ],
)
def test_a_broken_average_is_refused(tmp_path: Path, broken: Any, message: str) -> None:
    fit(toy(), tmp_path, None, 1)
    path, state = checkpoint.newest(tmp_path / "checkpoints") or pytest.fail("no checkpoint")
    torch.save({**state, "ema": broken}, tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match=f"broken.pt: .*{message}.*use an earlier checkpoint") as caught:
        checkpoint.load(tmp_path / "broken.pt")
    assert "\n" not in str(caught.value)
