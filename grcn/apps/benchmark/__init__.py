"""What a model costs in practice: time beside its arithmetic floor and beside torchvision's, waits, memory, data."""
