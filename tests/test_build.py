"""Optimizers built from configs."""

from typing import Any

import pytest
import torch
from support import small_detector

from grcn.build import amp_dtype, build_optimizer
from grcn.config.schema import RunConfig, TrainConfig
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
