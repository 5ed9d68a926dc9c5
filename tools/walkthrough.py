"""Walks one picture through a detector: in a clone, the command ``grcn walkthrough``."""

from grcn import errors
from grcn.commands.walkthrough import main

if __name__ == "__main__":
    errors.main(main)
