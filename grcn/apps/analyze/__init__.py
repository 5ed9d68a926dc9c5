"""What a trained detector, or its detections, tell about the two tasks: what `tools/analyze.py` calls."""
