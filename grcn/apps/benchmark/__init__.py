"""Benchmarks: time beside the arithmetic floor and torchvision's model, device synchronizations, memory, data."""
