"""Exports a trained detector: grcn export --checkpoint W --format safetensors|torch|onnx --output-dir DIR

safetensors: a folder that grcn reads again, without pickle, with a model card.
torch: model.pt2, a program of torch.export, which needs torch and torchvision only.
onnx: model.onnx, for ONNX Runtime.
"""

import argparse
import re
from pathlib import Path

from grcn import errors
from grcn.progress import start_logging

FORMATS = ("safetensors", "torch", "onnx")


def main() -> None:
    """Reads the command line and exports."""
    parser = errors.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, type=Path, help="checkpoint, run folder or exported folder")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--output-dir", required=True, type=Path, help="folder for it; made if it does not exist")
    parser.add_argument(
        "--size", metavar="HxW",
        help="torch, onnx: height and width of the picture in pixels (default: the config's short side by its longest)",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="cpu", help="torch: the device that model.pt2 is for, as cuda (default: cpu)"
    )
    args = parser.parse_args()
    start_logging()
    size = _size(args.size)
    if args.format == "safetensors" and size:
        parser.error("argument --size: not allowed with --format safetensors, which takes pictures of any size")
    if args.format != "torch" and args.device != "cpu":
        parser.error("argument --device: only with --format torch")
    from grcn.apps.export.export import export  # imports torch, for seconds

    export(args.checkpoint, args.format, args.output_dir, size, args.device)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None or min(map(int, match.groups())) < 32:
        raise errors.ConfigError(
            f"argument --size: must be HxW, from 32 pixels a side, as 600x1000 (got {text}); fix it"
        )
    return int(match[1]), int(match[2])
