"""Downloads, verifies and unpacks a data set: python tools/prepare_data.py voc --root data/VOCdevkit

Started again after an interruption it goes on; what is finished costs nothing. Prints the images and objects of each
split beside the published numbers.
"""

import argparse
from pathlib import Path

from grcn import errors
from grcn.apps.prepare_data.prepare import prepare, tabulate
from grcn.apps.prepare_data.published import DATA_SETS
from grcn.engine.signals import StopSignals
from grcn.progress import start_logging


def main() -> None:
    """Reads the command line and prepares the data set."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_set", choices=DATA_SETS, help="voc: VOC2007 and VOC2012; coco2014: train2014 and val2014")
    parser.add_argument("--root", required=True, type=Path, metavar="FOLDER", help="where it goes, later data.root")
    parser.add_argument(
        "--archive", nargs="+", action="extend", default=[], type=Path, metavar="FILE",
        help="archives at hand, under their published names; these are not downloaded, and left where they are",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", nargs="+", action="extend", default=[], metavar="URL",
        help="folders on the web that have the archives, tried in order, instead of the publisher's",
    )  # fmt: skip
    parser.add_argument("--keep-archives", action="store_true", help="keep what was downloaded, in <root>/.prepared")
    args = parser.parse_args()
    start_logging()
    for url in args.mirror:
        if not url.startswith(("http://", "https://")):
            parser.error(f"argument --mirror: no address with http:// or https:// (got {url!r})")
    with StopSignals() as stop:
        counts = prepare(
            DATA_SETS[args.data_set],
            args.root,
            archives=args.archive,
            mirrors=args.mirror,
            keep=args.keep_archives,
            stop=stop,
        )
    print(tabulate(counts))


if __name__ == "__main__":
    errors.main(main)
