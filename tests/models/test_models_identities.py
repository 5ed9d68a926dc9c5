"""Every optimization of the model against the plain form it replaces: losses, gradients and detections are the same."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import small_batch, small_detector
from torch.testing import assert_close
from torchvision.ops import nms

from grcn import boxes, build_model, load_config, rng
from grcn.catalog import VGG16_BLOCKS
from grcn.models.context import ContextAttention
from grcn.models.roi_heads import DetectionSettings, RoIHeads, SamplingSettings, _row_keys
from grcn.models.vgg import SplitVGG

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-13}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}
SEPARATE = {
    "detect_f": {"split": "conv5"},
    "detect_rf": {"split": "conv5", "tasks": "separate"},
    "context_cls": {"context": ("cls",)},
    "context_loc": {"context": ("loc",)},
    "grcn": {"split": "conv5", "loc_pool": "none", "context": ("cls",)},
    "grcn_resnet": {"resnet": True, "split": 1, "loc_stride": 8, "context": ("cls",)},
}


def plain_losses(heads: RoIHeads, features, proposals, image_sizes, targets):
    """Both tasks run on all sampled RoIs, one after the other, and the box loss picks the foreground at the end."""
    states = rng.image_states(targets, proposals.device, (rng.ROIS,), (rng.DROPOUT, 0), (rng.DROPOUT, 1))
    rois, labels, regression_targets, valid, foreground, _ = heads.sample(
        proposals, boxes.pad_objects(targets), states[0]
    )
    hidden = {}
    for number, task in enumerate(("cls", "loc")):
        sizes = torch.tensor(image_sizes).to(rois)
        x = heads._add_context(task, heads._pool(task, features, rois), features, sizes)
        hidden[task] = heads.heads.hidden(task, x, _row_keys(states[1 + number], rois.shape[1]))
    logits = heads.heads.cls_score(hidden["cls"])
    deltas = heads.heads.bbox_pred(hidden["loc"]).view(len(logits), -1, 4)
    slots, labels, fg = labels.numel(), labels.flatten(), foreground.flatten()
    return {
        "loss_classifier": F.cross_entropy(logits[valid.flatten()], labels[valid.flatten()], reduction="sum") / slots,
        "loss_box_reg": F.smooth_l1_loss(
            deltas[fg, labels[fg]], regression_targets.flatten(0, 1)[fg], **heads.box_loss.keywords, reduction="sum"
        )
        / slots,
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("row", SEPARATE)
def test_foreground_slots_give_the_losses_and_gradients_of_all_rois(row, dtype):
    model = small_detector(**SEPARATE[row], dropout=0.5, sampling=SamplingSettings(24, 0.5)).to(dtype).train()
    images, targets = small_batch(dtype)
    batch, targets = model.transform(images, targets)

    def run(losses_of):
        model.zero_grad()
        features = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, features, targets)
        losses = losses_of(features, proposals, batch.image_sizes, targets)
        sum(losses.values()).backward()
        return losses, [p.grad for p in model.parameters() if p.grad is not None]

    fast = run(lambda *inputs: model.roi_heads(*inputs)[1])
    assert 3 < model.roi_heads.last_stats["num_fg"]
    plain = run(lambda *inputs: plain_losses(model.roi_heads, *inputs))
    assert fast[0]["loss_box_reg"] > 0
    assert_close(fast[0], plain[0], **TOLERANCE[dtype])
    assert_close(fast[1], plain[1], **TOLERANCE[dtype])


def naive_context(module, roi_features, image_features, per_image):
    """Eq. 1 as printed, RoI by RoI, with row vectors and one projection each."""
    out = []
    for index, roi in enumerate(roi_features):
        p = roi.flatten(1).t()
        v = image_features[index // per_image].flatten(1).t()
        q, k = module.query(p), module.key(v)
        values = v if module.value is None else module.value(v)
        heads = [
            torch.softmax(qh @ kh.t() / kh.shape[1] ** 0.5, dim=1) @ vh
            for qh, kh, vh in zip(*(t.chunk(module.heads, dim=1) for t in (q, k, values)), strict=True)
        ]
        out.append((p + torch.cat(heads, 1)).t().view_as(roi))
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dim, heads, value", [(None, 1, False), (6, 1, True), (8, 4, False)])
def test_folded_context_is_equation_1(dim, heads, value, dtype):
    torch.manual_seed(0)
    module = ContextAttention(16, dim, heads, value).to(dtype)
    rois = torch.randn(6, 16, 3, 3, dtype=dtype, requires_grad=True)
    whole = torch.randn(2, 16, 5, 5, dtype=dtype, requires_grad=True)
    inputs = (rois, whole, *module.parameters())
    fast, plain = module(rois, whole), naive_context(module, rois, whole, 3)
    assert_close(fast, plain, **TOLERANCE[dtype])
    weights = torch.randn_like(fast)
    assert_close(
        torch.autograd.grad((fast * weights).sum(), inputs),
        torch.autograd.grad((plain * weights).sum(), inputs),
        **TOLERANCE[dtype],
    )


def test_context_attends_to_a_set():
    torch.manual_seed(0)
    module = ContextAttention(8).double()
    rois, whole = torch.randn(2, 8, 2, 2).double(), torch.randn(1, 8, 3, 3).double()
    shuffled = whole.flatten(2)[..., torch.randperm(9)].view_as(whole)
    assert_close(module(rois, whole), module(rois, shuffled))
    torch.nn.init.zeros_(module.query.weight)
    assert_close(module(rois, whole), rois + whole.mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    "row, baseline",
    [
        (SEPARATE["detect_f"], {}),
        (SEPARATE["detect_rf"], {}),
        ({"resnet": True, "split": 1}, {"resnet": True}),
        ({"resnet": True, "split": 3, "tasks": "separate"}, {"resnet": True}),
    ],
)
@torch.no_grad()
def test_before_training_the_split_changes_nothing(row, baseline):
    images, _ = small_batch()
    split, baseline = small_detector(**row).eval(), small_detector(**baseline).eval()
    for image in images:
        ours, theirs = split([image])[0], baseline([image])[0]
        assert len(ours["boxes"]) > 5
        assert_close(ours, theirs)


@pytest.mark.parametrize("row", SEPARATE)
@torch.no_grad()
def test_localizing_only_rois_above_the_threshold_gives_the_same_detections(row, monkeypatch):
    images, _ = small_batch(torch.float64)
    model = small_detector(**SEPARATE[row], detecting=DetectionSettings(0.3, 0.5, 100)).double().eval()
    fast = model(images)
    # A threshold of zero switches the selection off; what it adds scores below the real threshold and is cut here.
    model.roi_heads.detecting = DetectionSettings(0.0, 0.5, 10**6)
    for ours, everything in zip(fast, model(images), strict=True):
        assert 0 < len(ours["boxes"]) < len(everything["boxes"])
        keep = everything["scores"] > 0.3
        assert_close(ours, {key: value[keep] for key, value in everything.items()})


def test_frozen_blocks_run_without_a_graph_and_change_nothing():
    torch.manual_seed(0)
    narrow = [[max(8, width // 16) for width in widths] for widths in VGG16_BLOCKS]
    frozen, trained = SplitVGG(narrow, frozen_blocks=2), SplitVGG(narrow)
    values = list(frozen.parameters())
    for ours, theirs in zip(trained.parameters(), values, strict=True):
        ours.data.copy_(theirs)
    recorded = []
    frozen.frozen.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    x = torch.rand(1, 3, 64, 80)
    (out,) = frozen(x)["cls"]
    assert_close(out, trained(x)["cls"][0])
    out.sum().backward()
    trained(x)["cls"][0].sum().backward()
    assert recorded == [False]
    assert all(p.grad is None for p in frozen.frozen.parameters())
    for ours, theirs in zip(list(trained.parameters())[8:], values[8:], strict=True):
        assert_close(ours.grad, theirs.grad)


def test_suppression_may_stop_at_the_first_kept():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(3000, 2, generator=generator) * 60
    candidates = torch.cat([corner, corner + 5 + 40 * torch.rand(3000, 2, generator=generator)], 1)
    scores = torch.rand(3000, generator=generator).sort(descending=True).values
    everything = nms(candidates, scores, 0.7)
    assert len(everything) > 700
    for count in (1, 50, 300, 700, 5000):
        assert torch.equal(boxes.nms_top_k(candidates, scores, 0.7, count), everything[:count])


def test_placeholders_do_not_end_suppression_early():
    """Boxes below the minimum size share one place and the lowest score; a chunk full of them must not end it."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2000, 2, generator=generator) * 200
    candidates = torch.cat([corner, corner + 5 + 10 * torch.rand(2000, 2, generator=generator)], 1)
    small = torch.rand(2000, generator=generator) < 0.7
    candidates[small] = torch.tensor([-2.0, -2, -1, -1])
    scores = torch.where(small, -torch.inf, torch.rand(2000, generator=generator).sort(descending=True).values)
    expected = nms(candidates[~small], scores[~small], 0.7)
    for count in (50, 100, 200):
        kept = boxes.nms_top_k(candidates, scores, 0.7, count)
        assert len(kept) == count
        assert torch.equal(kept, (~small).nonzero()[:, 0][expected[:count]])


def test_initial_values_of_the_projections():
    """They are the paper's for new layers, or Xavier's; all else is the same to the bit."""
    built = {}
    for init in ("gaussian", "xavier"):
        overrides = [f"model.context.init={init}", "model.loc.last_pool=conv2x2_s2", "model.split=conv5"]
        cfg = load_config(CONFIGS / "shapes/context_cls_tiny.yaml", overrides)
        built[init] = dict(build_model(cfg.model, 9).named_parameters())
    differing = {name for name, values in built["gaussian"].items() if not values.equal(built["xavier"][name])}
    assert differing == {f"roi_heads.context.cls.{part}.weight" for part in ("query", "key")}
    for name in differing:
        gaussian, xavier = (built[init][name] for init in ("gaussian", "xavier"))
        bound = (6 / sum(xavier.shape)) ** 0.5
        assert 0.009 < gaussian.std() < 0.011 and 0.99 * bound < xavier.abs().max() <= bound
    (conv,) = (values for name, values in built["xavier"].items() if "pool4" in name and values.dim() > 1)
    assert conv.abs().max() <= (6 / (conv[0].numel() + conv[:, 0].numel())) ** 0.5
