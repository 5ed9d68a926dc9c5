"""Optimizers and data built from configs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import voc_files
from support import small_detector

from grcn.build import amp_dtype, build_optimizer, build_test_split, build_train_split, class_names
from grcn.catalog import VOC_CLASSES
from grcn.config.schema import FilesDataConfig, RunConfig, TrainConfig
from grcn.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "kind", "own"),
    [
        ({}, torch.optim.SGD, {"momentum": 0.9}),
        ({"optimizer": "adamw", "betas": [0.8, 0.99]}, torch.optim.AdamW, {"betas": (0.8, 0.99)}),
    ],
)
def test_biases_and_scales_have_groups_of_their_own(
    changes: dict[str, Any], kind: type[torch.optim.Optimizer], own: dict[str, Any]
) -> None:
    settings = {"steps": 1, "lr": 0.5, "weight_decay": 0.1, "bias_lr_factor": 3.0}
    model = small_detector()
    model.backbone.trunk.requires_grad_(False)
    optimizer = build_optimizer(TrainConfig.model_validate(settings | changes), model)
    assert type(optimizer) is kind
    weights, scales, biases = optimizer.param_groups
    assert [group["weight_decay"] for group in (weights, scales, biases)] == [0.1, 0.0, 0.0]
    assert biases["lr_factor"] == 3.0
    for group in optimizer.param_groups:
        assert group["fused"] and group["lr"] == 0.5 and own.items() <= group.items()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)
    assert {weight.dim() for weight in scales["params"]} == {1}
    assert {weight.dim() for weight in weights["params"]} == {2, 4}


def test_autocast_computes_in_the_type_of_the_config():
    assert amp_dtype(RunConfig(amp="bf16")) is torch.bfloat16 and amp_dtype(RunConfig()) is None
    with pytest.raises(ConfigError, match="run.amp: auto depends on the device"):
        amp_dtype(RunConfig(amp="auto"))


def test_the_classes_of_own_data_are_the_training_splits(tmp_path: Path) -> None:
    """Also where the test split has only names that VOC has too, and so could be VOC's."""
    for stem, names in {"a": ("robot", "cat"), "b": ("cat", "dog"), "c": ("dog",)}.items():
        voc_files.pair(tmp_path / "mine", stem)
        objects = "".join(voc_files.OBJECT.replace("cup", name) for name in names)
        voc_files.text(tmp_path / f"mine/Annotations/{stem}.xml", voc_files.annotation(objects))
    for split, stems in {"train": "a\nb\n", "test": "c\n"}.items():
        voc_files.text(tmp_path / f"mine/ImageSets/Main/{split}.txt", stems)
    settings = {"format": "voc", "root": str(tmp_path), "train": ["mine/train"], "test": ["mine/test"]}
    own = FilesDataConfig.model_validate(settings)
    assert class_names(own) == ("cat", "dog", "robot") == build_train_split(own).classes
    (tmp_path / "mine/ImageSets/Main/train.txt").unlink()
    assert class_names(own) is None and build_test_split(own, None).classes == VOC_CLASSES
    assert class_names(own.model_copy(update={"classes": ("dog",)})) == ("dog",)
