"""Draws the inputs of training steps: grcn browse --config C [--checkpoint W] [key=value ...]

Each image up to three times, side by side: as the network sees it, with ground truth; with the anchors; and with the
RoIs in the losses of a training step. Their figures go to stdout. The repository's
docs/data.md explains how to read the picture.
"""

import argparse
from pathlib import Path

from grcn import errors
from grcn.config.files import load_config
from grcn.progress import start_logging


def main() -> None:
    """Reads the command line and draws."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML file")
    parser.add_argument("--output", type=Path, default=Path("contact_sheet.png"), help="picture to write, PNG or JPEG")
    parser.add_argument("--images", type=int, default=8, help="number of images (default: 8)")
    parser.add_argument("--show", nargs="+", metavar="WHAT", help="inputs, anchors, rois (default: all three)")
    parser.add_argument("--checkpoint", type=Path, help="source of the proposals (default: an untrained network)")
    parser.add_argument("--step", type=int, help="first training step to show (default: the next, or 1)")
    parser.add_argument("--allow-changes", action="store_true", help="continue under other settings of the model")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    args = parser.parse_intermixed_args()
    start_logging()
    words = args.show or []  # it also takes the settings that follow it
    cfg = load_config(args.config, [*args.overrides, *(word for word in words if "=" in word)])
    from grcn.apps.browse.browse import MOST_IMAGES, browse  # imports torch, for seconds
    from grcn.apps.browse.sheet import PANELS

    names = {word for word in words if "=" not in word} or set(PANELS)
    if unknown := sorted(names.difference(PANELS)):
        parser.error(f"argument --show: choose from {', '.join(PANELS)} (got {unknown[0]!r})")
    if not 1 <= args.images <= MOST_IMAGES:
        parser.error(f"argument --images: 1 to {MOST_IMAGES} (got {args.images})")
    if args.step is not None and args.step < 1:
        parser.error(f"argument --step: counted from 1 (got {args.step})")
    panels = [panel for panel in PANELS if panel in names]
    found = browse(
        cfg, args.output, images=args.images, panels=panels, weights=args.checkpoint, step=args.step,
        allow_changes=args.allow_changes,
    )  # fmt: skip
    print(found)
