"""torch.compile of a detector's parts: each is one graph that computes the same, and a run is resumed exactly."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path

import pytest
import torch
from support import small_batch
from torch._dynamo.exc import Unsupported
from torch.testing import assert_close

from grcn import boxes
from grcn.build import build_model
from grcn.config.files import load_config
from grcn.engine import checkpoint
from grcn.errors import ConfigError, EnvironmentFault
from grcn.models.compiled import compile_parts
from grcn.run.train import train

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.image={short: 64, max: 96, multiple: 32}", "model.roi.batch=16", "model.rpn.post_nms_test=20",
    "model.roi.score_thresh=0.0",
]  # fmt: skip
NARROW = [*SMALL, "model.width=8"]
REAL = [*SMALL, "model.weights=null"]
CASES = {
    "shapes/grcn_tiny": NARROW,
    "shapes/detect_s_tiny": NARROW,
    "shapes/detect_f_rpn_both_tiny": NARROW,
    "shapes/conv222_loc_tiny_pool": NARROW,
    "shapes/grcn_tiny_resnet_det": NARROW,
    "shapes/grcn_light_tiny_resnet_fpn": NARROW,
    "shapes/cascade_grcn_tiny": NARROW,
    "shapes/double_head_tiny": NARROW,
    "coco/grcn_resnet50": REAL,
    "coco/faster_rcnn_resnet50_fpn": REAL,
}


@pytest.fixture(autouse=True)
def forgotten():
    """Leaves no compiled code to other tests."""
    yield
    torch._dynamo.reset()


def pair(name):
    model = build_model(load_config(ROOT / f"configs/{name}.yaml", CASES[name]).model, 6)
    compiled = copy.deepcopy(model)
    compile_parts(compiled, "default", backend="aot_eager")
    return model, compiled


def check_equal_in_training(name):
    images, targets = small_batch()
    model, compiled = pair(name)
    losses, expected = (m.train()(images, targets) for m in (compiled, model))
    assert_close(losses, expected, rtol=1e-5, atol=0.0)
    for total in (losses, expected):
        sum(total.values()).backward()
    found = {key: weight.grad for key, weight in compiled.named_parameters() if weight.requires_grad}
    assert_close(found, {key: w.grad for key, w in model.named_parameters() if w.requires_grad}, rtol=1e-4, atol=1e-6)
    return model, compiled


def check_equal_in_evaluation(model, compiled):
    images, _ = small_batch()
    with torch.no_grad():
        detections, expected = compiled.eval()(images), model.eval()(images)
    assert_close(detections, expected, rtol=1e-4, atol=1e-3)
    assert all(len(one["boxes"]) > 5 for one in expected)


def test_every_part_in_its_form_for_a_gpu_is_one_graph_that_computes_the_same():
    with boxes.as_if_on_gpu():
        check_equal_in_training("shapes/grcn_tiny")


@pytest.mark.slow
def test_every_part_is_one_graph_in_bfloat16_too():
    images, targets = small_batch()
    model, compiled = pair("shapes/grcn_tiny")
    with boxes.as_if_on_gpu(), torch.autocast("cpu", torch.bfloat16):
        losses, expected = (m.train()(images, targets) for m in (compiled, model))
        assert_close(losses, expected, rtol=0.02, atol=1e-3)
        with torch.no_grad():
            assert len(compiled.eval()(images)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_part_of_every_family_is_one_graph(name):
    with boxes.as_if_on_gpu():
        check_equal_in_evaluation(*check_equal_in_training(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapes/grcn_tiny", "shapes/cascade_grcn_tiny", "coco/faster_rcnn_resnet50_fpn"])
def test_every_part_in_its_form_for_a_cpu_is_one_graph(name):
    check_equal_in_evaluation(*check_equal_in_training(name))


@pytest.mark.slow
def test_few_forms_are_compiled_whatever_the_sizes_and_the_objects(caplog):
    caplog.set_level(logging.INFO, "grcn")
    _, model = pair("shapes/grcn_tiny")
    draw = torch.Generator().manual_seed(0)
    sizes = [(64, 64), (64, 96), (96, 64), (33, 50), (70, 70), (64, 80), (90, 96)]
    with boxes.as_if_on_gpu():
        for number in range(14):
            size, count = sizes[number % 7], (3, 1, 5, 2, 8, 1, 12)[number % 7]
            corners = torch.rand(count, 2, generator=draw) * 20
            found = torch.cat([corners, corners + 8 + torch.rand(count, 2, generator=draw) * 20], 1)
            target = {"boxes": found, "labels": torch.ones(count, dtype=torch.long), "rng_key": number << 50}
            model.train()([torch.rand(3, *size, generator=draw)] * 2, [target] * 2)
            with torch.no_grad():
                model.eval()([torch.rand(3, *size, generator=draw)])
            if number == 6:
                seen = caplog.text.count("compiled the ")
    assert 5 <= seen <= 20
    assert caplog.text.count("compiled the ") == seen, "the same sizes again compile nothing"


def test_a_machine_that_cannot_compile_is_one_line():
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nand much more")

    model = build_model(load_config(ROOT / "configs/shapes/faster_rcnn_tiny.yaml", NARROW).model, 6)
    compile_parts(model, "default", backend=broken)
    expected = r"run.compile: torch cannot compile the backbone here \(RuntimeError: no compiler\); set none"
    with pytest.raises(EnvironmentFault, match=expected):
        model.train()(*small_batch())


def test_a_part_of_your_own_that_is_not_one_graph_is_named_by_torch(monkeypatch):
    model = build_model(load_config(ROOT / "configs/shapes/faster_rcnn_tiny.yaml", NARROW).model, 6)
    plain = model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda x: (print("a side effect"), plain(x))[1])
    compile_parts(model, "default", backend="eager")
    with pytest.raises(Unsupported, match="print"):
        model.train()(*small_batch())


def test_a_part_of_too_many_forms_is_one_line():
    model = build_model(load_config(ROOT / "configs/shapes/faster_rcnn_tiny.yaml", NARROW).model, 6)
    compile_parts(model, "default", backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        images, targets = small_batch()
        model.train()(images, targets)
        with pytest.raises(
            ConfigError, match=r"run.compile: the \w+ takes more than 1 forms; set model.image.multiple"
        ):
            model.eval()(images)


@pytest.mark.slow
def test_sizes_that_vary_freely_do_not_end_a_run(caplog):
    caplog.set_level(logging.INFO, "grcn")
    model = build_model(load_config("shapes/grcn_tiny_resnet", [*NARROW, "model.image.multiple=1"]).model, 6)
    compile_parts(model, "default", backend="eager")
    draw = torch.Generator().manual_seed(0)
    target = {"boxes": torch.tensor([[2.0, 2.0, 30.0, 30.0]]), "labels": torch.tensor([1]), "rng_key": 1}
    for _ in range(16):
        height, width = torch.randint(40, 140, (2,), generator=draw).tolist()
        images = [torch.rand(3, height, width)] * int(torch.randint(1, 3, (1,), generator=draw))
        model.train()(images, [target] * len(images))
        with torch.no_grad():
            model.eval()(images)
    assert caplog.text.count("compiled the RPN") > 8, "more than torch allows by itself"


@pytest.mark.parametrize(("multiple", "hinted"), [(1, True), (32, False)])
def test_many_sizes_to_record_are_hinted_at(multiple, hinted, caplog):
    caplog.set_level(logging.INFO, "grcn")
    cfg = load_config(ROOT / "configs/shapes/faster_rcnn_tiny.yaml", [*NARROW, f"model.image.multiple={multiple}"])
    compile_parts(build_model(cfg.model, 6), "reduce-overhead", backend="eager")
    assert ("model.image.multiple=32 makes them few" in caplog.text) == hinted


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_a_compiled_run_is_resumed_to_the_byte_and_near_an_eager_one(tmp_path):
    def config(steps, mode="default"):
        return load_config(ROOT / "configs/shapes/faster_rcnn_tiny.yaml", [
            *NARROW, "data={size: 64, train_images: 8, test_images: 2}", "train.batch=2", "train.warmup=0",
            f"train.steps={steps}", "train.log_every=1", "train.schedule=step", "run.workers=0", "run.threads=1",
            "run.device=cpu", "eval.protocols=[coco]", "eval.pictures=0", f"run.compile={mode}",
        ])  # fmt: skip

    train(config(4), tmp_path / "straight")
    for steps in (2, 4):
        torch._dynamo.reset()
        train(config(steps), tmp_path / "parts", resume=True, allow_changes=True)
    train(config(4, "none"), tmp_path / "eager")
    states = {path.name: checkpoint.newest(path / "checkpoints") for path in tmp_path.iterdir()}
    assert states["straight"][0].read_bytes() == states["parts"][0].read_bytes()
    assert_close(states["straight"][1]["losses"], states["eager"][1]["losses"], rtol=1e-3, atol=1e-3)
    assert_close(states["straight"][1]["model"], states["eager"][1]["model"], rtol=1e-3, atol=1e-4)
