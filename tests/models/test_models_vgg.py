"""The VGG-shaped backbones: declared strides and channels, the paper's edits, parameter counts."""

import pytest
import torch
from torch.testing import assert_close

from grcn.build import build_model
from grcn.catalog import VGG16_BLOCKS
from grcn.config.model_schema import ModelConfig
from grcn.config.schema import Config
from grcn.models.vgg import SplitVGG

NARROW = [[8] * len(widths) for widths in VGG16_BLOCKS]
KINDS = {"max": 16, "none": 8, "conv2x2_s2": 16, "max2x2_s1": 8}


@pytest.mark.parametrize("split", ["none", "conv3", "conv4", "conv5"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (57, 83), (33, 40)])
def test_declared_strides_are_the_measured_ones_at_any_size(split, kind, size):
    last_pool = {"cls": kind if split == "none" else "max", "loc": kind}
    backbone = SplitVGG(NARROW, split, last_pool, from_scratch="layer")
    features = backbone(torch.rand(2, 3, *size))
    assert backbone.feature_specs["loc"].strides == (KINDS[kind],)
    for task, spec in backbone.feature_specs.items():
        expected = (2, spec.channels, *(-(-side // spec.strides[0]) for side in size))
        assert features[task][0].shape == expected
    assert (features["cls"] is features["loc"]) == backbone.shared == (split == "none")


def test_the_paper_s_edits_keep_what_lies_behind():
    """Without the last pooling the branch is the same layers on the unpooled map, of which the trunk leaves the ReLU
    to it."""
    backbone = SplitVGG(NARROW, "conv5", {"cls": "max", "loc": "none"})
    x = torch.rand(1, 3, 64, 64)
    shared = backbone.trunk(x)
    assert_close(backbone(x)["loc"][0], backbone.loc[1:](shared.relu()))
    assert [name for name, _ in backbone.cls.named_children()] == [name for name, _ in backbone.loc.named_children()]


def test_impossible_splits_are_refused():
    with pytest.raises(ValueError, match="one map for both"):
        SplitVGG(NARROW, "none", {"cls": "max", "loc": "none"})
    with pytest.raises(ValueError, match="unknown split 'conv2'; choose none, conv3, conv4, conv5"):
        SplitVGG(NARROW, "conv2")
    with pytest.raises(ValueError, match="inside the 3 frozen"):
        SplitVGG(NARROW, "conv3", frozen_blocks=3)


def parameters(classes, **model):
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(ModelConfig.model_validate(model), classes + 1).parameters())


def test_parameter_counts_of_the_paper_s_models():
    """From the layers' definitions; each objectness logit is one sigmoid where the paper's code has a softmax of
    two."""
    voc = parameters(20)
    assert voc == 137_073_622
    assert parameters(80, anchors={"sizes": [32, 64, 128, 256, 512]}) == voc + 60 * 5 * 4097 + 6 * 5 * 513
    assert parameters(20, split="conv5") == voc + 7_079_424
    assert parameters(20, split="conv5", loc={"last_pool": "none"}) == voc + 7_079_424
    assert parameters(20, split="conv5", head={"tasks": "separate"}) == voc + 126_625_280
    assert parameters(20, head={"tasks": "ensemble"}) == voc + 119_975_936
    assert parameters(20, context={"on": "cls"}) == voc + 524_288
    assert parameters(20, split="conv5", loc={"last_pool": "conv2x2_s2"}) == voc + 7_079_424 + 1_049_088


def test_config_and_backbone_agree_on_the_choices():
    model = Config.model_fields["model"].annotation
    assert set(KINDS) == set(model.model_fields["cls"].annotation.model_fields["last_pool"].annotation.__args__)
