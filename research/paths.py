"""Where the repository keeps what the modules of this package read and write."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Of the repository."""
DOCS = ROOT / "docs"
RESULTS = ROOT / "research" / "results"
RECIPES = ROOT / "research" / "recipes"
