"""Finds every problem of a data set before GPU time is spent on it."""
