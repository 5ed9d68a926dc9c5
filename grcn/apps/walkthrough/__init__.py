"""Follows one image and one RoI through the model."""
