"""Evaluates a detector: in a clone, the command ``grcn eval``."""

from grcn import errors
from grcn.commands.eval import main

if __name__ == "__main__":
    errors.main(main)
