"""Scores packed detections against the annotation table, by the VOC and the COCO protocol."""
