"""Settings in, records out: one run, grids of runs, and the store that keeps them."""
