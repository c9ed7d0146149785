"""KIP: synthetic images as the inducing points of kernel ridge regression."""
