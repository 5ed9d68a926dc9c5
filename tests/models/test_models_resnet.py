"""ResNet backbones against torchvision's: features, gradients, strides, the split, weights of both layouts."""

import pytest
import torch
from support import small_batch, small_detector
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close
from torchvision.models import resnet50, resnet101
from torchvision.models.resnet import ResNet
from torchvision.ops import FrozenBatchNorm2d

from grcn.build import build_model
from grcn.catalog import RESNET_UNITS
from grcn.config.model_schema import ModelConfig
from grcn.errors import CheckpointError
from grcn.models.box_heads import ConvHead
from grcn.models.init import initialise
from grcn.models.layer_names import layer_name
from grcn.models.resnet import FrozenNormConv, SplitResNet
from grcn.models.weights import load_weights

UNITS = (1, 2, 4, 2)
C4 = {"head": {"kind": "conv5"}, "roi": {"op": "align", "size": 14}, "rpn": {"channels": 8}}
EXACT = {"rtol": 1e-12, "atol": 1e-13}


def small(split="none", cls=16, loc=16, **options):
    """A SplitResNet of 4 to 128 channels with random values, frozen norms included, in double precision."""
    net = SplitResNet(UNITS, split, {"cls": cls, "loc": loc}, width=4, **options)
    initialise(nn.ModuleDict({"backbone": net}), 0)
    for name, buffer in net.named_buffers():
        # By the layer's name, so that copies of a layer have the same norms.
        generator = torch.Generator().manual_seed(sum(map(ord, layer_name(f"backbone.{name}"))))
        buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return net.double()


