"""What a trained detector, or its detections, tell about the two tasks: what `grcn analyze` calls."""
