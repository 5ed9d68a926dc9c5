"""Checks a data set before it is trained on: in a clone, the command ``grcn check-data``."""

from grcn import errors
from grcn.commands.check_data import main

if __name__ == "__main__":
    errors.main(main)
