"""Finds every problem of a data set before a GPU is spent on it."""
