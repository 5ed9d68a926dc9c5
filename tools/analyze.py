"""Looks into a detector: python tools/analyze.py errors --config C --checkpoint W | --detections F [key=value ...]

errors: where average precision is lost, to classification or to localization.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from grcn import errors
from grcn.configfile import load_config
from grcn.engine.signals import StopSignals

ERRORS = """Where average precision is lost, to classification or to localization.

TIDE's six kinds of error and what each costs, AP at each IoU, how well score and IoU agree, AP with all classes or all
boxes set right, and which class is taken for which. Prints a table; writes errors.json and pictures.
"""


def main() -> None:
    """Reads the command line and runs the command."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    add_errors(commands)
    args, rest = parser.parse_known_args()
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.run(args, rest)


def add_errors(commands: Any) -> None:
    """Adds the command ``errors``."""
    parser = commands.add_parser(
        "errors",
        help="where average precision is lost",
        description=ERRORS,
        epilog="key=value: settings that replace those of the file, as eval.limit=100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_errors)
    parser.add_argument("--config", required=True, type=Path, help="YAML file; its data section says what to test on")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="checkpoint of tools/train.py")
    source.add_argument("--detections", type=Path, help="COCO result JSON, or folder of comp4_det_<split>_<class>.txt")
    parser.add_argument("--output-dir", type=Path, help="where results go (default: <run>/eval/<checkpoint>-errors)")
    parser.add_argument("--allow-changes", action="store_true", help="detect under other settings of the model")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="S",
        help="least score in the confusion matrix and in the worst images (default: 0.3)",
    )  # fmt: skip


def run_errors(args: argparse.Namespace, overrides: list[str]) -> None:
    """Does the command ``errors``."""
    if not math.isfinite(args.score_threshold):
        raise errors.ConfigError(f"--score-threshold must be a number (got {args.score_threshold}); see --help")
    cfg = load_config(args.config, overrides)
    given = args.checkpoint or args.detections
    beside = given.parent.parent / "eval" if given.parent.name == "checkpoints" else given.parent
    with StopSignals() as stop:
        from grcn.analysis.errors_report import errors_as_text, report_errors  # imports torch, for seconds
        from grcn.engine.distributed import is_main

        figures = report_errors(
            cfg,
            args.output_dir or beside / f"{given.stem}-errors",
            weights=args.checkpoint,
            detections=args.detections,
            allow_changes=args.allow_changes,
            score_threshold=args.score_threshold,
            stop=stop,
        )
    if is_main():
        print(json.dumps(figures) if args.json else errors_as_text(figures))


if __name__ == "__main__":
    errors.run(main)
