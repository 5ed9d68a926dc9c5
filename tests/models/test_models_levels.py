"""Features of several levels: anchors, proposals, RoI pooling and a whole detector, against torchvision's."""

from contextlib import nullcontext
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from support import PLAIN, small_batch
from torch.testing import assert_close
from torchvision.models.detection import rpn as torchvision_rpn
from torchvision.ops import MultiScaleRoIAlign, batched_nms, roi_align

from grcn import boxes, rng
from grcn.apps.benchmark.counts import count
from grcn.models.anchors import AnchorGenerator
from grcn.models.box_heads import TaskHeads, TwoMLPHead
from grcn.models.detector import Detector
from grcn.models.features import TASKS, Backbone, FeatureSpec
from grcn.models.roi_heads import RoIHeads, SamplingSettings
from grcn.models.roi_pool import RoIPool
from grcn.models.rpn import BOX_WEIGHTS, ProposalSettings, RegionProposalNetwork
from grcn.models.transform import DetectionTransform, ImageBatch

STRIDES = (4, 8, 16, 16, 32)
SIZES, RATIOS = ((8, 12), (16, 24), (32, 48), (40, 60), (64, 96)), (0.5, 1, 2)
CANVAS, POOLED = (512, 640), (4, 8, 16, 32)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
FORMS = pytest.mark.parametrize("form", [nullcontext, boxes.as_if_on_gpu])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def random_maps(canvas, strides=STRIDES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(canvas[0])
    cells = [[-(-side // stride) for side in canvas] for stride in strides]
    return tuple(torch.randn(2, 3, *sides, generator=generator, dtype=dtype).requires_grad_() for sides in cells)


def assert_gradients_close(ours, theirs, inputs):
    weights = torch.arange(ours.numel(), dtype=ours.dtype).cos().view_as(ours)
    gradients = [torch.autograd.grad(out, inputs, weights, retain_graph=True) for out in (ours, theirs)]
    assert_close(*gradients, **CLOSE)


@DTYPES
@pytest.mark.parametrize("canvas", [(128, 160), (203, 317), (65, 129), (31, 500)])
@pytest.mark.parametrize("strides", [STRIDES, (4, 8, 16, 32, 64)])
def test_anchors_of_all_levels_equal_torchvisions(strides, canvas, dtype):
    maps = random_maps(canvas, strides, dtype)
    images = ImageBatch(torch.zeros(2, 3, *canvas), [canvas] * 2)
    (theirs, _) = torchvision_rpn.AnchorGenerator(SIZES, (RATIOS,) * 5)(images, list(maps))
    assert torch.equal(AnchorGenerator(SIZES, RATIOS, strides, "torchvision")(maps, canvas), theirs)


@pytest.mark.parametrize("canvas", [(128, 160), (203, 317)])
def test_centred_anchors_of_a_level_are_those_of_its_map_alone(canvas):
    maps, generator = random_maps(canvas), AnchorGenerator(SIZES, RATIOS, STRIDES)
    anchors, counts = generator(maps, canvas), generator.counts(maps)
    assert counts == [6 * map_.shape[2] * map_.shape[3] for map_ in maps]
    for one, of_level in zip([slice(level, level + 1) for level in range(5)], anchors.split(counts), strict=True):
        assert torch.equal(of_level, AnchorGenerator(SIZES[one], RATIOS, STRIDES[one])(maps[one], canvas))
    index = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(0)).view(2, -1)
    sizes = torch.tensor(SIZES).double().flatten()[generator.size_of(index, maps)]
    assert_close(sizes, boxes.areas(anchors[index]).sqrt(), **CLOSE)


def test_mistakes_about_levels_are_named():
    for sizes in (SIZES[:4], (*SIZES[:4], (64,))):
        with pytest.raises(ValueError, match="^sizes must be 5 lists of one length, one for each stride"):
            AnchorGenerator(sizes, RATIOS, STRIDES)
    with pytest.raises(ValueError, match="^unknown layout 'middle'; choose centred or torchvision$"):
        AnchorGenerator(SIZES, RATIOS, STRIDES, "middle")
    with pytest.raises(ValueError, match=r"^expected 5 maps, one for each stride \(got 4\)$"):
        AnchorGenerator(SIZES, RATIOS, STRIDES)(random_maps((64, 64))[:4], (64, 64))


@pytest.mark.parametrize("layout", ["centred", "torchvision"])
def test_maps_of_the_same_shapes_share_anchors(layout):
    generator = AnchorGenerator(SIZES, RATIOS, STRIDES, layout)
    first = generator(random_maps((61, 93)), (61, 93))
    other = generator(random_maps((61, 93), dtype=torch.float32), (61, 93)), generator(random_maps((61, 97)), (61, 97))
    assert other[0].dtype == torch.float32 and len(other[1]) > len(first)
    assert generator(random_maps((61, 93)), (61, 93)) is first
    # As many cells, of which torchvision infers other strides.
    assert (generator(random_maps((64, 96)), (64, 96)) is first) == (layout == "centred")


@pytest.mark.parametrize("training, post_nms", [(True, 200), (False, 2000)])
def test_proposals_and_losses_of_several_levels_equal_torchvisions(training, post_nms):
    torch.manual_seed(0)
    how, anchors = ProposalSettings(300, post_nms, 0.7, 0.0), AnchorGenerator(SIZES, RATIOS, STRIDES, "torchvision")
    ours = RegionProposalNetwork(3, 3, anchors, how, how, batch=20_000, straddling=True).double().train(training)
    torch.nn.init.ones_(ours.conv.bias)  # no position is silent, which would make scores equal
    head, anchors_ = torchvision_rpn.RPNHead(3, 6), torchvision_rpn.AnchorGenerator(SIZES, (RATIOS,) * 5)
    head.load_state_dict({name.replace("conv.", "conv.0.0."): value for name, value in ours.state_dict().items()})
    pre, post = (dict.fromkeys(("training", "testing"), most) for most in (300, post_nms))
    theirs = torchvision_rpn.RegionProposalNetwork(anchors_, head, 0.7, 0.3, 10**6, 0.5, pre, post, 0.7).double()
    maps, images = random_maps((128, 160)), ImageBatch(torch.zeros(2, 3, 128, 160), [(128, 130), (99, 160)])
    assert min(anchors.counts(maps)) < 300 < sorted(anchors.counts(maps))[-2]
    objects = ([[4, 5, 30, 44], [40, 8, 125, 100], [50, 30, 58, 41]], [[10, 12, 152, 90]])
    targets = [{"boxes": torch.tensor(b).double(), "labels": torch.ones(len(b), dtype=torch.long)} for b in objects]
    found, losses = ours(images, {"cls": maps}, targets)
    expected, their_losses = theirs.train(training)(images, dict(zip("01234", maps, strict=True)), targets)
    for one, other in zip(found, expected, strict=True):
        assert len(other) > 100 and not one[len(other) :].any()
        assert_close(one[: len(other)], other, **CLOSE)
    assert losses.keys() == their_losses.keys()
    for name, loss in losses.items():
        scaled = loss * 2 * ours.batch / (ours.last_stats["num_fg"] + ours.last_stats["num_bg"])
        # Torchvision's labels are float32, and so is the value of its objectness loss; its gradients are not.
        assert_close(scaled.to(their_losses[name].dtype), their_losses[name], **({} if "objectness" in name else CLOSE))
        assert_gradients_close(scaled, their_losses[name], maps)
        assert ours.last_stats["num_fg"] > 5


@DTYPES
@pytest.mark.parametrize("pre_nms", [200, 10_000])
@torch.no_grad()
def test_proposals_of_one_level_are_those_of_a_plain_implementation(pre_nms, dtype):
    torch.manual_seed(1)
    how, anchors = ProposalSettings(pre_nms, 100, 0.7, 6.0), AnchorGenerator([(16, 32)], RATIOS, [8])
    rpn = RegionProposalNetwork(3, 8, anchors, how, how).to(dtype).eval()
    maps = random_maps((128, 160), [8], dtype)
    images = ImageBatch(torch.zeros(2, 3, 128, 160), [(128, 130), (99, 160)], [1.5, 0.5])
    scored, proposals = rpn._score(images, {"cls": maps}), rpn(images, {"cls": maps})[0]
    hidden = rpn.conv(maps[0])
    logits = rpn.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1)
    deltas = rpn.bbox_pred(hidden).permute(0, 2, 3, 1).reshape(2, -1, 4)
    for image, (size, smallest) in enumerate(zip(images.image_sizes, (9, 3), strict=True)):
        scores, order = (part[:pre_nms] for part in logits[image].sort(dim=0, descending=True, stable=True))
        found = boxes.decode(deltas[image, order], anchors(maps, (128, 160))[order], BOX_WEIGHTS)
        found = boxes.clip(found[None], torch.tensor([size]))[0]
        large = (found[:, 2:] - found[:, :2]).amin(1) >= smallest
        scores = torch.where(large, scores, -torch.inf)
        for ours, plain in zip(scored[:3], (found, scores, 0 * order), strict=True):
            assert torch.equal(ours[image], plain)
        kept = boxes.nms_top_k(found, scores, 0.7, 100)
        assert len(kept) > 50 and not large.all()
        assert torch.equal(proposals[image], F.pad(found[kept] * large[kept, None], (0, 0, 0, 100 - len(kept))))


@FORMS
@DTYPES
def test_suppression_of_boxes_set_apart_is_torchvisions(dtype, form):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1500, 2, generator=generator, dtype=dtype) * 90
    found = torch.cat([corners, corners + 5 + 40 * torch.rand(1500, 2, generator=generator, dtype=dtype)], 1)
    groups = torch.randint(0, 5, (1500,), generator=generator)
    scores = torch.rand(1500, generator=generator, dtype=dtype).sort(descending=True).values
    expected, shifted = batched_nms(found, scores, groups, 0.5), boxes.apart(found, groups)
    assert len(expected) > 1.2 * len(boxes.nms_top_k(found, scores, 0.5, 1500))
    with form():
        for most in (1, 100, 1500):
            assert torch.equal(boxes.nms_top_k(shifted, scores, 0.5, most), expected[:most])


def rois_of_every_size():
    """RoIs of random sides, of sides where the level changes, smaller than a cell, at borders and corners, empty."""
    generator, (height, width) = torch.Generator().manual_seed(0), CANVAS
    sides = 2 ** (9 * torch.rand(2, 60, 2, generator=generator).double())
    corners = torch.rand(2, 60, 2, generator=generator) * (torch.tensor([width, height]) - sides).clamp(min=0)
    edges = [side - less for side in (112, 224, 448) for less in (0, 1e-5, 1e-3, 1)]
    special = [[0, 0, side, side] for side in edges] + [[width - side, height - side, width, height] for side in edges]
    special += [[0, 0, 1, 1], [639.5, 511, 640, 512], [638, 0, 640, 0.5], [0, 300, 2, 303], [0, 0, 640, 512], [0] * 4]
    return torch.cat([torch.cat([corners, corners + sides], -1), torch.tensor(special).double().expand(2, -1, 4)], 1)


@FORMS
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, 0])
@pytest.mark.parametrize(
    "own, theirs, levels",
    [
        ({}, {}, [0, 0, 0, 1, 1, 2, 2, 3]),
        ({"level": -1}, {"canonical_level": 3}, [0, 0, 0, 0, 0, 1, 1, 2]),
        ({"level": 1}, {"canonical_level": 5}, [0, 1, 1, 2, 2, 3, 3, 3]),
        ({"finest": 0}, {"canonical_scale": 56}, [0, 2, 2, 3, 3, 3, 3, 3]),
    ],
)
def test_rois_are_pooled_from_the_maps_that_torchvision_pools_them_from(own, theirs, levels, ratio, aligned, form):
    maps, rois = random_maps(CANVAS, POOLED), rois_of_every_size()
    pool = RoIPool(POOLED, 3, "align", ratio, aligned, **own)
    sides = torch.tensor([0, 56, 111.99, 112, 223.99, 224, 447.99, 448]).double()
    assert pool.level_of(torch.stack([0 * sides, 0 * sides, sides, sides], -1)[None]).tolist() == [levels]
    reference = MultiScaleRoIAlign(["0", "1", "2", "3"], 3, ratio, **theirs)
    for some in (rois, rois[:, 2:4], rois[:, -1:], rois[:, :0]):
        with mock.patch("torchvision.ops.poolers.roi_align", partial(roi_align, aligned=aligned)):
            expected = reference(dict(zip("0123", maps, strict=True)), list(some), [CANVAS, CANVAS])
        with form():
            found = pool((*maps, torch.full((2, 3, 1, 1), torch.nan)), some)
        assert torch.isfinite(found).all()
        assert_close(found, expected, **CLOSE)
        # A map that no RoI is pooled from has a gradient too, of zeros; with None this would raise.
        assert_gradients_close(found, expected, maps)


