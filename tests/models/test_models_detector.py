"""The detector's contract: empty cases, both directions of torchvision's interface, synchronizations, randomness,
learning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import OneMap, as_torchvision, small_batch, small_detector
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from grcn import boxes
from grcn.build import build_model
from grcn.config.files import load_config
from grcn.models.detector import Detector
from grcn.models.features import FeatureSpec
from grcn.models.roi_heads import RoIHeads, SamplingSettings
from grcn.models.roi_pool import RoIPool
from grcn.models.rpn import ProposalSettings
from grcn.models.targets import check_labels, check_targets
from grcn.models.transform import ImageBatch

GRCN = {"split": "conv5", "loc_pool": "none", "context": ("cls",), "op": "pool"}
ROOT = Path(__file__).resolve().parents[2]
LOSSES = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"]
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "rng_key": 3}


def backward(losses):
    assert list(losses) == LOSSES
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()


@pytest.mark.parametrize("row", [{}, GRCN, {"split": "conv5", "tasks": "separate"}, {"tasks": "ensemble"}])
def test_images_without_objects_have_finite_losses_and_no_box_loss(row):
    model = small_detector(**row).train()
    losses = model([torch.rand(3, 64, 64), torch.rand(3, 40, 90)], [EMPTY, EMPTY])
    backward(losses)
    assert losses["loss_rpn_box_reg"] == 0 and losses["loss_box_reg"] == 0 and losses["loss_classifier"] > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("add_gt", [True, False])
def test_no_proposals(add_gt):
    model = small_detector(**GRCN, sampling=SamplingSettings(16, add_gt=add_gt))
    images, targets = small_batch()
    model.rpn.train_settings = model.rpn.test_settings = ProposalSettings(80, 40, 0.7, 10_000.0)
    losses = model.train()(images, targets)
    backward(losses)
    assert (losses["loss_box_reg"] > 0) == (losses["loss_classifier"] > 0) == add_gt
    assert [len(d["boxes"]) for d in model.eval()(images)] == [0, 0]


def test_no_foreground_gives_no_box_loss():
    model = small_detector(**GRCN, sampling=SamplingSettings(16, fg_iou=1.0, add_gt=False)).train()
    losses = model(*small_batch())
    backward(losses)
    assert losses["loss_box_reg"] == 0 < losses["loss_classifier"]


def test_detections_are_in_original_pixels_and_inside():
    model = small_detector(**GRCN, short=128).eval()
    for height, width in ((37, 61), (64, 64), (90, 40)):
        detection = model([torch.rand(3, height, width)])[0]
        found = detection["boxes"]
        assert len(found) and found.min() >= 0
        assert found[:, 2].max() <= width + 1e-4 and found[:, 3].max() <= height + 1e-4
        assert (detection["scores"].diff() <= 0).all()
        assert detection["labels"].dtype == torch.int64


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.4])
@torch.no_grad()
def test_a_score_threshold_may_be_given_to_a_call(threshold):
    model = small_detector(**GRCN).eval()
    images, _ = small_batch()
    usual, given = model(images), model(images, score_thresh=threshold)
    with boxes.as_if_on_gpu():
        assert_close(model(images, score_thresh=threshold), given)
    assert_close(model(images), usual, rtol=0, atol=0)
    model.roi_heads.detecting = replace(model.roi_heads.detecting, score_thresh=threshold)
    assert_close(model(images), given, rtol=0, atol=0)
    assert len(given[0]["boxes"]) != len(usual[0]["boxes"])


def test_bytes_and_floats_are_the_same_image():
    model = small_detector().eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert_close(model([image]), model([image / 255]))


def test_mistakes_are_named():
    model = small_detector().train()
    images, targets = small_batch()
    with pytest.raises(ValueError, match="targets are needed"):
        model(images)
    targets[1]["boxes"][0, 2] = targets[1]["boxes"][0, 0]
    with pytest.raises(ValueError, match="target 1: box 0 .* has no extent"):
        model(images, targets)
    for value in (float("nan"), float("inf")):
        targets = small_batch()[1]
        targets[0]["boxes"][1, 2] = value
        with pytest.raises(ValueError, match="target 0: box 1 .* is not finite"):
            model(images, targets)
    targets = small_batch()[1]
    targets[0]["labels"][2] = 5
    with pytest.raises(ValueError, match=r"target 0: labels \[1, 3, 5\] must be 1 to 4"):
        model(images, targets)
    with pytest.raises(ValueError, match=r"expected images \[3, h, w\] \(got \[1, 64, 64\]\)"):
        model.eval()([torch.rand(1, 64, 64)])


@pytest.mark.parametrize("device", ["cpu", "pretended cuda"])
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"boxes": torch.zeros(0)}, ValueError, r"boxes must be float \[N, 4\] \(got \[0\]\)"),
        ({"boxes": torch.zeros(4)}, ValueError, r"boxes must be float \[N, 4\] \(got \[4\]\)"),
        ({"boxes": torch.zeros(1, 5)}, ValueError, r"boxes must be float \[N, 4\] \(got \[1, 5\]\)"),
        ({"boxes": torch.ones(1, 1, 4)}, ValueError, r"boxes must be float \[N, 4\] \(got \[1, 1, 4\]\)"),
        ({"boxes": torch.ones(1, 4).bool()}, TypeError, r"boxes must be a tensor, float \[N, 4\] \(got bool\)"),
        ({"boxes": torch.ones(1, 4) * 1j}, TypeError, r"boxes must be a tensor, float \[N, 4\] \(got complex64\)"),
        ({"boxes": [[1.0, 2, 3, 4]]}, TypeError, r"boxes must be a tensor, float \[N, 4\] \(got list\)"),
        ({"boxes": np.ones((1, 4))}, TypeError, r"boxes must be a tensor, float \[N, 4\] \(got numpy.ndarray\)"),
        ({"labels": torch.ones(1)}, TypeError, r"labels must be a tensor, int64 \[N\] \(got float32\)"),
        ({"labels": torch.ones(1).int()}, TypeError, r"labels must be a tensor, int64 \[N\] \(got int32\)"),
        ({"labels": [1]}, TypeError, r"labels must be a tensor, int64 \[N\] \(got list\)"),
        ({"labels": np.ones(1, int)}, TypeError, r"labels must be a tensor, int64 \[N\] \(got numpy.ndarray\)"),
        ({"labels": torch.tensor([1, 1])}, ValueError, r"labels must be int64 \[N\], N = 1 like boxes \(got \[2\]\)"),
        (
            {"labels": torch.tensor([[1]])},
            ValueError,
            r"labels must be int64 \[N\], N = 1 like boxes \(got \[1, 1\]\)",
        ),
        ({"labels": torch.tensor(1)}, ValueError, r"labels must be int64 \[N\], N = 1 like boxes \(got \[\]\)"),
    ],
)
def test_types_and_shapes_of_targets_are_checked_on_every_device(change, error, message, device):
    targets = small_batch()[1]
    targets[1] |= change
    with pytest.raises(error, match=f"^target 1: {message}$"):
        if device == "cpu":
            small_detector().train()(small_batch()[0], targets)
        with FakeTensorMode():
            check_targets([as_on_cuda(target) for target in targets], 2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int64, torch.float16, torch.float64])
def test_boxes_of_any_numbers_give_the_losses_of_floats(dtype):
    images, targets = small_batch()
    whole = [{**target, "boxes": target["boxes"].round()} for target in targets]
    usual = small_detector(**GRCN).train()(images, whole)
    other = small_detector(**GRCN).train()(images, [{**one, "boxes": one["boxes"].to(dtype)} for one in whole])
    assert usual["loss_box_reg"] > 0
    assert_close(other, usual, rtol=0, atol=0)
    empty = {**whole[0], "boxes": whole[0]["boxes"].to(dtype), "labels": whole[0]["labels"][:0]}
    with pytest.raises(ValueError, match="^target 0: labels must be int64"):
        small_detector().train()(images, [empty, whole[1]])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float64])
def test_values_of_boxes_of_any_numbers_are_checked(dtype):
    targets = small_batch()[1]
    targets[1] |= {"boxes": torch.tensor([[9, 9, 9, 20]]).to(dtype), "labels": torch.tensor([1])}
    with pytest.raises(ValueError, match="^target 1: box 0 .* has no extent"):
        small_detector().train()(small_batch()[0], targets)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16, torch.int64, torch.bool])
def test_images_of_integers_of_unknown_white_are_refused(dtype):
    images = [image.to(dtype) for image in small_batch()[0]]
    with pytest.raises(TypeError, match=r"^image 0: must be float in 0-1 or uint8 \(got torch\.\w+\); convert it$"):
        small_detector().eval()(images)


@pytest.mark.parametrize("how", [dict, iter, lambda targets: {"boxes": 1, "labels": 2}])
def test_targets_are_a_list(how):
    images, targets = small_batch()
    targets = how(enumerate(targets) if how is dict else targets)
    with pytest.raises(ValueError, match=r"^targets must be a list of one dict per image \(got \w+\)$"):
        small_detector().train()(images, targets)


@pytest.mark.parametrize("targets", [None, []])
def test_a_batch_has_images(targets):
    model = small_detector().train(targets is not None)
    for images in ([], (), {}, torch.zeros(0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"^expected a list of images, one at least \(got \w+ of 0\)$"):
            model(images, targets)


@pytest.mark.parametrize(
    "image, error, message",
    [
        (Image.new("RGB", (64, 64)), TypeError, r"tensors \[3, H, W\] \(got PIL.Image.Image\)"),
        (np.zeros((64, 64, 3), np.uint8), TypeError, r"tensors \[3, H, W\] \(got numpy.ndarray\)"),
        (np.zeros((3, 64, 64), np.float32), TypeError, r"tensors \[3, H, W\] \(got numpy.ndarray\)"),
        ("photo.jpg", TypeError, r"tensors \[3, H, W\] \(got builtins.str\)"),
        (torch.zeros(64, 64, 3), ValueError, r"images \[3, h, w\] \(got \[64, 64, 3\]\)"),
        (torch.zeros(64, 64), ValueError, r"images \[3, h, w\] \(got \[64, 64\]\)"),
        (torch.zeros(3, 0, 64), ValueError, r"images \[3, h, w\] \(got \[3, 0, 64\]\)"),
        (torch.ones(3, 64, 64).bool(), TypeError, r"float in 0-1 or uint8 \(got torch.bool\)"),
        (torch.ones(3, 64, 64, dtype=torch.uint16), TypeError, r"float in 0-1 or uint8 \(got torch.uint16\)"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_images_are_tensors(image, error, message, training):
    images, targets = small_batch()
    with pytest.raises(error, match=f"^image 1: .*{message}"):
        small_detector().train(training)([images[0], image], targets if training else None)


def test_a_model_is_built_from_its_section_of_the_config():
    cfg = load_config(ROOT / "configs/shapes/faster_rcnn_tiny.yaml")
    for other in (cfg, "configs/shapes/faster_rcnn_tiny.yaml", {"backbone": "tiny"}, None):
        with pytest.raises(TypeError, match="build_model takes the model section; pass cfg.model"):
            build_model(other, 3)


def as_on_cuda(target):
    """Replaces tensors by fake ones, without values, to be called in a FakeTensorMode."""
    fake = lambda value: torch.empty(value.shape, dtype=value.dtype, device="cuda")  # noqa: E731
    return {key: fake(value) if isinstance(value, torch.Tensor) else value for key, value in target.items()}


def test_values_of_targets_are_read_on_a_cpu_only():
    bad = {"boxes": torch.zeros(1, 4), "labels": torch.zeros(1, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"target 0: labels \[0\] must be 1 to 4"):
        check_labels([bad], 5)
    with pytest.raises(ValueError, match="target 0: box 0 .* has no extent"):
        check_targets([bad], 1)
    with FakeTensorMode():
        on_cuda = [as_on_cuda(bad), as_on_cuda(EMPTY)]
        check_targets(on_cuda, 2)
        check_labels(on_cuda, 5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_is_one_target_for_each_image(count):
    images, targets = small_batch()
    with pytest.raises(ValueError, match=rf"one target per image \(got {count} targets, 2 images\)"):
        small_detector().train()(images, [*targets, EMPTY][:count])


@pytest.mark.parametrize(
    "target, error, message",
    [
        ({"boxes": torch.zeros(0, 4)}, ValueError, r"must have boxes and labels \(no labels\)"),
        ({}, ValueError, r"must have boxes and labels \(no boxes and no labels\)"),
        (torch.zeros(0, 4), TypeError, r"must be a dict of boxes and labels \(got Tensor\)"),
    ],
)
def test_a_target_is_a_dict_with_boxes_and_labels(target, error, message):
    with pytest.raises(error, match=f"^target 1: {message}$"):
        small_detector().train()(small_batch()[0], [EMPTY, target])


def test_numbers_that_are_not_finite_do_not_reach_the_pooling():
    """A NaN coordinate would kill the process in torchvision's RoIAlign on the CPU."""
    model = small_detector(**{**GRCN, "op": "align"})
    images, targets = small_batch()
    with torch.no_grad():
        model.rpn.bbox_pred.weight.fill_(float("nan"))
    assert not all(torch.isfinite(loss) for loss in model.train()(images, targets).values())
    model.eval()(images)


