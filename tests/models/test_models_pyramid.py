"""ResNets with a pyramid: torchvision's to the last digit, and the same function wherever they are split."""

from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from support import small_batch
from torch.testing import assert_close
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from grcn import boxes, build_model, load_config
from grcn.catalog import PYRAMID_SPLITS
from grcn.errors import ConfigError
from grcn.models.detector import count_parameters
from grcn.models.detector_weights import names_of
from grcn.models.features import TASKS
from grcn.models.layer_names import layer_name
from grcn.models.pyramid import PyramidResNet
from grcn.models.resnet import FrozenNormConv
from grcn.models.weights import torchvision_names
from grcn.torchvision_baseline import torchvision_detector

CLOSE, EXACT = {"rtol": 1e-9, "atol": 1e-9}, {"rtol": 0, "atol": 0}
BASE = Path(__file__).resolve().parents[2] / "configs/_base/coco_fpn.yaml"  # torchvision's settings
# Images that neither side resizes, few proposals, and all of them sampled.
SMALL = """backbone=resnet50_fpn weights=null image.short=64 image.max=160 anchors.sizes=[[16],[32],[64],[128],[256]]
head.dim=32 rpn.pre_nms_train=100 rpn.post_nms_train=60 rpn.pre_nms_test=60 rpn.post_nms_test=24 rpn.fg_iou=0.5
rpn.batch=10000 roi.fg_iou=0.4 roi.fg_fraction=0.5 roi.batch=200"""
V2 = "pyramid.norm=frozen rpn.convs=2 head.kind=conv_fc rpn.post_nms_test=18"
TINY = """backbone=tiny_resnet_fpn width=8 pyramid.channels=16 anchors.sizes=[[24],[64],[96],[128],[160]]
rpn.channels=16 rpn.batch=32 roi.size=4 roi.batch=24"""
VGG = "backbone=vgg16 anchors.sizes=[128,256]"
PAIRS = {"resnet50": "", "resnet50_v2": V2, "resnet101": "backbone=resnet101_fpn", "tiny": TINY}
SPLITS, OWN_STRIDES = list(PYRAMID_SPLITS), product(["conv5", "conv4"], [(2, 1), (1, 2)])


def config(changes):
    return load_config(BASE, [f"model.{setting}" for setting in f"{SMALL} {changes}".split()]).model


@torch.no_grad()
def spread(model, scores):
    """Makes layers that start small so large that scores and boxes differ, as in training, and gives norms values."""
    generator, heads = torch.Generator().manual_seed(0), model.roi_heads.heads
    layers = (model.rpn.cls_logits, 20), (model.rpn.bbox_pred, 3), (heads.cls_score, scores), (heads.bbox_pred, 100)
    for layer, factor in layers:
        layer.weight.sub_(layer.weight.mean(1, keepdim=True))  # or one class would win everywhere
        layer.weight.mul_(factor)
    for layer in model.modules():
        if isinstance(layer, FrozenNormConv):
            layer.scale.copy_(0.5 + torch.rand(layer.scale.shape, generator=generator))
            layer.shift.copy_(0.1 * torch.randn(layer.shift.shape, generator=generator))
    return model


def tiny(changes=""):
    """A miniature, whose RoIs on images of 64 pixels are pooled from three levels."""
    return spread(build_model(config(f"{TINY} {changes}"), 5, seed=3), 60)


def by_layer(values):
    return {layer_name(name): value for name, value in values.items()}


def step(model, images, targets):
    """Returns losses and the gradients of what is trained."""
    losses = model.train()(images, targets)
    model.zero_grad()
    sum(losses.values()).backward()
    return losses, {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request):
    """A detector in float64, and torchvision's with its weights."""
    cfg = config(PAIRS[request.param])
    ours = spread(build_model(cfg, 6), 60 if request.param == "tiny" else 10)
    theirs = torchvision_detector(cfg, ours).double()
    for norm in theirs.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.running_var.fill_(1 - norm.eps)  # which float32 has rounded
    for name in ("mean", "std"):  # and so it has these of ours
        values = getattr(ours.transform.normalisation, name)
        setattr(ours.transform, name, torch.tensor(values, dtype=torch.float64).view(3, 1, 1))
    return ours.double(), theirs


