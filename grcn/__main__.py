"""Runs a command: ``grcn NAME ...``, or ``python -m grcn NAME ...``."""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from typing import NoReturn

from grcn import __version__, errors

COMMANDS = {
    "demo": "train Faster R-CNN and G-RCN on the built-in images, and compare them",
    "configs": "list the configs that come with grcn, or copy one to edit it",
    "prepare-data": "download a published data set, or split your own",
    "check-data": "list every problem of a data set before a GPU is spent on it",
    "browse": "draw what a model is fed in training",
    "train": "train a detector",
    "eval": "evaluate a checkpoint, or a file of detections, by COCO's and VOC's protocol",
    "predict": "find objects in pictures",
    "export": "write a detector as safetensors with a model card, as a program of torch, or as ONNX",
    "analyze": "see where average precision is lost and how the tasks disagree; compare any detectors",
    "reproduce": "run a table of the paper, or compare configs over seeds",
    "benchmark": "count and time a model beside torchvision's",
    "walkthrough": "explain the method on one picture",
}
HELP = """usage: grcn COMMAND ...

G-RCN: two-stage detectors whose classification and localization read different feature maps.

{commands}

grcn COMMAND --help says more. Settings go behind a command as key=value, as train.lr=0.01:
grcn train --config NAME --print-config shows all of them, the repository's docs/config.md explains them.
"""


def main() -> NoReturn:
    """Runs the command that the first argument names, and exits with its code."""
    errors.main(_run)


def _run() -> int | None:
    if sys.platform == "win32":
        raise errors.EnvironmentFault("Windows has not all that grcn needs; use it in WSL")
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {command:<14}{what}" for command, what in COMMANDS.items())), end="")
        return None
    if name == "--version":
        print(f"grcn {__version__}")
        return None
    if name not in COMMANDS:
        alike = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {alike[0]}?" if alike else "see grcn --help"
        raise errors.ConfigError(f"no such command (got {name!r}); {hint}")
    sys.argv[:2] = [f"grcn {name}"]
    result: int | None = import_module(f"grcn.commands.{name.replace('-', '_')}").main()
    return result


if __name__ == "__main__":
    main()
