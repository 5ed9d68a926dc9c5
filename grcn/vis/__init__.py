"""Draws images, boxes, curves and reports."""