@FORMS
@pytest.mark.parametrize("aligned", [False, True])
def test_a_whole_image_is_pooled_from_the_coarsest_pooled_map(aligned, form):
    maps = random_maps(CANVAS)
    rows = torch.tensor([[0, 0, 0, 600, 512], [1, 0, 0, 640, 333]]).double()
    with form():
        pooled = RoIPool(STRIDES[:4], 7, "align", 2, aligned).whole(maps, rows[:, [4, 3]])
    assert_close(pooled, roi_align(maps[3], rows, 7, 1 / 16, 2, aligned), **CLOSE)


class ToyPyramid(Backbone):
    """Five maps, of which RoIs are pooled from four: means or maxima of pixels, and a convolution for each task."""

    def __init__(self, shared):
        super().__init__()
        self.shared, self.frozen = shared, torch.nn.Sequential()
        self.feature_specs = dict.fromkeys(TASKS, FeatureSpec(8, STRIDES, pooled=4, finest=0))
        self.convs = torch.nn.ModuleDict({task: torch.nn.Conv2d(3, 8, 1) for task in (TASKS[:1] if shared else TASKS)})

    def forward(self, images):
        pools = [F.avg_pool2d] * 3 + [F.max_pool2d] * 2
        pooled = [pool(images, stride, ceil_mode=True) for pool, stride in zip(pools, STRIDES, strict=True)]
        maps = {task: tuple(map(conv, pooled)) for task, conv in self.convs.items()}
        return {task: maps.get(task, maps["cls"]) for task in TASKS}


