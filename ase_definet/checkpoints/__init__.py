"""Weights on disk: format, bundled weights, combination."""
