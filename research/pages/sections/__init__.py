"""Sections of docs/results.md, one module each; every figure comes from a file under research/results."""
