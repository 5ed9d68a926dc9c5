"""Curves are drawn and saved; without matplotlib one line says what to install."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from grcn.errors import EnvironmentFault
from grcn.vis import charts, curves


def test_curves_are_saved(tmp_path):
    pytest.importorskip("matplotlib")
    recall = np.linspace(0, 1, 5)
    per_class = {f"class {i}": (recall, 1 - recall / (i + 1)) for i in range(40)}
    per_class["nothing detected"] = (np.zeros(0), np.zeros(0))
    curves.pr_curves(per_class, tmp_path / "many.png", "IoU 0.5")
    curves.pr_curves({}, tmp_path / "none.png")
    for name in ("many.png", "none.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 600 and np.asarray(picture.convert("L")).min() < 50


@pytest.fixture
def axes_of(monkeypatch):
    """Returns a function that draws and gives back the axes of the figure."""
    pytest.importorskip("matplotlib")
    figures = []
    new = curves.new_figure
    monkeypatch.setattr(curves, "new_figure", lambda *args: figures.append(new(*args)) or figures[-1])

    def draw(plot, *args):
        plot(*args)
        return figures[-1].axes

    return draw


def test_a_class_without_a_correct_detection_is_named(axes_of, tmp_path):
    good, wrong, nothing = (np.array([0.5, 1.0]), np.ones(2)), (np.zeros(3), np.zeros(3)), (np.zeros(0), np.zeros(0))
    (axes,) = axes_of(curves.pr_curves, {"RBC": good, "WBC": wrong, "none": nothing}, tmp_path / "pr.png")
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == ["RBC", "WBC (no correct detection)", "none (no correct detection)"]
    (axes,) = axes_of(curves.pr_curves, {"WBC": wrong, "none": nothing}, tmp_path / "none.png")
    assert axes.get_legend() is None
    assert [text.get_text() for text in axes.texts] == ["no correct detection in any class"]


@pytest.mark.parametrize(
    "metrics,shown",
    [
        (
            {"voc_area_ap50": 0.4, "coco_ap": 0.3, "coco_ap50": 0.5, "coco_ap_small": 0.1},
            {"coco_ap": 30, "coco_ap50": 50},
        ),
        ({"voc_area_ap50": 0.4, "voc_07_ap50": 0.5, "voc_area_ap70": None}, {"voc_area_ap50": 40}),
    ],
    ids=["coco", "voc"],
)
def test_few_precisions_are_drawn_in_percent(axes_of, tmp_path, metrics, shown):
    lines = [{"step": step, "lr": 0.1, "loss": 1.0} for step in range(3)] + [{"step": 3, "metrics": metrics}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, precision, rate = axes_of(curves.loss_curves, tmp_path / "metrics.jsonl", tmp_path / "losses.png")
    assert {line.get_label(): line.get_ydata()[0] for line in precision.get_lines()} == pytest.approx(shown)
    assert "%" in precision.get_ylabel() and precision.get_legend()
    assert rate.get_ylabel() == "learning rate" and rate.get_legend() is None


def test_losses_and_precisions_are_read_from_a_run(tmp_path):
    pytest.importorskip("matplotlib")
    lines: list[dict[str, object]] = [
        {"step": step, "lr": 0.1, "loss": 1 / step, "loss_classifier": 0.5 / step} for step in range(1, 50)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves.loss_curves(tmp_path / "metrics.jsonl", tmp_path / "losses.png")
    lines += [{"step": 49, "metrics": {"coco_ap": 0.3, "coco_ap_small": None, "coco_ar1": 0.2}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves.loss_curves(tmp_path / "metrics.jsonl", tmp_path / "both.png", "a run")
    with Image.open(tmp_path / "losses.png") as losses, Image.open(tmp_path / "both.png") as both:
        assert both.height > 1.3 * losses.height  # a third panel, beside losses and rate


def test_cosines_have_a_line_and_a_row_for_each_layer(tmp_path):
    """None leaves a gap; more layers make a taller picture."""
    pytest.importorskip("matplotlib")
    few = {f"layer {i}": ([None, 0.1 * i, -0.2], [None, 0.05, 0.1]) for i in range(3)}
    many = {f"layer {i}": ([0.01 * i, 0.1, 0.2], [0.05, 0.05, None]) for i in range(30)}
    sizes = []
    for name, layers in (("few", few), ("many", many)):
        charts.cosine_curves([0, 10, 20], layers, tmp_path / f"{name}.png", "a run")
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes.append(picture.height)
            assert len(np.unique(np.asarray(picture).reshape(-1, 4), axis=0)) > 100, "colours"
    assert sizes[1] > 1.5 * sizes[0]


def test_without_matplotlib_curves_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'grcn\[plot\]'"):
        curves.pr_curves({}, tmp_path / "curves.png")


def test_scaling_curves(tmp_path):
    """Grey lines show what growth in proportion would be: a picture with more of the quantities is taller."""
    pytest.importorskip("matplotlib")
    one = {"values": [1.0, 2.0, 8.0], "step_ms": [10.0, 12.0, 90.0], "infer_ms": [4.0, 5.0, 6.0]}
    curves.scaling_curves({"images": one}, tmp_path / "one.png", "a model")
    curves.scaling_curves({"images": one, "classes": one}, tmp_path / "two.png")
    first, second = (Image.open(tmp_path / name) for name in ("one.png", "two.png"))
    assert second.height > 1.5 * first.height
    assert len(np.unique(np.asarray(first.convert("L")))) > 10


def test_of_many_classes_those_without_an_entry_are_left_out(axes_of, tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "new_figure", lambda *args: curves.new_figure(*args))
    for count, rows, columns in (
        (21, ["class 3", "(background)"], ["class 4", "(missed)"]),
        (4, [*(f"class {k}" for k in range(4)), "(background)"], [*(f"class {k}" for k in range(4)), "(missed)"]),
    ):
        matrix = np.zeros((count + 1, count + 1), int)
        matrix[3, -1] = matrix[-1, 4] = 2
        axes, _ = axes_of(
            charts.confusion_map, matrix.tolist(), [f"class {k}" for k in range(count)], tmp_path / "c.png"
        )
        assert [text.get_text() for text in axes.get_yticklabels()] == rows
        assert [text.get_text() for text in axes.get_xticklabels()] == columns


def test_errors_and_confusions_are_drawn(tmp_path):
    """With names of any letters, with numbers where there are few classes, and where nothing is defined."""
    pytest.importorskip("matplotlib")
    kinds = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
    figures = {
        "gains": dict.fromkeys(kinds, 0.1),
        "counts": dict.fromkeys(kinds, 1000),
        "ap_by_iou": {"0.50": 0.5, "0.55": 0.4},
        "agreement": {"detections": 90, "spearman": 0.5, "pearson": 0.4},
    }
    scores = np.linspace(0, 1, 90)
    charts.error_curves(figures, scores, scores**2, tmp_path / "some.png", "cats $and$ \\dogs")
    undefined = {
        "gains": dict.fromkeys(kinds),
        "ap_by_iou": {"0.50": None},
        "agreement": {"detections": 0, "spearman": None, "pearson": None},
    }
    charts.error_curves(figures | undefined, np.zeros(0), np.zeros(0), tmp_path / "none.png")
    colors = [len(Image.open(tmp_path / name).getcolors(2**20)) for name in ("some.png", "none.png")]
    assert colors[0] > colors[1] + 50
    inks = {}
    for count in (2, 21):
        classes = [f"class $x_{{{k}$ \\y" for k in range(count)]
        for value in (1, 8):  # of the same shares, so only numbers tell them apart
            path = tmp_path / f"{count}-{value}.png"
            charts.confusion_map(np.full((count + 1, count + 1), value).tolist(), classes, path, "cats $and \\dogs")
            inks[count, value] = np.asarray(Image.open(path))
    assert (inks[2, 1] != inks[2, 8]).any()
    assert (inks[21, 1] == inks[21, 8]).all()
