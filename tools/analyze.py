"""Shows what a detector has learnt: python tools/analyze.py gradients --config C | --run FOLDER [key=value ...]

gradients: where the losses of classification and localization pull the layers that they share in other directions.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from grcn import errors
from grcn.configfile import load_config
from grcn.engine.signals import StopSignals


def main() -> None:
    """Reads the command line and runs the command."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    add_gradients(commands)
    # Settings may stand between the flags, which a parser with commands of its own does not take as arguments.
    args, rest = parser.parse_known_args()
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.analyze(args, rest)


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
    source.add_argument("--config", type=Path, help="YAML file to train first; a run that is there is continued")
    source.add_argument("--run", type=Path, metavar="FOLDER", help="folder of a run of tools/train.py")
    parser.add_argument("--images", type=int, default=64, help="training images to compare on (default: 64)")
    parser.add_argument("--points", type=int, help="with --config: checkpoints over the training (default: 8)")
    parser.add_argument(
        "--output-dir", type=Path,
        help="with --config the run's folder (default: runs/gradients/<data>/<config>/seed<k>); with --run where "
        "results go (default: the run's folder)",
    )  # fmt: skip
    parser.add_argument("--allow-changes", action="store_true", help="go on under other settings than the checkpoints'")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    parser.set_defaults(analyze=gradients, parser=parser)


def gradients(args: argparse.Namespace, overrides: list[str]) -> None:
    """Compares the tasks' gradients."""
    if args.run and args.points is not None:
        args.parser.error("--points goes with --config only")
    points = None if args.run else 8 if args.points is None else args.points
    for name, value in (("images", args.images), ("points", points)):
        if value is not None and value < 1:
            args.parser.error(f"--{name} must be at least 1 (got {value})")
    cfg = load_config(args.config or args.run / "config.yaml", overrides)
    with StopSignals() as stop:
        from grcn.analysis import training  # imports torch, for seconds

        folder = args.run or args.output_dir
        if folder is None:
            place = args.config.resolve()
            folder = Path("runs/gradients") / place.parent.name / place.stem / f"seed{cfg.run.seed}"
        found = training.gradients_over_training(
            cfg, folder, args.output_dir or folder, images=args.images, points=points,
            allow_changes=args.allow_changes, stop=stop,
        )  # fmt: skip
    print(json.dumps(found) if args.json else training.as_text(found))


if __name__ == "__main__":
    errors.run(main)
