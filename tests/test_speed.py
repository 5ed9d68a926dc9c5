"""Optimizations change no result, and ask of a GPU what they are meant to; counted, not timed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest
import torch
from support import small_batch, small_detector
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import batched_nms, roi_align

from grcn import boxes
from grcn.apps.benchmark.counts import count, saved_bytes
from grcn.apps.benchmark.floor import record_floor
from grcn.apps.benchmark.scene import make_scene, spread_scores
from grcn.build import build_model
from grcn.config.files import load_config
from grcn.models import candidates, memory_format
from grcn.models.roi_heads import DetectionSettings, SamplingSettings
from grcn.models.roi_pool import RoIPool
from grcn.torchvision_baseline import torchvision_detector

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CPU = torch.device("cpu")
ROWS = {
    "faster_rcnn": {},
    "grcn": {"split": "conv5", "loc_pool": "none", "context": ("cls",), "dropout": 0.5},
    "grcn_resnet": {"resnet": True, "split": 1, "loc_stride": 8, "context": ("cls",)},
}


def test_a_cpu_plays_a_gpu_in_one_thread_and_not_for_longer_than_asked():
    tensor = torch.zeros(1)
    assert boxes.sync_is_free(tensor) and not boxes.sync_is_free(tensor.to("meta"))
    with pytest.raises(KeyError), boxes.as_if_on_gpu():
        with boxes.as_if_on_gpu():
            pass
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(boxes.sync_is_free, tensor).result()
        assert not boxes.sync_is_free(tensor)
        raise KeyError
    assert boxes.sync_is_free(tensor)


def all_in(layout):
    formats = dict.fromkeys(memory_format.memory_formats(torch.device("cuda")), layout)
    return mock.patch.object(memory_format, "memory_formats", return_value=formats)


def contiguous():
    return all_in(torch.contiguous_format)


def channels_last():
    return all_in(torch.channels_last)


def loop_over_parameters():
    plain = torch.optim.SGD
    return mock.patch.object(torch.optim, "SGD", lambda *args, fused, **kwargs: plain(*args, foreach=False, **kwargs))


def trained(row, switch, steps=8):
    """Returns the losses of all steps and the detections before them, in float64."""
    with switch():
        model = small_detector(**ROWS[row], sampling=SamplingSettings(32, 0.5)).double()
        with torch.no_grad():
            detections = model.eval()(small_batch(torch.float64)[0])
        optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-3, fused=True)
        rows = []
        for step in range(steps):
            images, targets = small_batch(torch.float64, seed=step)
            losses = model.train()(images, targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            rows.append(torch.stack(list(losses.values())).detach())
        return torch.stack(rows), detections


@pytest.fixture(scope="module")
def plain():
    return {row: trained(row, contiguous) for row in ROWS}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("switch", [boxes.as_if_on_gpu, channels_last, loop_over_parameters])
def test_no_switch_moves_a_loss_or_a_detection(plain, row, switch):
    """RoIAlign as bags, suppression by chunks, RoIs chosen by score; memory formats; the fused update."""
    losses, detections = trained(row, switch)
    assert_close(losses, plain[row][0], rtol=1e-9, atol=1e-11)
    assert all(len(found["boxes"]) > 5 for found in detections)
    assert_close(detections, plain[row][1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_in_bags_is_torchvisions(aligned, ratio):
    """Boxes of every size, on the border, beyond it, outside of the map, and without extent."""
    generator = torch.Generator().manual_seed(ratio)
    extent = torch.tensor([17 * 16.0, 11 * 16.0]).double()
    corners = (torch.rand(2, 80, 2, generator=generator) - 0.2).double() * extent
    sides = torch.rand(2, 80, 2, generator=generator).double() ** 3 * extent
    rois = torch.cat([corners, corners + sides], -1)
    rois[0, :4] = torch.tensor([[0, 0, 0, 0], [3, 3, 3, 3], [0, 0, 272, 176], [900, 900, 950, 999]]).double()
    feature = torch.randn(2, 5, 11, 17, generator=generator).double().requires_grad_()
    pool = RoIPool([16], 4, "align", ratio, aligned)
    ours = pool((feature,), rois)
    batch_index = torch.arange(2.0).double().repeat_interleave(80)[:, None]
    theirs = roi_align(feature, torch.cat([batch_index, rois.flatten(0, 1)], 1), 4, 1 / 16, ratio, aligned)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    weights = torch.randn_like(ours)
    found, expected = (torch.autograd.grad((out * weights).sum(), feature)[0] for out in (ours, theirs))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with boxes.as_if_on_gpu(), mock.patch("grcn.models.roi_pool.roi_align", wraps=roi_align) as kernel:
        assert_close(pool((feature,), rois), ours)
    assert kernel.call_count == 1
    assert pool((feature,), rois[:, :0]).shape == (0, 5, 4, 4)


def test_the_table_knows_the_instruction_set():
    with mock.patch.object(memory_format, "_CPU", "cpu AVX512"):
        assert memory_format.memory_formats(CPU)["train_units"] == torch.channels_last
        assert memory_format.memory_formats(CPU)["train"] == torch.contiguous_format
        assert memory_format.memory_formats(CPU, bf16=True)["train"] == torch.channels_last
        x = torch.zeros(1, 2, 3, 3)
        assert memory_format.to_memory_format(x, "train").is_contiguous()
        with torch.autocast("cpu", torch.bfloat16):
            assert not memory_format.to_memory_format(x, "train").is_contiguous()
    with mock.patch.object(memory_format, "_CPU", "cpu AVX2"):
        assert memory_format.memory_formats(CPU)["train_units"] == torch.contiguous_format
        assert memory_format.memory_formats(CPU)["train_normed"] == torch.channels_last
        assert memory_format.memory_formats(CPU, bf16=True) == memory_format.memory_formats(CPU)
    assert set(memory_format.memory_formats(torch.device("cuda"))) == set(memory_format.memory_formats(CPU))
    assert memory_format.memory_formats(torch.device("meta")) == {}


@pytest.mark.parametrize("row", ROWS)
def test_a_step_waits_for_one_suppression_and_a_detection_for_two(row):
    model = small_detector(**ROWS[row], straddling=False)
    images, targets = small_batch()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, fused=True)

    def step():
        sum(model.train()(images, targets).values()).backward()
        optimizer.step()

    assert count(step)["waits"] == len(images)
    with torch.no_grad():
        assert count(lambda: model.eval()(images))["waits"] == 2 * len(images)


@pytest.mark.parametrize("classes, count", [(80, 24_000), (1203, 4000)])
@pytest.mark.parametrize("limit", [1, 100, 3000])
def test_suppression_that_stops_early_is_torchvisions(classes, count, limit):
    """Boxes of a thousand classes are shifted far apart and keep their fractions of a pixel."""
    generator = torch.Generator().manual_seed(limit)
    corners = torch.rand(count, 2, generator=generator) * 900
    found = torch.cat([corners, corners + 10 + 90 * torch.rand(count, 2, generator=generator)], 1)
    labels = torch.randint(1, classes + 1, (count,), generator=generator)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    scores[count // 2 :: 3] = -torch.inf
    found[-1], labels[-1], scores[-1] = 0.0, 0, -torch.inf
    heads = small_detector(detecting=DetectionSettings(0.05, 0.3, limit)).roi_heads
    (ours,) = heads._suppress(found[None], scores[None], labels[None])
    real = scores > -torch.inf
    kept = batched_nms(found[real], scores[real], labels[real], 0.3)[:limit]
    assert torch.equal(ours["scores"], scores[real][kept]) and torch.equal(ours["boxes"], found[real][kept])
    assert torch.equal(ours["labels"], labels[real][kept])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("limit", [1, 20, 500])
def test_suppression_within_classes_is_torchvisions_with_and_without_placeholders(threshold, limit):
    generator = torch.Generator().manual_seed(limit)
    corners = torch.rand(300, 2, generator=generator) * 90
    found = torch.cat([corners, corners + 5 + 40 * torch.rand(300, 2, generator=generator)], 1)
    labels = torch.randint(1, 5, (300,), generator=generator)
    scores = torch.rand(300, generator=generator).sort(descending=True).values
    expected = batched_nms(found, scores, labels, threshold)[:limit]
    assert torch.equal(boxes.batched_nms_top_k(found, scores, labels, threshold, limit), expected)
    scores[::3] = -torch.inf
    real = (scores > -torch.inf).nonzero()[:, 0]
    expected = real[batched_nms(found[real], scores[real], labels[real], threshold)[:limit]]
    assert torch.equal(boxes.batched_nms_top_k(found, scores, labels, threshold, limit), expected)
    scores.fill_(-torch.inf)
    assert boxes.batched_nms_top_k(found, scores, labels, threshold, limit).tolist() == []
    assert boxes.batched_nms_top_k(found[:0], scores[:0], labels[:0], threshold, limit).tolist() == []


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.4, 0.99])
@pytest.mark.parametrize("most", [10, 10_000])
def test_fixed_shapes_hold_what_compact_ones_do_and_placeholders(threshold, most):
    scores = (4 * torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))).softmax(-1)[..., 1:]
    best, index = candidates.candidates_above(scores, threshold, most)
    passed = [image[image > threshold].sort(descending=True).values[:most] for image in scores]
    assert best.shape[1] == max(len(image) for image in passed)
    for i, expected in enumerate(passed):
        assert torch.equal(best[i, : len(expected)], expected) and (best[i, len(expected) :] == -torch.inf).all()
        assert torch.equal(scores[i].flatten()[index[i, : len(expected)]], expected)
    with boxes.as_if_on_gpu():
        padded, padded_index = candidates.candidates_above(scores, threshold, most)
        assert candidates.rois_above(scores, threshold) == slice(None)
        assert candidates.image_groups(scores) == [slice(0, 2)]
    count = best.shape[1]
    assert torch.equal(padded[:, :count], best) and torch.equal(padded_index[:, :count], index)
    assert (padded[:, count:] == -torch.inf).all()
    rows = torch.arange(50)[candidates.rois_above(scores[:1], threshold)]
    assert rows.tolist() == [i for i in range(50) if (scores[0, i] > threshold).any()]
    assert candidates.image_groups(scores) == [slice(0, 1), slice(1, 2)]


def pretended(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


@pytest.mark.parametrize("row", ROWS)
def test_on_a_pretended_gpu_no_shape_depends_on_data_and_no_tensor_is_elsewhere(row, monkeypatch):
    """Fake tensors have a device, a type and a shape, and no values: whatever reads one, or mixes devices, raises."""
    model = small_detector(**ROWS[row], straddling=False)
    images, targets = small_batch()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(
        boxes, "nms_top_k", lambda found, scores, threshold, count: scores[:count].argsort(descending=True)
    )
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in module._parameters.items():
                module._parameters[name] = None if weight is None else torch.nn.Parameter(pretended(weight))
            for name, buffer in module._buffers.items():
                module._buffers[name] = pretended(buffer)
        images = [pretended(image) for image in images]
        targets = [
            {"boxes": pretended(t["boxes"]), "labels": pretended(t["labels"]), "rng_key": t["rng_key"]} for t in targets
        ]
        losses = model.train()(images, targets)
        assert len(losses) == 4 and all(loss.is_cuda and loss.shape == () for loss in losses.values())
        with torch.no_grad():
            detections = model.eval()(images)
        assert all(field.is_cuda for found in detections for field in found.values())
        with pytest.raises(DataDependentOutputException):
            losses["loss_objectness"].item()


def test_every_way_to_wait_is_counted():
    numbers = torch.arange(3)
    ways = [
        numbers.tolist, numbers.numpy, numbers.cpu, numbers.sum().item, numbers.nonzero, lambda: bool(numbers.any()),
        lambda: int(numbers[0]), lambda: numbers[numbers > 1], lambda: numbers.repeat_interleave(numbers),
        lambda: numbers.masked_select(numbers > 1),
    ]  # fmt: skip
    assert [count(way)["waits"] for way in ways] == [1] * len(ways)
    free = [lambda: numbers.repeat_interleave(2), lambda: numbers.masked_fill(numbers > 1, 0), lambda: numbers + 1]
    assert [count(way)["waits"] for way in free] == [0] * len(free)


def config(name, *settings):
    return load_config(CONFIGS / name, ["model.image.short=96", "model.image.max=160", *settings])


def pair(cfg, size=(96, 160), classes=8):
    """A detector of a config, its torchvision baseline, and images without rows that torchvision would pad."""
    model = build_model(cfg.model, classes + 1)
    images, targets = make_scene(size, classes, CPU)
    spread_scores(model, images)
    return model, torchvision_detector(cfg.model, model), images, targets


@pytest.mark.parametrize(
    "name", ["shapes/grcn_tiny.yaml", "shapes/grcn_tiny_resnet.yaml", "shapes/faster_rcnn_tiny_resnet_det.yaml"]
)
@torch.no_grad()
def test_a_baseline_has_the_layers_and_weights_of_the_plain_model(name):
    cfg = config(name)
    model, baseline, images, _ = pair(cfg)
    batch, _ = model.transform(images)
    feature = baseline.backbone(batch.tensors)["0"]
    assert_close(feature, model.backbone(batch.tensors)["cls"][0], rtol=1e-4, atol=1e-4)
    rois = torch.rand(3, model.backbone.feature_specs["cls"].channels, cfg.model.roi.size, cfg.model.roi.size)
    hidden = model.roi_heads.heads.eval().hidden("cls", rois)
    assert_close(baseline.roi_heads.box_head(rois), hidden, rtol=1e-4, atol=1e-4)
    expected = (model.roi_heads.heads.cls_score(hidden), model.roi_heads.heads.bbox_pred(hidden))
    assert_close(baseline.roi_heads.box_predictor(hidden), expected)
    logits, _ = baseline.rpn.head([feature])
    hidden = model.rpn.conv(feature)
    assert_close(logits[0], model.rpn.cls_logits(hidden), rtol=1e-4, atol=1e-4)
    assert len(baseline(images)[0]["boxes"]) > 5


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "resnet50_det"])
@torch.no_grad()
def test_a_baseline_of_a_pretrained_network_is_torchvisions_own(name):
    cfg = config(f"coco/faster_rcnn_{name}.yaml", "model.head.dim=32", "model.rpn.channels=16")
    model, baseline, images, _ = pair(cfg)
    batch, _ = model.transform(images)
    ours = model.backbone(batch.tensors)["cls"][0]
    assert_close(baseline.backbone(batch.tensors), ours, rtol=1e-3, atol=1e-3 * float(ours.abs().max()))
    frozen = sum(not weight.requires_grad for weight in baseline.backbone.parameters())
    assert frozen == (8 if "vgg16" in name else 11)


def test_the_floor_has_all_arithmetic_and_nothing_else():
    cfg = config("shapes/grcn_tiny.yaml")
    model, _, images, targets = pair(cfg)

    def step():
        sum(model.train()(images, targets).values()).backward()

    floor = record_floor(step, CPU)
    with FlopCounterMode(display=False) as whole:
        step()
    with FlopCounterMode(display=False) as alone:
        floor()
    assert alone.get_total_flops() == whole.get_total_flops() > 1e8
    assert count(floor)["kernels"] < 0.2 * count(step)["kernels"]


def test_frozen_layers_keep_nothing_for_a_backward_pass():
    cfg = config("coco/faster_rcnn_vgg16.yaml", "model.head.dim=32")
    model, baseline, images, targets = pair(cfg)
    ours, theirs = (saved_bytes(m, lambda m=m: m.train()(images, targets)) for m in (model, baseline))
    assert ours < 1.2 * theirs
    model.backbone.frozen.requires_grad_(True)
    with mock.patch("torch.set_grad_enabled", lambda _: torch.enable_grad()):
        assert saved_bytes(model, lambda: model.train()(images, targets)) > 1.4 * ours
