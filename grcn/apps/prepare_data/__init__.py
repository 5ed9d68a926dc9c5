"""Downloads, verifies and unpacks public data sets."""
