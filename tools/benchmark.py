"""Tells what a model costs: python tools/benchmark.py --config configs/coco/grcn_resnet50.yaml [key=value ...]

A table of parameters and multiply-accumulates by part (--describe stops here). Then, all in turn with random weights on
made-up images as large as the config's get: training steps and detections, their arithmetic floor (the same
convolutions, matrix products and attention alone) and torchvision's Faster R-CNN with the same network, head, anchors
and RoIs; what a step asks of a GPU; and the loading of images and the scoring of detections. For a quick look, lower
model.image.short and max, model.roi.batch and model.rpn.post_nms_test.
"""

import argparse
import json
from pathlib import Path

from grcn import errors
from grcn.config.files import load_config
from grcn.progress import start_logging

SCORED_IMAGES = 500


def main() -> None:
    """Reads the command line, describes and measures."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML file, as configs/coco/grcn_resnet50.yaml")
    parser.add_argument("--describe", action="store_true", help="only describe the model, without running it")
    parser.add_argument(
        "--scaling", type=Path, metavar="FILE.png",
        help="instead of comparing, time the model with more images, pixels, objects and classes, and plot it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the tables")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of steps and detections to time (default: 5)")
    parser.add_argument("--batch", type=int, default=1, help="images of a step and of a detection (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    args = parser.parse_intermixed_args()
    start_logging()
    for name in ("repeats", "batch"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1 (got {getattr(args, name)})")
    # Imports torch, for seconds.
    from grcn.apps.benchmark.data import evaluation_seconds, loader_rate
    from grcn.apps.benchmark.describe import as_json, costs
    from grcn.apps.benchmark.measure import measure
    from grcn.apps.benchmark.scaling import measure_scaling
    from grcn.apps.benchmark.text import costs_as_text, scaling_as_text, times_as_text
    from grcn.engine.distributed import process_group
    from grcn.run.backend import prepare, with_precision
    from grcn.vis.curves import scaling_curves

    if args.scaling:
        if args.describe or args.batch != 1:
            parser.error("--scaling goes with neither --describe nor --batch")
        if args.scaling.suffix not in (".png", ".pdf", ".svg") or not args.scaling.absolute().parent.is_dir():
            parser.error(f"--scaling must be a .png, .pdf or .svg in a folder that exists (got {args.scaling})")
        scaling_curves({}, args.scaling)  # without matplotlib, or on a full disk, before minutes are spent
    cfg = load_config(args.config, args.overrides)
    parts, strides = costs(cfg)
    found = as_json(parts, strides)
    shown = [costs_as_text(args.config, cfg, parts, strides)]
    if not args.describe:
        with process_group(cfg.run.device) as device:
            prepare(cfg, device)
            cfg = with_precision(cfg, device)
            if args.scaling:
                found["scaling"] = scaling = measure_scaling(cfg, device, args.repeats)
                scaling_curves(scaling, args.scaling, f"{args.config} (grey: in proportion)")
                shown.append(scaling_as_text(scaling))
            else:
                found |= measure(cfg, device, args.repeats, args.batch)
                found |= loader_rate(cfg) | {
                    "evaluation": {"images": SCORED_IMAGES} | evaluation_seconds(SCORED_IMAGES)
                }
                shown.append(times_as_text(found))
    print(json.dumps(found) if args.json else "\n\n".join(shown))


if __name__ == "__main__":
    errors.main(main)
