"""Reproduces a table of the paper, or compares configs: in a clone, the command ``grcn reproduce``."""

from grcn import errors
from grcn.commands.reproduce import main

if __name__ == "__main__":
    errors.main(main)
