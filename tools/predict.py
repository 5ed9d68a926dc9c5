"""Finds objects in pictures: in a clone, the command ``grcn predict``."""

from grcn import errors
from grcn.commands.predict import main

if __name__ == "__main__":
    errors.main(main)
