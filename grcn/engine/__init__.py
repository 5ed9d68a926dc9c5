"""Training and evaluation of any detector with torchvision's contract; knows no model or config."""
