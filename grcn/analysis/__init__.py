"""What a trained detector shows beyond its average precision."""
