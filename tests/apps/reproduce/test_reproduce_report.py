"""Rows, statistics and pages of a study."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from grcn.apps.reproduce import markdown as page
from grcn.apps.reproduce import report, rows
from grcn.apps.reproduce.runs import plan
from grcn.apps.reproduce.statistics import Difference, compare, student_interval, student_t
from grcn.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
PRINTED = yaml.safe_load((CONFIGS / "paper_tables.yaml").read_text())


@pytest.mark.parametrize("number,data", [*((n, "shapes") for n in range(1, 6)), (1, "coco"), (5, "coco"), (4, "voc")])
def test_a_table_has_the_papers_rows_figures_and_baselines(number, data):
    table = rows.paper_table(CONFIGS, number, data)
    printed = PRINTED[f"table{number}"]["rows"]
    assert [row.label for row in table.rows] == [row["label"] for row in printed]
    for row, ours in zip(printed, table.rows, strict=True):
        assert ours.paper == {name: row[name] for name in table.metrics}
        assert ours.config.parent.name == data
    labels = {row.label for row in table.rows}
    assert all(row.baseline in labels for row in table.rows if row.baseline)
    # The baseline of a table, or of each network, is compared with nothing.
    alone = [row.label for row in table.rows if row.baseline is None]
    assert alone == (
        [printed[0]["label"]] if number < 4 else [f"{name}(Baseline)" for name in ("VGG16", "ResNet101", "ResNet50")]
    )


def test_the_papers_gains_are_the_differences_to_the_baselines():
    """As its abstract and text state them."""
    gains = {}
    for number, data, metric in ((5, "coco", "AP"), (4, "voc", "AP70")):
        table = {row.label: row for row in rows.paper_table(CONFIGS, number, data).rows}
        for row in table.values():
            if row.baseline:
                gains[number, row.label] = round(row.paper[metric] - table[row.baseline].paper[metric], 1)
    assert gains[5, "VGG16 -pool/loc + context/cls (G-RCN)"] == 2.0 and gains[5, "ResNet101 (G-RCN)"] == 2.5
    assert gains[4, "ResNet101(G-RCN)"] == 2.4 and gains[4, "ResNet50-det(Baseline)"] == 3.6
    assert gains[5, "ResNet50-det(Baseline)"] == 1.5 and gains[4, "ResNet50(G-RCN)"] == 2.0


def test_a_table_that_a_data_set_does_not_have_is_reported():
    with pytest.raises(ConfigError, match="table 4: not on coco.*--data voc"):
        rows.paper_table(CONFIGS, 4, "coco")


def test_configs_are_compared_with_the_first(tmp_path):
    table = rows.config_table([CONFIGS / "shapes/grcn_tiny.yaml", CONFIGS / "shapes/detect_f_tiny.yaml"])
    assert [(row.label, row.baseline) for row in table.rows] == [("grcn_tiny", None), ("detect_f_tiny", "grcn_tiny")]
    with pytest.raises(ConfigError, match="two files are called grcn_tiny"):
        rows.config_table([CONFIGS / "shapes/grcn_tiny.yaml", tmp_path / "grcn_tiny.yaml"])


@pytest.mark.parametrize(
    "freedom,expected", [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)]
)
def test_students_t_is_that_of_the_printed_tables(freedom, expected):
    assert student_t(freedom) == pytest.approx(expected, abs=6e-4)


def test_an_interval_over_seeds_is_worked_out_by_hand():
    # Mean 2, standard deviation 1, three seeds: 2 +- 4.303 / sqrt(3).
    assert student_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4843, 2 + 2.4843), abs=1e-3)
    assert student_interval([1.0]) is None


def test_rows_are_compared_in_pairs_of_equal_seed():
    draws = {0: np.array([1.0, 2.0, 3.0]), 1: np.array([2.0, 3.0, 4.0])}
    more = {seed: values + 1 for seed, values in draws.items()}
    found = compare({0: 11.0, 1: 12.2, 5: 99.0}, {1: 11.0, 0: 10.0, 4: 0.0}, more, draws)
    assert found.values == {0: pytest.approx(1.0), 1: pytest.approx(1.2)} and found.mean == pytest.approx(1.1)
    assert found.images == (1.0, 1.0)  # the same draws in both: how hard they are cancels
    assert compare({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    "values,images,shown",
    [
        ([1.0, 1.1, 1.2], (0.5, 1.5), True),
        ([-1.0, -1.1, -1.2], (-1.5, -0.5), True),
        ([1.0, 1.1, 1.2], (-0.1, 1.5), False),
        ([1.0, 3.0, -1.0], (0.5, 1.5), False),
        ([1.0, 1.1, 1.2], None, None),
        ([1.0], (0.5, 1.5), None),
        ([0.0, 0.0, 0.0], (0.0, 0.0), False),
        ([1.0, 1.1, 1.2], (0.0, 1.5), False),
        ([-1.0, -1.1, -1.2], (-1.5, 0.0), False),
        ([1.0, 1.1, 1.2], (float("nan"), float("nan")), False),
    ],
)
def test_a_difference_is_shown_when_both_intervals_leave_out_zero(values, images, shown):
    assert Difference(dict(enumerate(values)), student_interval(values), images).is_shown is shown


@pytest.fixture
def measured():
    """Table 4 on VOC, of which two rows were run, one with two seeds."""
    table = rows.paper_table(CONFIGS, 4, "voc")
    base, ours = table.rows[0], table.rows[1]
    classes = {name: [50.0, 52.0] for name in base.per_class}
    nothing = rows.Measured({"AP70": {}}, {}, {"AP70": {}}, {})
    found = {row.name: nothing for row in table.rows}
    found[base.name] = rows.Measured({"AP70": {0: 55.0, 1: 56.0}}, classes, {"AP70": {}}, {0: Path("a"), 1: Path("b")})
    found[ours.name] = rows.Measured({"AP70": {0: 57.5}}, {}, {"AP70": {}}, {0: Path("c")})
    return table, found


def test_a_page_has_the_papers_figures_beside_ours(measured):
    table, found = measured
    text = page.page(table, found, report.differences(table, found), ["the command"])
    assert "| VGG16(Baseline) | 55.8 | 55.5 ± 0.7 (2) |" in text
    assert "| VGG16 -pool/loc | 56.6 | 57.5 (1) |" in text
    assert "| ResNet50(G-RCN) | 57.9 | not run |" in text
    assert "| VGG16 -pool/loc − VGG16(Baseline) | +0.8 | +2.5 (–; –; 1) |" in text
    assert "| ResNet50(G-RCN) − ResNet50(Baseline) | +2.0 | not run |" in text
    paper = next(line for line in text.splitlines() if line.startswith("| VGG16(Baseline), paper"))
    assert paper.split(" | ")[1:4] == ["59.0", "60.0", "51.6"] and paper.count("|") == 22
    assert "| VGG16(Baseline), measured | 51.0 |" in text and "| VGG16 -pool/loc, measured | – |" in text
    base, other = table.rows[0], table.rows[4]
    assert f"- {base.name} ({base.config}): a, b" in text and f"{other.name} ({other.config}): not run" in text


def test_a_figure_that_the_data_do_not_have_is_not_called_not_run():
    """As AP of large objects where there are none."""
    table = rows.paper_table(CONFIGS, 3, "shapes")
    values = {name: {0: 1.0} if name != "APl" else {} for name in table.metrics}
    draws = {name: {} for name in table.metrics}
    found = {row.name: rows.Measured(values, {}, draws, {0: Path("a")}) for row in table.rows}
    text = page.page(table, found, report.differences(table, found), [])
    assert "| 34.3 | – |" in text and "| -0.6 | – |" in text and "not run" not in text


def test_the_files_of_a_report_hold_every_run(measured, tmp_path):
    table, found = measured
    report.write(table, found, tmp_path, ["the command"], "mine")
    assert {path.name for path in tmp_path.iterdir()} == {f"mine.{suffix}" for suffix in ("md", "csv", "json", "png")}
    lines = list(csv.DictReader(io.StringIO((tmp_path / "mine.csv").read_text())))
    assert [(line["row"], line["seed"], line["folder"], line["AP70"]) for line in lines[:4]] == [
        ("VGG16(Baseline)", "0", "a", "55.0"),
        ("VGG16(Baseline)", "1", "b", "56.0"),
        ("VGG16 -pool/loc", "0", "c", "57.5"),
        ("VGG16 -pool/loc + context/cls (G-RCN)", "", "not run", ""),
    ]


def test_a_figure_that_nothing_has_is_left_out_of_a_report(tmp_path):
    table = rows.config_table([Path("a.yaml"), Path("b.yaml")])
    empty = {name: {} for name in table.metrics}
    nothing = rows.Measured(empty, {}, empty, {})
    report.write(table, {"a": nothing, "b": nothing}, tmp_path, ["`x`"], "none")
    assert "AP70" in (tmp_path / "none.md").read_text()
    measured = {
        name: rows.Measured({**empty, "AP": {0: value}}, {}, empty, {0: Path(name)})
        for name, value in (("a", 50.0), ("b", 51.0))
    }
    report.write(table, measured, tmp_path, ["`x`"], "some")
    text = (tmp_path / "some.md").read_text()
    assert "AP," in text and "AP70" not in text and "AP75" not in text


def test_runs_on_other_instructions_are_said_to_differ(tmp_path):
    table = rows.config_table([CONFIGS / "shapes/grcn_tiny.yaml"])
    trials = plan(table.rows, [0, 1], tmp_path / "runs", results=tmp_path / "results")
    for trial, sets in zip(trials, (["AVX2"], ["AVX2", "AVX512"]), strict=True):
        known = {"device": "a CPU", "instruction_sets": sets, "threads": 1, "revision": None}
        trial.kept.parent.mkdir(parents=True, exist_ok=True)
        trial.kept.write_text(json.dumps({"run": known}))
    assert report.facts_of(trials, "grcn reproduce")[2:] == [
        "The runs differ in more than their rows:",
        "",
        "- device a CPU, instruction_sets AVX2, threads 1: grcn_tiny/seed0",
        "- device a CPU, instruction_sets AVX2 AVX512, threads 1: grcn_tiny/seed1",
    ]
