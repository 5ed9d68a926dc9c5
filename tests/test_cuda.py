"""What only a GPU can show; skipped where there is none."""

import copy

import pytest
import torch
from support import small_batch, small_detector
from torch.testing import assert_close

from grcn import boxes
from grcn.models.graphs import use_graphs
from grcn.models.roi_heads import Sampling

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
GRCN = {"split": "conv5", "loc_pool": "none", "context": ("cls",), "dropout": 0.3, "straddling": False}
RESNET = {"resnet": True, "split": 1, "loc_stride": 8, "context": ("cls",), "straddling": False}
both_backbones = pytest.mark.parametrize("row", [GRCN, RESNET], ids=["vgg", "resnet"])


def on(device, images, targets):
    move = lambda value: value.to(device) if isinstance(value, torch.Tensor) else value  # noqa: E731
    return [move(image) for image in images], [{key: move(value) for key, value in t.items()} for t in targets]


def losses_of(model, device, steps):
    """Trains a copy; returns the losses of every step. Every step has its own images and random keys."""
    model = copy.deepcopy(model).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, fused=True)
    rows = []
    for step in range(steps):
        images, targets = on(device, *small_batch(model.rpn.conv.weight.dtype, seed=step))
        for target in targets:
            target["rng_key"] = target["rng_key"] + step
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        rows.append(torch.stack(list(losses.values())).detach().cpu())
    return torch.stack(rows)


@both_backbones
def test_fifty_steps_equal_those_of_the_cpu(row):
    """In float64, where rounding does not have the time to grow into another sample of RoIs."""
    model = small_detector(**row, sampling=Sampling(32, 0.5)).double()
    on_cpu, on_gpu = (losses_of(model, device, 50) for device in ("cpu", "cuda"))
    assert_close(on_gpu, on_cpu, rtol=1e-6, atol=1e-8)


@both_backbones
def test_one_step_equals_that_of_the_cpu_in_single_precision(row):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = small_detector(**row, sampling=Sampling(32, 0.5))
    on_cpu, on_gpu = (losses_of(model, device, 1) for device in ("cpu", "cuda"))
    assert_close(on_gpu, on_cpu, rtol=1e-5, atol=1e-6)


@both_backbones
@torch.no_grad()
def test_detections_equal_those_of_the_cpu(row):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = small_detector(**row).eval()
    images, _ = small_batch()
    on_cpu = model(images[:1])[0]
    on_gpu = model.cuda()([images[0].cuda()])[0]
    assert len(on_cpu["boxes"]) > 5
    assert_close({key: value.cpu() for key, value in on_gpu.items()}, on_cpu, rtol=1e-3, atol=1e-3)


@both_backbones
def test_a_training_step_waits_for_suppression_only(row, monkeypatch):
    model = small_detector(**row).cuda().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, fused=True)
    images, targets = on("cuda", *small_batch())
    plain = boxes.first_of_nms

    def allowed(*args):
        torch.cuda.set_sync_debug_mode("default")
        kept = plain(*args)
        torch.cuda.set_sync_debug_mode("error")
        return kept

    monkeypatch.setattr(boxes, "first_of_nms", allowed)
    for warm in (False, True):  # the first round fills caches
        torch.cuda.set_sync_debug_mode("error" if warm else "default")
        try:
            sum(model(images, targets).values()).backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(p).all() for p in model.parameters())


@both_backbones
def test_half_precision_keeps_boxes_in_full(row):
    model = small_detector(**row, op="align").cuda().train()
    images, targets = on("cuda", *small_batch())
    full = model(images, targets)
    with torch.autocast("cuda", torch.bfloat16):
        half = model(images, targets)
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full[name].item(), rel=0.1, abs=0.05)


def graphed(row):
    """A detector and its copy that replays graphs, in float64."""
    eager = small_detector(**row, sampling=Sampling(32, 0.5)).double().cuda()
    fast = copy.deepcopy(eager)
    use_graphs(fast)
    return eager, fast


def gradients(model, images, targets, factor=1.0):
    losses = model(images, targets)
    (factor * sum(losses.values())).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@both_backbones
def test_replayed_steps_are_the_steps(row):
    """The first is not recorded yet; the others are replayed, with other pixels, objects, sizes and factors."""
    eager, fast = (model.train() for model in graphed(row))
    for step in range(6):
        images, targets = on("cuda", *small_batch(torch.float64, seed=step))
        if step % 3 == 2:  # another shape, seen for the first time and then again
            images, targets = images[:1], targets[:1]
        for target in targets:
            target["rng_key"] = target["rng_key"] + step
        for model in (eager, fast):
            model.zero_grad()
        expected, found = (gradients(model, images, targets, step + 0.5) for model in (eager, fast))
        assert_close(found, expected, rtol=1e-9, atol=1e-11)
        assert fast.rpn.last_stats["num_fg"] == eager.rpn.last_stats["num_fg"]
    assert len(fast.forward.kept) == 2


@both_backbones
def test_replayed_gradients_add_up(row):
    eager, fast = (model.train() for model in graphed(row))
    for step in range(4):
        images, targets = on("cuda", *small_batch(torch.float64, seed=step))
        expected, found = (gradients(model, images, targets)[1] for model in (eager, fast))
    assert_close(found, expected, rtol=1e-9, atol=1e-11)


@both_backbones
@torch.no_grad()
def test_replayed_detections_are_the_detections(row):
    eager, fast = (model.eval() for model in graphed(row))
    for step in range(4):
        images, _ = on("cuda", *small_batch(torch.float64, seed=step))
        for expected, found in zip(eager(images), fast(images), strict=True):
            assert len(expected["boxes"]) > 5
            assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert len(fast.forward.kept) == 1


def test_a_forward_pass_between_a_step_and_its_backward_pass_is_refused():
    _, fast = graphed(GRCN)
    images, targets = on("cuda", *small_batch(torch.float64))
    for _ in range(2):
        losses = fast.train()(images, targets)
    fast(images, targets)
    with pytest.raises(RuntimeError, match="another batch"):
        sum(losses.values()).backward()


def test_shapes_beyond_the_most_run_as_before():
    eager, fast = (model.train() for model in graphed(GRCN))
    use_graphs(fast, most=0)
    images, targets = on("cuda", *small_batch(torch.float64))
    for _ in range(3):
        assert_close(fast(images, targets), eager(images, targets))
    assert not fast.forward.kept
