"""Networks of timm as backbones: maps, splits, frozen stages and norms, weights, exact resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from grcn import build_model, load_weights
from grcn.build import build_optimizer
from grcn.config.files import load_config
from grcn.config.model_schema import ModelConfig
from grcn.config.schema import TrainConfig
from grcn.engine import checkpoint
from grcn.errors import CheckpointError, ConfigError
from grcn.models.detector import Detector
from grcn.models.layer_names import layer_name
from grcn.models.timm_backbone import TimmPyramid
from grcn.run.load_detector import load_initial_weights
from grcn.run.train import train
from grcn.torchvision_baseline import torchvision_detector

timm = pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = ("resnet18", "convnext_atto", "efficientnet_b0", "swin_tiny_patch4_window7_224")
IN_A_ROW = tuple(name for name in NETWORKS if name != "efficientnet_b0")
SMALL: dict[str, Any] = {
    "image": {"short": 64, "max": 96}, "anchors": {"sizes": [[8], [16], [32], [64], [64]]},
    "rpn": {"channels": 8, "post_nms_train": 20, "post_nms_test": 20, "min_size": 0}, "pyramid": {"channels": 8},
    "roi": {"op": "align", "batch": 16}, "head": {"dim": 8, "dropout": 0},
}  # fmt: skip
TARGETS = [{"boxes": torch.tensor([[4.0, 5, 30, 44], [40, 8, 75, 40]]), "labels": torch.tensor([1, 2]), "rng_key": 7}]


def build(name: str, seed: int = 0, **model: Any) -> Detector:
    return build_model(ModelConfig.model_validate({**SMALL, "backbone": f"timm:{name}", **model}), 3, seed)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_trains_a_step_and_detects(name: str) -> None:
    model = build(name, split="fpn", loc={"level": -1}, context={"on": "cls"}).train()
    losses = model([torch.rand(3, 64, 90)], TARGETS)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(torch.isfinite(loss) for loss in losses.values())  # type: ignore[union-attr]
    trained = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert [key for key, gradient in trained.items() if gradient is None] == []
    assert any(gradient.abs().sum() > 0 for key, gradient in trained.items() if key.startswith("backbone.body"))
    found = model.eval()([torch.rand(3, 70, 60)])
    assert set(found[0]) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_maps_are_those_of_timm(name: str) -> None:
    model = build(name).eval()
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True, **({"strict_img_size": False} if "swin" in name else {}))
    network = model.backbone.body.network
    theirs.load_state_dict(network.state_dict(), strict=False)
    x = torch.rand(1, 3, 64, 96)
    _, ours = model.backbone.body(x)
    expected = theirs.eval()(x)[-len(ours) :] if name != "efficientnet_b0" else theirs.eval()(x)[1:]
    for stride, map_, other in zip((4, 8, 16, 32), ours, expected, strict=True):
        assert map_.shape[-2:] == (64 // stride, 96 // stride)
        assert_close(map_, other.permute(0, 3, 1, 2) if "swin" in name else other, rtol=1e-4, atol=1e-4)
    maps = model.backbone(x)
    assert maps["cls"] is maps["loc"] and [map_.shape[1] for map_ in maps["cls"]] == [8] * 5
    assert [map_.shape[-1] for map_ in maps["cls"]] == [24, 12, 6, 3, 2]


@pytest.mark.parametrize("name", IN_A_ROW)
@pytest.mark.parametrize("split", ["output", "conv5", "conv4"])
@torch.no_grad()
def test_a_split_starts_as_the_plain_model(name: str, split: str) -> None:
    plain, parts = build(name, seed=3).eval(), build(name, seed=3, split=split).eval()
    x = torch.rand(1, 3, 64, 96)
    expected, found = plain.backbone(x), parts.backbone(x)
    for task in ("cls", "loc"):
        assert all(torch.equal(one, other) for one, other in zip(found[task], expected[task], strict=True))
    own = [key for key in parts.state_dict() if key.startswith("backbone.loc.")]
    assert all(torch.equal(parts.state_dict()[key], parts.state_dict()[key.replace(".loc.", ".cls.")]) for key in own)
    assert any("tail" in key for key in own) == (split in ("conv5", "conv4"))
    assert layer_name("backbone.loc.lateral5.weight") == layer_name("backbone.trunk.lateral5.weight")


def test_initial_values_follow_the_seed() -> None:
    first, again, other = (build("convnext_atto", seed) for seed in (1, 1, 2))
    key = "backbone.body.network.stages_0.blocks.0.mlp.fc1.weight"
    values = [model.state_dict()[key] for model in (first, again, other)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    gamma = first.state_dict()["backbone.body.network.stages_0.blocks.0.gamma"]
    assert_close(gamma, torch.full_like(gamma, 1e-6))  # timm's, not that of a norm's scale


@pytest.mark.parametrize(("name", "first_trained"), [
    ("resnet18", "layer3"), ("convnext_atto", "stages_2"), ("efficientnet_b0", "blocks.3"),
    ("swin_tiny_patch4_window7_224", "layers_2"),
])  # fmt: skip
def test_stages_up_to_a_map_are_frozen(name: str, first_trained: str) -> None:
    model = build(name, freeze=3)  # up to the map of stride 8
    of_network = [(key, p.requires_grad) for key, p in model.named_parameters() if ".body.network." in key]
    trained = [key for key, requires_grad in of_network if requires_grad]
    assert trained[0].startswith(f"backbone.body.network.{first_trained}")
    assert [key for key, _ in of_network if key not in trained] == [key for key, _ in of_network][: -len(trained)]
    with pytest.raises(ConfigError, match=r"model.freeze: .* can freeze 0 or 2 to 5 stages \(got 1\)"):
        build(name, freeze=1)


def test_batch_norms_are_frozen_or_trained() -> None:
    frozen, trained = build("resnet18"), build("resnet18", timm={"norm": "trained"})
    key = "backbone.body.network.bn1.running_mean"
    for model, moves in ((frozen, False), (trained, True)):
        before = model.state_dict()[key].clone()
        model.train()([torch.rand(3, 64, 90)], TARGETS)
        assert (not torch.equal(model.state_dict()[key], before)) == moves
    assert not any("bn1" in name for name, _ in frozen.named_parameters())
    partly = build("resnet18", timm={"norm": "trained"}, freeze=2)
    before = {name: tensor.clone() for name, tensor in partly.state_dict().items() if "running" in name}
    partly.train()([torch.rand(3, 64, 90)], TARGETS)
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, partly.state_dict()[name])}
    assert moved and not any("bn1.running" in name and ".layer" not in name or "layer1" in name for name in moved)


def test_layers_frozen_at_random_values_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for freeze in (0, 3):
        model = build("resnet18", freeze=freeze)
        cfg = ModelConfig.model_validate({**SMALL, "backbone": "timm:resnet18", "freeze": freeze})
        with caplog.at_level("WARNING", "grcn"):
            load_initial_weights(model, cfg, None, ("a", "b"))
        assert ("at random values; give weights, or leave model.freeze out" in caplog.text) == (freeze == 3)


def test_a_network_that_does_not_pad_has_fewer_cells() -> None:
    model = build("inception_v3", image={"short": 160, "max": 160}).eval()
    with torch.no_grad():
        assert len(model([torch.rand(3, 160, 160)])) == 1


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'conv3'; choose none, output, fpn, conv5, conv4"):
        TimmPyramid("resnet18", split="conv3")
    with pytest.raises(ValueError, match="unknown norm 'freeze'; choose frozen or trained"):
        TimmPyramid("resnet18", norm="freeze")


@pytest.mark.parametrize("model", [{}, {"split": "conv5"}, {"head": {"kind": "conv", "dim": 8}}], ids=str)
def test_torchvisions_detector_takes_a_network_of_timm(model: dict[str, Any]) -> None:
    """Whatever the head: both have a ``conv1``."""
    cfg = ModelConfig.model_validate({**SMALL, "backbone": "timm:resnet18", **model})
    plain = build("resnet18").backbone
    theirs = torchvision_detector(cfg, build_model(cfg, 3))
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for ours, other in zip(plain.eval()(x)["cls"], theirs.backbone(x).values(), strict=True):
            assert_close(ours, other)


def test_every_trained_parameter_is_in_a_group() -> None:
    model = nn.Linear(2, 2)
    model.gain = nn.Parameter(torch.zeros(()))  # as timm's networks without norms have them
    model.experts_bias = nn.Parameter(torch.zeros(2, 2))  # as its conditional convolutions have them
    grouped = [one for group in build_optimizer(TrainConfig(steps=1), model).param_groups for one in group["params"]]
    assert len(grouped) == 4


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_timm_reach_every_copy(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = timm.create_model(name, **({"strict_img_size": False} if "swin" in name else {}))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    from safetensors.torch import save_file

    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    split = "conv5" if name in IN_A_ROW else "fpn"
    maps = []
    for file in ("w.pth", "w.safetensors"):
        model = build(name, split=split, weights=f"timm:{tmp_path / file}").eval()
        report = load_weights(model, f"timm:{tmp_path / file}")
        assert not any("body" in key or "tail" in key for key in report.new) and len(report.loaded) > 20
        behind = ("head", "fc", "classifier", "norm", "conv_head", "bn2")  # what follows the last map
        assert report.ignored and all(key.startswith(behind) for key in report.ignored)
        with torch.no_grad():
            x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
            last, found = model.backbone.body(x)
            maps.append(found if split == "fpn" else [*found, *model.backbone.loc.tail(last)[1]])
    with torch.no_grad():
        features = timm.create_model(name, features_only=True, **({"strict_img_size": False} if "swin" in name else {}))
        named = {key.replace(".", "_"): value for key, value in theirs.state_dict().items()}
        features.load_state_dict({key: named[key.replace(".", "_")] for key in features.state_dict()})
        expected = [map_.permute(0, 3, 1, 2) if "swin" in name else map_ for map_ in features.eval()(x)][-4:]
    for found in maps:
        for ours, other in zip(found, expected, strict=True):
            assert_close(ours, other, rtol=1e-3, atol=1e-3)
    state = theirs.state_dict()
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=f"missing; this is not timm's {name}"):
        load_weights(build(name), f"timm:{tmp_path / 'cut.pth'}")


@pytest.mark.parametrize(("model", "message"), [
    ({"backbone": "timm:vit_tiny_patch16_224"}, "plain transformers do not have"),
    ({"backbone": "timm:no_such_network"}, "timm cannot build 'no_such_network'"),
    ({"backbone": "timm:efficientnet_b0", "split": "conv5"}, "do not run in sequence; set none, output or fpn"),
    ({"backbone": "timm:vgg11_bn", "split": "conv5"}, "has no weights; set none, output or fpn"),
    ({"backbone": "timm:vgg11", "timm": {"drop_path": 0.1}}, "timm cannot build 'vgg11'"),
])  # fmt: skip
def test_what_cannot_be_built_is_refused_in_a_line(model: dict[str, Any], message: str) -> None:
    others = dict(model)
    name = others.pop("backbone").removeprefix("timm:")
    with pytest.raises(ConfigError, match=message) as caught:
        build(name, **others)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("model", "message"), [
    ({"weights": "COCO_V1"}, "needs a file of its release as timm:FILE"),
    ({"loc": {"last_stride": 1}, "split": "conv5"}, "loc.last_stride: timm:resnet18 keeps its stride"),
    ({"pyramid": {"norm": "frozen"}}, "pyramid.norm: only ResNets' pyramids have one"),
    ({"split": "conv3"}, "has no such split"),
    ({"backbone": "resnet50_fpn", "timm": {"drop_path": 0.1}}, "timm.drop_path: only networks of timm have it"),
    ({"backbone": "resnet50_fpn", "weights": "timm:w.pth"}, "weights: resnet50_fpn needs weights of another layout"),
])  # fmt: skip
def test_contradictions_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**SMALL, "backbone": "timm:resnet18", **model})


def test_normalisation_is_that_of_the_network() -> None:
    assert build("resnetv2_50").transform.normalisation.mean == (0.5, 0.5, 0.5)
    assert dataclasses.astuple(build("resnet18").transform.normalisation)[0] == (0.485, 0.456, 0.406)


def test_a_run_with_drop_path_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    changes = [
        "model.backbone=timm:convnext_atto", "model.timm.drop_path=0.5", "model.head.dim=16", "model.width=24",
        "model.rpn.post_nms_train=20", "data.size=64", "model.image={short: 64, max: 64}", "data.train_images=8",
        "data.test_images=2", "train.batch=2", "train.warmup=0", "run.workers=0", "run.threads=1", "run.device=cpu",
        "eval.pictures=0", "train.schedule=step",
    ]  # fmt: skip

    def config(steps: int) -> Any:
        return load_config(ROOT / "configs/shapes/faster_rcnn_tiny_resnet_fpn.yaml", [*changes, f"train.steps={steps}"])

    saved = []
    for folder, stages in (("straight", [2]), ("parts", [1, 2])):
        for steps in stages:
            train(config(steps), tmp_path / folder, resume=True, allow_changes=True)
        path, _ = checkpoint.newest(tmp_path / folder / "checkpoints") or pytest.fail("no checkpoint")
        saved.append(path.read_bytes())
    assert saved[0] == saved[1]
