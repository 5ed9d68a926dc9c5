"""Published results are reproduced from committed files: reports byte for byte, and the tables of RESULTS.md."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import yaml
from generate_hours import with_hours
from generate_results import commands, regenerate, with_tables
from generate_verdicts import claims_table, verdict_table, with_interval

from grcn.apps.reproduce.statistics import compare
from grcn.config.files import dump_config, load_config

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("*.md", "*.csv", "*.json")  # pictures depend on fonts


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What of a clone the reports need, without runs."""
    for name in ("configs", "results"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/reproduce.py", tmp_path / "tools")
    shutil.copy(ROOT / "RESULTS.md", tmp_path)
    return tmp_path


def texts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for kind in TEXTS for path in folder.rglob(kind)}


def report(folder: Path, *words: object) -> programs.Outcome:
    """Reports from the results that are kept in ``folder``, of configs of the repository."""
    paths = [ROOT / "configs/shapes" / word if str(word).endswith(".yaml") else word for word in words]
    known = ("--report-only", "--results", "results/shapes")
    return programs.call("tools/reproduce.py", "--config", *paths, *known, folder=folder)


def test_the_papers_tables_come_again_byte_for_byte(clone: Path) -> None:
    before = texts(clone / "results")
    words = "tools/reproduce.py --table 1 2 3 4 5 --seeds 0 1 2 --report-only --results results/shapes".split()
    done = subprocess.run([sys.executable, *words], cwd=clone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not run" not in done.stdout and done.stdout.count("# Table") == 5
    assert texts(clone / "results") == before
    assert not (clone / "runs").exists()


@pytest.mark.slow
def test_every_report_comes_again_byte_for_byte(clone: Path) -> None:
    before, page = texts(clone / "results"), (clone / "RESULTS.md").read_text()
    regenerate(clone)
    assert texts(clone / "results") == before and (clone / "RESULTS.md").read_text() == page


def test_every_report_is_of_a_command_that_reads_its_results() -> None:
    for command, reports in commands(ROOT / "results").items():
        words = shlex.split(command)
        assert words[:2] in (["grcn", "reproduce"], ["python", "tools/reproduce.py"])
        for report in reports:
            assert words[words.index("--results") + 1] == str(report.parents[1].relative_to(ROOT))


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    page = (ROOT / "RESULTS.md").read_text()
    assert page.count("<!-- table\n") == page.count("<!-- end of table -->") > 8
    assert with_tables(page, ROOT) == page, "run: make generated"
    spoilt = re.sub(r"\| 30\.6 ± 0\.4 \|", "| 30.7 ± 0.4 |", page, count=1)
    assert spoilt != page and with_tables(spoilt, ROOT) == page


def differences_of_kept_results() -> set[str]:
    """Every difference of two rows of one folder, in any metric, with its interval over seeds, as pages write it."""
    rows: dict[tuple[Path, str], dict[str, dict[int, float]]] = {}  # of a folder and a metric, by name
    for path in (ROOT / "results").rglob("seed*.json"):
        seed = int(path.stem.removeprefix("seed"))
        for metric, value in json.loads(path.read_text()).get("metrics", {}).items():
            if value is not None:
                of = rows.setdefault((path.parents[1], metric), {})
                of.setdefault(path.parent.name, {})[seed] = 100 * value
    pairs = itertools.chain.from_iterable(itertools.permutations(of.values(), 2) for of in rows.values())
    gaps = (compare(*pair) for pair in pairs)
    return {with_interval(gap).replace("**", "") for gap in gaps if gap is not None and gap.seeds is not None}


def test_the_intervals_in_the_text_are_those_of_kept_results() -> None:
    """Of prose, which nothing generates: a figure that is out of date is not among them."""
    prose = re.sub(r"<!-- table\n.*?<!-- end of table -->", "", (ROOT / "RESULTS.md").read_text(), flags=re.DOTALL)
    quoted = re.findall(r"([+-]\d+\.\d)\**\s+\(([+-]\d+\.\d)\s+to\s+([+-]\d+\.\d)", prose)
    assert len(quoted) > 25
    assert not {f"{mean} ({low} to {high})" for mean, low, high in quoted} - differences_of_kept_results()


def test_the_table_of_the_readme_is_that_of_the_claims() -> None:
    (spec,) = re.findall(r"<!-- table\n(metric: coco_ap\ndata:.*?)-->", (ROOT / "RESULTS.md").read_text(), re.DOTALL)
    readme = (ROOT / "README.md").read_text()
    for beginning, row in {
        "detect-F": "detect_f",
        "-pool/loc": "nopool_loc",
        "stride 8 for both": "stride8",
        "context/cls": "context_cls",
        "G-RCN": "grcn",
    }.items():
        claims = {"": {"difference": f"{row}{{}} - faster_rcnn{{}}", "verdict": ""}}
        line = claims_table(yaml.safe_load(spec) | {"claims": claims}, ROOT).splitlines()[-1]
        cells = [re.sub(r" \([^)]*\)", "", cell) for cell in line.split(" | ")[2:-1]]
        (shown,) = (line for line in readme.splitlines() if line.startswith(f"| {beginning}"))
        found = [re.sub(r" \([^)]*\)", "", cell) for cell in shown.strip("| ").split(" | ")[2:]]
        assert found == cells, shown


def test_the_hours_of_each_table_are_those_of_its_configs() -> None:
    page = (ROOT / "docs/reproducing.md").read_text()
    assert with_hours(page, ROOT / "configs") == page, "run: make generated"
    rows = [line.split(" | ") for line in page.splitlines() if "--data coco`" in line or "--data voc`" in line]
    # Table 1 by hand: 320,000 steps and 40,504 images of four rows of 226, 279, 279 and 262 GMAC, 26 and 25 ms at 226.
    total = (320_000 * 26 + 40_504 * 25) * (226 + 279 + 279 + 262) / 226 / 3.6e6
    assert rows[0][2] == f"{total:.0f} h" and rows[0][3] == f"{3 * total:.0f} h" and len(rows) >= 5
    # Twelve runs on eight GPUs: some take two of them.
    longest, shortest = (total * gmac / (226 + 279 + 279 + 262) for gmac in (279, 226))
    assert 2 * shortest - 1 < float(rows[0][4].removesuffix(" h")) < 2 * longest + 1


def test_a_table_shows_means_differences_and_what_is_missing(tmp_path: Path) -> None:
    """Worked out by hand: differences 2 and 4, mean 3, deviation 1.4, 95 % interval 3 ± 12.706."""
    for config, values in {"plain": (0.1, 0.2, 0.9), "split": (0.12, 0.24)}.items():
        (tmp_path / "r" / config).mkdir(parents=True)
        for seed, value in enumerate(values):
            path = tmp_path / "r" / config / f"seed{seed}.json"
            path.write_text(json.dumps({"metrics": {"coco_ap": value}}))
    spec = (
        "<!-- table\nresults: r\nseeds: [0, 1]\nover: plain\nrows: {plain: Plain, split: Split, other: Other}\n"
        "columns: {AP: coco_ap, each: coco_ap each, both: coco_ap beside, over: coco_ap over}\n-->\n"
    )
    assert with_tables(f"x\n{spec}old\n<!-- end of table -->\ny", tmp_path) == (
        f"x\n{spec}| | AP | each | both | over |\n|---|---|---|---|---|\n"
        "| Plain | 15.0 ± 7.1 | 10.0 / 20.0 | 15.0 ± 7.1 |  |\n"
        "| Split | 18.0 ± 8.5 | 12.0 / 24.0 | 18.0 ± 8.5 (+3.0 ± 1.4) | +3.0 (-9.7 to +15.7) |\n"
        "| Other | not run | not run | not run | not run |\n<!-- end of table -->\ny"
    )


def test_an_interval_over_images_is_kept_for_the_values_that_it_is_of(clone: Path) -> None:
    words = ("faster_rcnn_tiny.yaml", "detect_f_tiny.yaml", "--seeds", "0", "1", "--name", "mine")
    first = report(clone, *words)
    assert first.code == 0 and first.stdout.count("; –; 2)") == 4  # there are no detections to resample
    path = clone / "results/shapes/reports/mine.json"
    written = json.loads(path.read_text())
    written["rows"][1]["difference"]["AP"]["images"] = [1.0, 4.0]
    path.write_text(json.dumps(written))
    assert "; +1.0 to +4.0; 2)" in report(clone, *words).stdout
    written["rows"][1]["difference"]["AP"]["values"]["0"] += 1e-9
    path.write_text(json.dumps(written))
    assert "+1.0 to +4.0" not in report(clone, *words).stdout


def test_kept_results_are_read_though_a_folder_holds_another_run(clone: Path) -> None:
    config = clone / "runs/shapes/grcn_tiny/seed0/config.yaml"
    config.parent.mkdir(parents=True)
    settings = load_config(ROOT / "configs/shapes/grcn_tiny.yaml", ["train.steps=20"])
    config.write_text(dump_config(settings))
    done = report(clone, "grcn_tiny.yaml", "--seeds", 0)
    assert done.code == 0 and "results/shapes/grcn_tiny/seed0.json" in done.stdout
    missing = report(clone, "stride8_tiny.yaml", "--seeds", 7)
    assert missing.code == 0 and "not run" in missing.stdout


def test_a_report_names_the_command_of_its_own_study(clone: Path) -> None:
    """With --report-only that which ran the study, if it is the same one; else the one that was given."""
    (clone / "results/shapes/reports/comparison.json").unlink(missing_ok=True)
    first = report(clone, "faster_rcnn_tiny.yaml", "detect_f_tiny.yaml", "--seeds", 0, 1, "run.threads=1")
    assert "run.threads=1" in first.stdout
    again = report(clone, "faster_rcnn_tiny.yaml", "detect_f_tiny.yaml", "--seeds", 1, 0)
    assert "run.threads=1" in again.stdout
    other = report(clone, "faster_rcnn_tiny.yaml", "detect_f_tiny.yaml", "--seeds", 2)
    assert "run.threads=1" not in other.stdout and "--seeds 2" in other.stdout


@pytest.mark.parametrize(
    ("words", "damage", "code", "message"),
    [
        (["train.lr=0.05"], None, 2, "seed0.json: holds a result of other settings (its -> these); give the same"),
        ([], "{}", 3, "seed0.json: does not record its settings; remove it, or choose another --results"),
        ([], "[", 3, "seed0.json: damaged"),
    ],
)
def test_kept_results_of_something_else_are_refused(
    clone: Path, words: list[str], damage: str | None, code: int, message: str
) -> None:
    if damage is not None:
        (clone / "results/shapes/grcn_tiny/seed0.json").write_text(damage)
    programs.assert_contract(report(clone, "grcn_tiny.yaml", "--seeds", 0, *words), code, message)


def test_a_table_of_the_benchmark_shows_medians_with_their_range(tmp_path: Path) -> None:
    figures = {"cpu_ratios": {"ratio_to_floor": [1.1, 1.3, 1.0]}, "cpu_ms": {"step": [900, 1000, 1210]}}
    counts = {"counts": {"step": {"kernels": 443}}}
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed/plain.json").write_text(json.dumps(figures | counts))
    spec = (
        "<!-- table\nspeed: speed\nrows: {plain: Plain, other: Other}\ncolumns: {floor: cpu_ratios ratio_to_floor, "
        "base: cpu_ratios ratio_to_baseline, s: cpu_ms step, kernels: counts step kernels}\n-->\n"
    )
    assert with_tables(f"{spec}old\n<!-- end of table -->", tmp_path) == (
        f"{spec}| | floor | base | s | kernels |\n|---|---|---|---|---|\n"
        "| Plain | **1.10** (1.00–1.30) |  | 1.00 | 443 |\n"
        "| Other | not run | not run | not run | not run |\n<!-- end of table -->"
    )


def write_rows(folder: Path, rows: dict[str, list[float]]) -> None:
    for row, values in rows.items():
        (folder / "study" / row).mkdir(parents=True)
        for seed, value in enumerate(values):
            (folder / "study" / row / f"seed{seed}.json").write_text(json.dumps({"metrics": {"coco_ap": value / 100}}))


def test_verdicts_on_hypotheses_follow_the_rule_of_the_plan(tmp_path: Path) -> None:
    base = [50.0, 51.0, 49.0]
    added = {
        "better": [5.0, 5.1, 4.9],
        "worse": [-5.0, -5.1, -4.9],
        "equal": [0.1, -0.1, 0.0],
        "tiny": [0.2, 0.201, 0.199],  # certain, but below what the paper counts
        "noisy": [5.0, -1.0, 9.0],
    }
    rows = {name: [b + d for b, d in zip(base, values, strict=True)] for name, values in added.items()}
    write_rows(tmp_path, {"base": base, **rows, "once": [55.0]})
    hypotheses = {f"{name} helps": {"difference": f"{name} - base"} for name in [*rows, "once", "nothing"]}
    twice = {"one more than the other": {"difference": "(better - base) - (worse - base)", "paper": "+0.5"}}
    spec = {"results": "study", "metric": "coco_ap", "families": {"rows": hypotheses, "both": twice}}
    lines = verdict_table(spec, tmp_path).splitlines()[2:]
    assert [line.rpartition(" |")[0].rpartition("| ")[2] for line in lines] == [
        "shown", "contradicted", "not shown", "not shown", "undecided", "", "", "shown",
    ]  # fmt: skip
    assert "| +0.5 | **+10.0** (" in lines[-1] and lines[-1].startswith("| 8 |")


def test_what_was_planned_stands_below_what_is_judged(tmp_path: Path) -> None:
    write_rows(tmp_path, {"base": [50.0, 50.0, 50.0], "row": [51.0, 51.2, 50.9], "old": [50.5, 50.7, 50.4]})
    families = {"rows": {"helps": {"difference": "row - base", "planned": "old - base"}}}
    lines = verdict_table({"results": "study", "metric": "coco_ap", "families": families}, tmp_path).splitlines()[2:]
    assert lines[0].startswith("| 1 | rows: helps | – | **+1.0** (")
    assert lines[1] == "|  | … as planned |  | **+0.5** (+0.2 to +0.9) | 3 |  |  |" and len(lines) == 2


def test_a_hypothesis_without_results_counts_in_the_correction(tmp_path: Path) -> None:
    write_rows(tmp_path, {"base": [50.0, 50.0, 50.0], "row": [51.0, 51.2, 50.9]})
    one = {"helps": {"difference": "row - base"}}
    spec = {"results": "study", "metric": "coco_ap", "families": {"alone": one, "in company": {
        **one, **{f"unknown {k}": {"difference": "nothing - base"} for k in range(9)}}}}  # fmt: skip
    alone, company = verdict_table(spec, tmp_path).splitlines()[2:4]
    assert alone.endswith("| shown |") and company.endswith("| undecided |")


def test_a_claim_is_compared_on_each_data_set(tmp_path: Path) -> None:
    write_rows(tmp_path, {"base_a": [50.0, 51.0], "row_a": [52.0, 53.2], "base_b": [20.0, 30.0], "row_b": [19.0, 31.0]})
    data = {name: {"results": "study", "ending": name} for name in ("_a", "_b", "_c")}
    claims = {
        "row helps": {"difference": "row{} - base{}", "paper": "+1.0", "verdict": "on a"},
        "twice": {"difference": "(row{} - base{}) - (base{} - row{})", "verdict": "so too"},
    }
    lines = claims_table({"metric": "coco_ap", "data": data, "claims": claims}, tmp_path).splitlines()
    assert lines[0] == "| | the paper | _a | _b | _c | |"
    # By hand: 2.1 and 12.706 x 0.1414 / sqrt(2); 0 and 12.706 x 1.414 / sqrt(2).
    assert lines[2] == "| row helps | +1.0 | **+2.1** (+0.8 to +3.4) | +0.0 (-12.7 to +12.7) | not run | on a |"
    assert lines[3] == "| twice | – | **+4.2** (+1.7 to +6.7) | +0.0 (-25.4 to +25.4) | not run | so too |"


def test_errors_of_a_row_are_over_its_seeds(tmp_path: Path) -> None:
    files = [{"name": "a/seed0"}, {"name": "b/seed0"}, {"name": "a/seed1"}]
    compared = {"files": files, "figures": {"tide_loc": {"values": [0.02, 0.5, 0.04]}}}
    more = {"files": [{"name": "a/seed2"}], "figures": {"tide_loc": {"values": [0.06]}}}
    (tmp_path / "compare.json").write_text(json.dumps(compared))
    (tmp_path / "more.json").write_text(json.dumps(more))
    spec = {
        "compared": ["compare.json", "more.json"],
        "rows": {"a": "A", "b": "B", "c": "C"},
        "columns": {"bad box": "tide_loc"},
    }
    page = with_tables(f"<!-- table\n{yaml.safe_dump(spec)}-->\n<!-- end of table -->", tmp_path)
    assert "| A | 4.0 ± 2.0 |\n| B | 50.0 |\n| C | not run |\n" in page
