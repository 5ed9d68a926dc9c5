from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector
from toy_run import ToyDetector, batches, tiny_faster_rcnn

from grcn.engine import checkpoint
from grcn.engine.recorder import Recorder
from grcn.engine.train import Batch, learning_rate, train
from grcn.errors import CheckpointError, NonFiniteError

CPU = torch.device("cpu")


def sgd(model: nn.Module, lr: float = 0.02) -> torch.optim.SGD:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=0.01, fused=True)


def adamw(model: nn.Module, lr: float = 0.02) -> torch.optim.AdamW:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(weights, lr=lr, weight_decay=0.01, fused=True)


def fit(model: nn.Module, data: Iterator[Batch], folder: Path, **options: Any) -> dict[str, float | None]:
    options = {
        "steps": 6,
        "lr_at": lambda step: 0.02,
        "optimizer": sgd(model),
        **options,
    }
    kept = {
        key: options.pop(key)
        for key in ("state", "record", "log_every", "keep", "best", "tensorboard")
        if key in options
    }
    return train(model, data, options.pop("optimizer"), Recorder(folder, **kept), **options)


def toy(**options: Any) -> ToyDetector:
    torch.manual_seed(0)
    return ToyDetector(**options)


def weights_of(model: nn.Module) -> torch.Tensor:
    return parameters_to_vector(model.parameters()).detach()


def test_equals_torch_written_out(tmp_path: Path) -> None:
    """Six updates by hand with torch's plain SGD, lr_factor included."""
    ours, theirs = toy().double(), toy().double()
    groups: list[dict[str, Any]] = [
        {"params": ours.conv.parameters()},
        {"params": ours.box.parameters(), "lr_factor": 2.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=9.0, momentum=0.9, fused=True)
    fit(
        ours,
        batches(double=True),
        tmp_path,
        optimizer=optimizer,
        lr_at=lambda step: 0.01 / (step + 1),
    )

    groups = [{"params": theirs.conv.parameters()}, {"params": theirs.box.parameters()}]
    plain = torch.optim.SGD(groups, lr=9.0, momentum=0.9, foreach=False, fused=False)
    for step, (images, targets) in enumerate(islice(batches(double=True), 6)):
        plain.param_groups[0]["lr"], plain.param_groups[1]["lr"] = (
            0.01 / (step + 1),
            0.02 / (step + 1),
        )
        plain.zero_grad()
        sum(theirs(images, targets).values()).backward()
        plain.step()
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), rtol=1e-12, atol=1e-15)


def test_accumulation_equals_a_large_batch(tmp_path: Path) -> None:
    whole, parts = toy().double(), toy().double()
    fit(whole, batches(double=True), tmp_path / "whole", log_every=3, clip_grad_norm=0.3)
    options: dict[str, Any] = {"accumulate": 4, "log_every": 3, "clip_grad_norm": 0.3}
    fit(parts, batches(double=True, accumulate=4), tmp_path / "parts", **options)
    torch.testing.assert_close(weights_of(parts), weights_of(whole), rtol=1e-12, atol=1e-15)
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    for one, other in zip(*logs, strict=True):
        assert json.loads(one) == pytest.approx(json.loads(other), rel=1e-12)


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    model = toy()
    before = weights_of(model)
    optimizer = torch.optim.SGD([w for w in model.parameters() if w.requires_grad], lr=1.0, fused=True)
    options: dict[str, Any] = {"steps": 1, "lr_at": lambda step: 1.0, "optimizer": optimizer}
    fit(model, batches(), tmp_path, clip_grad_norm=0.05, **options)
    assert (weights_of(model) - before).norm().item() == pytest.approx(0.05, rel=1e-3)


def test_uint8_becomes_float_on_the_device_and_other_entries_pass(tmp_path: Path) -> None:
    seen: list[tuple[torch.Tensor, dict[str, Any]]] = []

    class Spy(ToyDetector):
        def forward(self, images: Any, targets: Any = None) -> Any:
            seen.append((images[0], targets[0]))
            return super().forward(images, targets)

    images, targets = next(batches())
    original = images[0].clone()
    fit(Spy(), batches(), tmp_path, steps=1)
    image, target = seen[0]
    torch.testing.assert_close(image, original.float() / 255)
    assert target["canvas"] == (32, 40)
    assert torch.equal(target["boxes"], targets[0]["boxes"])
    assert torch.equal(images[0], original)


STATES = {sgd: {"momentum_buffer"}, adamw: {"step", "exp_avg", "exp_avg_sq"}}


