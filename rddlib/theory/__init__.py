"""The paper's theory on problems small enough to solve exactly: robust objectives, large deviations, algorithms."""
