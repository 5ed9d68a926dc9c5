"""Trains, evaluates and predicts: one run, from a config to its folder."""