class Poisoned(ToyDetector):
    """Returns a loss that is not finite, or whose gradient is not, at one step."""

    def __init__(self, kind: str, step: int) -> None:
        super().__init__()
        self.kind, self.step, self.calls = kind, step, 0

    def forward(self, images: Any, targets: Any = None) -> Any:
        losses = super().forward(images, targets)
        self.calls += 1
        if self.calls == self.step:
            if self.kind == "loss":
                losses["loss_box"] = losses["loss_box"] + math.inf  # its gradient is finite
            elif self.kind == "image":
                losses = super().forward([image * math.nan for image in images], targets)
            else:  # sqrt'(0) is infinite, sqrt(0) is not
                losses["loss_box"] = losses["loss_box"] + (self.box.bias.sum() * 0).sqrt()
        return losses


@pytest.mark.parametrize("kind", ["loss", "image", "gradient"])
@pytest.mark.parametrize("step", [1, 5])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("build", [sgd, adamw])
def test_non_finite_step_never_reaches_weights_or_moments(
    tmp_path: Path, kind: str, step: int, clip: float | None, build: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    torch.manual_seed(0)
    model = Poisoned(kind, step)
    optimizer = build(model)
    with pytest.raises(NonFiniteError) as caught:
        fit(
            model,
            batches(),
            tmp_path,
            steps=20,
            log_every=8,
            optimizer=optimizer,
            clip_grad_norm=clip,
        )
    message = str(caught.value)
    ids = " ".join(str(number) for number in range(4 * step - 4, 4 * step))
    assert message.startswith(f"step {step}: ") and f"images {ids};" in message
    assert "loss_box inf" in message if kind == "loss" else "nan" in message or "inf" in message
    assert "\n" not in message and len(message) <= 300
    assert model.calls == 8, "training continues to the next line of the log, and no further"

    torch.manual_seed(0)
    undisturbed = Poisoned(kind, 0)
    reference = build(undisturbed)
    options: dict[str, Any] = {"optimizer": reference, "clip_grad_norm": clip}
    fit(undisturbed, batches(), tmp_path / "reference", steps=step - 1, **options)
    assert torch.equal(weights_of(model), weights_of(undisturbed))
    if step > 1:
        for ours, theirs in zip(optimizer.state.values(), reference.state.values(), strict=True):
            assert ours.keys() == theirs.keys() == STATES[build]
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not hasattr(optimizer, "found_inf")


def test_nothing_is_saved_after_a_non_finite_step(tmp_path: Path) -> None:
    model = Poisoned("loss", 5)
    with pytest.raises(NonFiniteError, match="step 5"):
        fit(model, batches(), tmp_path, steps=20, checkpoint_every=4, log_every=100)
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and found[1]["step"] == 4


def test_optimizer_must_be_fused(tmp_path: Path) -> None:
    model = toy()
    with pytest.raises(ValueError, match="fused=True"):
        fit(model, batches(), tmp_path, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_adamw_equals_torchs_unfused(tmp_path: Path) -> None:
    ours, theirs = toy().double(), toy().double()
    fit(ours, batches(double=True), tmp_path, optimizer=adamw(ours))
    weights = [weight for weight in theirs.parameters() if weight.requires_grad]
    plain = torch.optim.AdamW(weights, lr=0.02, weight_decay=0.01, foreach=False, fused=False)
    for images, targets in islice(batches(double=True), 6):
        plain.zero_grad()
        sum(theirs(images, targets).values()).backward()
        plain.step()
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), rtol=1e-11, atol=1e-13)


def test_adamw_resumes_at_any_step(tmp_path: Path) -> None:
    """Any fused optimizer of torch will do."""

    def continued(parts: list[int], folder: Path) -> bytes:
        for steps in parts:
            model = toy(dropout=0.2)
            found = checkpoint.newest(folder / "checkpoints")
            state = found[1] if found else None
            data = batches(state["step"] if state else 0)
            fit(model, data, folder, optimizer=adamw(model), steps=steps, state=state, keep=1, log_every=10)
        return next((folder / "checkpoints").iterdir()).read_bytes()

    straight = continued([12], tmp_path / "straight")
    for step in range(1, 12):
        assert continued([step, 12], tmp_path / f"from_{step}") == straight


def test_weights_without_gradient_are_named(tmp_path: Path) -> None:
    class Unused(ToyDetector):
        def forward(self, images: Any, targets: Any = None) -> Any:
            return {"loss_score": super().forward(images, targets)["loss_score"]}

    model = Unused()
    with pytest.raises(ValueError, match=r"2 trained weights .*\(first: box.weight, box.bias\)"):
        fit(model, batches(), tmp_path)
    model.box.requires_grad_(False)
    fit(model, batches(), tmp_path)


