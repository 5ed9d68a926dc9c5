"""Files of torchvision's detectors: their trunk goes where a classifier's weights go, and the rest is reported."""

import hashlib

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchvision.models import WeightsEnum, detection, get_model, get_model_weights, list_models
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn, fasterrcnn_resnet50_fpn_v2

from grcn.build import build_model
from grcn.config.files import load_config
from grcn.errors import CheckpointError
from grcn.models import weights
from grcn.models.weights import load_weights

SMALL = ["model.rpn.channels=8", "model.image={short: 64, max: 96}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A v2 detector whose norms are trained, in half precision, and the file of its state."""
    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.1, 0.1)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    heads = ("roi_heads.box_head",)  # large, and of no use here but to be left
    state = {key: value.half() for key, value in model.state_dict().items() if not key.startswith(heads)}
    model.load_state_dict(state, strict=False)
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save(state, path)
    return model.eval(), path, state


def detector(config, entry):
    cfg = load_config(f"configs/{config}.yaml", [*SMALL, f"model.weights={entry}"])
    return build_model(cfg.model, 4).eval()


def test_the_trunk_of_a_detector_is_ours(trained, monkeypatch, request):
    theirs, path, state = trained
    monkeypatch.chdir(request.config.rootpath)
    assert "backbone.body.bn1.num_batches_tracked" in state
    ours = detector("coco/grcn_resnet50", f"torchvision:{path}")
    report = load_weights(ours, f"torchvision:{path}")
    assert report.left == ["backbone.fpn", "roi_heads", "rpn"] and not report.ignored
    assert str(report).endswith("a detector, of which only the trunk is taken; left: backbone.fpn, roi_heads, rpn")
    assert "\n" not in str(report) and "rpn.conv.weight" in report.new
    image = torch.rand(3, 64, 96)
    batch, _ = ours.transform([image])
    with torch.no_grad():
        maps = ours.backbone(batch.tensors)
        expected = theirs.backbone.body(batch.tensors)
        (cls,), (loc,) = maps["cls"], maps["loc"]
        assert_close(cls, expected["2"], rtol=1e-3, atol=1e-3)
        assert_close(ours.roi_heads.heads.cls.units(cls), expected["3"], rtol=1e-3, atol=1e-3)
        assert loc.shape[2:] == torch.Size(2 * side for side in cls.shape[2:])
    normalisation = ours.transform.normalisation
    assert normalisation.mean == tuple(theirs.transform.image_mean) and not normalisation.bgr
    assert normalisation.std == tuple(theirs.transform.image_std)


RELEASES = [
    (name, entry) for name in list_models(module=detection) for entry in get_model_weights(name) if "resnet" in name
]


@pytest.mark.parametrize("name,entry", RELEASES, ids=[f"{name}-{entry.name}" for name, entry in RELEASES])
def test_the_releases_without_epsilon_are_torchvisions(name, entry, monkeypatch):
    """Its builder sets the epsilon of what it loads a release into, whose name has the beginning of its SHA-256."""
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *args, **options: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **options: None)
    with torch.device("meta"):
        body = get_model(name, weights=entry).backbone.body
    (eps,) = {module.eps for module in body.modules() if hasattr(module, "running_var")}
    assert eps == (0.0 if entry.url.endswith(tuple(f"-{digest}.pth" for digest in weights._WITHOUT_EPS)) else 1e-5)


def test_every_digest_is_of_a_release():
    assert all(any(digest in entry.url for _, entry in RELEASES) for digest in weights._WITHOUT_EPS)


def test_published_frozen_norms_have_no_epsilon(trained, monkeypatch, request):
    _, path, state = trained
    monkeypatch.chdir(request.config.rootpath)
    scale, variance = (state[f"backbone.body.bn1.{name}"].float() for name in ("weight", "running_var"))
    ours = detector("coco/grcn_resnet50", f"torchvision:{path}")
    for epsilon in (1e-5, 0.0):
        load_weights(ours.backbone, f"torchvision:{path}")
        assert_close(ours.backbone.frozen.stem.conv1.scale, scale / (variance + epsilon).sqrt(), rtol=3e-7, atol=0)
        monkeypatch.setattr(weights, "_WITHOUT_EPS", (hashlib.sha256(path.read_bytes()).hexdigest()[:8],))


@pytest.mark.parametrize(
    "config,layout,message",
    [
        ("coco/grcn_resnet50", "caffe", "a detector of torchvision's; set model.weights=torchvision:FILE"),
        ("voc/faster_rcnn_vgg16", "torchvision", "unexpected keys .* need vgg16 under torchvision's names"),
        ("coco/grcn_resnet101", "torchvision", "layer3.6.* missing; this is not resnet101"),
    ],
)
def test_a_detector_that_does_not_fit_is_refused_in_a_line(trained, monkeypatch, request, config, layout, message):
    _, path, _ = trained
    monkeypatch.chdir(request.config.rootpath)
    with torch.device("meta"):
        model = detector(config, f"{layout}:{path}")
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, f"{layout}:{path}")


def test_a_detector_on_another_network_is_refused_in_a_line(tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    entry = f"torchvision:{tmp_path / 'mobile.pth'}"
    with torch.device("meta"):
        names = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=2).state_dict()
        model = detector("coco/grcn_resnet50", entry)
    torch.save(dict.fromkeys(names, torch.zeros(1)), tmp_path / "mobile.pth")
    with pytest.raises(CheckpointError, match="unexpected keys .* need resnet50 under torchvision's names"):
        load_weights(model, entry)
