"""An RPN for each task: both learn, and the first proposes."""

from __future__ import annotations

import torch
from support import CLASSES, GRCN, SMALL, small_batch
from torch.testing import assert_close

from grcn.build import build_model
from grcn.config.model_schema import ModelConfig
from grcn.models.detector import Detector


def build(reads: str) -> Detector:
    return build_model(
        ModelConfig.model_validate(SMALL | GRCN | {"rpn": SMALL["rpn"] | {"reads": reads}}), CLASSES, seed=3
    ).double()


def test_the_losses_of_two_rpns_are_the_sum_of_one_for_each_task() -> None:
    images, targets = small_batch(torch.float64)
    found = {reads: build(reads).train() for reads in ("cls", "loc", "both")}
    losses = {reads: model(images, targets) for reads, model in found.items()}
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        assert_close(losses["both"][name], losses["cls"][name] + losses["loc"][name], rtol=1e-12, atol=1e-12)
    # The proposals are those of classification: so the second stage is the same.
    for name in ("loss_classifier", "loss_box_reg"):
        assert torch.equal(losses["both"][name], losses["cls"][name])
        assert not torch.equal(losses["both"][name], losses["loc"][name])
    for reads, reached in (("cls", {"cls"}), ("loc", {"loc"}), ("both", {"cls", "loc"})):
        (losses[reads]["loss_objectness"] + losses[reads]["loss_rpn_box_reg"]).backward()
        for task in ("cls", "loc"):
            parts = list(getattr(found[reads].backbone, task).parameters())
            assert {weight.grad is not None for weight in parts} == {task in reached}


def test_the_second_rpn_is_no_part_of_a_detection() -> None:
    images, _ = small_batch(torch.float64)
    both, cls = build("both").eval(), build("cls").eval()
    with torch.no_grad():
        for weight in both.rpn.auxiliary.parameters():
            weight.fill_(torch.nan)
        assert_close(both(images), cls(images), rtol=0, atol=0)