def test_batches_that_end_too_soon(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batches ended"):
        fit(toy(), islice(batches(), 3), tmp_path)


def test_checkpoint_past_the_end(tmp_path: Path) -> None:
    fit(toy(), batches(), tmp_path)
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    with pytest.raises(CheckpointError, match="steps = 5"):
        fit(toy(), batches(), tmp_path, steps=5, state=found[1])


def test_a_refused_checkpoint_leaves_the_log_alone(tmp_path: Path) -> None:
    fit(toy(), batches(), tmp_path, checkpoint_every=2, log_every=1)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    old = checkpoint.load(min((tmp_path / "checkpoints").iterdir()))
    other = tiny_faster_rcnn()
    with pytest.raises(CheckpointError, match="another model"):
        fit(other, batches(2), tmp_path, state=old)
    with pytest.raises(CheckpointError, match="past the end"):
        fit(toy(), batches(2), tmp_path, steps=1, state=checkpoint.load(min((tmp_path / "checkpoints").iterdir())))
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    def evaluate(model: nn.Module) -> Callable[[int], dict[str, float]]:
        def evaluation(step: int) -> dict[str, float]:
            model.eval()
            torch.rand(7)
            return {"ap": step / 10, "ap_rare": math.nan}

        return evaluation

    plain, watched = toy(dropout=0.5), toy(dropout=0.5)
    fit(plain, batches(), tmp_path / "plain")
    last = fit(watched, batches(), tmp_path / "watched", evaluate=evaluate(watched), eval_every=2)
    assert last == {"ap": 0.6, "ap_rare": None}
    assert watched.training
    assert torch.equal(weights_of(plain), weights_of(watched))
    lines = (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1]) == {"step": 6, "metrics": {"ap": 0.6, "ap_rare": None}}
    assert [json.loads(line)["step"] for line in lines if "metrics" in line] == [2, 4, 6]


def test_bf16_autocast(tmp_path: Path) -> None:
    exact, rounded = toy(), toy()
    fit(exact, batches(), tmp_path / "exact")
    fit(rounded, batches(), tmp_path / "rounded", amp=torch.bfloat16)
    assert not torch.equal(weights_of(exact), weights_of(rounded))
    torch.testing.assert_close(weights_of(exact), weights_of(rounded), rtol=0.05, atol=0.02)


def test_trains_torchvisions_detector(tmp_path: Path) -> None:
    """Its samplers draw from torch's global generator, and yet it can be continued exactly."""

    def weights_after(parts: list[int], folder: Path) -> torch.Tensor:
        for steps in parts:
            torch.manual_seed(steps)
            model = tiny_faster_rcnn()
            found = checkpoint.newest(folder / "checkpoints")
            if found is None:
                torch.manual_seed(0)
                model = tiny_faster_rcnn()
            state = found[1] if found else None
            data = batches(state["step"] if state else 0)
            fit(model, data, folder, steps=steps, state=state, log_every=1)
        return weights_of(model)

    trained = weights_after([3], tmp_path / "straight")
    assert torch.equal(trained, weights_after([2, 3], tmp_path / "parts"))
    torch.manual_seed(0)
    assert not torch.equal(trained, weights_of(tiny_faster_rcnn()))
    entry = json.loads((tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} < entry.keys()


def test_learning_rate_by_steps() -> None:
    rates = [learning_rate(s, lr=1.0, steps=10, milestones=(4, 8, 99), gamma=0.1) for s in range(10)]
    assert rates == pytest.approx([1] * 4 + [0.1] * 4 + [0.01] * 2, rel=1e-12)


def test_learning_rate_warm_up_is_torchs() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=7)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[5, 11], gamma=0.3)
    scheduler = torch.optim.lr_scheduler.ChainedScheduler([linear, steps])
    for step in range(15):
        ours = learning_rate(step, lr=0.5, steps=15, milestones=(5, 11), gamma=0.3, warmup=7, warmup_factor=0.01)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_process_of_several_does_not_train_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    with pytest.raises(RuntimeError, match="torchrun started 2 processes, which have not joined; put the training"):
        train(model, iter(()), optimizer, Recorder(tmp_path), steps=1, lr_at=lambda step: 0.1)


