"""The built-in data set: drawn when needed, nothing on disk."""
