"""One run, from a config to its folder: training, evaluation, prediction."""
