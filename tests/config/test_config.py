"""The settings: documented, strict, by default the paper's, and free of contradictions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from generate_config_reference import reference
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from grcn.apps.benchmark.scene import make_scene
from grcn.build import build_model, build_test_split, build_train_split
from grcn.config.model_schema import ModelConfig
from grcn.config.rules import idle_in_model, without_effect
from grcn.config.schema import Config, FilesDataConfig, ShapesDataConfig, TrainConfig
from grcn.config.types import Section

ROOT = Path(__file__).resolve().parents[2]
MINIMAL: dict[str, Any] = {"data": {"format": "shapes"}, "train": {"steps": 10}}


def section_kinds(annotation: Any) -> list[type[Section]]:
    if parts := get_args(annotation):
        return [kind for part in parts for kind in section_kinds(part)]
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return [annotation] if is_section else []


def settings(kind: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        inner = section_kinds(field.annotation)
        if name == "paper" or not inner:
            yield prefix + name, field
        for section in inner:
            yield from settings(section, f"{prefix}{name}.")


@pytest.mark.parametrize(("key", "field"), list(settings()))
def test_every_setting_has_a_sentence_and_a_source(key: str, field: FieldInfo) -> None:
    assert field.description and ("." in field.description or "]" in field.description)
    if not field.is_required() and key != "paper":
        assert re.search(r"\[[SRCTO](:|;|\])", field.description), f"{key}: whose value is the default?"


def test_defaults_are_the_papers() -> None:
    model, train = ModelConfig(), TrainConfig(steps=180000)
    assert (model.backbone, model.split, model.context.on) == ("vgg16", "none", "none")
    assert (model.image.short, model.rpn.batch, model.roi.batch) == (600, 256, 128)
    assert (model.rpn.post_nms_train, model.rpn.post_nms_test) == (2000, 300)
    assert (model.roi.op, model.roi.size, model.roi.nms) == ("pool", 7, 0.3)
    assert (model.context.size, model.context.value) == (14, False)
    assert len(model.anchors.sizes) == len(model.anchors.ratios) == 3
    assert (train.lr, train.momentum, train.batch, train.accumulate) == (0.001, 0.9, 1, 1)
    assert (train.schedule, train.gamma, train.warmup) == ("step", 0.1, 0)


def test_a_config_is_frozen_hashable_and_comparable() -> None:
    config = Config.model_validate(MINIMAL)
    again = Config.model_validate(MINIMAL | {"run": {"seed": 0}})
    assert config == again and hash(config) == hash(again)
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 20


def test_the_format_decides_the_kind_of_data() -> None:
    files = {"root": "r", "train": ["a"], "test": ["b"]}
    voc = Config.model_validate(MINIMAL | {"data": files | {"format": "voc"}})
    assert isinstance(voc.data, FilesDataConfig) and voc.data.train == ("a",)
    assert isinstance(Config.model_validate(MINIMAL).data, ShapesDataConfig)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "steps", "10"),
        ("train", "steps", 10.0),
        ("train", "steps", True),
        ("train", "steps", 0),
        ("train", "lr", "0.1"),
        ("train", "lr", float("nan")),
        ("train", "lr", float("inf")),
        ("train", "lr", 0),
        ("train", "momentum", 1),
        ("train", "bias_decay", 1),
        ("train", "lr_steps", 5),
        ("train", "lr_steps", [5.0]),
        ("eval", "voc_iou", []),
        ("eval", "protocols", ["pascal"]),
        ("run", "amp", "fp16"),
        ("run", "seed", 2**64),
        ("model", "anchors", {"sizes": [0]}),
        ("model", "roi", {"box_weights": [1, 1, 1]}),
        ("model", "num_classes", 21),
    ],
)
def test_wrong_types_and_values_are_refused(section: str, key: str, value: object) -> None:
    document = MINIMAL | {section: MINIMAL.get(section, {}) | {key: value}}
    with pytest.raises(ValidationError):
        Config.model_validate(document)


def test_a_seed_may_fill_64_bits() -> None:
    assert Config.model_validate(MINIMAL | {"run": {"seed": 2**64 - 1}}).run.seed == 2**64 - 1


def test_whole_numbers_do_for_fractions() -> None:
    assert TrainConfig(steps=1, lr=1).lr == 1.0


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (
            {"model": {"loc": {"last_pool": "none"}}},
            "loc.last_pool: with split: none both tasks read one map, so it must equal "
            "cls.last_pool = max (got none); set split: conv5",
        ),
        (
            {"model": {"backbone": "resnet50", "split": 7}},
            "split: resnet50 splits off units of conv4 (got 7); give none or how many, 1 to 6",
        ),
        (
            {"model": {"backbone": "resnet101", "split": "conv5"}},
            "split: resnet101 splits off units of conv4 (got conv5); give none or how many, 1 to 23",
        ),
        (
            {"model": {"backbone": "resnet50_det", "split": 2}},
            "split: resnet50_det splits at a block (got 2); give none, conv3, conv4 or conv5",
        ),
        (
            {"model": {"backbone": "resnet50", "loc": {"last_pool": "none"}}},
            "loc.last_pool: resnet50 has no such pooling (got none); remove it, and set loc.stride: 8 "
            "where the map is to be larger",
        ),
        (
            {"model": {"split": "conv5", "loc": {"stride": 8}}},
            "loc.stride: only ResNets have it (got 8 with vgg16); remove it and set loc.last_pool: none",
        ),
        (
            {"model": {"head": {"kind": "conv5"}}},
            "head.kind: vgg16 has no conv5 of residual units (got conv5); set fc or conv",
        ),
        (
            {"model": {"backbone": "resnet50", "loc": {"stride": 8}, "head": {"tasks": "ensemble"}}},
            "head.tasks: ensemble joins the tasks, so both must read one map "
            "(got cls.stride: 16, loc.stride: 8); set both alike",
        ),
        (
            {"model": {"head": {"loc": "conv"}}},
            "head.loc: two kinds need a head of each task (got cls fc, loc conv with tasks: shared); set head.tasks: "
            "separate",
        ),
        (
            {"model": {"head": {"kind": "residual", "residual_dim": 6}}},
            "head.residual_dim: must be a multiple of 4, for residual units (got 6); round it",
        ),
        (
            {"model": {"head": {"loc": "conv5", "tasks": "separate"}}},
            "head.loc: vgg16 has no conv5 of residual units (got conv5); set fc or conv",
        ),
        (
            {"model": {"rpn": {"reads": "both"}}},
            "rpn.reads: both needs maps of each task, and with split: none there is one (got both); set cls, or a "
            "split",
        ),
        (
            {"model": {"context": {"on": "cls", "value": True, "init": "zero", "gate": "zero"}}},
            "gate: zero times values of zero has no gradient and never learns (got init: zero too); set one of them",
        ),
        (
            {"model": {"cascade": [0.5, 0.5]}},
            "cascade: thresholds must rise from stage to stage (got 0.5, 0.5); sort them, each once",
        ),
        (
            {"model": {"cascade": [0.5, 0.7, 0.6]}},
            "cascade: thresholds must rise from stage to stage (got 0.5, 0.7, 0.6); sort them, each once",
        ),
        (
            {"model": {"cascade": [0.05, 0.6], "roi": {"bg_iou_low": 0.1}}},
            "cascade: thresholds must not lie below roi.bg_iou_low = 0.1 (got 0.05, 0.6); raise them",
        ),
        (
            {"model": {"backbone": "resnet50", "cls": {"stride": 32}}},
            "cls.stride: 32 is of a conv5 in the backbone (got it with resnet50); set 16 or 8",
        ),
        (
            {"model": {"weights": "IMAGENET1K_V2"}},
            "weights: vgg16 has none of this name (got 'IMAGENET1K_V2'); set one of IMAGENET1K_V1, IMAGENET1K_FEATURES",
        ),
        (
            {"model": {"backbone": "resnet50", "weights": "IMAGENET1K_FEATURES"}},
            "weights: resnet50 has none of this name (got 'IMAGENET1K_FEATURES'); set one of IMAGENET1K_V1, "
            "IMAGENET1K_V2",
        ),
        (
            {"model": {"split": "conv5", "head": {"tasks": "ensemble"}}},
            "head.tasks: ensemble joins the tasks, so they cannot separate before it "
            "(got split: conv5, context.on: none); set both to none",
        ),
        (
            {"model": {"width": 8}},
            "width: only the tiny backbones have one (got 8 with vgg16); remove it",
        ),
        (
            {"model": {"weights": "vgg.pt"}},
            "weights: expected null, IMAGENET1K_V1, IMAGENET1K_V2, COCO_V1, COCO_V2, IMAGENET1K_FEATURES, "
            "torchvision:FILE, caffe:FILE (got 'vgg.pt'); choose torchvision:vgg.pt or caffe:vgg.pt",
        ),
        (
            {"model": {"weights": "imagenet"}},
            "weights: expected null, IMAGENET1K_V1, IMAGENET1K_V2, COCO_V1, COCO_V2, IMAGENET1K_FEATURES, "
            "torchvision:FILE, caffe:FILE (got 'imagenet'); choose one",
        ),
        (
            {"model": {"backbone": "tiny", "weights": "IMAGENET1K_V1"}},
            "weights: backbone tiny has no pretrained weights (got 'IMAGENET1K_V1'); set null",
        ),
        (
            {"model": {"context": {"dim": 10, "heads": 4}}},
            "heads: must divide context.dim = 10 (got 4); choose a divisor",
        ),
        (
            {"model": {"image": {"short": 600, "max": 500}}},
            "max: must be at least image.short = 600 (got 500); raise it",
        ),
        (
            {"model": {"rpn": {"bg_iou": 0.8}}},
            "bg_iou: must not exceed rpn.fg_iou = 0.7 (got 0.8); lower it",
        ),
        (
            {"model": {"roi": {"bg_iou_low": 0.6}}},
            "roi.bg_iou_low: must not exceed roi.fg_iou = 0.5 (got 0.6); lower it",
        ),
        (
            {"train": {"steps": 1, "batch": 4, "accumulate": 3}},
            "accumulate: must divide train.batch = 4 (got 3); choose a divisor",
        ),
        ({"train": {"steps": 1, "lr_steps": [5, 5]}}, "lr_steps: must rise (got [5, 5]); sort them, each once"),
        ({"eval": {"protocols": ["voc", "voc"]}}, "protocols: names 'voc' twice; remove one"),
        (
            {"eval": {"protocols": ["voc"], "voc_iou": [0.5], "best": "coco_ap"}},
            "best: not measured (got 'coco_ap'); take one of voc07_ap50, voc_area_ap50",
        ),
        (
            {"eval": {"voc_iou": [0.505]}},
            "voc_iou: expected whole percents between 0 and 1, as 0.75 (got 0.505); round it",
        ),
        (
            {"run": {"device": "cuda:one"}},
            "device: expected auto, cpu, cuda or cuda:N (got 'cuda:one'); choose one",
        ),
        (
            {"data": {"format": "voc", "root": "r", "train": ["a", "a"], "test": ["b"]}},
            "train: names 'a' twice; remove one",
        ),
    ],
)
def test_contradictions_are_refused(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(MINIMAL | document)
    assert [error["msg"] for error in caught.value.errors()] == [problem]


@pytest.mark.parametrize(
    "model",
    [
        {"split": "none", "cls": {"last_pool": "none"}, "loc": {"last_pool": "none"}},
        {"split": "conv5", "loc": {"last_pool": "none"}, "context": {"on": "cls"}},
        {"head": {"tasks": "ensemble"}},
        {"head": {"tasks": "separate"}},
        {"backbone": "tiny", "width": 8},
        {"backbone": "resnet50", "split": 2, "loc": {"stride": 8}, "head": {"kind": "conv5"}},
        {"backbone": "resnet101", "loc": {"stride": 8}},
        {"backbone": "resnet50_det", "split": "conv5", "loc": {"stride": 8}, "weights": "IMAGENET1K_V2"},
        {"backbone": "tiny_resnet_det", "head": {"kind": "conv"}},
        {"cascade": [0.6, 0.7], "roi": {"bg_iou_low": 0.55}},
        {"backbone": "resnet50_det", "cls": {"stride": 32}, "loc": {"stride": 16}, "freeze": 4},
        {"weights": "caffe:weights/vgg16.npz"},
        {"weights": "torchvision:vgg16.pt"},
    ],
)
def test_what_goes_together_is_accepted(model: dict[str, Any]) -> None:
    assert Config.model_validate(MINIMAL | {"model": model}).model == ModelConfig.model_validate(model)


def test_lr_steps_past_the_end_are_legal() -> None:
    assert TrainConfig(steps=10, lr_steps=(100,)).lr_steps == (100,)


CONTEXT = {f"model.context.{key}" for key in ("dim", "heads", "value", "size", "init", "norm", "gate")}
POOL = {"model.roi.sampling_ratio", "model.roi.aligned"}
SPLIT: dict[str, Any] = {"split": "conv5", "context": {"on": "cls"}, "roi": {"op": "align"}}


@pytest.mark.parametrize(
    ("section", "changes", "idle"),
    [
        ("model", {}, set()),
        ("model", {"head": {"loc": "residual", "tasks": "separate"}}, {"-model.head.residual_dim"}),
        ("model", {"head": {"kind": "residual"}}, {"-model.head.residual_dim", "model.head.dim", "model.head.dropout"}),
        ("model", {"context": {"on": "none"}}, CONTEXT),
        ("model", {"roi": {"op": "pool"}}, POOL),
        ("model", {"split": "none"}, {"model.rpn.reads"}),
        ("model", {"backbone": "resnet50", "split": "none", "loc": {"stride": 8}}, set()),
        ("model", {"head": {"kind": "conv"}}, {"model.head.dropout"}),
        ("model", {"head": {"loc": "conv", "tasks": "separate"}}, set()),
        ("model", {"cascade": [0.5, 0.6]}, {"model.roi.fg_iou"}),
        (
            "model",
            {"head": {"kind": "residual", "cls": "fc", "loc": "conv", "tasks": "separate"}},
            {"model.head.kind"},
        ),
        ("model", {"backbone": "resnet50_det", "head": {"kind": "conv5"}}, {"model.head.dim", "model.head.dropout"}),
        ("train", {"schedule": "cosine"}, {"train.gamma", "train.lr_steps"}),
        ("train", {"schedule": "cosine", "lr_steps": []}, {"train.gamma"}),
        ("train", {"lr_steps": []}, {"train.gamma"}),
        ("train", {"lr_steps": [10]}, {"train.gamma", "train.lr_steps"}),
        ("train", {"warmup": 0}, {"train.warmup_factor"}),
        ("train", {"optimizer": "adamw"}, {"train.momentum"}),
        ("train", {"bias_decay": True}, set()),
        ("train", {"bias_decay": True, "weight_decay": 0.0}, {"train.bias_decay"}),
        ("eval", {"protocols": ["coco"]}, {"eval.voc_iou"}),
        ("run", {"device": "cpu", "tf32": True}, {"run.tf32"}),
    ],
)
def test_settings_without_effect_are_known(section: str, changes: dict[str, Any], idle: set[str]) -> None:
    config = MINIMAL | {"model": SPLIT, "train": {"steps": 10, "lr_steps": [5], "warmup": 1}}
    config[section] = config.get(section, {}) | changes
    # Cropping is off, and no layer is of the kind residual unless it is said.
    off = {"data.augment.crop.scale", "data.augment.crop.min_kept", "model.head.residual_dim"}
    off -= {key[1:] for key in idle if key[0] == "-"}
    idle = {key for key in idle if key[0] != "-"}
    other = off if "optimizer" in changes else off | {"train.betas"}
    assert without_effect(Config.model_validate(config)).keys() == idle | other


@pytest.mark.parametrize("kind", ["fc", "conv", "conv5"])
def test_settings_without_effect_have_none(kind: str) -> None:
    image = {"short": 64, "max": 64}
    plain = {"backbone": "tiny_resnet", "width": 4, "image": image, "anchors": {"sizes": [16, 32]}}
    plain["head"] = (
        {"kind": kind} | ({} if kind == "conv5" else {"dim": 8}) | ({"dropout": 0.0} if kind == "fc" else {})
    )
    others: dict[str, Any] = {
        "rpn.reads": "loc", "roi.sampling_ratio": 1, "roi.aligned": False, "head.dim": 8, "head.dropout": 0.25,
        "context.dim": 8, "context.heads": 2, "context.value": True, "context.size": 3, "context.init": "xavier",
        "context.norm": "qk", "context.gate": "zero", "head.residual_dim": 16,
    }  # fmt: skip
    idle = idle_in_model(ModelConfig.model_validate(plain))
    assert len(idle) == {"fc": 11, "conv": 12, "conv5": 13}[kind]
    changed = {section: dict(values) for section, values in plain.items() if isinstance(values, dict)}
    for key in idle:
        section, _, name = key.partition(".")
        changed.setdefault(section, {})[name] = others[key]
    images, targets = make_scene((64, 64), 3, torch.device("cpu"), objects=2)
    losses = [
        build_model(ModelConfig.model_validate(settings), 4).train()(images, targets)
        for settings in (plain, plain | changed)
    ]
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_the_reference_is_current_and_has_every_setting():
    page = (ROOT / "docs/config.md").read_text()
    assert page == reference(), "run: make generated"
    for name, field in settings():
        if name.startswith("paper."):
            continue  # of the rows in a list
        assert f"| `{name.rpartition('.')[2]}` |" in page and " ".join((field.description or "").split()) in page, name


def test_the_built_in_images_have_a_split_to_choose_settings_by():
    """data.test: no image of test, val and train is the same."""
    test = Config.model_validate(MINIMAL).data
    val = Config.model_validate(MINIMAL | {"data": {"format": "shapes", "test": "val"}}).data
    splits = [build_test_split(test, None), build_test_split(val, None), build_train_split(test)]
    assert [split.table.name for split in splits] == ["shapes-flat/test", "shapes-flat/val", "shapes-flat/train"]
    assert len({split.read_image(0).numpy().tobytes() for split in splits}) == 3


OF_FILES = "a split is NAME, for annotations/instances_NAME.json and NAME/, or IMAGES:FILE.json"


@pytest.mark.parametrize(
    "split,message",
    [
        ("labels/train_boxes.json", f"is a file; {OF_FILES}"),
        (":labels/train.json", f"is no IMAGES:FILE.json; {OF_FILES}"),
        ("pics:labels/train", f"is no IMAGES:FILE.json; {OF_FILES}"),
        ("a:b:c.json", f"is no IMAGES:FILE.json; {OF_FILES}"),
        ("pics:/labels/train.json", "leads out of data.root"),
        ("../pics:labels/train.json", "leads out of data.root"),
        ("pics/training:labels/train_boxes.json", None),
        (".:train.json", None),
        ("train2014", None),
    ],
)
def test_a_split_in_cocos_layout_is_a_name_or_a_folder_and_a_file(split: str, message: str | None) -> None:
    settings = MINIMAL | {"data": {"format": "coco", "root": "data", "train": [split], "test": ["val"]}}
    if message is None:
        assert Config.model_validate(settings).data.train == (split,)
        return
    with pytest.raises(ValidationError) as raised:
        Config.model_validate(settings)
    assert f"train: {split!r} {message}" in str(raised.value)
