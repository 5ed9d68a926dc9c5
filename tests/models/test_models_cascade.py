"""Cascade R-CNN: one stage is the plain model, three are a plain loop over stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import CLASSES, GRCN, SMALL, small_batch
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image

from grcn import boxes, rng
from grcn.build import build_model
from grcn.config.model_schema import ModelConfig
from grcn.models.cascade import refine
from grcn.models.detector import Detector
from grcn.models.roi_heads import RoIHeads, _row_keys

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"head": {"dim": 32, "dropout": 0.5}},
    "agnostic": {"head": {"dim": 32, "dropout": 0.0, "class_agnostic": True}},
    "grcn": GRCN,
    "double_head": {
        "head": {"loc": "residual", "tasks": "separate", "residual_dim": 32, "dim": 32},
        "loc": {"roi_scale": 1.3},
    },
    "grcn_agnostic": {**GRCN, "head": {"dim": 32, "dropout": 0.25, "class_agnostic": True}},
    "ensemble": {"head": {"dim": 32, "dropout": 0.0, "tasks": "ensemble"}},
}


def cascade(thresholds: list[float] | str, dtype: torch.dtype = torch.float64, **changes: Any) -> Detector:
    """Builds a detector whose scores and boxes are far from those of its initial values, otherwise in each stage."""
    cfg = ModelConfig.model_validate(SMALL | changes | {"cascade": thresholds})
    model = build_model(cfg, CLASSES, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in (model.rpn.cls_logits, model.rpn.bbox_pred):
            layer.weight.mul_(60)
        for stage in model.roi_heads.stages():
            for layer, scale in ((stage.heads.cls_score, 90), (stage.heads.bbox_pred, 300)):
                layer.weight.mul_(scale)
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return model.to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cascade_of_one_stage_is_the_plain_model_to_the_bit(kind: str) -> None:
    results = []
    for thresholds in ("none", [0.5]):
        model = cascade(thresholds, torch.float32, **KINDS[kind])
        images, targets = small_batch()
        losses = model.train()(images, targets)
        sum(losses.values()).backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        results.append((losses, gradients, model.eval()(images)))
    assert all(len(found["boxes"]) for found in results[0][2])
    assert_close(results[1], results[0], rtol=0, atol=0)


def plain_refine(stage: RoIHeads, rois: Tensor, logits: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
    """The box of the best class of each RoI ``[R, 4]``, written out."""
    out = []
    for roi, row, moved in zip(rois.tolist(), logits, deltas, strict=True):
        width, height = roi[2] - roi[0], roi[3] - roi[1]
        if width * height <= 0:
            out.append([0.0] * 4)
            continue
        label = 1 + int(row[1:].argmax())
        wx, wy, ww, wh = stage.box_weights
        dx, dy, dw, dh = moved[label].tolist() if len(moved) > 1 else moved[0].tolist()
        x, y = roi[0] + width / 2 + dx / wx * width, roi[1] + height / 2 + dy / wy * height
        limit = torch.log(torch.tensor(1000.0 / 16, dtype=torch.float64))
        width, height = (
            side * float(torch.exp(min(torch.tensor(d / w, dtype=torch.float64), limit)))
            for side, d, w in ((width, dw, ww), (height, dh, wh))
        )
        out.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    found = clip_boxes_to_image(torch.tensor(out, dtype=rois.dtype), size)
    return torch.where((boxes.areas(found) > 0)[:, None], found, 0)


def plain_pass(
    stage: RoIHeads, features: Any, rois: Tensor, sizes: Any, keys: tuple[Any, Any] = (None, None)
) -> tuple[Tensor, Tensor]:
    """Logits and deltas of all RoIs, one task after the other."""
    limits = torch.tensor(sizes).to(rois)
    hidden = [
        stage.heads.hidden(task, stage._add_context(task, stage._pool(task, features, rois), features, limits), key)
        for task, key in zip(("cls", "loc"), keys, strict=True)
    ]
    logits = stage.heads.cls_score(hidden[0])
    deltas = stage.heads.bbox_pred(hidden[1]).view(len(logits), -1, 4)
    return logits.view(*rois.shape[:2], -1), deltas.view(*rois.shape[:2], -1, 4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dropout"])
def test_three_stages_train_as_a_plain_loop(kind: str) -> None:
    model = cascade([0.5, 0.6, 0.7], **KINDS[kind]).train()
    images, targets = small_batch(torch.float64)
    batch, targets = model.transform(images, targets)

    def parts() -> tuple[Any, Tensor]:
        model.zero_grad()
        features = model.backbone(batch.tensors)
        return features, model.rpn(batch, features, targets)[0]

    features, proposals = parts()
    _, fast = model.roi_heads(features, proposals, batch.image_sizes, targets)
    sum(fast.values()).backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    features, rois = parts()
    plain = {"loss_classifier": torch.tensor(0.0).double(), "loss_box_reg": torch.tensor(0.0).double()}
    foreground = []
    for number, (stage, iou) in enumerate(zip(model.roi_heads.stages(), (0.5, 0.6, 0.7), strict=True)):
        states = rng.image_states(
            targets,
            rois.device,
            (rng.ROIS, number) if number else (rng.ROIS,),
            (rng.DROPOUT, 2 * number),
            (rng.DROPOUT, 2 * number + 1),
        )
        sample = stage.sample(rois, boxes.pad_objects(targets), states[0])
        for i, target in enumerate(targets):  # who is foreground, by torchvision's overlap
            overlap = box_iou(sample.rois[i], target["boxes"]).amax(1)
            assert torch.equal(sample.foreground[i], sample.valid[i] & (overlap >= iou))
        foreground.append(int(sample.foreground.sum()))
        keys = tuple(_row_keys(state, sample.rois.shape[1]) for state in states[1:])
        logits, deltas = plain_pass(stage, features, sample.rois, batch.image_sizes, keys)
        index = sample.labels[..., None, None].expand(-1, -1, 1, 4)
        own = deltas.expand(-1, -1, CLASSES, -1).gather(2, index)[:, :, 0]
        weight, slots, fg = 0.5**number, sample.labels.numel(), sample.foreground
        plain["loss_classifier"] = plain["loss_classifier"] + weight / slots * F.cross_entropy(
            logits[sample.valid], sample.labels[sample.valid], reduction="sum"
        )
        plain["loss_box_reg"] = plain["loss_box_reg"] + weight / slots * F.smooth_l1_loss(
            own[fg], sample.regression_targets[fg], **stage.box_loss.keywords, reduction="sum"
        )
        with torch.no_grad():
            inputs = torch.where(sample.valid[..., None], sample.rois, 0), logits, deltas
            refined = [plain_refine(stage, *(x[i] for x in inputs), batch.image_sizes[i]) for i in range(len(rois))]
            rois = torch.stack(refined)
    assert min(foreground) > 2
    assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    sum(plain.values()).backward()
    for name, weight in model.named_parameters():
        assert (name in gradients) == (weight.grad is not None)
        if name in gradients:
            assert_close(gradients[name], weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["own rows", "fixed shapes"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_three_stages_detect_as_a_plain_loop(kind: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade([0.5, 0.6, 0.7], **KINDS[kind]).eval()
    images, _ = small_batch(torch.float64)
    if form == "fixed shapes":
        with boxes.as_if_on_gpu():
            found = model(images)
    else:
        found = model(images)
    batch, _ = model.transform(images)
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features)
    expected = []
    for i, size in enumerate(batch.image_sizes):
        own = {task: tuple(map_[i : i + 1] for map_ in maps) for task, maps in features.items()}
        rois, scores = proposals[i], []
        for stage in model.roi_heads.stages():
            logits, deltas = (x[0] for x in plain_pass(stage, own, rois[None], [size]))
            scores.append(logits.softmax(-1)[:, 1:] * (boxes.areas(rois) > 0)[:, None])
            before, rois = rois, plain_refine(stage, rois, logits, deltas, size)
        mean = sum(scores) / 3
        row, label = (mean > stage.detecting.score_thresh).nonzero().unbind(1)
        moved = deltas[row, label + 1 if deltas.shape[1] > 1 else 0]
        decoded = boxes.decode(moved[None], before[row][None], stage.box_weights)[0]
        decoded = clip_boxes_to_image(decoded, size)
        large = ((decoded[:, 2:] - decoded[:, :2]) >= 1e-2).all(1)
        decoded, score, label = decoded[large], mean[row, label][large], label[large] + 1
        kept = batched_nms(decoded, score, label, stage.detecting.nms)[: stage.detecting.detections]
        expected.append({"boxes": decoded[kept], "labels": label[kept], "scores": score[kept]})
    expected = model.transform.postprocess(expected, batch.image_sizes, [image.shape[-2:] for image in images])
    assert all(len(one["boxes"]) > 2 for one in expected)
    assert_close(found, expected, rtol=1e-9, atol=1e-9)
    first = cascade("none", **KINDS[kind]).eval()
    assert [len(one["boxes"]) for one in first(images)] != [len(one["boxes"]) for one in expected]


@pytest.mark.parametrize("kind", ["grcn", "agnostic"])
def test_halves_of_a_batch_give_the_losses_of_the_whole(kind: str) -> None:
    model, (images, targets) = cascade([0.5, 0.6, 0.7], **KINDS[kind]).train(), small_batch(torch.float64)
    together = model(images, targets)
    sizes = {"batch_sizes": [(64, 96), (64, 64)]}
    alone = [model([image], [target | sizes]) for image, target in zip(images, targets, strict=True)]
    for name, loss in together.items():
        assert_close(loss, (alone[0][name] + alone[1][name]) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objects", [True, False])
def test_stages_without_foreground_or_finite_boxes_have_finite_losses(objects: bool) -> None:
    model, (images, targets) = cascade([0.5, 0.6, 0.7]).train(), small_batch(torch.float64)
    if not objects:
        targets = [
            {"boxes": torch.zeros(0, 4).double(), "labels": torch.zeros(0, dtype=torch.int64), "rng_key": i}
            for i in range(2)
        ]
    with torch.no_grad():  # the first stage sends every box away
        model.roi_heads.heads.bbox_pred.bias.fill_(torch.nan if objects else 1e30)
    losses = model.roi_heads.following.losses(
        model.backbone(model.transform(images)[0].tensors), torch.zeros(2, 7, 4).double(), [(64, 96), (64, 64)], targets
    )
    assert all(loss.isfinite() for loss in losses.values())
    assert all(found["boxes"].isfinite().all() for found in model.eval()(images))
    model.train()(images, targets)["loss_classifier"].backward()
    if not objects:
        assert model.roi_heads.heads.cls_score.weight.grad.isfinite().all()


def test_a_refined_box_is_finite_and_within_its_image_or_empty() -> None:
    rois = torch.tensor([[[10.0, 10, 30, 30], [0, 0, 0, 0], [5, 5, 25, 45], [10, 10, 30, 30], [40, 40, 60, 60]]])
    deltas = torch.zeros(1, 5, 3, 4)
    deltas[0, 0, 2] = torch.tensor([10.0, 0, 0, 0])  # a width to the right, for the best class
    deltas[0, 2, 1] = torch.nan
    deltas[0, 3, 1] = torch.tensor([-1000.0, 0, 0, 0])  # far out of the image
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.5, 0.9]])[None]
    refined = refine(rois, scores, deltas, (10, 10, 5, 5), torch.tensor([[50.0, 45.0]]))
    empty = [0.0] * 4
    assert refined.tolist() == [[[30, 10, 45, 30], empty, empty, empty, [40, 40, 45, 50]]]


def test_slots_without_a_roi_are_not_refined() -> None:
    """Where an image has fewer RoIs than slots, what lies in the others is no box of the next stage."""
    settings = SMALL["roi"] | {"batch": 128, "bg_iou_low": 0.1}
    model = cascade([0.5, 0.6], roi=settings).train()
    batch, targets = model.transform(*small_batch(torch.float64))
    features = model.backbone(batch.tensors)
    proposals, _ = model.rpn(batch, features, targets)
    seen: list[Tensor] = []
    following = model.roi_heads.following
    sample = following.sample
    following.sample = lambda rois, *rest: seen.append(rois) or sample(rois, *rest)
    model.roi_heads(features, proposals, batch.image_sizes, targets)
    (states,) = rng.image_states(targets, proposals.device, (rng.ROIS,))
    valid = model.roi_heads.sample(proposals, boxes.pad_objects(targets), states).valid
    assert 0 < valid.sum() < valid.numel()
    assert torch.equal(boxes.areas(seen[0]) > 0, valid)


def test_stages_start_alike_and_learn_apart() -> None:
    """Each stage has its own weights, with the initial values of the first."""
    model = build_model(ModelConfig.model_validate(SMALL | GRCN | {"cascade": [0.5, 0.6, 0.7]}), CLASSES, seed=1)
    plain = build_model(ModelConfig.model_validate(SMALL | GRCN), CLASSES, seed=1)
    values = dict(model.named_parameters())
    for name, expected in plain.named_parameters():
        copies = [name, *(name.replace("roi_heads.", f"roi_heads.{'following.' * k}") for k in (1, 2))]
        for copy in copies if name.startswith("roi_heads.") else copies[:1]:
            assert torch.equal(values[copy], expected), copy
    assert len(list(model.roi_heads.parameters())) == 3 * len(list(plain.roi_heads.parameters()))
    assert [stage.box_weights for stage in model.roi_heads.stages()] == [
        (10, 10, 5, 5),
        (20, 20, 10, 10),
        (30, 30, 15, 15),
    ]
