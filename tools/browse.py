"""Draws what the model is trained on as a contact sheet: python tools/browse.py --config C [--output FILE]
[key=value ...]"""

from pathlib import Path

from grcn import errors
from grcn.browse import browse
from grcn.configfile import load_config


def main() -> None:
    """Reads the command line and draws."""
    parser = errors.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, type=Path, help="YAML file")
    parser.add_argument("--output", type=Path, default=Path("contact_sheet.png"), help="picture to write")
    parser.add_argument("--images", type=int, default=16, help="how many images")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    args = parser.parse_intermixed_args()
    browse(load_config(args.config, args.overrides), args.output, args.images)


if __name__ == "__main__":
    errors.run(main)