def test_our_parts_in_torchvisions_detector():
    model = small_detector(**GRCN)
    theirs = GeneralizedRCNN(model.backbone, model.rpn, model.roi_heads, model.transform)
    images, targets = small_batch()
    losses = theirs.train()(images, targets)
    assert_close(losses, dict(model.train()(images, targets)), check_dtype=True)
    sum(losses.values()).backward()
    assert_close(theirs.eval()(images), model.eval()(images))


@torch.no_grad()
def test_a_batch_without_scales_was_not_resized():
    model = small_detector(straddling=False).eval()
    batch, _ = model.transform(small_batch()[0])
    features = model.backbone(batch.tensors)
    assert torch.equal(
        model.rpn(ImageBatch(batch.tensors, batch.image_sizes), features)[0], model.rpn(batch, features)[0]
    )


def test_our_backbone_and_transform_among_torchvisions_parts():
    model = small_detector()
    reference = as_torchvision(model)
    mixed = GeneralizedRCNN(OneMap(model.backbone), reference.rpn, reference.roi_heads, model.transform)
    images, targets = small_batch()
    sum(mixed.train()(images, targets).values()).backward()
    assert len(mixed.eval()(images)[0]["boxes"])


class Constant(nn.Module):
    """RoI heads of somebody else: torchvision's signature, none of our attributes."""

    def forward(self, features, proposals, image_shapes, targets=None):
        none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
        return [none] * len(image_shapes), {"loss_classifier": proposals.sum() * 0 + len(targets or ())}