TOYS = pytest.mark.parametrize("shared, level", [(True, 0), (True, -1), (False, 0), (False, 1)])


def toy_detector(shared, level, dtype=torch.float64):
    """Localization has its own maps unless ``shared``, and pools from ``level`` more than classification."""
    torch.manual_seed(2)
    how = ProposalSettings(60, 40)
    rpn = RegionProposalNetwork(8, 8, AnchorGenerator(SIZES, RATIOS, STRIDES), how, how, batch=32)
    pools = {task: RoIPool(STRIDES[:4], 4, "align", level=level * (task == "loc"), finest=0) for task in TASKS}
    heads = TaskHeads(lambda _: TwoMLPHead(8 * 16, 32), 5)
    roi_heads = RoIHeads(pools, heads, shared and level == 0, sampling=SamplingSettings(24, 0.5))
    return Detector(ToyPyramid(shared), rpn, roi_heads, DetectionTransform(100, 200, PLAIN, 32)).to(dtype)


@TOYS
@DTYPES
def test_a_detector_of_several_levels_trains_and_detects_in_either_form(shared, level, dtype):
    """In fixed shapes, a step synchronizes for one suppression per image, and a detection for two."""
    (images, targets), results = small_batch(dtype), []

    def run(model):
        losses = model.train()(images, targets)
        sum(losses.values()).backward()
        with torch.no_grad():
            results.append((losses, [weight.grad for weight in model.parameters()], model.eval()(images)))

    run(toy_detector(shared, level, dtype))
    losses, gradients, detections = results[0]
    assert len(losses) == 4 and all(loss > 0 for loss in losses.values())
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert all(len(found["boxes"]) > 5 for found in detections)
    assert count(partial(run, toy_detector(shared, level, dtype)))["waits"] == 3 * len(images)
    if dtype == torch.float64:  # in float32 a detection may be lost by rounding
        assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("shared, level", [(True, -1), (True, 1), (False, -1)])
