"""Analyses of trained detectors and of their detections, behind ``grcn analyze``."""