def test_somebody_elses_roi_heads_among_our_parts():
    ours = small_detector()
    model = Detector(ours.backbone, ours.rpn, Constant(), ours.transform)
    images, targets = small_batch()
    assert model.train()(images, targets)["loss_classifier"] == len(images)
    assert len(model.eval()(images)) == len(images)


class Maps(nn.Module):
    """A backbone of maps of any strides that declares others."""

    def __init__(self, strides, declared, channels=(16, 16)):
        super().__init__()
        self.strides = strides
        pairs = zip(("cls", "loc"), declared, channels, strict=True)
        self.feature_specs = {task: FeatureSpec(width, (stride,)) for task, stride, width in pairs}

    def forward(self, images):
        maps = [F.avg_pool2d(images, stride, ceil_mode=True).repeat(1, 6, 1, 1)[:, :16] for stride in self.strides]
        return {"cls": (maps[0],), "loc": (maps[1],)}


def test_strides_are_compared_wherever_they_are_declared():
    ours = small_detector("conv5", "none", ("cls",))  # strides 16 and 8
    Detector(Maps((16, 8), (16, 8)), ours.rpn, ours.roi_heads, ours.transform).eval()(small_batch()[0])
    wrong = {
        "rpn.anchors of cls has strides": (8, 8),
        r"pools\['loc'\] has strides \(8,\), but .* declares \(16,\)": (16, 16),
    }
    for message, declared in wrong.items():
        with pytest.raises(ValueError, match=message):
            Detector(Maps((16, 8), declared), ours.rpn, ours.roi_heads, ours.transform)
    with pytest.raises(ValueError, match="channels need hidden layers of each task; pass tasks='separate'"):
        Detector(Maps((16, 8), (16, 8), (16, 8)), ours.rpn, ours.roi_heads, ours.transform)
    narrow = Maps((16, 8), (16, 8))
    narrow.feature_specs = {task: replace(spec, channels=8) for task, spec in narrow.feature_specs.items()}
    with pytest.raises(ValueError, match=r"the maps of cls have 16 channels \(declared: 8\); declare what they have"):
        Detector(narrow, ours.rpn, ours.roi_heads, ours.transform).eval()(small_batch()[0])
    ours.roi_heads.following = small_detector("conv5", "max", ("cls",)).roi_heads  # a later stage of other strides
    with pytest.raises(ValueError, match=r"pools\['loc'\] has strides \(16,\)"):
        Detector(Maps((16, 8), (16, 8)), ours.rpn, ours.roi_heads, ours.transform)
    ours.roi_heads.following = None
    for strides, task in (((8, 8), "cls"), ((16, 16), "loc"), ((16, 4), "loc")):
        model = Detector(Maps(strides, (16, 8)), ours.rpn, ours.roi_heads, ours.transform)
        with pytest.raises(ValueError, match=f"the map of {task} has .* cells for an input of .*; declare its stride"):
            model.eval()(small_batch()[0])


