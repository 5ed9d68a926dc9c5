"""Prepares data: downloads a published data set, or splits one of your own.

grcn prepare-data voc --root data/VOCdevkit
grcn prepare-data split --root data/mine --test 0.2
"""

import argparse
import sys
from collections.abc import Container
from pathlib import Path

from grcn import errors
from grcn.apps.prepare_data.prepare import prepare, tabulate
from grcn.apps.prepare_data.published import DATA_SETS
from grcn.apps.prepare_data.split import FORMATS, split
from grcn.engine.signals import StopSignals
from grcn.progress import start_logging

_ABOUT = {"voc": "VOC2007 and VOC2012", "coco2014": "train2014 and val2014 of COCO"}
_DOWNLOAD = """Downloads, verifies and unpacks {}.

After an interruption the same command resumes; finished parts are not repeated. Prints the images and objects of each
split beside the published numbers."""
_SPLIT = """Splits a folder without a split: writes lists of its images, and moves and copies nothing.

VOC: Annotations/ and JPEGImages/; YOLO: images/ and labels/; COCO: a JSON file, or a folder with one. The split is
random, by the seed and the names of the files. Prints the settings to train with."""


def main() -> None:
    """Reads the command line and prepares the data set."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = errors.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in DATA_SETS:
        about = _ABOUT[name]
        _add_download(commands.add_parser(name, help=about, description=_DOWNLOAD.format(about), formatter_class=raw))
    _add_split(commands.add_parser("split", help="split your own data", description=_SPLIT, formatter_class=raw))
    args = parser.parse_args(command_first(sys.argv[1:], commands.choices))
    start_logging()
    if args.command == "split":
        shares = {"test": args.test} | ({} if args.val is None else {"val": args.val})
        print(split(args.root, shares, args.seed, args.format))
        return
    for url in args.mirror:
        if not url.startswith(("http://", "https://")):
            parser.error(f"argument --mirror: no address with http:// or https:// (got {url!r})")
    with StopSignals() as stop:
        counts = prepare(
            DATA_SETS[args.command],
            args.root,
            archives=args.archive,
            mirrors=args.mirror,
            keep=args.keep_archives,
            stop=stop,
        )
    print(tabulate(counts))


def command_first(words: list[str], commands: Container[str]) -> list[str]:
    """Moves the command before its flags; argparse accepts flags only after it."""
    if words and words[0].startswith("--"):
        for place in range(1, len(words)):
            if words[place] in commands and not words[place - 1].startswith("--"):  # no value of a flag
                return [words[place], *words[:place], *words[place + 1 :]]
    return words


def _add_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, type=Path, metavar="FOLDER", help="where it goes, later data.root")
    parser.add_argument(
        "--archive", nargs="+", action="extend", default=[], type=Path, metavar="FILE",
        help="local archives, under their published names; these are not downloaded, and stay where they are",
    )  # fmt: skip
    parser.add_argument(
        "--mirror", nargs="+", action="extend", default=[], metavar="URL",
        help="folders on the web that have the archives, tried in order, instead of the publisher's",
    )  # fmt: skip
    parser.add_argument("--keep-archives", action="store_true", help="keep downloaded archives, in <root>/.prepared")


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", required=True, type=Path, metavar="FOLDER", help="folder of the data, or a JSON file")
    parser.add_argument("--test", required=True, type=float, metavar="SHARE", help="of the images to test on, as 0.2")
    parser.add_argument("--val", type=float, metavar="SHARE", help="of the images to choose settings by")
    parser.add_argument("--seed", type=int, default=0, help="another one makes another split (default: 0)")
    parser.add_argument("--format", choices=FORMATS, help="layout of the data (default: detected)")
