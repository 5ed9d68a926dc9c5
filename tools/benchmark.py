"""Measures the cost of a model: in a clone, the command ``grcn benchmark``."""

from grcn import errors
from grcn.commands.benchmark import main

if __name__ == "__main__":
    errors.main(main)
