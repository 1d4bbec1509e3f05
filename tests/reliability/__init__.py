"""Sweeps over random and damaged inputs, with a seed, a count and a table at the end: see docs/reliability.md."""
