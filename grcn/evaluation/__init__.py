"""Scores packed detections against the annotation table, by the VOC and COCO protocols."""
