"""Exports a trained detector: in a clone, the command ``grcn export``."""

from grcn import errors
from grcn.commands.export import main

if __name__ == "__main__":
    errors.main(main)