def test_learning_rate_cosine() -> None:
    rates = [learning_rate(step, lr=2.0, steps=100, schedule="cosine") for step in (0, 25, 50, 100)]
    assert rates == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 0.0], abs=1e-12)
    with pytest.raises(ValueError, match="unknown schedule 'cosin'; choose step or cosine"):
        learning_rate(0, lr=1.0, steps=2, schedule="cosin")  # type: ignore[arg-type]


def test_the_best_is_kept(tmp_path: Path) -> None:
    """The first of equals; an evaluation without the metric (no objects) counts for nothing."""
    scores = {2: 0.25, 4: None, 6: 0.5, 8: 0.5, 10: 0.25}
    best = {}

    def evaluate(step: int) -> dict[str, float | None]:
        best[step - 2] = [path.name for path in tmp_path.glob("best-*.pt")]
        return {"ap": scores[step]}

    fit(toy(), batches(), tmp_path, steps=10, keep=1, best="ap", evaluate=evaluate, eval_every=2)
    (kept,) = tmp_path.glob("best-*.pt")
    assert checkpoint.load(kept)["step"] == 6
    assert [len(best[step]) for step in (0, 2, 4)] == [0, 1, 1]
    assert best[2] == best[4] != best[6] == best[8] == [kept.name]
    assert [path.name[:13] for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000010"]


@pytest.mark.parametrize("until", [2, 4])
def test_the_best_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: int) -> None:
    """Killed after an evaluation was written down, before its checkpoint became the best."""

    class Killed(BaseException):
        pass

    def killed(folder: Path, ranked: list[int]) -> None:
        keep_best(folder, ranked) if ranked[0] < until else None
        if ranked[0] == until:
            raise Killed

    options: dict[str, Any] = {"steps": 4, "best": "ap", "evaluate": lambda step: {"ap": step / 10}, "eval_every": 2}
    keep_best = checkpoint.keep_best
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "keep_best", killed)
        fit(toy(), batches(), tmp_path, **options)
    _, state = checkpoint.newest(tmp_path / "checkpoints") or pytest.fail("no checkpoint")
    assert state["step"] == until
    options["evaluate"] = lambda step: {"ap": step / 10} if step > until else pytest.fail("evaluated twice")
    fit(toy(), batches(until), tmp_path, state=state, **options)
    (kept,) = tmp_path.glob("best-*.pt")
    assert checkpoint.load(kept)["step"] == 4


def test_the_best_by_another_metric(tmp_path: Path) -> None:
    """Evaluations on record may not have it; one that is made now must."""
    options: dict[str, Any] = {"steps": 4, "eval_every": 2}
    fit(toy(), batches(), tmp_path, best="ap", evaluate=lambda step: {"ap": 1.0}, **options | {"steps": 2})
    (old,) = tmp_path.glob("best-*.pt")
    _, state = checkpoint.newest(tmp_path / "checkpoints") or pytest.fail("no checkpoint")
    fit(toy(), batches(2), tmp_path, state=state, best="ap50", evaluate=lambda step: {"ap50": 0.5}, **options)
    (best,) = tmp_path.glob("best-*.pt")
    assert best != old and checkpoint.load(best)["step"] == 4
    _, state = checkpoint.newest(tmp_path / "checkpoints") or pytest.fail("no checkpoint")
    options = {"steps": 6, "eval_every": 2, "evaluate": lambda step: {"ap": 0.5}}
    fit(toy(), batches(4), tmp_path, state=state, best="ap", **options)
    (best,) = tmp_path.glob("best-*.pt")
    assert checkpoint.load(best)["step"] == 2, "it is on record and among the checkpoints"
    options = {"steps": 4, "eval_every": 2}
    with pytest.raises(ValueError, match="best: an evaluation has no app"):
        fit(toy(), batches(), tmp_path / "new", best="app", evaluate=lambda step: {"ap": 1.0}, **options)


def test_a_best_of_an_earlier_version_is_found(tmp_path: Path) -> None:
    """A run that kept none has the checkpoint still: the next evaluation keeps it."""
    evaluate = {2: 0.9, 4: 0.1}
    options: dict[str, Any] = {"eval_every": 2, "evaluate": lambda step: {"ap": evaluate[step]}}
    fit(toy(), batches(), tmp_path, steps=2, **options)
    _, state = checkpoint.newest(tmp_path / "checkpoints") or pytest.fail("no checkpoint")
    assert not list(tmp_path.glob("best-*.pt"))
    fit(toy(), batches(2), tmp_path, steps=4, state=state, best="ap", **options)
    (best,) = tmp_path.glob("best-*.pt")
    assert checkpoint.load(best)["step"] == 2