def at_random(network):
    """Gives a network of torchvision random norms, as training leaves them."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.0)
    return network.eval()


@pytest.fixture(scope="module")
def resnet50_file(tmp_path_factory):
    """A ResNet50 of torchvision with random values, and its file."""
    torch.manual_seed(0)
    network = at_random(resnet50(weights=None))
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return network, path


def to_conv4(network: ResNet, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    return network.layer3(network.layer2(network.layer1(x)))


def build(**model):
    return build_model(ModelConfig.model_validate({"backbone": "resnet50", **C4, **model}), 21)


# ---------------------------------------------------------------- against torchvision


@torch.no_grad()
def test_features_and_head_are_torchvisions(resnet50_file):
    network, path = resnet50_file
    model = build(split=2)
    report = load_weights(model, f"torchvision:{path}")
    assert "fc.weight" in report.ignored and not any(name.startswith("backbone") for name in report.new)
    x = torch.rand(1, 3, 70, 93)
    features = model.eval().backbone(x)
    expected = to_conv4(network, x)
    for task in ("cls", "loc"):
        assert_close(features[task][0], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    pooled = torch.rand(3, 1024, 14, 14)
    expected = network.layer4(pooled).mean((2, 3))
    assert_close(model.roi_heads.heads.hidden("loc", pooled), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_weights_of_the_caffe_layout_are_strided_in_the_first_convolution(resnet50_file):
    network, path = resnet50_file
    model = build(weights=f"caffe:{path}")
    load_weights(model, f"caffe:{path}")
    assert model.transform.normalisation.bgr
    x = torch.rand(1, 3, 70, 93)
    torchvisions = to_conv4(network, x)
    strided = [stage[0] for stage in (network.layer2, network.layer3)]
    try:
        for unit in strided:
            unit.conv1.stride, unit.conv2.stride = (2, 2), (1, 1)
        expected = to_conv4(network, x)
    finally:
        for unit in strided:
            unit.conv1.stride, unit.conv2.stride = (1, 1), (2, 2)
    pooled = torch.rand(2, 1024, 14, 14)
    unit = network.layer4[0]
    unit.conv1.stride, unit.conv2.stride = (2, 2), (1, 1)
    head = network.layer4(pooled).mean((2, 3))
    unit.conv1.stride, unit.conv2.stride = (1, 1), (2, 2)
    assert_close(model.eval().roi_heads.heads.hidden("cls", pooled), head, rtol=1e-4, atol=1e-4)
    (ours,) = model.backbone(x)["cls"]
    tolerance = 1e-4 * expected.abs().max().item()
    assert_close(ours, expected, rtol=1e-4, atol=tolerance)
    assert (ours - torchvisions).abs().max() > 100 * tolerance


@pytest.mark.parametrize("stride", [16, 32])
@torch.no_grad()
def test_resnet_det_is_torchvisions_network_with_or_without_its_last_stride(resnet50_file, stride):
    _, path = resnet50_file
    network = resnet50(weights=None)
    network.load_state_dict(torch.load(path))
    if stride == 16:
        network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    network.eval()
    branch = {"stride": stride}
    model = build(backbone="resnet50_det", head={"dim": 8}, roi={"op": "align"}, split="conv5", cls=branch, loc=branch)
    load_weights(model, f"torchvision:{path}")
    x = torch.rand(1, 3, 70, 93)
    expected = network.layer4(to_conv4(network, x))
    features = model.eval().backbone(x)
    for task in ("cls", "loc"):
        assert_close(features[task][0], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_a_folded_norm_has_the_values_and_gradients_of_a_frozen_batch_norm():
    torch.manual_seed(0)
    ours = FrozenNormConv(4, 6, 3).double()
    nn.init.normal_(ours.weight)
    theirs = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, bias=False), FrozenBatchNorm2d(6, eps=0)).double()
    theirs[0].weight.data.copy_(ours.weight.data)
    for tensor in (theirs[1].weight, theirs[1].bias, theirs[1].running_mean, theirs[1].running_var):
        tensor.copy_(torch.rand(6) + 0.5)
    ours.scale.copy_(theirs[1].weight / theirs[1].running_var.sqrt())
    ours.shift.copy_(theirs[1].bias - theirs[1].running_mean * ours.scale)
    x = torch.randn(2, 4, 9, 8).double()
    out, expected = ours(x, 2), theirs(x)
    assert_close(out, expected, **EXACT)
    weights = torch.randn_like(out)
    assert_close(
        *(
            torch.autograd.grad((y * weights).sum(), w)[0]
            for y, w in ((out, ours.weight), (expected, theirs[0].weight))
        ),
        **EXACT,
    )
    assert [name for name, _ in ours.named_parameters()] == ["weight"]


# ---------------------------------------------------------------- the split and the strides


@pytest.mark.parametrize("size", [(64, 96), (57, 83), (33, 40)])
@pytest.mark.parametrize("stride_in", ["conv3x3", "conv1x1"])
@pytest.mark.parametrize(
    "split, det",
    [
        ("none", False),
        (1, False),
        (2, False),
        (4, False),
        ("none", True),
        ("conv5", True),
        ("conv4", True),
        ("conv3", True),
    ],
)
@pytest.mark.parametrize("cls, loc", [(16, 16), (16, 8), (8, 16), (8, 8)])
@torch.no_grad()
def test_declared_strides_are_the_measured_ones_at_any_size(split, det, stride_in, cls, loc, size):
    net = small(split, cls, loc, det=det, stride_in=stride_in)
    features = net(torch.rand(2, 3, *size).double())
    assert net.feature_specs["cls"].strides == (cls,) and net.feature_specs["loc"].strides == (loc,)
    for task, spec in net.feature_specs.items():
        assert features[task][0].shape == (2, spec.channels, *(-(-side // spec.strides[0]) for side in size))
    assert (features["cls"] is features["loc"]) == net.shared == (split == "none" and cls == loc)


@pytest.mark.parametrize("size", [(64, 96), (57, 83), (33, 40)])
@pytest.mark.parametrize("split", ["none", "conv5", "conv4"])
@pytest.mark.parametrize("how", [{"stride_in": "conv3x3"}, {"stride_in": "conv1x1"}, {"from_scratch": "group"}])
@pytest.mark.parametrize("cls, loc", [(32, 32), (32, 16), (16, 32), (32, 8), (8, 16)])
@torch.no_grad()
def test_the_map_of_each_task_is_that_of_a_network_in_which_both_have_its_stride(split, how, cls, loc, size):
    """conv5 in the backbone may keep its stride, too."""
    x, net = torch.rand(2, 3, *size).double(), small(split, cls, loc, det=True, **how)
    features = net(x)
    assert net.shared == (split == "none" and cls == loc)
    for task, stride in (("cls", cls), ("loc", loc)):
        assert net.feature_specs[task].strides == (stride,)
        assert features[task][0].shape == (2, 128, *(-(-side // stride) for side in size))
        alone = small("none", stride, stride, det=True, **how)
        assert_close(features[task][0], alone(x)[task][0], **EXACT)


@pytest.mark.parametrize("split, det", [(2, False), ("conv5", True), ("conv4", True), ("conv3", True)])
@pytest.mark.parametrize("stride_in", ["conv3x3", "conv1x1"])
@torch.no_grad()
def test_with_its_stride_back_the_loc_branch_is_the_baseline_bit_for_bit(split, det, stride_in):
    split_net, baseline = (small(s, det=det, stride_in=stride_in).float() for s in (split, "none"))
    x = torch.rand(1, 3, 64, 90)
    (expected,) = baseline(x)["loc"]
    assert torch.equal(split_net(x)["loc"][0], expected)
    # And at both strides, the cls branch still is.
    assert_close(small(split, 16, 8, det=det, stride_in=stride_in).float()(x)["cls"][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("from_scratch", [None, "layer"])
def test_the_first_unit_of_conv4_runs_once_for_both_strides(from_scratch):
    """Where its 3x3 convolution is the strided one, subsampling its dense result is running it with its stride."""
    net = small(1, 16, 8, from_scratch=from_scratch)
    x = torch.rand(2, 3, 57, 83).double()

    def run(subsamples):
        net.subsamples = subsamples
        features = net(x)
        parameters = [p for p in net.parameters() if p.requires_grad]
        return features, torch.autograd.grad(sum((f**2).mean() for (f,) in features.values()), parameters)

    assert net.subsamples
    once, twice = run(True), run(False)
    assert_close(once, twice, **EXACT)
    assert not small(1, 16, 8, stride_in="conv1x1").subsamples
    assert not small(1, 16, 8, from_scratch="group").subsamples


def test_shared_units_receive_the_sum_of_both_branches_gradients():
    net = small(1, 16, 8)
    x = torch.rand(1, 3, 64, 64).double()
    named = {name: p for name, p in net.named_parameters() if p.requires_grad}

    def gradients(*tasks):
        features = net(x)
        loss = sum((features[task][0] ** 2).mean() for task in tasks)
        return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))

    both, cls, loc = gradients("cls", "loc"), gradients("cls"), gradients("loc")
    for name in named:
        place = name.split(".")[0]
        if place in ("trunk", "fork", "twice"):
            assert cls[name].any() and loc[name].any()
            assert_close(both[name], cls[name] + loc[name], **EXACT)
        else:
            assert (cls[name] is None) == (place == "loc") and (loc[name] is None) == (place == "cls")
    assert {name.split(".")[0] for name in named} == {"trunk", "fork", "twice", "cls", "loc"}


def test_the_rpn_gives_what_only_localization_reads_no_gradient():
    model = small_detector(resnet=True, split=1, loc_stride=8, context=("cls",)).train()
    losses = model(*small_batch())
    (losses["loss_objectness"] + losses["loss_rpn_box_reg"]).backward()
    assert all(p.grad is None for p in model.backbone.loc.parameters())
    assert all(
        p.grad is not None for part in ("trunk", "twice", "cls") for p in getattr(model.backbone, part).parameters()
    )


def test_stem_and_conv2_are_frozen_and_norms_are_no_parameters():
    net = small(1, 16, 8)
    (net(torch.rand(1, 3, 64, 64).double())["loc"][0] ** 2).sum().backward()
    assert {name.split("_")[0] for name, _ in net.frozen.named_children()} == {"stem", "layer1"}
    assert all(not p.requires_grad and p.grad is None for p in net.frozen.parameters())
    assert all(p.dim() == 4 for p in net.parameters())
    scratch = SplitResNet(UNITS, from_scratch="layer", width=4)
    assert all(p.requires_grad for p in scratch.parameters()) and "stem" in dict(scratch.trunk.named_children())


@torch.no_grad()
def test_the_head_of_two_convolutions():
    torch.manual_seed(0)
    head = ConvHead(6, 5).double()
    plain = nn.Sequential(head.conv1, nn.ReLU(), head.conv2, nn.ReLU())
    x = torch.randn(3, 6, 7, 7).double()
    assert_close(head(x), plain(x).mean((2, 3)), **EXACT)


@pytest.mark.parametrize(
    "options",
    [
        {"strides": {"cls": 12, "loc": 12}},
        {"strides": {"cls": 16}},
        {"strides": {"cls": 32, "loc": 16}},
        {"stride_in": "conv1"},
    ],
)
def test_impossible_strides_are_refused(options):
    with pytest.raises(ValueError, match="stride"):
        SplitResNet(UNITS, width=4, **options)


@pytest.mark.parametrize("split, det", [(5, False), (0, False), ("conv5", False), ("conv2", True), (2, True)])
def test_impossible_splits_are_refused(split, det):
    with pytest.raises(ValueError, match="cannot split"):
        SplitResNet(UNITS, split, det=det, width=4)


def test_values_stay_finite_without_pretrained_weights():
    """Frozen norms that only scale by one do not hold 33 units in check."""
    net = SplitResNet(RESNET_UNITS["resnet101"], det=True)
    initialise(net, 0)
    with torch.no_grad():
        (out,) = net(torch.randn(1, 3, 64, 64))["cls"]
    assert 0.01 < out.std() < 100


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda s: s.pop("layer3.5.conv2.weight"), "layer3.5.conv2.weight missing; this is not resnet50"),
        (lambda s: s.pop("layer3.5.bn2.running_var"), "layer3.5.bn2.running_var missing"),
        (lambda s: s.update({"features.0.weight": torch.zeros(1)}), r"unexpected keys \(features.0.weight\).*resnet50"),
        (lambda s: s.update({"layer2.0.conv1.weight": torch.zeros(128, 3, 1, 1)}), "layer2_0.conv1.weight is"),
        (lambda s: s["layer1.0.bn1.weight"].fill_(torch.inf), "layer1.0.bn1.weight is not finite"),
        (lambda s: s.update({"layer1.0.bn1.weight": torch.ones(1)}), "behind layer1_0.conv1 is not one of 64 channels"),
        (lambda s: s["layer1.0.bn1.running_var"].neg_(), "behind layer1_0.conv1 is not one of 64 channels"),
    ],
)
def test_files_that_do_not_fit_are_refused(resnet50_file, tmp_path, edit, message):
    state = {key: value.clone() for key, value in torch.load(resnet50_file[1]).items()}
    edit(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_weights(build(), f"torchvision:{tmp_path / 'w.pth'}")


def test_weights_of_another_layout_than_the_model_was_built_for_are_refused(resnet50_file):
    """They would fit, behind the wrong normalisation and stride."""
    with pytest.raises(CheckpointError, match="built for weights of another layout; set model.weights=caffe:"):
        load_weights(build(), f"caffe:{resnet50_file[1]}")


def test_backbones_without_pretrained_weights_are_refused():
    with pytest.raises(CheckpointError, match="has no pretrained weights; set null"):
        load_weights(small_detector(resnet=True), "IMAGENET1K_V1")


def test_a_backbone_alone_is_usable(resnet50_file):
    """Without a detector around it, as part of somebody else's: sensible values, and pretrained ones."""
    network, path = resnet50_file
    net = SplitResNet(RESNET_UNITS["resnet50"], 2, {"cls": 16, "loc": 8})
    x = torch.rand(1, 3, 70, 93)
    with torch.no_grad():
        assert all(torch.isfinite(feature).all() and feature.any() for (feature,) in net(x).values())
        report = load_weights(net, f"torchvision:{path}")
        assert not report.new
        expected = to_conv4(network, x)
        assert_close(net.eval()(x)["cls"][0], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_files_of_another_network_are_refused(tmp_path):
    torch.save(resnet101(weights=None).state_dict(), tmp_path / "r101.pth")
    with pytest.raises(CheckpointError, match=r"unexpected keys \(layer3.10.*need resnet50"):
        load_weights(build(), f"torchvision:{tmp_path / 'r101.pth'}")


def test_a_second_conv5_starts_new_where_it_reads_more_channels(resnet50_file):
    model = build(backbone="resnet50_det", roi={"op": "align", "size": 14})
    report = load_weights(model, f"torchvision:{resnet50_file[1]}")
    new = {name.removeprefix("roi_heads.heads.cls.units.").split(".")[0] for name in report.new if ".units." in name}
    assert new == {"layer5_0"}
    units = model.roi_heads.heads.cls.units
    assert torch.equal(units.layer4_2.conv2.weight, model.backbone.cls.layer4_2.conv2.weight if len(model.backbone.cls)
                       else model.backbone.trunk.layer4_2.conv2.weight)  # fmt: skip
    with torch.no_grad():
        assert model.eval().roi_heads.heads.hidden("cls", torch.rand(2, 2048, 14, 14)).shape == (2, 2048)


def test_a_release_that_does_not_exist_is_refused():
    with pytest.raises(CheckpointError, match="no IMAGENET1K_FEATURES for resnet50"):
        load_weights(build(), "IMAGENET1K_FEATURES")
