"""Networks, how they are trained, and their fast layers."""
