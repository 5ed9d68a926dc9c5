"""``analyze compare`` and ``analyze runs`` as a user runs them: real processes, the built-in images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import programs
import pytest
from coco_made import document, write
from PIL import Image

from grcn.apps.analyze.compare import compare, unique_names
from grcn.apps.analyze.compare_report import as_markdown, as_text, report_files
from grcn.build import build_test_split
from grcn.config.files import load_config
from grcn.data.annotations import Annotations
from grcn.data.coco import write_detections
from grcn.evaluation import ap_loss, olrp
from grcn.evaluation.comparison import FIGURES
from grcn.fileio import next_free
from grcn.vis.comparison import MOST_DRAWN, comparison_panels

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/shapes/grcn_tiny.yaml"
SMALL = ["data.size=64", "data.test_images=12", "run.threads=1", "run.device=cpu"]
Found = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def table() -> Annotations:
    return build_test_split(load_config(CONFIG, SMALL).data, None).table


def perfect(table: Annotations) -> Found:
    return {
        "rows": np.repeat(np.arange(len(table)), np.diff(table.offsets)),
        "boxes": table.boxes,
        "labels": table.labels,
        "scores": np.linspace(1.0, 0.6, len(table.boxes)),
    }


def with_wrong_classes(table: Annotations) -> Found:
    """Every third object has another class."""
    wrong = table.labels % len(table.classes) + 1
    return perfect(table) | {"labels": np.where(np.arange(len(table.labels)) % 3, table.labels, wrong)}


def with_wrong_boxes(table: Annotations) -> Found:
    """Every box has half of its height, which is IoU 0.5."""
    boxes = table.boxes.copy()
    boxes[:, 3] = (boxes[:, 1] + boxes[:, 3]) / 2
    return perfect(table) | {"boxes": boxes}


@pytest.fixture
def files(table: Annotations, tmp_path: Path) -> list[Path]:
    made = {"good": perfect, "classes": with_wrong_classes, "boxes": with_wrong_boxes}
    for name, make in made.items():
        write_detections(tmp_path / f"{name}.json", table, make(table))
    return [Path(f"{name}.json") for name in made]


def analyze(folder: Path, *args: object) -> programs.Outcome:
    return programs.call("tools/analyze.py", *args, folder=folder)


def without_matplotlib() -> None:
    import sys

    sys.modules["matplotlib.figure"] = None  # type: ignore[assignment]


def test_files_are_compared_with_the_first(files: list[Path], table: Annotations, tmp_path: Path) -> None:
    result = analyze(tmp_path, "compare", *files, "--config", CONFIG, "--draws", "40", *SMALL)
    assert result.code == 0 and "Traceback" not in result.stderr, result.stderr
    folder = tmp_path / "runs/compare"
    found = json.loads((folder / "compare.json").read_text())
    assert [file["name"] for file in found["files"]] == ["good", "classes", "boxes"]
    assert (found["images"], found["draws"], list(found["figures"])) == (12, 40, list(FIGURES))
    for key, of in found["figures"].items():
        assert of["differences"][0] is None and of["intervals_of_differences"][0] is None
        for value, difference in zip(of["values"][1:], of["differences"][1:], strict=True):
            assert (difference is None) == (value is None or of["values"][0] is None), key
            assert difference is None or difference == pytest.approx(value - of["values"][0])
    figures = found["figures"]
    assert figures["ap"]["values"][0] == pytest.approx(1) and figures["olrp"]["values"][0] == 0
    assert figures["tide_cls"]["values"][1] > 0.1 and figures["tide_cls"]["values"][2] == 0
    assert figures["right_class"]["values"][1] == pytest.approx(1)
    assert figures["right_box"]["values"][2] == pytest.approx(1)
    assert figures["olrp_localization"]["values"][2] == pytest.approx(0.5)
    low, high = figures["ap"]["intervals_of_differences"][1]
    assert low <= figures["ap"]["differences"][1] <= high < 0
    assert figures["olrp_localization"]["intervals_of_differences"][2] == pytest.approx([0.5, 0.5])
    rows = {line[:22].strip(): line for line in result.stdout.splitlines()}
    assert rows["AP"].split()[:3] == ["AP", "high", "100.0"] and rows["AP"].rstrip().endswith("]*")
    assert "12 images" in result.stdout and "the same 40 draws" in result.stdout
    page = (folder / "compare.md").read_text()
    assert page.count("\n| ") == len(FIGURES) + 2 and "**+50.0 [+50.0, +50.0]**" in page
    with Image.open(folder / "compare.png") as picture:
        assert picture.size[0] > 1500 and len(np.unique(np.asarray(picture.convert("L")))) > 50
    words = ("compare", *files, "--config", CONFIG, "--draws", "40", "--json", *SMALL)
    again = programs.call("tools/analyze.py", *words, folder=tmp_path, patch=without_matplotlib)
    assert json.loads(again.stdout) == found and (tmp_path / "runs/compare-2/compare.json").exists()


def test_values_are_those_of_the_other_commands(table: Annotations) -> None:
    detections = with_wrong_classes(table)
    found = compare(table, {"a": detections}, draws=0)["figures"]
    figures, errors = ap_loss.analyse(table, detections).figures, olrp.evaluate(table, detections)
    assert found["ap"]["values"] == [figures["oracles"]["measured"]]
    assert found["tide_cls"]["values"][0] == pytest.approx(figures["gains"]["Cls"])
    assert found["right_class"]["values"][0] == pytest.approx(figures["oracles"]["right_class"])
    assert found["spearman"]["values"][0] == pytest.approx(figures["agreement"]["spearman"])
    assert found["olrp"]["values"][0] == pytest.approx(errors["olrp"])
    assert found["ap"]["intervals"] == [None]


def test_settings_and_names_and_no_matplotlib(files: list[Path], tmp_path: Path) -> None:
    words = ["compare", files[0], "eval.limit=5", "--config", CONFIG, files[1], *SMALL, "--draws", "0"]
    words += ["--names", "ours", "theirs", "--output-dir", "out", "--json"]
    result = programs.call("tools/analyze.py", *words, folder=tmp_path, patch=without_matplotlib)
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["images"] == 5 and [file["name"] for file in found["files"]] == ["ours", "theirs"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.json", "compare.md"]
    assert "no picture drawn: curves need matplotlib" in result.stderr
    assert "[" not in as_text(found).split("\n\n")[1], "no draws, no intervals"


def test_a_weak_detector_has_no_diagnosis_and_shifted_labels_have_one(table: Annotations) -> None:
    weak = {name: values[::4].copy() for name, values in perfect(table).items()}
    weak["boxes"][:, 2] -= 0.45 * (weak["boxes"][:, 2] - weak["boxes"][:, 0])  # found at IoU 0.5, and not above 0.55
    shifted = perfect(table)
    shifted["labels"] = shifted["labels"] % len(table.classes) + 1
    found = compare(table, {"weak": weak, "shifted": shifted}, draws=0)
    assert found["figures"]["ap"]["values"][0] < 0.05 < found["figures"]["ap50"]["values"][0]
    assert found["files"][0]["diagnosis"] == "" and "with every label -1" in found["files"][1]["diagnosis"]


def test_more_detectors_than_colors_have_a_table_and_no_picture(
    files: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = [tmp_path / f"{number}.json" for number in range(MOST_DRAWN + 1)]
    for path in many:
        path.write_bytes((tmp_path / files[0]).read_bytes())
    cfg = load_config(CONFIG, [*SMALL, "eval.limit=5"])
    with caplog.at_level("INFO", "grcn"):
        report_files(cfg, many[:2], tmp_path / "out", draws=0)
        assert (tmp_path / "out/compare.png").exists() and "the table and a picture" in caplog.text
        report_files(cfg, many, tmp_path / "out", draws=0)
    assert not (tmp_path / "out/compare.png").exists() and f"of {MOST_DRAWN} detectors at most" in caplog.text


def test_files_with_nothing_in_them(table: Annotations, tmp_path: Path) -> None:
    nothing = {name: values[:0] for name, values in perfect(table).items()}
    found = compare(table, {"a|b $x_1$": nothing, "b": perfect(table), "c": nothing}, draws=5)
    assert "no detections" in found["files"][0]["diagnosis"]
    assert "| oLRP localization | low | - | 0.0 | - |" in as_markdown(found) and r"a\|b" in as_markdown(found)
    assert found["figures"]["spearman"]["values"][0] is None
    comparison_panels(found, tmp_path / "a.png")
    comparison_panels(compare(table, {"a": nothing}, draws=0), tmp_path / "b.png")
    sizes = [Image.open(tmp_path / name).size for name in ("a.png", "b.png")]
    assert sizes[0][0] > sizes[1][0] > 500


def test_images_need_not_be_there(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(root, document())
    found = [dict(image_id=n, category_id=7 - n, bbox=[4, 5, 20, 10], score=0.5) for n in (5, 6)]
    (tmp_path / "found.json").write_text(json.dumps(found))
    data = [f"data.root={root}", "data.train=[train]", "data.test=[train]", "data.format=coco"]
    words = ["--config", ROOT / "configs/own/grcn_tiny.yaml", *data, "--draws", "0", "--json"]
    result = analyze(tmp_path, "compare", "found.json", *words)
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["figures"]["ap"]["values"] == pytest.approx([1])


def make_run(folder: Path, table: Annotations, found: Found, settings: list[str]) -> None:
    for step, detections in ((9, {name: values[:1] for name, values in found.items()}), (10, found)):
        (folder / f"eval/step_{step}").mkdir(parents=True)
        write_detections(folder / f"eval/step_{step}/detections.json", table, detections)
    lines = "\n".join(f"  {setting.split('.')[1].replace('=', ': ')}" for setting in settings)
    (folder / "config.yaml").write_text(
        f"base: {ROOT}/configs/_base/shapes.yaml\nmodel: {{backbone: tiny}}\ndata:\n{lines}\n"
    )


def test_runs_are_compared_by_their_newest_evaluations(table: Annotations, tmp_path: Path) -> None:
    make_run(tmp_path / "a/seed0", table, perfect(table), [*SMALL[:2], "data.train_images=7"])
    make_run(tmp_path / "b/seed0", table, with_wrong_boxes(table), SMALL[:2])
    result = analyze(tmp_path, "runs", "a/seed0", "b/seed0", "--draws", "10", "--json")
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [file["name"] for file in found["files"]] == ["a/seed0", "b/seed0"]
    assert [file["path"] for file in found["files"]] == ["a/seed0", "b/seed0"]
    assert [file["detections"] for file in found["files"]] == [len(table.boxes)] * 2
    assert found["figures"]["olrp_localization"]["values"] == pytest.approx([0, 0.5])
    make_run(tmp_path / "c", table, perfect(table), ["data.size=64", "data.test_images=11"])
    other = analyze(tmp_path, "runs", "a/seed0", "c")
    programs.assert_contract(other, 3, "c: other test data (tested on 11 images", "a/seed0 on 12 images")
    shutil.rmtree(tmp_path / "c/eval")
    none = analyze(tmp_path, "runs", "c")
    programs.assert_contract(none, 2, "c: no eval/step_*/detections.json; finish the run")
    programs.assert_contract(analyze(tmp_path, "runs", "nowhere"), 2, "nowhere: no config.yaml in it")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["good.json", "--draws", "-1"], 2, "--draws must be at least 0 (got -1)"),
        (["good.json", "nowhere.json"], 3, "nowhere.json: "),
        (["good.json", "boxes.json", "--names", "a"], 2, "--names: not one for each of 2 (got ['a'])"),
        (["good.json", "boxes.json", "--names", "a", "a"], 2, "--names: not one for each of 2"),
        ([], 2, "FILE"),
    ],
)
def test_mistakes_are_one_line(
    files: list[Path], arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    result = analyze(tmp_path, "compare", *arguments, "--config", CONFIG, *(SMALL if arguments else []))
    programs.assert_contract(result, code, message)
    assert not (tmp_path / "runs").exists()


def test_names_are_as_short_as_they_can_be(tmp_path: Path) -> None:
    for name in ("a/x/predictions.json", "b/x/predictions.json", "b/y/predictions.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    a, b, c = (tmp_path / name for name in ("a/x/predictions.json", "b/x/predictions.json", "b/y/predictions.json"))
    assert unique_names([a]) == ["predictions"]
    assert unique_names([b, c]) == ["x/predictions", "y/predictions"]
    assert unique_names([a, b, a]) == ["a/x/predictions", "b/x/predictions", "a/x/predictions (2)"]
    assert unique_names([a.parent, c.parent]) == ["x", "y"]
    assert next_free(tmp_path / "a") == tmp_path / "a-2" and next_free(tmp_path / "z") == tmp_path / "z"
