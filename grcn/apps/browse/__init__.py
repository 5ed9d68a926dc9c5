"""Draws what the model is fed in training, as a contact sheet."""
