"""Looks into a detector: in a clone, the command ``grcn analyze``."""

from grcn import errors
from grcn.commands.analyze import main

if __name__ == "__main__":
    errors.main(main)