def test_a_model_is_built_around_somebody_elses_backbone():
    overrides = ["model.width=4", "model.context.on=cls", "model.roi.size=4", "model.head.dim=16"]
    cfg = load_config(ROOT / "configs/shapes/faster_rcnn_tiny.yaml", overrides).model
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), Maps((16, 8), (16, 8)))
    backbone.feature_specs = backbone[1].feature_specs
    before = backbone[0].weight.clone()
    model = build_model(cfg, 5, seed=7, backbone=backbone)
    usual = build_model(cfg, 5, seed=7)
    assert model.backbone is backbone and torch.equal(backbone[0].weight, before)
    assert torch.equal(model.roi_heads.heads.cls_score.weight, usual.roi_heads.heads.cls_score.weight)
    assert model.roi_heads.pools["loc"].strides == (8,) and not model.roi_heads.shared_map
    images, targets = small_batch()
    sum(model.train()(images, targets).values()).backward()
    assert backbone[0].weight.grad is not None
    backbone.feature_specs = {task: FeatureSpec(16, (16, 32)) for task in ("cls", "loc")}
    with pytest.raises(ValueError, match="sizes must be 2 lists"):
        build_model(cfg, 5, backbone=backbone)


def test_a_backbone_returns_tuples():
    model = small_detector()
    maps = model.backbone.forward
    model.backbone.forward = lambda images: {task: found[0] for task, found in maps(images).items()}
    with pytest.raises(TypeError, match=r"features\['cls'\] must be a tuple of maps \(got Tensor\)"):
        model.eval()(small_batch()[0])
    for wrong in (lambda images: maps(images)["cls"], lambda images: {"cls": maps(images)["cls"]}):
        model.backbone.forward = wrong
        with pytest.raises(TypeError, match=r"must return a dict of maps for \['cls', 'loc'\] \(got .+\)"):
            model.eval()(small_batch()[0])
    with pytest.raises(TypeError, match=r"strides must be a tuple, one for each map, such as \(16,\) \(got 8\)"):
        FeatureSpec(8, strides=8)
    model.backbone.forward = lambda images: {task: found * 2 for task, found in maps(images).items()}
    with pytest.raises(ValueError, match=r"1 maps are declared for cls \(got 2\)"):
        model.eval()(small_batch()[0])