@pytest.mark.parametrize("canvas", [(64, 64), (96, 32), (65, 97)])
@torch.no_grad()
def test_maps_equal_torchvisions(pair, canvas):
    torch.manual_seed(0)
    images = torch.rand(2, 3, *canvas).double()
    maps, expected = (model.backbone(images) for model in pair)
    assert maps["cls"] is maps["loc"] and all(map_.std() > 0.01 for map_ in maps["cls"])
    assert_close(list(maps["cls"]), list(expected.values()), **CLOSE)


@torch.no_grad()
def test_proposals_and_detections_equal_torchvisions(pair):
    (ours, theirs), (images, _) = (model.eval() for model in pair), small_batch(torch.float64)
    images.append(images[0].mT[:, :90])
    batch, _ = ours.transform(images)
    features = ours.backbone(batch.tensors)
    their_maps = {str(level): map_ for level, map_ in enumerate(features["cls"])}
    proposals, _ = theirs.rpn(ImageList(batch.tensors, batch.image_sizes), their_maps)
    for found, expected in zip(ours.rpn(batch, features)[0], proposals, strict=True):
        assert len(expected) > 15 and not found[len(expected) :].any()
        assert_close(found[: len(expected)], expected, **CLOSE)
    for some in (images, images[2:]):
        detections = ours(some)
        assert all(len(found["boxes"]) > 15 and found["scores"].std() > 0.01 for found in detections)
        assert_close(detections, theirs(some), **CLOSE)


@pytest.mark.parametrize("pair", ["resnet50"], indirect=True)
def test_losses_and_gradients_equal_torchvisions(pair):
    (ours, theirs), (images, targets) = pair, small_batch(torch.float64)
    losses, expected = ours.train()(images, targets), theirs.train()(images, targets)
    assert ours.rpn.last_stats["num_fg"] > 5 and ours.roi_heads.last_stats["num_fg"] > 5
    # Ours divide by the slots of the batch, theirs by what was sampled.
    slots = (ours.rpn, 10_000), (ours.roi_heads, 200)
    factors = [len(images) * most / int(sum(part.last_stats.values())) for part, most in slots for _ in range(2)]
    losses = {name: loss * factor for (name, loss), factor in zip(losses.items(), factors, strict=True)}
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    # Torchvision's labels of anchors are float32, and so is the value of that loss; its gradients are not.
    assert_close(losses.pop("loss_objectness").float(), expected.pop("loss_objectness").float())
    assert_close(losses, expected, **CLOSE)
    names = names_of(theirs.state_dict(), torchvision_names("resnet50"))
    gradients = {names[key]: weight.grad for key, weight in theirs.named_parameters() if weight.requires_grad}
    own = by_layer({name: weight.grad for name, weight in ours.named_parameters() if weight.requires_grad})
    assert len(own) > 60 and all(gradient.any() for gradient in own.values())
    assert_close(own, gradients, **CLOSE)


@pytest.mark.parametrize("name, changes", [("fasterrcnn_resnet50_fpn", ""), ("fasterrcnn_resnet50_fpn_v2", V2)])
def test_layers_and_their_size_are_those_of_the_releases(name, changes):
    """The norms of the first release are buffers there, those of the second parameters."""
    cfg = config(f"head.dim=1024 {changes}")
    with torch.device("meta"):
        ours, theirs = build_model(cfg, 91), get_model(name, weights=None, weights_backbone=None)
        found = torchvision_detector(cfg, ours).state_dict()
    expected = {key: value.shape for key, value in theirs.state_dict().items() if not key.endswith("_tracked")}
    assert {key: value.shape for key, value in found.items()} == expected
    learnt = count_parameters(ours) if changes else sum(weight.numel() for weight in ours.parameters())
    assert learnt == get_model_weights(name).COCO_V1.meta["num_params"] == (43_712_278 if changes else 41_755_286)


@pytest.mark.parametrize("changes", ["", "split=fpn loc.level=-1 context.on=cls", "split=conv5 loc.last_stride=1"])
def test_losses_gradients_and_detections_are_those_of_fixed_shapes_and_of_halves_of_the_batch(changes):
    images, targets = small_batch(torch.float64)
    results = []
    for form in (nullcontext, boxes.as_if_on_gpu):
        model = tiny(changes).double()
        with form():
            results.append((*step(model, images, targets), model.eval()(images)))
    assert all(len(found["boxes"]) > 15 for found in results[0][2])
    assert_close(results[1], results[0], **CLOSE)
    sizes = {"batch_sizes": [(64, 96), (64, 64)]}
    halves = [step(model, [image], [target | sizes])[0] for image, target in zip(images, targets, strict=True)]
    together = {name: (loss + halves[1][name]) / 2 for name, loss in halves[0].items()}
    assert_close(together, results[0][0], **CLOSE)


