"""Studies: runs a table of the paper, or any configs, over several seeds, resumes the runs and reports on them."""
