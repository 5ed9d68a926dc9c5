"""Trains Faster R-CNN and G-RCN on the built-in images and compares them: in a clone, the command ``grcn demo``."""

from grcn import errors
from grcn.commands.demo import main

if __name__ == "__main__":
    errors.main(main)