def test_context_and_its_pools_come_together():
    heads = small_detector(context=("cls",)).roi_heads
    with pytest.raises(ValueError, match="context and context_pools must be of the same tasks"):
        RoIHeads(dict(heads.pools), heads.heads, True, dict(heads.context))


class Twice(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *tensors):
        return 2 * self.loss(*tensors)


@pytest.mark.parametrize("row", [{}, GRCN], ids=["plain", "grcn"])
@pytest.mark.parametrize("kind", [Twice, lambda loss: lambda *tensors: 2 * loss(*tensors)], ids=["module", "function"])
def test_losses_may_be_replaced(row, kind):
    model, batch = small_detector(**row).train(), small_batch()
    usual, heads = model(*batch), model.roi_heads
    heads.classification_loss = kind(heads.classification_loss)
    assert_close(model(*batch), usual | {"loss_classifier": 2 * usual["loss_classifier"]})
    heads.box_loss = kind(heads.box_loss)
    assert_close(model(*batch)["loss_box_reg"], 2 * usual["loss_box_reg"])


@pytest.mark.parametrize("name", ["classification_loss", "box_loss"])
def test_a_loss_that_is_reduced_is_refused(name):
    model = small_detector().train()
    usual = getattr(model.roi_heads, name)
    setattr(model.roi_heads, name, lambda *tensors: usual(*tensors).mean())
    with pytest.raises(ValueError, match=rf"roi_heads.{name}: expected the loss of each RoI, \[.+\] \(got \[\]\)"):
        model(*small_batch())


def test_a_box_loss_gets_the_rois_that_its_deltas_are_of():
    seen = {}
    model, (images, targets) = small_detector(**GRCN).train(), small_batch()

    def record(deltas, regression_targets, rois):
        seen.update(targets=boxes.decode(regression_targets, rois, model.roi_heads.box_weights))
        return deltas.sum(-1)

    model.roi_heads.box_loss = record
    model(images, targets)
    objects = model.transform(images, targets)[1][0]["boxes"]
    nearest = (seen["targets"][0][:, None] - objects).abs().amax(-1).amin(1)
    assert (nearest < 1e-2).sum() >= 3  # those of foreground RoIs are objects


