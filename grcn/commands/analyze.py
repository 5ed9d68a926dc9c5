"""Looks into a detector: grcn analyze errors --config C --checkpoint W | --detections F [key=value ...]

errors: where average precision is lost, to classification or to localization.
gradients: where the losses of the two tasks disagree on the layers that they share, over training.
context: how much the context attention adds, where it looks, and whether that differs between RoIs and images.
compare: detections of any detectors by the same figures, with intervals of their differences.
runs: the same for finished runs.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grcn import errors
from grcn.config.files import load_config
from grcn.engine.signals import StopSignals
from grcn.fileio import next_free
from grcn.progress import start_logging

ERRORS = """Reports where average precision is lost, to classification or to localization.

TIDE's six kinds of error and the cost of each, AP at each IoU, how well score and IoU agree, AP with all classes or all
boxes corrected, and which class is confused with which. Prints a table; writes errors.json and pictures.
"""


def main() -> None:
    """Reads the command line and runs the command."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    add_errors(commands)
    add_gradients(commands)
    add_context(commands)
    add_compare(commands)
    add_runs(commands)
    # Settings may come between the flags; a parser with subcommands does not accept them as arguments.
    args, rest = parser.parse_known_args()
    start_logging()
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.analyze(args, rest)


def add_errors(commands: Any) -> None:
    """Adds the command ``errors``."""
    parser = commands.add_parser(
        "errors",
        help="where average precision is lost",
        description=ERRORS,
        epilog="key=value: settings that replace those of the file, as eval.limit=100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(analyze=run_errors)
    parser.add_argument("--config", required=True, type=Path, help="YAML file; its data section says what to test on")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="checkpoint, run folder or exported folder")
    source.add_argument("--detections", type=Path, help="COCO result JSON, or folder of comp4_det_<split>_<class>.txt")
    parser.add_argument("--output-dir", type=Path, help="where results go (default: <run>/eval/<checkpoint>-errors)")
    parser.add_argument("--allow-changes", action="store_true", help="detect under other settings of the model")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="S",
        help="minimum score in the confusion matrix and in the worst images (default: 0.3)",
    )  # fmt: skip


def run_errors(args: argparse.Namespace, overrides: list[str]) -> None:
    """Does the command ``errors``."""
    if not math.isfinite(args.score_threshold):
        raise errors.ConfigError(f"--score-threshold must be a number (got {args.score_threshold}); see --help")
    cfg = load_config(args.config, overrides)
    with StopSignals() as stop:
        from grcn.apps.analyze.ap_loss_report import errors_as_text, report_errors
        from grcn.engine.distributed import is_main
        from grcn.run.evaluate import folder_beside  # imports torch, for seconds

        figures = report_errors(
            cfg,
            args.output_dir or folder_beside(args.checkpoint or args.detections, "errors"),
            weights=args.checkpoint,
            detections=args.detections,
            allow_changes=args.allow_changes,
            score_threshold=args.score_threshold,
            stop=stop,
        )
    if is_main():
        print(json.dumps(figures) if args.json else errors_as_text(figures))


def add_gradients(commands: Any) -> None:
    """Adds the command ``gradients``."""
    parser = commands.add_parser(
        "gradients", usage="%(prog)s (--config C | --run FOLDER) [options] [key=value ...]",
        help="cosine between the tasks' gradients in each layer, over training",
        description="Compares the gradients of classification and localization in each layer, at the start and at each "
        "checkpoint of a run; prints those of the last and writes gradients.json and gradients.png. key=value replaces "
        "a setting of the config.",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="YAML file to train first; an existing run is continued")
    source.add_argument("--run", type=Path, metavar="FOLDER", help="folder of a run of grcn train")
    parser.add_argument("--images", type=int, default=64, help="training images to compare on (default: 64)")
    parser.add_argument("--points", type=int, help="with --config: checkpoints over the training (default: 8)")
    parser.add_argument(
        "--output-dir", type=Path,
        help="with --config the run's folder (default: runs/gradients/<data>/<config>/seed<k>); with --run where "
        "results go (default: the run's folder)",
    )  # fmt: skip
    parser.add_argument("--allow-changes", action="store_true", help="accept other settings than the checkpoints'")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    parser.set_defaults(analyze=run_gradients, parser=parser)


def run_gradients(args: argparse.Namespace, overrides: list[str]) -> None:
    """Does the command ``gradients``."""
    if args.run and args.points is not None:
        args.parser.error("--points goes with --config only")
    points = None if args.run else 8 if args.points is None else args.points
    for name, value in (("images", args.images), ("points", points)):
        if value is not None and value < 1:
            args.parser.error(f"--{name} must be at least 1 (got {value})")
    cfg = load_config(args.config or _config_of(args.run), overrides)
    with StopSignals() as stop:
        from grcn.apps.analyze import gradients_over_training as training  # imports torch, for seconds

        folder = args.run or args.output_dir
        if folder is None:
            place = args.config.resolve()
            folder = Path("runs/gradients") / place.parent.name / place.stem / f"seed{cfg.run.seed}"
        found = training.gradients_over_training(
            cfg, folder, args.output_dir or folder, images=args.images, points=points,
            allow_changes=args.allow_changes, stop=stop,
        )  # fmt: skip
    print(json.dumps(found) if args.json else training.as_text(found))


