"""Defines the commands: each reads its arguments, makes one call and returns the exit code."""
