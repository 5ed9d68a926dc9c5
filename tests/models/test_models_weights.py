"""Initial values and pretrained weights: pairing by seed, copies in every branch, strict loading."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import small_batch, small_detector
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import vgg16

from grcn.build import build_model
from grcn.config.files import load_config
from grcn.config.model_schema import ModelConfig
from grcn.errors import CheckpointError
from grcn.models.layer_names import layer_name
from grcn.models.resnet import Bottleneck
from grcn.models.weights import CAFFE, TORCHVISION, load_weights, normalisation_of

ROOT = Path(__file__).resolve().parents[2]


def vgg_config(**model):
    """VGG16 with a head of its own width: the convolutions are the real ones, the rest is small."""
    return ModelConfig.model_validate({"head": {"dim": 8}, "rpn": {"channels": 8}, **model})


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A file of VGG16's convolutions in torchvision's names, and its contents."""
    torch.manual_seed(0)
    state = {f"features.{key}": value for key, value in vgg16(weights=None).features.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "convolutions.npz"
    np.savez(path, **{key: value.half().numpy() for key, value in state.items()})
    return path, {key: value.half().float() for key, value in state.items()}


def test_initial_values_are_paired_by_seed_and_name():
    plain, split = small_detector(seed=3), small_detector("conv4", "none", ("cls",), "separate", seed=3)
    by_name = {layer_name(name): p for name, p in plain.named_parameters()}
    shared = [name for name, _ in split.named_parameters() if layer_name(name) in by_name]
    assert len(shared) > 30
    for name, parameter in split.named_parameters():
        if layer_name(name) in by_name:
            assert torch.equal(parameter, by_name[layer_name(name)]), name
    other = small_detector(seed=4)
    assert not torch.equal(other.rpn.conv.weight, plain.rpn.conv.weight)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/shapes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_value_is_set_although_layers_draw_none(path, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # with NaN
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan() and torch.nn.Linear(2, 2).weight.isfinite().all()
        model = build_model(load_config(path).model, 4)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(value.isfinite().all() for value in (*model.parameters(), *model.buffers()))


class Drawn(TorchDispatchMode):
    """Counts the layers that draw their own values; what ``initialise`` draws is rand and randn."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in ("aten::uniform_", "aten::normal_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backbone", ["tiny", "tiny_resnet", "resnet50"])
def test_layers_draw_no_values_that_are_drawn_anew(backbone):
    with Drawn() as alone:
        Bottleneck(8, 2)
        torch.nn.Linear(2, 2)
    with Drawn() as drawn:
        build_model(ModelConfig.model_validate({"backbone": backbone, "head": {"dim": 8}}), 4)
    assert alone.count == 5 and drawn.count == 0


def test_the_second_head_of_an_ensemble_is_not_the_first():
    heads = small_detector(tasks="ensemble").roi_heads.heads
    assert not torch.equal(heads.cls.fc6.weight, heads.second.fc6.weight)


def test_initial_spread_of_new_layers():
    model = build_model(vgg_config(split="conv5", loc={"last_pool": "conv2x2_s2"}, context={"on": "cls"}), 21)
    spread = {name: p.std().item() for name, p in model.named_parameters() if p.dim() > 1}
    expected = {
        "rpn.conv.weight": 0.01,
        "rpn.bbox_pred.weight": 0.01,
        "roi_heads.heads.cls_score.weight": 0.01,
        "roi_heads.heads.bbox_pred.weight": 0.001,
        "roi_heads.context.cls.query.weight": 0.01,
        "backbone.loc.pool4.conv.weight": (2 / (4 * 1024)) ** 0.5,
        "roi_heads.heads.cls.fc6.weight": (1 / 3 / 25088) ** 0.5,
        "backbone.trunk.conv3_1.weight": (2 / (9 * 128)) ** 0.5,
    }
    for name, value in expected.items():
        assert spread[name] == pytest.approx(value, rel=0.15), name


def test_weights_reach_every_branch(features):
    path, state = features
    model = build_model(vgg_config(split="conv5", weights=f"caffe:{path}"), 21)
    report = load_weights(model, f"caffe:{path}")
    assert len(report.loaded) == 26 + 6 and not report.ignored
    assert "roi_heads.heads.cls.fc6.weight" in report.new
    for branch in (model.backbone.cls, model.backbone.loc):
        assert torch.equal(branch.conv5_3.weight, state["features.28.weight"])
    reference = vgg16(weights=None).features[:30]
    reference.load_state_dict({key[len("features.") :]: value for key, value in state.items()})
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert_close(model.eval().backbone(x)["loc"][0], reference(x), rtol=1e-4, atol=1e-4)


def test_weights_own_their_normalisation():
    assert normalisation_of(None) == normalisation_of("torchvision:x.pt") == TORCHVISION
    assert normalisation_of("caffe:x.npz") == CAFFE
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    transform = build_model(vgg_config(weights="caffe:x.npz", image={"short": 32}), 21).transform
    expected = image.flip(0).float() - torch.tensor([103.939, 116.779, 123.68]).view(3, 1, 1)
    assert_close(transform([image])[0].tensors[0], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="unknown entry 'resnet.pt'"):
        normalisation_of("resnet.pt")


def test_fc_layers_load_where_the_file_has_them(features, tmp_path):
    state = dict(features[1])
    state.update(
        {
            f"classifier.{i}.{k}": torch.rand(s)
            for i, shape in ((0, (8, 512 * 49)), (3, (8, 8)), (6, (5, 8)))
            for k, s in (("weight", shape), ("bias", shape[:1]))
        }
    )
    torch.save(state, tmp_path / "vgg.pt")
    model = build_model(vgg_config(head={"dim": 8, "tasks": "ensemble"}), 21)
    report = load_weights(model, f"torchvision:{tmp_path / 'vgg.pt'}")
    assert report.ignored == ["classifier.6.bias", "classifier.6.weight"]
    assert torch.equal(model.roi_heads.heads.second.fc7.weight, state["classifier.3.weight"])
    with pytest.raises(CheckpointError, match=r"fc6.weight is \[8, 25088\], the model's .* is \[4, 25088\]"):
        load_weights(build_model(vgg_config(head={"dim": 4}), 21), f"torchvision:{tmp_path / 'vgg.pt'}")


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path}/w.pt: no such file; give model.weights=")):
        load_weights(build_model(vgg_config(head={"dim": 4}), 21), "torchvision:~/w.pt")


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda s: s.pop("features.28.weight"), "features.28.weight missing; this is not vgg16, or"),
        (lambda s: s.update({"layer1.conv": torch.zeros(1)}), r"unexpected keys \(layer1.conv\)"),
        (lambda s: s.update({"features.0.weight": torch.zeros(64, 1, 3, 3)}), "conv1_1.weight is"),
        (lambda s: s.update({"classifier.0.bias": torch.full((8,), torch.nan)}), "classifier.0.bias is not finite"),
    ],
)
def test_files_that_do_not_fit_are_refused(features, tmp_path, edit, message):
    state = dict(features[1])
    edit(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(build_model(vgg_config(), 21), f"torchvision:{tmp_path / 'w.pt'}")
    assert str(tmp_path / "w.pt") in str(error.value)


def test_missing_and_damaged_files_are_one_line(tmp_path):
    model = small_detector()
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(model, f"caffe:{tmp_path / 'none.npz'}")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list, not tensors; save the state_dict alone"):
        load_weights(model, f"caffe:{tmp_path / 'list.pt'}")
    for name in ("w.npz", "w.pt"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
        with pytest.raises(CheckpointError, match="not a readable"):
            load_weights(model, f"caffe:{tmp_path / name}")


def test_a_download_that_fails_names_the_file_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(CheckpointError, match=r"no network.*put the file at .*checkpoints/vgg16-397923af.pth"):
        load_weights(small_detector(), "IMAGENET1K_V1")


def test_detections_of_a_loaded_model_are_finite(features):
    model = build_model(vgg_config(weights=f"caffe:{features[0]}", image={"short": 64, "max": 96}), 21)
    load_weights(model, f"caffe:{features[0]}")
    images, targets = small_batch()
    assert all(torch.isfinite(loss) for loss in model.train()(images, targets).values())
