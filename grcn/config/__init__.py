"""Reads, checks and writes YAML configs."""
