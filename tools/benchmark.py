"""Tells what a model costs: python tools/benchmark.py --config configs/coco/grcn_resnet50.yaml [key=value ...]

A table of parameters and multiply-accumulates by part (--describe stops here), then the time of a training step and of
a detection with random weights: one image of random pixels, as large as the config's get, whatever train.batch says.
For a quick look, lower model.image.short and max, model.roi.batch and model.rpn.post_nms_test.
"""

import argparse
import json
from pathlib import Path

import torch

from grcn import errors
from grcn.benchmark.measure import measure
from grcn.build import usual_classes
from grcn.configfile import load_config
from grcn.describe import as_json, costs, image_size, table
from grcn.engine.distributed import process_group


def main() -> None:
    """Reads the command line, describes and measures."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML file, as configs/coco/grcn_resnet50.yaml")
    parser.add_argument("--describe", action="store_true", help="only describe the model, without running it")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the tables")
    parser.add_argument("--repeats", type=int, default=3, help="how many steps and detections to time (default: 3)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    args = parser.parse_intermixed_args()
    if args.repeats < 1:
        parser.error(f"--repeats must be at least 1 (got {args.repeats})")
    cfg = load_config(args.config, args.overrides)
    parts, strides = costs(cfg)
    found = as_json(parts, strides)
    if not args.describe:
        with process_group(cfg.run.device) as device:
            torch.set_num_threads(cfg.run.threads or torch.get_num_threads())
            found |= measure(cfg, device, args.repeats)
    if args.json:
        print(json.dumps(found))
        return
    height, width = image_size(cfg)
    classes = len(usual_classes(cfg.data))
    print(f"{args.config}: a detection in one image of {height}x{width}, {cfg.model.rpn.post_nms_test} RoIs, ", end="")
    print(f"{classes} classes (as data.classes says, or as the format usually has)")
    print(table(parts, strides))
    if not args.describe:
        print(f"\n{found['device']}, threads: {found['threads']}, amp: {found['amp']}, median of {args.repeats}")
        print(f"training step {found['step_ms']:.0f} ms, detection {found['infer_ms']:.0f} ms", end="")
        print(f" ({found['localized_rois']} RoIs localized), peak memory {found['peak_mb']:.0f} MB")


if __name__ == "__main__":
    errors.run(main)