def test_foreground_slots_of_another_level_give_the_losses_and_gradients_of_all_rois(shared, level):
    model = toy_detector(shared, level).train()
    batch, targets = model.transform(*small_batch(torch.float64))
    features, heads = model.backbone(batch.tensors), model.roi_heads
    proposals, _ = model.rpn(batch, features, targets)
    _, losses = heads(features, proposals, batch.image_sizes, targets)
    (states,) = rng.image_states(targets, proposals.device, (rng.ROIS,))
    rois, labels, regression_targets, valid, foreground, _ = heads.sample(proposals, boxes.pad_objects(targets), states)
    assert valid.all() and foreground.sum() > 4
    assert (heads.pools["cls"].level_of(rois) != heads.pools["loc"].level_of(rois))[foreground].any()
    cls, loc = (heads.heads.cls(heads.pools[task](features[task], rois)) for task in TASKS)
    deltas = heads.heads.bbox_pred(loc).view(2, 24, 5, 4)[foreground, labels[foreground]]
    plain = F.cross_entropy(heads.heads.cls_score(cls), labels.flatten())
    plain = plain, F.smooth_l1_loss(deltas, regression_targets[foreground], reduction="sum") / labels.numel()
    assert_close(tuple(losses.values()), plain, rtol=1e-12, atol=1e-13)
    assert_gradients_close(sum(losses.values()), sum(plain), [*heads.parameters(), *model.backbone.parameters()])
    # In detection, the level moves boxes and no score.
    own, usual = (toy_detector(shared, of_loc).eval()(small_batch(torch.float64)[0])[0] for of_loc in (level, 0))
    assert own["scores"][0] == usual["scores"][0] and (own["boxes"][0] != usual["boxes"][0]).any()


