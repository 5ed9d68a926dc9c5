"""Measures the cost of a model: grcn benchmark --config coco/grcn_resnet50 [key=value ...]

Prints a table of parameters and multiply-accumulates by part (--describe stops here). Then times, in turn, with random
weights, on random images of the config's largest size: training steps and detections, their arithmetic floor (the same
convolutions, matrix products and attention alone) and torchvision's Faster R-CNN with the same network, head, anchors
and RoIs. Also counts the kernels and synchronizations of a step, and times the loading of images and the scoring of
detections. For a quick look, lower model.image.short and max, model.roi.batch and model.rpn.post_nms_test.

--gpu-suite OUT measures a GPU instead, for --minutes: the tests marked cuda, then every family of models in every
precision, eager and compiled, beside torchvision's; the most valuable first.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from grcn import errors
from grcn.config.files import load_config
from grcn.progress import start_logging

SCORED_IMAGES = 500


def main() -> None:
    """Reads the command line, describes and measures."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, help="YAML file, or a name of grcn configs, as coco/grcn_resnet50")
    what.add_argument("--gpu-suite", type=Path, metavar="OUT", help="folder that gets suite.json and suite.md")
    parser.add_argument("--describe", action="store_true", help="only describe the model, without running it")
    parser.add_argument(
        "--scaling", type=Path, metavar="FILE.png",
        help="instead of comparing, time the model with more images, pixels, objects and classes, and plot it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the tables")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of steps and detections to time (default: 5)")
    parser.add_argument("--batch", type=int, default=1, help="images of a step and of a detection (default: 1)")
    parser.add_argument("--minutes", type=float, help="--gpu-suite takes no longer than this (default: 7.5)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    args = parser.parse_intermixed_args()
    start_logging()
    for name, minimum in (("repeats", 1), ("batch", 1), ("minutes", 0)):
        if (given := getattr(args, name)) is not None and given < minimum:
            parser.error(f"--{name} must be at least {minimum} (got {given})")
    if args.minutes is not None and not args.gpu_suite:
        parser.error("--minutes goes with --gpu-suite only")
    if args.gpu_suite and (args.describe or args.scaling or args.batch != 1):
        parser.error("--gpu-suite goes with none of --describe, --scaling and --batch")
    if args.scaling:
        if args.describe or args.batch != 1:
            parser.error("--scaling goes with neither --describe nor --batch")
        if args.scaling.suffix not in (".png", ".pdf", ".svg") or not args.scaling.absolute().parent.is_dir():
            parser.error(f"--scaling must be a .png, .pdf or .svg in a folder that exists (got {args.scaling})")
    found, shown = _suite(args) if args.gpu_suite else _one(args)
    print(json.dumps(found) if args.json else "\n\n".join(shown))


Result = tuple[dict[str, Any], list[str]]  # figures, and texts to print


def _suite(args: argparse.Namespace) -> Result:
    """Measures everything on one device."""
    from grcn.apps.benchmark.suite import cases, run_suite  # imports torch, for seconds
    from grcn.apps.benchmark.text import suite_as_markdown
    from grcn.engine.distributed import local_device

    device = local_device(setting := next(cases()).config(args.overrides).run.device)
    if device.type == "cpu" and setting == "auto":
        raise errors.EnvironmentFault("--gpu-suite: torch sees no GPU; run.device=cpu tries it on the CPU, for hours")
    minutes = 7.5 if args.minutes is None else args.minutes
    found = run_suite(args.gpu_suite, device, args.overrides, 60 * minutes, args.repeats)
    return found, [suite_as_markdown(found)]


def _one(args: argparse.Namespace) -> Result:
    """Describes a model, and measures it."""
    from grcn.apps.benchmark.data import evaluation_seconds, loader_rate  # imports torch, for seconds
    from grcn.apps.benchmark.describe import as_json, costs
    from grcn.apps.benchmark.measure import measure
    from grcn.apps.benchmark.scaling import measure_scaling
    from grcn.apps.benchmark.text import costs_as_text, scaling_as_text, times_as_text
    from grcn.engine.distributed import process_group
    from grcn.run.backend import prepare, with_precision
    from grcn.vis.curves import scaling_curves

    if args.scaling:
        scaling_curves({}, args.scaling)  # without matplotlib, or on a full disk, before minutes are spent
    cfg = load_config(args.config, args.overrides)
    parts, strides = costs(cfg)
    found = as_json(parts, strides)
    shown = [costs_as_text(args.config, cfg, parts, strides)]
    if args.describe:
        return found, shown
    with process_group(cfg.run.device) as device:
        prepare(cfg, device)
        cfg = with_precision(cfg, device)
        if args.scaling:
            found["scaling"] = scaling = measure_scaling(cfg, device, args.repeats)
            scaling_curves(scaling, args.scaling, f"{args.config} (grey: in proportion)")
            return found, [*shown, scaling_as_text(scaling)]
        found |= measure(cfg, device, args.repeats, args.batch) | loader_rate(cfg)
        found["evaluation"] = {"images": SCORED_IMAGES} | evaluation_seconds(SCORED_IMAGES)
        return found, [*shown, times_as_text(found)]
