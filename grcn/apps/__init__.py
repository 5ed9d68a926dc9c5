"""One folder per tool. No app imports another, and nothing but the commands imports an app."""
