"""Lists the configs that come with grcn, or copies one: in a clone, the command ``grcn configs``."""

from grcn import errors
from grcn.commands.configs import main

if __name__ == "__main__":
    errors.main(main)
