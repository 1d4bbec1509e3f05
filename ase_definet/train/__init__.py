"""Training: packed pairs, the loop, and model cards."""
