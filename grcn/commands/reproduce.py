"""Reproduces a table of the paper, or compares configs: grcn reproduce --table 1 2 3 --seeds 0 1 2 [k=v]

Runs missing trainings, continues interrupted ones, and writes paper | measured | difference as Markdown, CSV, JSON and
a picture. After an interruption the same command resumes. The table goes to stdout, everything else to stderr.
"""

import argparse
import logging
import os
import re
import shlex
import sys
from pathlib import Path

from grcn import errors
from grcn.config import shipped
from grcn.engine.signals import StopSignals
from grcn.progress import start_logging

TRAIN = [sys.executable, "-m", "grcn", "train"]
logger = logging.getLogger("grcn")


def parse(words: list[str]) -> argparse.Namespace:
    """Reads the command line; ``key=value`` may follow ``--seeds`` or ``--config``, which take several words."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", type=int, nargs="+", choices=range(1, 6), help="tables of the paper")
    what.add_argument("--config", type=Path, nargs="+", help="configs, all compared with the first")
    parser.add_argument("--torchvision", action="store_true", help="beside the first row, torchvision's FasterRCNN")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    parser.add_argument("--data", choices=["shapes", "voc", "coco"], help="of --table (default: shapes, built in)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the length of every schedule (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time on this machine (default: 1)")
    parser.add_argument(
        "--submit", choices=["slurm", "local"], help="submit the runs to SLURM by submitit, or try that here"
    )
    parser.add_argument(
        "--slurm", nargs="+", default=[], metavar="NAME:VALUE", help="as timeout_min:720 gpus_per_node:1"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing; read --results; missing cells say not run"
    )
    parser.add_argument("--draws", type=int, default=1000, help="resamples of the test images (default: 1000, 0: none)")
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="folder of all runs (default: runs/<data, or folder of the first config>, with --scale -x<scale>)",
    )
    parser.add_argument("--results", type=Path, help="folder that keeps results, which are not run again, and reports")
    parser.add_argument("--name", help="of the report's files (default: table<n>, tables, or comparison)")
    is_override = re.compile(r"(model|data|train|eval|run|paper)[.a-z0-9_]*=").match
    args = parser.parse_args([word for word in words if not is_override(word)])
    start_logging()
    args.overrides = [word for word in words if is_override(word)]
    for name, minimum in (("jobs", 1), ("draws", 0)):
        if getattr(args, name) < minimum:
            parser.error(f"argument --{name}: at least {minimum} (got {getattr(args, name)})")
    if not 0 < args.scale <= 100:
        parser.error(f"argument --scale: above 0, at most 100 (got {args.scale:g})")
    if args.data and args.config:
        parser.error("argument --data: goes with --table; configs say what they are trained on")
    if args.name is not None and (not args.name or args.name != Path(args.name).name):
        parser.error(f"argument --name: the beginning of a file's name, without a folder (got {args.name!r})")
    if args.results and args.results.exists() and not args.results.is_dir():
        parser.error(f"argument --results: not a folder (got {args.results})")
    if args.slurm and not args.submit:
        parser.error("argument --slurm: goes with --submit")
    args.slurm = dict(parameter(parser, word) for word in args.slurm)
    if min(args.seeds) < 0 or any(word.startswith("run.seed=") for word in args.overrides):
        parser.error("argument --seeds: takes the seeds of all runs, from 0; run.seed is set by it")
    return args


def parameter(parser: argparse.ArgumentParser, word: str) -> tuple[str, object]:
    """Reads ``name:value`` of --slurm; a value is a number where it looks like one."""
    name, colon, value = word.partition(":")
    if not (name and colon and value):
        parser.error(f"argument --slurm: expected name:value, such as timeout_min:720 (got {word!r})")
    return name, int(value) if value.isdecimal() else value


def command(args: argparse.Namespace, reports: Path, name: str) -> str:
    """Returns the command to name in a report: that of the earlier report, if both are of the same study."""
    from grcn.apps.reproduce.report import read_report

    facts = read_report(reports, name).get("facts")
    if args.report_only and facts and _study(parse(shlex.split(facts[0].strip("`"))[2:])) == _study(args):
        return facts[0].strip("`")
    return shlex.join(["grcn", "reproduce", *sys.argv[1:]])


def _study(args: argparse.Namespace) -> tuple[object, ...]:
    """Returns what decides the rows and runs of a report; leaves out settings that decide only how it is run."""
    from grcn.config.files import roles
    from grcn.config.types import HOW

    known = roles()
    settings = sorted(word for word in args.overrides if known.get(word.partition("=")[0]) != HOW)
    rows = args.table or [str(path) for path in args.config]
    return rows, sorted(set(args.seeds)), args.data, args.scale, args.torchvision, settings


def main() -> int:
    """Runs and reports; returns the exit code of the first run that failed, or 0."""
    args = parse(sys.argv[1:])
    from grcn.apps.reproduce import report, rows, runs, slurm

    if args.table:
        here = Path("configs")  # of a clone that is the current directory
        configs = here if (here / "paper_tables.yaml").is_file() else Path(os.path.relpath(shipped.folder()))
        data = args.data or "shapes"
        tables = {f"table{number}": rows.paper_table(configs, number, data) for number in args.table}
    else:
        tables, data = {"comparison": rows.config_table(args.config)}, args.config[0].resolve().parent.name
    if args.torchvision:
        tables = {name: table.with_torchvision() for name, table in tables.items()}
    folder = args.output_dir or Path("runs") / (data if args.scale == 1 else f"{data}-x{args.scale:g}")
    rows_of_all = [row for table in tables.values() for row in table.rows]
    planned = runs.plan(rows_of_all, args.seeds, folder, args.overrides, args.scale, args.results)
    missing = [run for run in planned if not run.is_done() and not run.is_kept()]
    steps = sum(run.settings.train.steps - run.steps_done() for run in missing)
    kept = sum(run.is_kept() and not run.is_done() for run in planned)
    read = f", {kept} kept in {args.results}" if kept else ""
    logger.info("%s: %d runs%s, %d to do, %d steps", folder, len(planned), read, len(missing), steps)
    failed = {}
    if args.submit and missing and not args.report_only:
        jobs = slurm.submit(missing, TRAIN, folder / "jobs", args.submit, args.slurm)
        logger.info(
            "submitted %s; when they are done, the same command with --report-only", [job.job_id for job in jobs]
        )
        return 0
    if missing and not args.report_only:
        with StopSignals() as stop:
            failed = runs.execute(missing, TRAIN, args.jobs, stop)
    report.keep(planned)
    metrics = dict.fromkeys(name for table in tables.values() for name in table.metrics)
    measured = report.measure(planned, list(metrics), args.draws)
    reports = (args.results or folder) / "reports"
    for name, table in tables.items():
        named = name if args.name is None else args.name + f"_{name}" * (len(tables) > 1)
        page = report.write(table, measured, reports, report.facts_of(planned, command(args, reports, named)), named)
        print(page, end="\n" if name != list(tables)[-1] else "")
        logger.info("the report is %s.md, with .csv, .json and .png beside it", reports / named)
    if len(tables) > 1:
        report.draw_together(tables.values(), measured, reports / f"{args.name or 'tables'}.png")
    for place, (_, words) in failed.items():
        logger.error("%s: %s", place, words)
    code = next((code for code, _ in failed.values()), 0)
    return code if code >= 0 else 1  # killed by a signal
