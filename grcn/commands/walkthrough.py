"""Walks one picture through a detector: grcn walkthrough [--checkpoint W] [--image FILE] [--output FILE]

Explains each step of the paper with actual shapes, on stdout, and draws all of them as one picture of numbered panels.
The code of the steps is meant to be read: grcn/apps/walkthrough/walkthrough.py. Without --checkpoint the detector is
G-RCN tiny with random weights, without --image the picture is a built-in one.
"""

import argparse
from pathlib import Path

from grcn import errors
from grcn.progress import start_logging

CONFIG = "shapes/grcn_tiny"
ROW = 30  # of the built-in test images


def main() -> None:
    """Reads the command line, walks, explains and draws."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="W", help="checkpoint of grcn train, of any model")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a photo or drawing")
    parser.add_argument(
        "--output", type=Path, default=Path("walkthrough.png"), metavar="FILE", help="picture to write, PNG or JPEG"
    )
    args = parser.parse_args()
    start_logging()

    import torch  # seconds

    import grcn
    from grcn.apps.walkthrough.picture import draw
    from grcn.apps.walkthrough.walkthrough import as_text, walk
    from grcn.build import build_test_split, usual_classes
    from grcn.run.predict import Predictor
    from grcn.vis.image_file import check_output, write_picture

    check_output(args.output)
    cfg = grcn.load_config(CONFIG)
    if args.checkpoint:
        detector = grcn.load(args.checkpoint, device="cpu")
    else:
        classes = usual_classes(cfg.data)
        detector = Predictor(grcn.build_model(cfg.model, len(classes) + 1), classes, torch.device("cpu"))
    picture = detector.read(args.image) if args.image else build_test_split(cfg.data, None).read_image(ROW)

    walked = walk(detector.model, picture)
    print(as_text(walked, detector.classes))
    write_picture(draw(walked, detector.classes), args.output)
    print(f"\nThe picture: {args.output}")