@pytest.mark.parametrize("split", SPLITS)
@torch.no_grad()
def test_before_training_a_split_changes_nothing(split):
    images, _ = small_batch()
    model, plain, x = tiny(f"split={split}").eval(), tiny().eval(), torch.rand(2, 3, 96, 64)
    maps, expected = model.backbone(x), plain.backbone(x)
    assert maps["cls"] is not maps["loc"] and not model.backbone.shared
    assert_close(maps, expected, **EXACT)
    for some in (images[:1], images[1:], images):
        found = model(some, score_thresh=0.0)
        assert all(len(one["boxes"]) > 15 for one in found)
        assert_close(found, plain(some, score_thresh=0.0), **EXACT)


@torch.no_grad()
def test_a_frozen_conv5_keeps_the_stride_of_the_tasks():
    backbone = PyramidResNet((1, 1, 1, 1), last_strides={"cls": 1, "loc": 1}, width=4, frozen_stages=5)
    maps = backbone(torch.rand(1, 3, 64, 96))["cls"]
    assert [map_.shape[-1] for map_ in maps] == [96 // stride for stride in backbone.feature_specs["cls"].strides]


@pytest.mark.parametrize("changes", ["cls.level=1", "loc.level=-1", "split=conv5 loc.last_stride=1"])
@torch.no_grad()
def test_levels_and_strides_make_other_detections(changes):
    found, usual = (tiny(some).eval()(small_batch()[0])[0]["boxes"] for some in (changes, ""))
    assert found.shape != usual.shape or not torch.isclose(found, usual, atol=0.1).all()


@pytest.mark.parametrize("on", ["cls", "loc", "both"])
def test_context_of_zero_values_changes_nothing_at_first_and_learns(on):
    images, targets = small_batch()
    model = tiny(f"context.on={on} context.value=true context.init=zero").eval()
    assert_close(*(one(images, score_thresh=0.0) for one in (model, tiny().eval())), **EXACT)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for number in range(2):
        _, gradients = step(model, images, targets)
        learns = {name: bool(gradient.any()) for name, gradient in gradients.items() if ".context." in name}
        assert len(learns) == (6 if on == "both" else 3)
        assert all(any_ == (number > 0 or name.endswith("value.weight")) for name, any_ in learns.items())
        optimizer.step()


@pytest.mark.parametrize("split, last", [*product(["none", *SPLITS], [(2, 2), (1, 1)]), *OWN_STRIDES])
@torch.no_grad()
def test_declared_strides_and_channels_are_the_measured_ones(split, last):
    backbone = PyramidResNet((1, 1, 3, 1), split, dict(zip(TASKS, last, strict=True)), channels=6, width=4)
    assert list(backbone.frozen) == ["stem", "layer1_0"]  # what a ResNet has frozen if nothing is said
    for canvas in ((64, 96), (96, 160), (65, 97), (127, 31), (33, 1)):
        maps = backbone(torch.rand(1, 3, *canvas))
        assert (maps["cls"] is maps["loc"]) == backbone.shared == (split == "none")
        for task, stride in zip(TASKS, last, strict=True):
            spec = backbone.feature_specs[task]
            assert spec.strides == (4, 8, 16, 16 * stride, 32 * stride) and (spec.channels, spec.pooled) == (6, 4)
            cells = [tuple(-(-side // stride) for side in canvas) for stride in spec.strides]
            assert [map_.shape for map_ in maps[task]] == [(1, 6, *sides) for sides in cells]


@pytest.mark.parametrize("freeze", range(6))
def test_frozen_stages_run_without_a_graph_and_change_nothing(freeze):
    images, targets = small_batch(torch.float64)
    model, plain = (tiny(f"freeze={stages}").double() for stages in (freeze, 0))
    frozen, recorded = model.backbone.frozen, []
    assert len(frozen) == (0, 1, 2, 3, 6, 7)[freeze]
    frozen.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    losses, gradients = step(model, images, targets)
    assert recorded == [False]
    expected, others = step(plain, *small_batch(torch.float64))
    rest = {name: gradient for name, gradient in by_layer(others).items() if name not in frozen.state_dict()}
    assert_close((losses, by_layer(gradients)), (expected, rest), **CLOSE)


@pytest.mark.parametrize("form", [nullcontext, boxes.as_if_on_gpu])
@pytest.mark.parametrize("split", ["none", *SPLITS])
def test_every_trained_parameter_gets_a_gradient(split, form):
    """No RoI of these images is large enough for P5, which of localization nothing else reads."""
    with form():
        _, gradients = step(tiny(f"freeze=2 split={split}"), *small_batch())
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    silent = {name for name, gradient in gradients.items() if not gradient.any()}
    assert all(name.startswith("backbone.loc.output") for name in silent)
    assert split == "none" or "backbone.loc.output5.weight" in silent


def test_initial_values_are_torchvisions_and_do_not_depend_on_the_split():
    changes = "width=16 pyramid.channels=32"
    theirs, own = FeaturePyramidNetwork([64, 128, 256, 512], 32), by_layer(tiny(changes).backbone.state_dict())
    for level, (lateral, output) in enumerate(zip(theirs.inner_blocks, theirs.layer_blocks, strict=True), start=2):
        for name, (conv,) in ((f"lateral{level}", lateral), (f"output{level}", output)):
            assert not own[f"{name}.bias"].any() and not conv.bias.any()
            for weight in (own[f"{name}.weight"], conv.weight.detach()):
                fan_in = weight[0].numel()
                assert weight.abs().max() == pytest.approx((3 / fan_in) ** 0.5, rel=0.02)
                assert weight.var() == pytest.approx(1 / fan_in, rel=0.1)
    for split in SPLITS:
        values = tiny(f"{changes} split={split}").backbone.state_dict()
        assert all(torch.equal(value, own[layer_name(name)]) for name, value in values.items())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "conv3"}, "^unknown split 'conv3'; choose none, output, fpn, conv5, conv4$"),
        ({"norm": "batch"}, "^unknown norm 'batch'; choose none or frozen$"),
        ({"last_strides": {"cls": 2, "loc": 4}}, "^last_strides must be 2 or 1 for each of cls and loc"),
        ({"last_strides": {"cls": 2, "loc": 1}, "split": "fpn"}, "^conv5 cannot have two strides with split 'fpn'"),
        *(({"frozen_stages": number}, f"^cannot freeze {number} stages") for number in (-1, 6)),
        *(({"frozen_stages": 4 + k, "split": f"conv{4 + k}"}, f"^cannot freeze {4 + k} stages") for k in (0, 1)),
    ],
)
def test_backbones_refuse_what_they_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidResNet((1, 1, 3, 1), width=4, **options)


