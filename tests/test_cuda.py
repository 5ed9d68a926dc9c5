"""Tests that need a GPU; skipped where there is none."""

import copy

import pytest
import torch
from support import small_batch, small_detector
from torch.testing import assert_close

from grcn import boxes
from grcn.models.compiled import compile_parts
from grcn.models.roi_heads import SamplingSettings

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
    model = small_detector(**row, sampling=SamplingSettings(32, 0.5)).double()
    on_cpu, on_gpu = (losses_of(model, device, 50) for device in ("cpu", "cuda"))
    assert_close(on_gpu, on_cpu, rtol=1e-6, atol=1e-8)


@both_backbones
def test_one_step_equals_that_of_the_cpu_in_single_precision(row):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = small_detector(**row, sampling=SamplingSettings(32, 0.5))
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
    plain = boxes.nms_top_k

    def allowed(*args):
        torch.cuda.set_sync_debug_mode("default")
        kept = plain(*args)
        torch.cuda.set_sync_debug_mode("error")
        return kept

    monkeypatch.setattr(boxes, "nms_top_k", allowed)
    for warm in (False, True):  # the first round fills caches
        torch.cuda.set_sync_debug_mode("error" if warm else "default")
        try:
            sum(model(images, targets).values()).backward()
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(p).all() for p in model.parameters())


@both_backbones
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_and_detections_equal_eager_ones(row, mode):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    eager = small_detector(**row, op="align", sampling=SamplingSettings(32, 0.5)).cuda()
    compiled = copy.deepcopy(eager)
    compile_parts(compiled, mode)
    images, targets = on("cuda", *small_batch())
    for _ in range(4):  # kernels are recorded in the first steps and replayed in the others
        losses, expected = (model.train()(images, targets) for model in (compiled, eager))
        assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        for model, found in ((compiled, losses), (eager, expected)):
            model.zero_grad()
            sum(found.values()).backward()
        gradients = [{n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (compiled, eager)]
        assert_close(*gradients, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        for _ in range(3):
            assert_close(compiled.eval()(images), eager.eval()(images), rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


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
