"""The suite for a GPU, tried on a CPU with tiny sizes: complete, and continued where a case fails."""

import json
import time
from pathlib import Path

import pytest
import torch
from bad_cases import DEATH, ERROR, HANG, PARENT, measure_badly

from grcn.apps.benchmark import suite
from grcn.apps.benchmark.roofline import Limits, measure_limits, roofline_ms
from grcn.apps.benchmark.suite_case import Case, CaseProcess
from grcn.errors import ConfigError
from grcn.models.fused_conv import conv2d

CPU = torch.device("cpu")
TINY = [
    "model.backbone=tiny", "model.split=none", "model.width=8", "model.image={short: 64, max: 96}", "run.device=cpu",
    "model.head={kind: fc, dim: 16}", "model.roi={op: align, size: 4, batch: 8}", "model.loc.last_pool=max",
    "model.rpn={post_nms_train: 20, post_nms_test: 20}", "model.loc.stride=16",
]  # fmt: skip


def is_alive(process):
    """Returns whether a process runs; a dead one may be a zombie until its parent asks."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def only(monkeypatch, *cases):
    monkeypatch.setattr(suite, "cases", lambda: iter(cases))


def case(**changes):
    return Case(**{"family": "VGG16", "method": "G-RCN", "precision": "bf16", "batch": 1, "mode": "none"} | changes)


def test_every_case_comes_once_and_the_most_valuable_first():
    found = list(suite.cases())
    assert len(set(found)) == len(found) == 4 * 2 * 3 * 2 * 3
    assert found[0] == case(method="Faster R-CNN")
    assert {(one.precision, one.batch, one.mode) for one in found[:8]} == {("bf16", 1, "none")}
    assert [one.mode for one in found[8:12]] == ["default"] * 2 + ["reduce-overhead"] * 2
    assert len({one.family for one in found[8:12]}) == 1
    assert {one.mode for one in found[12:52]} == {"none"}
    for one in found[:8]:
        assert one.config([]).model.weights is None


def test_a_suite_writes_what_it_measures(tmp_path, monkeypatch):
    only(monkeypatch, case(), case(precision="fp32"))
    found = suite.run_suite(tmp_path / "out", CPU, TINY, 600, repeats=2, tests=False)
    assert json.loads((tmp_path / "out/suite.json").read_text()) == json.loads(json.dumps(found))
    assert len(found["cases"]) == 2 and found["left_out"] == 0
    for one in found["cases"]:
        assert one["missing"] == [] and one["counts"]["step"]["waits"] == 1
        assert {"step_ms", "infer_ms", "torchvision_ms", "infer_torchvision_ms"} <= one.keys()
        assert one["roofline_ms"] > 0 and one["infer_roofline_ms"] > 0 and one["peak_mb"] > 0
    assert found["limits"].keys() == {"bf16", "fp32"}
    page = (tmp_path / "out/suite.md").read_text()
    assert page.count("| G-RCN, VGG16 | bf16 | 1 | none |") == page.count("| G-RCN, VGG16 | fp32 | 1 | none |") == 2
    assert "left out" not in page


def test_a_suite_continues_after_an_error_and_a_death(tmp_path, monkeypatch):
    only(monkeypatch, *(case(batch=batch) for batch in (1, ERROR, 2, DEATH, 3)))
    found = suite.run_suite(tmp_path, CPU, TINY, 600, tests=False, measure=measure_badly)
    measured, failed, again, dead, later = found["cases"]
    assert failed["error"] == "RuntimeError: as asked" and dead["error"] == "the process died (exit code 3)"
    assert measured["process"] != again["process"] != later["process"], "after an error, a new process"
    assert again["limits_were_known"] and not measured["limits_were_known"]
    page = (tmp_path / "suite.md").read_text()
    assert f"- G-RCN, VGG16, bf16, batch {DEATH}, compile none: the process died (exit code 3)" in page


def test_a_case_that_takes_too_long_is_stopped_with_what_it_started():
    process = CaseProcess(measure_badly)
    child = process.run(600, case(batch=PARENT), [], 1, None)["child"]
    assert is_alive(child)
    assert process.run(0.5, case(batch=HANG), [], 1, None) == {"error": "no result within 0.5 s"}
    while is_alive(child):  # the signal is on its way
        time.sleep(0.01)


@pytest.mark.parametrize("seconds", [600, 0.5])
def test_the_tests_for_a_gpu_are_run_and_stopped_in_time(tmp_path, monkeypatch, seconds):
    (tmp_path / "tests").mkdir()
    test = "@pytest.mark.cuda\ndef test_one():\n    time.sleep(1)\n"
    (tmp_path / "tests/test_cuda.py").write_text(f"import pytest, time\n{test}def test_other():\n    assert False\n")
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    only(monkeypatch)
    found = suite.run_suite(tmp_path / "out", CPU, [], 3 * seconds)["tests"]
    page = (tmp_path / "out/suite.md").read_text()
    if seconds == 600:
        assert found["code"] == 0 and "1 passed, 1 deselected" in found["last"]
        assert "1 passed" in (tmp_path / "out/tests.txt").read_text() and "1 passed" in page
    else:
        assert found == {"code": None, "last": "stopped after 0.5 s"} and "stopped after" in page


def test_settings_that_a_config_does_not_have_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'model.strde'"):
        suite.run_suite(tmp_path / "out", CPU, ["model.strde=8"], 0, tests=False)
    assert not (tmp_path / "out").exists()


def test_without_time_no_case_is_begun(tmp_path, monkeypatch):
    found = suite.run_suite(tmp_path, CPU, [], 0, tests=False)
    assert found["cases"] == [] and found["left_out"] == len(list(suite.cases()))
    assert "cases left out: out of time" in (tmp_path / "suite.md").read_text()


@pytest.mark.parametrize("setting", ["run.amp=bf16", "run.tf32=true", "run.compile=default", "run={amp: auto}"])
def test_what_the_cases_choose_is_not_a_setting(tmp_path, setting):
    with pytest.raises(ConfigError, match="--gpu-suite: run.(amp|tf32|compile) is measured in every form"):
        suite.run_suite(tmp_path / "out", CPU, [setting], 0, tests=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_compiled_cases_are_measured(tmp_path, monkeypatch):
    only(monkeypatch, case(mode="default"))
    (found,) = suite.run_suite(tmp_path, CPU, TINY, 600, repeats=2, tests=False)["cases"]
    assert found["step_ms"] > 0 and found["compile_s"] > 0 and "torchvision_ms" not in found


def test_a_roofline_is_the_sum_over_operators_of_what_limits_each():
    x, weight = torch.randn(64, 128), torch.randn(128, 32)
    flops, moved = 2 * 64 * 128 * 32, 4 * (64 * 128 + 128 * 32 + 64 * 32)
    work = lambda: (x @ weight).relu()  # noqa: E731
    assert roofline_ms(work, Limits(1e9, 1e15)) == pytest.approx(1e3 * flops / 1e9)
    assert roofline_ms(work, Limits(1e15, 1e9)) == pytest.approx(1e3 * moved / 1e9)
    assert all(limit > 0 for limit in measure_limits(CPU, torch.float32))


@pytest.mark.parametrize("plus", [None, torch.randn(1, 8, 9, 9)])
def test_a_convolution_with_what_follows_in_one_call_counts_as_the_convolution(plus):
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(8, 4, 3, 3)
    x, weight = (value.to(memory_format=torch.channels_last) for value in (x, weight))
    plus = None if plus is None else plus.to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = roofline_ms(lambda: conv2d(x, weight, None, padding=1, plus=plus, relu=True), Limits(1e9, 1e15))
    assert found == pytest.approx(1e3 * 2 * 8 * 4 * 3 * 3 * 9 * 9 / 1e9)