@pytest.mark.parametrize(
    "changes, message",
    [
        ("anchors.sizes=[32,64]", r"anchors.sizes: resnet50_fpn has 5 maps, .* \(got one list\); set \[\[32\], "),
        (f"{VGG} anchors.sizes=[[32],[64]]", r"anchors.sizes: vgg16 has one map \(got 2 lists\); set one list"),
        (f"{VGG} cls.level=-1", r"cls.level: only pyramids have it \(got -1 with vgg16\); remove it"),
        (f"{VGG} loc.last_stride=1", r"loc.last_stride: only pyramids have it .*; remove it"),
        (f"{VGG} pyramid.norm=frozen", r"pyramid.norm: only pyramids have it .*; remove it"),
        (f"{VGG} split=fpn", r"split: only pyramids split there \(got fpn with vgg16\); set backbone: resnet50_fpn"),
        ("roi.op=pool", r"roi.op: RoIPool reads one map, a pyramid has several \(got pool\); set align"),
        ("split=conv3", r"split: .* no such split \(got conv3\); choose none, output, fpn, conv5, conv4"),
        ("loc.last_stride=1", "loc.last_stride: with split: none both tasks share conv5, .*; set split: conv5"),
        ("cls.last_pool=none", "cls.last_pool: .* no such pooling .* set cls.level: -1"),
        ("loc.stride=8", "loc.stride: a pyramid has maps of several strides .* or loc.last_stride: 1"),
        ("freeze=5 split=conv5", r"freeze: .* has 4 stages .* \(got 5\); lower it"),
        ("freeze=4 split=conv4", r"freeze: .* has 3 stages .* \(got 4\); lower it"),
        ("head.tasks=ensemble loc.level=-1", "head.tasks: ensemble .* set both alike"),
    ],
)
def test_contradictions_are_named_once(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config(changes)
    assert "\n" not in str(caught.value)
