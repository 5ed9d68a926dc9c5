"""Trains a detector: in a clone, the command ``grcn train``."""

from grcn import errors
from grcn.commands.train import main

if __name__ == "__main__":
    errors.main(main)
