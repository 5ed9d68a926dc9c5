"""Trains a detector: grcn train --config shapes/grcn_tiny [key=value ...]

The last line on stdout is the metrics as JSON; everything else goes to stderr. Under torchrun, all processes run this.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from grcn import errors
from grcn.config.files import load_config_with_sources, print_config, set_in_vain
from grcn.engine.signals import StopSignals
from grcn.progress import start_logging

logger = logging.getLogger("grcn")

NEW_CLASSES = ("by-name", "fresh")


def main() -> None:
    """Reads the command line and trains."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, type=Path, help="YAML file, or a name of grcn configs, as voc/grcn_vgg16"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="run folder (default: runs/<folder of the config>/<config>/seed<k>)"
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue from the run folder's newest checkpoint, if any")
    start.add_argument("--resume-from", type=Path, metavar="FILE", help="continue from this checkpoint")
    parser.add_argument("--init", type=Path, metavar="FILE", help="weights of this checkpoint to start from at step 0")
    parser.add_argument(
        "--new-classes",
        choices=NEW_CLASSES,
        metavar="=fresh",
        help="with --init: the data have other classes. Those of the same name keep their rows, with =fresh none does "
        "(without a value: by-name)",
    )
    parser.add_argument("--allow-changes", action="store_true", help="resume under other settings")
    parser.add_argument(
        "--torchvision", action="store_true", help="train torchvision's FasterRCNN with the same parts, to compare"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="try the first and the largest batch, two test images and a checkpoint; leave nothing",
    )
    parser.add_argument("--print-config", action="store_true", help="print every setting and where it comes from")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings that replace those of the file; the repository's docs/config.md explains them all",
    )
    args = parser.parse_intermixed_args(_joined(sys.argv[1:]))
    start_logging()
    if args.resume_from and args.init:
        parser.error("argument --init: not allowed with argument --resume-from")
    if args.new_classes and not args.init:
        parser.error("argument --new-classes: only with argument --init")
    if args.torchvision and args.dry_run:
        parser.error("argument --torchvision: not allowed with argument --dry-run")
    if args.print_config:
        print(print_config(args.config, args.overrides), end="")
        return
    cfg, sources = load_config_with_sources(args.config, args.overrides)
    with StopSignals() as stop:
        from grcn.engine.distributed import is_main
        from grcn.run import train as run  # imports torch, for seconds
        from grcn.torchvision_baseline import check_torchvision

        if args.torchvision:
            check_torchvision(cfg.model)
        if in_vain := set_in_vain(cfg, sources, args.config):
            logger.warning("without effect here: %s", ", ".join(in_vain))
        if cfg.train.warmup >= cfg.train.steps and cfg.train.warmup_factor < 1:
            logger.warning(
                "train.lr is never reached (train.warmup is %d, train.steps %d)", cfg.train.warmup, cfg.train.steps
            )
        metrics = run.train(
            cfg,
            args.output_dir or run.default_folder(args.config, cfg, args.torchvision),
            resume=args.resume,
            resume_from=args.resume_from,
            init=args.init,
            new_classes=args.new_classes,
            allow_changes=args.allow_changes,
            dry_run=args.dry_run,
            torchvision=args.torchvision,
            stop=stop,
        )
    if is_main():
        print(json.dumps(metrics))


def _joined(words: list[str]) -> list[str]:
    """Gives --new-classes its value: the next word if that is one, or by-name; argparse would take a setting."""
    flag = "--new-classes"
    joined: list[str] = []
    for word in words:
        if word in NEW_CLASSES and joined[-1:] == [flag]:
            joined[-1] = f"{flag}={word}"
        else:
            joined.append(word)
    return [f"{flag}={NEW_CLASSES[0]}" if word == flag else word for word in joined]
