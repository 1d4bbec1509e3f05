"""Experiments behind docs/results.md, one module each; each writes JSON files under research/results."""
