"""The cosine between the tasks' gradients: against losses whose gradients are known, and over a real run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import programs
import pytest
import torch
from support import small_batch, small_detector
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from grcn.apps.analyze.gradients import LOSSES, conflict, layers_of
from grcn.apps.analyze.gradients_over_training import as_text
from grcn.build import build_model
from grcn.config.files import dump_config, load_config
from grcn.errors import NonFiniteError

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.width=8", "model.head.dim=16", "model.image={short: 64, max: 64}", "data.size=64", "data.train_images=8",
    "data.test_images=2", "train.batch=2", "train.warmup=0", "train.steps=4", "eval.pictures=0",
    "eval.protocols=[coco]", "run.workers=0", "run.threads=1", "run.device=cpu",
]  # fmt: skip


class Known(nn.Module):
    """Losses that are inner products of a weight with given vectors: these are their gradients."""

    def __init__(self, gradients: dict[str, dict[str, list[float]]]) -> None:
        super().__init__()
        self.gradients = gradients
        self.layers = nn.ModuleDict({name: nn.Linear(2, 1, bias=False).double() for name in gradients})

    def forward(self, images: list[torch.Tensor], targets: list[dict]) -> dict[str, torch.Tensor]:
        """Multiplies the gradients of ``loss_box_reg`` by the first pixel."""
        scale = {"loss_box_reg": images[0].flatten()[0]}
        losses = {}
        for loss in LOSSES:
            terms = [
                self.layers[name].weight @ torch.tensor(vectors[loss]).double()
                for name, vectors in self.gradients.items()
                if loss in vectors
            ]
            losses[loss] = sum(terms, torch.zeros(1)).sum() * scale.get(loss, 1.0)
        return losses


def batches(*pixels: float) -> list[tuple[list[torch.Tensor], list[dict]]]:
    return [([torch.full((3, 1, 1), pixel, dtype=torch.float64)], [{}]) for pixel in pixels]


def known(classifier: list[float], box_reg: list[float], **others: list[float]) -> dict[str, list[float]]:
    return {"loss_classifier": classifier, "loss_box_reg": box_reg, **others}


def test_known_gradients_have_their_cosines():
    cases = {"same": ([2, 0], 1.0), "against": ([-3, 0], -1.0), "across": ([0, 5], 0.0), "oblique": ([3, 4], 0.6)}
    found = conflict(Known({name: known([1, 0], vector) for name, (vector, _) in cases.items()}), batches(1, 2))
    assert list(found) == [f"layers.{name}" for name in cases]
    for name, (vector, cosine) in cases.items():
        second = found[f"layers.{name}"]["second_stage"]
        assert second.cosine == pytest.approx(cosine, abs=1e-12) and second.standard_error == pytest.approx(0, abs=1e-9)
        assert (second.reached_by, second.batches, second.negative) == ("both", 2, float(cosine < 0))
        length = 1.5 * math.hypot(*vector)
        assert (second.cls_norm, second.loc_norm) == pytest.approx((1, length), rel=1e-12)
        assert second.ratio == pytest.approx(1 / length, rel=1e-12)
        assert found[f"layers.{name}"]["first_stage"].reached_by == "none"


def test_batches_are_averaged_and_those_without_a_direction_left_out():
    """Pixels of 1, -1 and 1 turn a cosine of 0.6 over; 0 is a batch without foreground."""
    second = conflict(Known({"a": known([1, 0], [3, 4])}), batches(1, -1, 0, 1))["layers.a"]["second_stage"]
    assert second.cosine == pytest.approx(0.2) and second.batches == 3
    assert second.standard_error == pytest.approx(0.4) and second.negative == pytest.approx(1 / 3)
    assert second.loc_norm == pytest.approx(15 / 4)
    (one,) = conflict(Known({"a": known([1, 0], [3, 4])}), batches(1)).values()
    assert one["second_stage"].standard_error is None


def test_stages_and_layers_of_one_task():
    both = {"loss_objectness": [0.0, 1.0], "loss_rpn_box_reg": [0.0, -1.0]}
    model = Known({"a": known([1, 0], [1, 0], **both), "b": {"loss_classifier": [1, 0]}, "c": {"loss_box_reg": [1, 0]}})
    found = conflict(model, batches(1))
    cosines = {stage: of.cosine for stage, of in found["layers.a"].items()}
    assert cosines == pytest.approx({"second_stage": 1, "first_stage": -1, "both_stages": 0}, abs=1e-12)
    assert [found[f"layers.{name}"]["second_stage"].reached_by for name in "bc"] == ["cls", "loc"]
    assert found["layers.b"]["second_stage"].cosine is None and found["layers.b"]["second_stage"].ratio is None


@pytest.mark.parametrize("options", [{}, {"split": "conv5", "context": ("cls",)}, {"resnet": True, "loc_stride": 8}])
def test_the_parts_add_up_to_the_gradient_that_training_follows(options):
    """The square of the whole gradient's norm is that of both tasks' sums, and twice their product."""
    model = small_detector(**options).double().train()
    batch = small_batch(torch.float64)
    found = conflict(model, [batch])
    torch.stack(list(model(*batch).values())).sum().backward()
    for name, parameters in layers_of(model).items():
        of = found[name]["both_stages"]
        cosine = 0 if of.cosine is None else of.cosine
        parts = of.cls_norm**2 + of.loc_norm**2 + 2 * of.cls_norm * of.loc_norm * cosine
        whole = sum(float(parameter.grad.square().sum()) for parameter in parameters)
        assert parts == pytest.approx(whole, rel=1e-11, abs=1e-20), name


def test_detect_f_shares_conv1_to_conv4():
    cfg = load_config(ROOT / "configs/shapes/detect_f_tiny.yaml", ["model.width=8", "model.head.dim=16"])
    found = conflict(build_model(cfg.model, 5).train(), [small_batch()])
    reached = {name: stages["second_stage"].reached_by for name, stages in found.items()}
    trunk = {f"backbone.trunk.conv{block}_1": "both" for block in range(1, 5)}
    branches = {"backbone.cls.conv5_1": "cls", "backbone.loc.conv5_1": "loc"}
    assert {name: task for name, task in reached.items() if name.startswith("backbone")} == trunk | branches
    assert reached["roi_heads.heads.cls.fc6"] == "both" and reached["roi_heads.heads.bbox_pred"] == "loc"


def test_a_detector_of_torchvision_is_left_as_it_was():
    """Its batch norms count in training mode, and it draws its samples from torch's generator."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    backbone.out_channels = 8
    model = FasterRCNN(
        backbone, 5, min_size=64, max_size=96, rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2), rpn_batch_size_per_image=8, box_batch_size_per_image=8,
    ).train()  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = conflict(model, [small_batch(), small_batch(seed=1)])
    assert list(found)[:3] == ["backbone.0", "backbone.3", "rpn.head.conv.0"]  # the norm is part of its convolution
    assert found["backbone.0"]["second_stage"].reached_by == "both" and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert conflict(model, [small_batch(), small_batch(seed=1)]) == found


