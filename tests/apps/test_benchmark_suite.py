"""The suite for a GPU, tried on a CPU with tiny sizes: complete, and going on where a case fails."""

import json

import pytest
import torch

from grcn.apps.benchmark import suite
from grcn.apps.benchmark.roofline import Limits, measure_limits, roofline_ms
from grcn.errors import ConfigError

CPU = torch.device("cpu")
TINY = [
    "model.backbone=tiny", "model.split=none", "model.width=8", "model.image={short: 64, max: 96}", "run.device=cpu",
    "model.head={kind: fc, dim: 16}", "model.roi={op: align, size: 4, batch: 8}", "model.loc.last_pool=max",
    "model.rpn={post_nms_train: 20, post_nms_test: 20}", "model.loc.stride=16",
]  # fmt: skip


def only(monkeypatch, *cases):
    monkeypatch.setattr(suite, "cases", lambda: iter(cases))


def case(**changes):
    return suite.Case(
        **{"family": "VGG16", "method": "G-RCN", "precision": "bf16", "batch": 1, "mode": "none"} | changes
    )


def test_every_family_method_precision_batch_and_mode_is_a_case_once():
    found = list(suite.cases())
    assert len(set(found)) == len(found) == 4 * 2 * 3 * 2 * 3
    assert found[0] == case(method="Faster R-CNN") and {one.mode for one in found[:24]} == {"none"}
    for one in found[:8]:
        assert one.config([]).model.weights is None


def test_a_suite_goes_on_after_a_failure_and_writes_what_it_knows(tmp_path, monkeypatch):
    plain = suite.prepare

    def failing(cfg, device, images):
        if images == 8:
            raise torch.OutOfMemoryError("no memory\nat all")
        return plain(cfg, device, images)

    monkeypatch.setattr(suite, "prepare", failing)
    only(monkeypatch, case(batch=8), case(), case(precision="fp32"))
    found = suite.run_suite(tmp_path / "out", CPU, TINY, 600, repeats=2, tests=False)
    assert json.loads((tmp_path / "out/suite.json").read_text()) == json.loads(json.dumps(found))
    failed, *done = found["cases"]
    assert failed["error"] == "OutOfMemoryError: no memory\\nat all"
    for one in done:
        assert one["missing"] == [] and one["counts"]["step"]["waits"] == 1
        assert {"step_ms", "infer_ms", "torchvision_ms", "infer_torchvision_ms"} <= one.keys()
        assert 0 < one["roofline_ms"] < one["step_ms"] and one["peak_mb"] > 0
    page = (tmp_path / "out/suite.md").read_text()
    assert page.count("| G-RCN, VGG16 | bf16 | 1 | none |") == page.count("| G-RCN, VGG16 | fp32 | 1 | none |") == 2
    assert "- G-RCN, VGG16, bf16, batch 8, compile none: OutOfMemoryError" in page and "left out" not in page


def test_settings_that_a_config_does_not_have_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'model.strde'"):
        suite.run_suite(tmp_path / "out", CPU, ["model.strde=8"], 600)
    assert not (tmp_path / "out").exists()


def test_without_time_no_case_is_begun(tmp_path, monkeypatch):
    found = suite.run_suite(tmp_path, CPU, [], 0, tests=False)
    assert found["cases"] == [] and found["left_out"] == len(list(suite.cases()))
    assert "cases left out: no time" in (tmp_path / "suite.md").read_text()


@pytest.mark.slow
def test_compiled_cases_are_measured(tmp_path, monkeypatch):
    only(monkeypatch, case(mode="default"))
    (found,) = suite.run_suite(tmp_path, CPU, TINY, 600, repeats=2, tests=False)["cases"]
    assert found["step_ms"] > 0 and found["compile_s"] > 1 and "torchvision_ms" not in found


def test_a_roofline_is_the_sum_over_operators_of_what_limits_each():
    x, weight = torch.randn(64, 128), torch.randn(128, 32)
    flops, moved = 2 * 64 * 128 * 32, 4 * (64 * 128 + 128 * 32 + 64 * 32)
    work = lambda: (x @ weight).relu()  # noqa: E731
    assert roofline_ms(work, Limits(1e9, 1e15)) == pytest.approx(1e3 * flops / 1e9)
    assert roofline_ms(work, Limits(1e15, 1e9)) == pytest.approx(1e3 * moved / 1e9)
    assert all(limit > 1e8 for limit in measure_limits(CPU, torch.float32))
