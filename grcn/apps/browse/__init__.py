"""Draws the inputs, anchors and RoIs of training steps as a contact sheet."""
