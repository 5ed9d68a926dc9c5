"""Lists the configs that come with grcn: grcn configs [WORD ...], or copies one to edit it: grcn configs copy NAME DIR

For each config the list gives its rows in the paper's tables, or its purpose; its parameters in millions; the strides
of the classification and the localization map; and 10^9 multiply-accumulates of a detection. With words, only configs
that contain all of them are listed. A copy comes with its base files, so that all of it can be edited.
"""

import argparse
import json
import sys
from pathlib import Path

from grcn import errors
from grcn.config import shipped


def main() -> None:
    """Reads the command line and lists or copies."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    if sys.argv[1:2] == ["copy"]:
        parser.add_argument("copy")
        parser.add_argument("name", metavar="NAME", help="of the list, as shapes/grcn_tiny")
        parser.add_argument("folder", type=Path, metavar="DIR", help="folder that gets the files")
        args = parser.parse_args()
        copied = shipped.copy(args.name, args.folder)
        print("\n".join(map(str, copied)))
        return
    parser.add_argument("words", nargs="*", metavar="WORD", help="as coco, resnet50 or G-RCN")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    args = parser.parse_args()
    found = [one for one in shipped.catalogue() if all(word.lower() in _searched(one) for word in args.words)]
    if not found:
        raise errors.ConfigError(f"no config has {' and '.join(map(repr, args.words))}; grcn configs lists all")
    if args.json:
        print(json.dumps(found))
        return
    rows = [("config", "parameters", "strides", "GMAC", "table: row, or purpose")]
    rows += [
        (one["name"], f"{one['parameters']:.2f}", one["strides"], f"{one['gmac']:g}", one["what"]) for one in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, parameters, strides, gmac, what in rows:
        print(f"{name:<{widths[0]}}  {parameters:>{widths[1]}}  {strides:<{widths[2]}}  {gmac:>{widths[3]}}  {what}")


def _searched(entry: dict[str, object]) -> str:
    return f"{entry['name']} {entry['what']}".lower()