@TOYS
def test_halves_of_a_batch_give_the_losses_of_the_whole(shared, level):
    model, (images, targets) = toy_detector(shared, level), small_batch(torch.float64)
    together = model(images, targets)
    sizes = {"batch_sizes": [(64, 96), (64, 64)]}
    alone = [model([image], [target | sizes]) for image, target in zip(images, targets, strict=True)]
    for name, loss in together.items():
        assert_close(loss, (alone[0][name] + alone[1][name]) / 2, rtol=1e-12, atol=1e-12)


def test_a_canvas_is_a_multiple_and_has_the_images_at_the_top_left():
    images, _ = small_batch()
    (batch, _), plain = DetectionTransform(100, 200, PLAIN, 32)(images), DetectionTransform(100, 200, PLAIN)
    assert batch.tensors.shape == (2, 3, 128, 160) and batch.image_sizes == [(100, 150), (100, 100)]
    for image, tensor, (height, width) in zip(images, batch.tensors, batch.image_sizes, strict=True):
        assert torch.equal(tensor[:, :height, :width], plain([image])[0].tensors[0])
        assert not tensor[:, height:].any() and not tensor[:, :, width:].any()
    assert DetectionTransform(96, 200, PLAIN, 32)([torch.rand(3, 48, 64)])[0].tensors.shape == (1, 3, 96, 128)


def test_boxes_of_other_maps_add_nothing_in_the_deterministic_form(monkeypatch):
    """torchvision's RoIAlign in Python, which a GPU runs with deterministic algorithms, reads beyond a map's border."""
    from torchvision.ops.roi_align import _roi_align

    def in_python(feature, rows, size, scale, sampling_ratio, aligned):
        return _roi_align(feature, rows, scale, size, size, sampling_ratio, aligned)

    generator = torch.Generator().manual_seed(0)
    maps = tuple(torch.randn(1, 3, 64 // k, 64 // k, generator=generator).double() for k in (1, 2, 4, 8))
    corner = torch.rand(1, 30, 2, generator=generator).double() * 60
    rois = torch.cat([corner, corner + torch.rand(1, 30, 2, generator=generator).double() ** 2 * 190 + 1], -1)
    pool = RoIPool((4, 8, 16, 32), 7, "align", finest=0)
    expected = pool(maps, rois)
    monkeypatch.setattr("grcn.models.roi_pool.roi_align", in_python)
    with boxes.as_if_on_gpu():
        assert_close(pool(maps, rois), expected, rtol=1e-6, atol=1e-6)
    assert len(pool.level_of(rois).unique()) == 4
