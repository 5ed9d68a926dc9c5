"""Trains Faster R-CNN and G-RCN on the built-in images and compares them: grcn demo [key=value ...]

Everything goes to a new folder, runs/demo. The last line on stdout is ``demo: `` and one line of JSON.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

from grcn import errors
from grcn.config.files import load_config
from grcn.fileio import next_free
from grcn.progress import start_logging

METHODS = {"faster_rcnn": "Faster R-CNN", "grcn": "G-RCN"}
# Quick to learn.
SETTINGS = ["data.level=flat", "data.train_images=2000", "train.steps=1000", "train.lr=0.06", "run.amp=auto"]
SHOWN = ("voc_area_ap50", "voc_area_ap70", "coco_ap")


def main() -> None:
    """Reads the command line, trains both detectors and prints a table."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, help="folder of both runs (default: runs/demo, or the next free)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the configs")
    args = parser.parse_intermixed_args()
    start_logging()
    from grcn.run import train as run  # imports torch, for seconds

    folder = args.output_dir or next_free(Path("runs/demo"))
    start = time.monotonic()
    measured = {}
    for method, name in METHODS.items():
        print(f"{name}: training on built-in images", file=sys.stderr)
        cfg = load_config(f"shapes/{method}_tiny", [*SETTINGS, *args.overrides])
        metrics = run.train(cfg, folder / method)
        measured[method] = {key: metrics[key] or 0.0 for key in SHOWN if key in metrics}
    print("Measured on built-in test images, one seed, percent\n")
    print("".join(f"{column:>16}" for column in ("", *measured["grcn"])))
    for method, name in METHODS.items():
        print(f"{name:>16}" + "".join(f"{100 * value:16.1f}" for value in measured[method].values()))
    print("\nPictures of detections beside ground truth:")
    for picture in sorted(folder.glob("*/eval/step_*/detections.png")):
        print(f"  {picture}")
    print("\nEach run on one page:")
    for method in METHODS:
        print(f"  {folder / method / 'report.html'}")
    checkpoint = max((folder / "grcn/checkpoints").glob("step_*.pt"))
    print("\nNext, with pictures of your own in place of photos/:")
    print(f"  grcn predict --checkpoint {shlex.quote(str(checkpoint))} photos/\n")
    found = {method: {key: round(value, 4) for key, value in metrics.items()} for method, metrics in measured.items()}
    print("demo:", json.dumps({**found, "seconds": round(time.monotonic() - start, 1)}))
