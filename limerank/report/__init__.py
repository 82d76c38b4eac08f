"""Pages to look at: reports of runs, and their plots."""
