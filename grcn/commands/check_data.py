"""Checks a data set before it is trained on: grcn check-data --config C [--fast] [key=value ...]

Lists every problem of the annotations and images of its splits, and how well the anchors fit; writes check.json and
check.html. Exit code 3 if something would stop a training run, 0 if there are only warnings or none.
"""

import argparse
import json
from pathlib import Path

from grcn import errors
from grcn.config.files import load_config
from grcn.progress import start_logging


def main() -> None:
    """Reads the command line and checks."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="YAML file; its data section says what to check")
    parser.add_argument(
        "--output-dir", type=Path, help="where the report goes (default: runs/<folder of the config>/<config>/check)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the summary")
    parser.add_argument("--fast", action="store_true", help="decode no images; check annotations and some headers")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    args = parser.parse_intermixed_args()
    start_logging()
    cfg = load_config(args.config, args.overrides)
    from grcn.apps.check_data.check import as_text, check_data, raise_errors  # imports torch, for seconds

    folder = args.output_dir or Path("runs") / args.config.resolve().parent.name / args.config.stem / "check"
    report = check_data(cfg, folder, fast=args.fast)
    print(json.dumps(report) if args.json else f"{as_text(report)}; see {folder / 'check.html'}")
    raise_errors(report, folder)