def test_what_cannot_be_compared_is_refused():
    model = Known({"a": known([1, 0], [1, 0])})
    with pytest.raises(ValueError, match="no batches"):
        conflict(model, [])
    with pytest.raises(NonFiniteError):
        conflict(model, batches(math.inf))
    with pytest.raises(ValueError, match=r"model.train\(\)"):
        conflict(model.eval(), batches(1))
    model.train().forward = lambda *_: {"classification": torch.zeros(())}
    with pytest.raises(ValueError, match="no loss_classifier.*got classification"):
        conflict(model, batches(1))


def call(tmp_path: Path, *args: object, **options: object) -> programs.Outcome:
    return programs.call("tools/analyze.py", "gradients", *args, folder=tmp_path, **options)


def without_matplotlib() -> None:
    """A patch."""
    sys.modules["matplotlib.figure"] = None  # type: ignore[assignment]


def test_a_config_is_trained_once_and_analysed_at_all_its_checkpoints(tmp_path):
    config = ["--config", ROOT / "configs/shapes/detect_f_tiny.yaml", "--images", 3, "--output-dir", "run"]
    config.append("run.amp=auto")
    first = call(tmp_path, *config, "--points", 4, "--json", *SMALL)
    assert first.code == 0, first
    found = json.loads(first.stdout)
    assert len(first.stdout.splitlines()) == 1
    assert found == json.loads((tmp_path / "run/gradients.json").read_text())
    assert found["settings"] == {"run": "run", "images": 4, "batches": 2}
    assert [of["step"] for of in found["steps"]] == [0, 1, 2, 3, 4]
    cosines = [of["layers"]["backbone.trunk.conv4_1"]["second_stage"]["cosine"] for of in found["steps"]]
    assert len(set(cosines)) == 5
    pytest.importorskip("matplotlib")
    assert (tmp_path / "run/gradients.png").stat().st_size > 10_000

    log = tmp_path / "run/metrics.jsonl"
    written = log.stat().st_mtime_ns
    checkpoints = sorted((tmp_path / "run/checkpoints").iterdir())
    again = call(tmp_path, *config, "--points", 4, *SMALL, patch=without_matplotlib)
    assert (
        again.stdout == as_text(found) + "\n"
        and "conv5_1" in again.stdout
        and "cls only" in again.stdout
        and "few: raise" in again.stdout
    )
    assert sorted((tmp_path / "run/checkpoints").iterdir()) == checkpoints and log.stat().st_mtime_ns == written

    checkpoints[0].write_bytes(b"damaged")
    alone = call(
        tmp_path, "--run", "run", "--images", 3, "--output-dir", "elsewhere", "--json", patch=without_matplotlib
    )
    assert alone.code == 0 and "skipped: " in alone.stderr and "no curves drawn" in alone.stderr, alone
    steps = json.loads(alone.stdout)["steps"]
    assert steps == [found["steps"][0], *found["steps"][2:]] and (tmp_path / "elsewhere/gradients.json").exists()
    changed = call(tmp_path, "--run", "run", "--images", 3, "model.roi.batch=8")
    programs.assert_contract(changed, 2, "the settings differ")
    for path in checkpoints[1:]:
        path.unlink()
    programs.assert_contract(call(tmp_path, "--run", "run", "--images", 3), 4, "no usable checkpoint")


def test_a_folder_without_checkpoints_is_reported(tmp_path):
    cfg = load_config(ROOT / "configs/shapes/detect_f_tiny.yaml", SMALL)
    (tmp_path / "config.yaml").write_text(dump_config(cfg))
    programs.assert_contract(call(tmp_path, "--run", tmp_path), 4, "no checkpoints in it")


def test_wrong_arguments_are_reported_in_one_line(tmp_path):
    config = ROOT / "configs/shapes/detect_f_tiny.yaml"
    separate = ["model.split=conv3", "model.backbone=vgg16", "model.head.tasks=separate", "model.width=24"]
    for args, named in (
        (["--config", config, "--images", 0], "--images"),
        (["--config", config, "--points", 0], "--points"),
        (["--run", "run", "--points", 3], "--points"),
        (["--config", config, "--run", "run"], "not allowed with"),
        ([], "required"),
        (["--config", config, "--image-s", 3], "--image-s"),
        (["--run", "run"], "config.yaml"),
        (["--config", config, "--images", 9, *SMALL], "--images 9"),
        (["--config", config, "--images", 2, *SMALL, *separate], "no trained layer"),
    ):
        programs.assert_contract(call(tmp_path, *args), 2, named)