def _config_of(run: Path) -> Path:
    """Returns the config of a run's folder; it must exist."""
    if not (run / "config.yaml").is_file():
        raise errors.ConfigError(f"{run}: no config.yaml in it; pass the folder of a run of grcn train")
    return run / "config.yaml"


def add_context(commands: Any) -> None:
    """Adds the command ``context``."""
    parser = commands.add_parser(
        "context", usage="%(prog)s --config C [--checkpoint W] [options] [key=value ...]",
        help="how much the context attention adds, and where it looks",
        description="Measures the context attention over images of the test splits: the size of the context relative "
        "to the features of a RoI, how even the attention is, and how much the context differs between the RoIs of an "
        "image and between images. Prints a table; writes context.json and context.png. key=value replaces a setting "
        "of the config.",
    )  # fmt: skip
    parser.set_defaults(analyze=run_context, parser=parser)
    parser.add_argument("--config", required=True, type=Path, help="YAML file; a model with context")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint (default: the weights that training starts from)")
    parser.add_argument("--images", type=int, default=32, help="test images to measure on (default: 32)")
    parser.add_argument(
        "--output-dir", type=Path,
        help="where results go (default: <run>/eval/<checkpoint>-context, or runs/<data>/<config>/context)",
    )  # fmt: skip
    parser.add_argument("--allow-changes", action="store_true", help="continue under other settings of the model")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")


def run_context(args: argparse.Namespace, overrides: list[str]) -> None:
    """Does the command ``context``."""
    if args.images < 1:
        args.parser.error(f"--images must be at least 1 (got {args.images})")
    cfg = load_config(args.config, overrides)
    place = args.config.resolve()
    folder = args.output_dir or Path("runs") / place.parent.name / place.stem / "context"
    with StopSignals() as stop:
        from grcn.apps.analyze.context_report import as_text, report_context
        from grcn.run.evaluate import folder_beside  # imports torch, for seconds

        if args.checkpoint and not args.output_dir:
            folder = folder_beside(args.checkpoint, "context")
        found = report_context(
            cfg, folder, weights=args.checkpoint, images=args.images, allow_changes=args.allow_changes, stop=stop
        )
    print(json.dumps(found) if args.json else as_text(found))


def add_compare(commands: Any) -> None:
    """Adds the command ``compare``."""
    parser = commands.add_parser(
        "compare", usage="%(prog)s FILE [FILE ...] --config C [options] [key=value ...]",
        help="compare detections of any detectors by the same figures",
        description="Compares files of detections, of whatever detectors, in the test images of a config: AP, TIDE's "
        "errors, AP with oracles, score-IoU correlation, oLRP and calibration, with paired bootstrap intervals of the "
        "differences to the first file. Prints a table; writes compare.json, compare.md and compare.png. key=value "
        "replaces a setting of the config.",
    )  # fmt: skip
    parser.set_defaults(analyze=run_compare, parser=parser)
    parser.add_argument("files", nargs="+", metavar="FILE", help="COCO result JSON, or folder of devkit files")
    parser.add_argument(
        "--config", "--data", required=True, type=Path, help="YAML file; its data section says what to test on"
    )
    _add_comparison(parser)


def run_compare(args: argparse.Namespace, overrides: list[str]) -> None:
    """Does the command ``compare``."""
    files, settings = _split_settings(args, [*args.files, *overrides])
    cfg = load_config(args.config, settings)
    _compare(args, lambda report, **options: report.report_files(cfg, files, **options))


def add_runs(commands: Any) -> None:
    """Adds the command ``runs``."""
    parser = commands.add_parser(
        "runs", usage="%(prog)s RUN [RUN ...] [options] [key=value ...]",
        help="the same for finished runs",
        description="Compares the newest evaluations of runs with the same test data, as compare does for files. "
        "key=value replaces a setting of all their configs, as eval.limit=100.",
    )  # fmt: skip
    parser.set_defaults(analyze=run_runs, parser=parser)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run of grcn train")
    _add_comparison(parser)


def run_runs(args: argparse.Namespace, overrides: list[str]) -> None:
    """Does the command ``runs``."""
    runs, settings = _split_settings(args, [*args.runs, *overrides])
    for run in runs:
        _config_of(run)
    _compare(args, lambda report, **options: report.report_runs(runs, settings, **options))


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--names", nargs="+", metavar="NAME", help="name of each in the table and picture")
    parser.add_argument("--draws", type=int, default=1000, help="resamples of the images (default: 1000, 0: none)")
    parser.add_argument("--output-dir", type=Path, help="where results go (default: runs/compare, or the next free)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")


def _split_settings(args: argparse.Namespace, words: list[str]) -> tuple[list[Path], list[str]]:
    """Separates paths and names from the settings among them."""
    settings = [word for word in [*words, *(args.names or [])] if "=" in word and not Path(word).exists()]
    if args.names is not None:
        args.names = [name for name in args.names if name not in settings]
    return [Path(word) for word in words if word not in settings], settings


def _compare(args: argparse.Namespace, compare: Callable[..., dict[str, Any]]) -> None:
    if args.draws < 0:
        args.parser.error(f"--draws must be at least 0 (got {args.draws})")
    with StopSignals() as stop:
        from grcn.apps.analyze import compare_report as report  # imports torch, for seconds

        folder = args.output_dir or next_free(Path("runs/compare"))
        found = compare(report, folder=folder, names=args.names, draws=args.draws, stop=stop)
    print(json.dumps(found) if args.json else report.as_text(found))
