"""Evaluates a detector: grcn eval --config C --checkpoint W | --detections F | --initial

Detections are COCO result JSON or a folder of VOC devkit files. The last line on stdout is the metrics as JSON.
"""

import argparse
import json
from pathlib import Path

from grcn import errors
from grcn.config.files import load_config
from grcn.engine.signals import StopSignals
from grcn.progress import start_logging


def main() -> None:
    """Reads the command line and evaluates."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML file; its data section says what to test on")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="checkpoint, run folder or exported folder")
    source.add_argument("--detections", type=Path, help="COCO result JSON, or folder of comp4_det_<split>_<class>.txt")
    source.add_argument(
        "--initial",
        action="store_true",
        help="the detector that model.weights are of, such as COCO_V1, without training",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        help="where results go (default: <run>/eval/<checkpoint>-eval; with --initial runs/…/<config>/initial-eval)",
    )
    parser.add_argument("--allow-changes", action="store_true", help="evaluate under other settings of the model")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    args = parser.parse_intermixed_args()
    start_logging()
    cfg = load_config(args.config, args.overrides)
    with StopSignals() as stop:
        from grcn.engine.distributed import is_main
        from grcn.run import evaluate as scoring  # imports torch, for seconds
        from grcn.run.train import default_folder

        given = args.checkpoint or args.detections or default_folder(args.config, cfg).with_name("initial")
        metrics = scoring.evaluate(
            cfg,
            args.output_dir or scoring.folder_beside(given, "eval"),
            weights=args.checkpoint,
            detections=args.detections,
            initial=args.initial,
            allow_changes=args.allow_changes,
            stop=stop,
        )
    if is_main():
        print(json.dumps(metrics))
