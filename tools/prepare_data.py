"""Prepares data: in a clone, the command ``grcn prepare-data``."""

from grcn import errors
from grcn.commands.prepare_data import main

if __name__ == "__main__":
    errors.main(main)
