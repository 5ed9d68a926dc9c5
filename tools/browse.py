"""Draws the inputs of training steps: in a clone, the command ``grcn browse``."""

from grcn import errors
from grcn.commands.browse import main

if __name__ == "__main__":
    errors.main(main)
