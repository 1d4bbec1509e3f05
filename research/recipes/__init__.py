"""Recipes of the bundled weights, and what prepares their data."""
