"""Context whose sharpness does not depend on the scale of the features, and context that starts as none."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support import CLASSES, GRCN, SMALL, small_batch
from torch.testing import assert_close

from grcn.build import build_model
from grcn.config.model_schema import ModelConfig
from grcn.models.context import ContextAttention


@pytest.mark.parametrize("heads, value, gate", [(1, False, "none"), (4, True, "zero")])
def test_normalised_attention_is_that_of_cosines(heads: int, value: bool, gate: str) -> None:
    torch.manual_seed(0)
    module = ContextAttention(16, 8, heads, value, "qk", gate, cells=25).double()
    assert module.temperature.item() == pytest.approx(math.log2(25**2 - 25))
    with torch.no_grad():
        module.temperature.fill_(3.5)
        if module.gate is not None:
            module.gate.fill_(0.7)
    rois = torch.randn(6, 16, 3, 3, dtype=torch.float64, requires_grad=True)
    whole = torch.randn(2, 16, 5, 5, dtype=torch.float64, requires_grad=True)

    out, shares = [], []
    for index, roi in enumerate(rois):
        p, v = roi.flatten(1).t(), whole[index // 3].flatten(1).t()
        values = v if module.value is None else module.value(v)
        parts = zip(*(x.chunk(heads, dim=1) for x in (module.query(p), module.key(v), values)), strict=True)
        cosines = [(F.cosine_similarity(q[:, None], k[None], dim=-1), own) for q, k, own in parts]
        shares.append(torch.stack([(module.temperature * cosine).softmax(1) for cosine, _ in cosines]))
        attended = torch.cat([share @ own for share, (_, own) in zip(shares[-1], cosines, strict=True)], 1)
        out.append((p + attended * (1 if module.gate is None else module.gate)).t().view_as(roi))
    assert_close(module(rois, whole), torch.stack(out), rtol=1e-12, atol=1e-12)
    assert_close(module.attention(rois, whole), torch.stack(shares), rtol=1e-12, atol=1e-12)
    inputs = (rois, whole, *module.parameters())
    weights = torch.randn(6, 16, 3, 3).double()
    assert_close(
        *(torch.autograd.grad((x * weights).sum(), inputs) for x in (module(rois, whole), torch.stack(out))),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("norm, changes", [("qk", False), ("none", True)])
@torch.no_grad()
def test_only_plain_attention_depends_on_the_scale_of_the_features(norm: str, changes: bool) -> None:
    torch.manual_seed(0)
    module = ContextAttention(16, norm=norm).double()
    rois, whole = torch.rand(4, 16, 3, 3).double(), torch.rand(2, 16, 5, 5).double()
    plain, scaled = module.attention(rois, whole), module.attention(50 * rois, 50 * whole)
    assert torch.allclose(plain, scaled) != changes
    if changes:
        assert scaled.amax() > 10 * plain.amax()


@pytest.mark.parametrize("context", [{}, {"value": True}, {"norm": "qk", "heads": 2}])
def test_behind_a_gate_of_zero_the_model_is_the_one_without_context_to_the_bit(context: dict[str, object]) -> None:
    results, models = [], []
    for settings in ({"on": "none"}, {"on": "both", "size": 6, "gate": "zero", **context}):
        cfg = ModelConfig.model_validate(SMALL | GRCN | {"context": settings})
        models.append(build_model(cfg, CLASSES, seed=3))
        with torch.no_grad():
            models[-1].roi_heads.heads.cls_score.weight.mul_(90)
        images, targets = small_batch()
        losses = models[-1].train()(images, targets)
        sum(losses.values()).backward()
        results.append((losses, models[-1].eval()(images)))
    assert all(len(found["boxes"]) > 2 for found in results[0][1])
    assert_close(results[1], results[0], rtol=0, atol=0)
    plain, gated = ({name: weight.grad for name, weight in model.named_parameters()} for model in models)
    assert_close({name: gated[name] for name in plain}, plain, rtol=0, atol=0)
    # The gates learn at once, the layers that they scale as soon as the gates have.
    for task in ("cls", "loc"):
        assert gated[f"roi_heads.context.{task}.gate"].abs() > 0
        assert not gated[f"roi_heads.context.{task}.key.weight"].any()
    model = models[1].train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.step()
    model.zero_grad()
    sum(model(*small_batch()).values()).backward()
    assert model.roi_heads.context["cls"].key.weight.grad.any()


@pytest.mark.parametrize("change", [{"norm": "layer"}, {"gate": "one"}])
def test_other_switches_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="norm must be none or qk, and gate none or zero"):
        ContextAttention(8, **change)