def test_heads_of_one_map_refuse_two():
    model = small_detector("conv5")
    model.roi_heads.shared_map = True
    for training in (True, False):
        with pytest.raises(ValueError, match="shared_map: the maps of cls and loc differ; pass shared_map=False"):
            model.train(training)(*small_batch()) if training else model.eval()(small_batch()[0])


def test_the_rpn_of_a_split_model_does_not_train_the_localization_branch():
    model = small_detector(**GRCN).train()
    losses = model(*small_batch())
    (losses["loss_objectness"] + losses["loss_rpn_box_reg"]).backward()
    assert all(p.grad is None for p in model.backbone.loc.parameters())
    assert all(p.grad is not None for p in model.backbone.cls.parameters())


def test_an_image_draws_the_same_sample_alone_and_in_a_batch():
    """Losses of a batch are the means of its images' losses: how a batch is spread over processes does not matter."""
    model = small_detector(**GRCN, dropout=0.5).double().train()
    images, targets = small_batch(torch.float64)
    # Of one size: convolutions spread into the padding of a smaller one.
    images[1] = torch.rand(3, 64, 96, dtype=torch.float64)
    together = model(images, targets)
    alone = [model([image], [target]) for image, target in zip(images, targets, strict=True)]
    for name in LOSSES:
        assert_close(together[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-12, atol=1e-12)


def test_a_part_of_a_batch_is_padded_to_the_whole():
    model = small_detector(**GRCN).double().train()
    images, targets = small_batch(torch.float64)
    sizes = [tuple(image.shape[-2:]) for image in images]
    together = model(images, targets)
    alone = [model([image], [{**target, "batch_sizes": sizes}]) for image, target in zip(images, targets, strict=True)]
    for name in LOSSES:
        assert_close(together[name], (alone[0][name] + alone[1][name]) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride, size", [(16, (64, 96)), (16, (50, 83)), (8, (40, 40)), (16, (160, 250))])
def test_a_whole_image_is_pooled_without_the_padding_of_its_batch(stride, size):
    cells = [-(-side // stride) for side in size]
    feature = torch.randn(1, 3, cells[0] + 4, cells[1] + 3)
    inside = feature[:, :, : cells[0], : cells[1]].clone()
    feature[:, :, cells[0] :] = feature[:, :, :, cells[1] :] = 1e6
    pooled = RoIPool([stride], 14, "pool").whole((feature,), torch.tensor([size]).float())
    assert torch.equal(pooled, torch.nn.functional.adaptive_max_pool2d(inside, 14))
    assert RoIPool([stride], 14, "align").whole((inside,), torch.tensor([size]).float()).shape == (1, 3, 14, 14)


@pytest.mark.parametrize("name", ["faster_rcnn_tiny", "grcn_tiny_resnet", "grcn_light_tiny_resnet_fpn", "cascade_tiny"])
def test_bfloat16_s_losses_are_near_those_of_float32(name):
    """The box loss of RoIs aside: which of them overlap an object enough may change with the proposals."""
    images, targets = small_batch()
    model = build_model(load_config(ROOT / f"configs/shapes/{name}.yaml").model, 6).train()
    exact = model(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images, targets)
    assert exact.keys() == rounded.keys() and rounded != exact
    for loss in exact.keys() - {"loss_box_reg"}:
        assert_close(rounded[loss], exact[loss], rtol=5e-3, atol=0.0)
        assert rounded[loss].dtype == torch.float32


@pytest.mark.parametrize("name", ["grcn_vgg16", "grcn_resnet50", "grcn_light_resnet50_fpn"])
@torch.no_grad()
def test_maps_in_bfloat16_are_near_those_of_float32(name):
    """Frozen and evaluated convolutions are other operators then."""
    small = ["model.weights=null", "model.image={short: 64, max: 96}", "model.rpn.post_nms_test=10"]
    model = build_model(load_config(ROOT / f"configs/coco/{name}.yaml", small).model, 6).eval()
    images, _ = small_batch()
    x = model.transform(images)[0].tensors
    exact = model.backbone(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.backbone(x)
        found = model(images)
    for task, maps in exact.items():
        for map_, other in zip(maps, rounded[task], strict=True):
            assert other.dtype == torch.bfloat16
            assert (other.float() - map_).abs().max() < 0.05 * map_.abs().max()
    assert all(one["boxes"].isfinite().all() and one["scores"].dtype == torch.float32 for one in found)
