"""Data sets: the packed table, the readers that fill it, and the batches drawn from it."""
