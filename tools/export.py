"""Launches the command ``export``; grcn/commands/export.py says what it does."""

from grcn import errors
from grcn.commands import export

if __name__ == "__main__":
    errors.main(export.main)
