"""Shows images, boxes, curves and reports to a person."""
