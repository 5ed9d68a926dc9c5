"""Many runs as one experiment: a table of the paper, or any configs, over seeds, run, resumed and reported."""
